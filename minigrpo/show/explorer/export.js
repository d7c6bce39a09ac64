// The explorer's tree as an SVG file: what is seen of it, in light colours, with text as text.
//
// The browser has laid the tree out already, so its boxes, bars and texts are measured and written down as shapes.
"use strict";

const MARGIN = 20; // pixels around everything

function svg(tag, attributes, ...children) {
  const element = document.createElementNS($("blank").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, typeof value === "number" ? Number(value.toFixed(2)) : value);
  }
  element.append(...children);
  return element;
}

// A computed colour, "rgb(1, 2, 3)" or "color(srgb 0.1 0.2 0.3 / 0.4)", as SVG 1.1 has it.   kind: fill or stroke
function paint(kind, colour) {
  const [r, g, b, alpha = 1] = colour.match(/\d[\d.]*(e-?\d+)?/g).map(Number);
  const hex = (x) => Math.round(colour.startsWith("color(") ? 255 * x : x).toString(16).padStart(2, "0");
  return { [kind]: alpha ? `#${hex(r)}${hex(g)}${hex(b)}` : "none", ...(alpha < 1 && alpha && { [`${kind}-opacity`]: alpha }) };
}

// Lines of 45° within a rectangle: λ-GRPO's bars.
function hatching({ x, y, width: w, height: h }) {
  const lines = [];
  for (let c = 2; c < w + h; c += 4) {
    const [from, to] = [[Math.max(0, c - h), Math.min(h, c)], [Math.min(w, c), Math.max(0, c - w)]];
    lines.push(`M${(x + from[0]).toFixed(1)} ${(y + from[1]).toFixed(1)}L${(x + to[0]).toFixed(1)} ${(y + to[1]).toFixed(1)}`);
  }
  return lines.join("");
}

// The shapes of an element: its box or line, then its texts.   at: from a rectangle on the screen to one in the file
function shapesOf(element, at) {
  const style = getComputedStyle(element);
  if (style.visibility !== "visible" || !element.getClientRects().length) return [];
  const box = at(element.getBoundingClientRect());
  const out = [];
  const rect = (place, more) => out.push(svg("rect", { ...place, ...more }));
  const striped = (place, colour) => {
    rect(place, { fill: "none", ...paint("stroke", colour) });
    out.push(svg("path", { d: hatching(place), fill: "none", ...paint("stroke", colour) }));
  };
  const line = (x1, y, x2, more) => out.push(svg("line", { x1, y1: y, x2, y2: y, ...more }));
  const middle = box.y + box.height / 2;
  if (element.matches(".step, .token, .swatch:not(.bar)")) {
    const border = element.matches(".token") ? {} : paint("stroke", style.borderTopColor);
    rect(box, { rx: element.matches(".step") ? 6 : 3, ...paint("fill", style.backgroundColor), ...border });
    if (style.borderTopStyle === "dashed") out.at(-1).setAttribute("stroke-dasharray", "4 3");
  } else if (element.matches(".bar.lambda")) striped(box, style.color);
  else if (element.matches(".bar.before")) rect(box, { fill: "#ffffff", ...paint("stroke", style.color) });
  else if (element.matches(".bar")) rect(box, paint("fill", style.color));
  else if (element.matches(".bars:not(.chances)")) line(box.x, middle, box.x + box.width, paint("stroke", style.color));
  else if (element.matches(".leader")) {
    const dots = { "stroke-width": 2, "stroke-dasharray": "2 3" };
    line(box.x, middle, box.x + box.width, { ...paint("stroke", style.borderTopColor), ...dots });
  } else if (element.matches(".grpo, .lambda")) {
    const size = parseFloat(style.fontSize); // the sign before a number
    const place = { x: box.x, y: middle - 0.35 * size, width: 0.5 * size, height: 0.7 * size };
    if (element.matches(".grpo")) rect(place, paint("fill", style.color));
    else striped(place, style.color);
  }
  const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...out, ...texts.map((node) => textOf(node, style, at))];
}

const ruler = document.createElement("canvas").getContext("2d");

function textOf(node, style, at) {
  const range = document.createRange();
  range.selectNodeContents(node);
  const { x, y, width, height } = at(range.getBoundingClientRect());
  const size = parseFloat(style.fontSize);
  const font = { "font-size": size, "font-family": style.fontFamily.replaceAll('"', "'"), ...paint("fill", style.color) };
  if (Number(style.fontWeight) > 400) font["font-weight"] = style.fontWeight;
  const text = node.data.replace(/[ \n]+/g, " ").replace(/^ | $/g, "");
  if (style.writingMode !== "horizontal-tb") {
    const [baseline, end] = [x + width / 2 + 0.35 * size, y + height]; // read from below
    return svg("text", { transform: `translate(${baseline.toFixed(1)} ${end.toFixed(1)}) rotate(-90)`, ...font }, text);
  }
  ruler.font = `${style.fontWeight} ${size}px ${style.fontFamily}`;
  const { fontBoundingBoxAscent: ascent, fontBoundingBoxDescent: descent } = ruler.measureText(text);
  return svg("text", { x, y: y + (height + ascent - descent) / 2, ...font }, text);
}

// The tree as it is revealed and folded, below a title and the key of its colours.   -> the text of an SVG file
function treeAsSvg() {
  const page = document.documentElement;
  page.classList.remove("projector");
  page.classList.add("export"); // light colours, fonts that other programs have too, nothing that sticks
  $("tree").style.setProperty("--zoom", 1);
  const key = $("key");
  const tree = $("tree").firstElementChild;
  const shapes = [];
  let [width, top] = [0, MARGIN + 44];
  for (const part of [key, tree]) {
    const corner = part.getBoundingClientRect();
    const at = (box) => ({ x: MARGIN + box.x - corner.x, y: top + box.y - corner.y, width: box.width, height: box.height });
    for (const element of [part, ...part.querySelectorAll("*")]) shapes.push(...shapesOf(element, at));
    const right = Math.max(...[...part.querySelectorAll("*")].map((element) => element.getBoundingClientRect().right));
    width = Math.max(width, right - corner.x);
    top += corner.height + 12;
  }
  const fonts = { "font-family": getComputedStyle(tree).fontFamily.replaceAll('"', "'"), fill: "#1c1c1c" };
  page.classList.remove("export");
  layOut();

  const [w, h] = [Math.ceil(width + 2 * MARGIN), Math.ceil(top + MARGIN - 12)];
  const title = groupName();
  const file = svg(
    "svg",
    { width: w, height: h, viewBox: `0 0 ${w} ${h}` },
    svg("title", {}, title),
    svg("desc", {}, [sizes(current), ...statement(current, view.reveal)].join(" ")),
    svg("rect", { width: w, height: h, fill: "#ffffff" }),
    svg("text", { x: MARGIN, y: MARGIN + 20, "font-size": 20, "font-weight": 600, ...fonts }, title),
    ...shapes,
  );
  return new XMLSerializer().serializeToString(file);
}

const groupName = () => choices[view.chosen]?.name ?? `A group of ${current.paths.length} completions`;

function download() {
  const url = URL.createObjectURL(new Blob([treeAsSvg()], { type: "image/svg+xml" }));
  make("a", { href: url, download: "tree.svg" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
