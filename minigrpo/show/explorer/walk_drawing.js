// The live walk's pictures: two trees, the target's curve, and a table of the target's moves.  Whatever keeps its place is made once
// for a size of the window (`layOut`); `draw` then changes texts, widths and lines, so that it keeps up with the screen.
"use strict";

const $ = (id) => document.getElementById(id);
const NOT_YET = { sampled: ["value", "advantage", "push"], values: ["push"], pushes: [], updated: [] }; // by the stage of a step
const SCALES = [50, 100, 250, 500, 1000]; // ends of the curve's axis; then every thousand

const path = (leaf) => lettersOf(leaf).join("");
const digits = (x, n) => x.toFixed(n).replace("-", "−").replace(/^−(0\.?0*)$/, "$1");
const withSign = (x, n = 2) => (Number(x.toFixed(n)) > 0 ? "+" : "") + digits(x, n);
const short = (x) => withSign(x).replace(/\.?0+$/, "");
const nameOf = (alpha) => (alpha === 0 ? "GRPO" : alpha === 1 ? "λ-GRPO" : `weights |λ|^−${Number(alpha.toFixed(3))}`);
const briefly = (alpha) => nameOf(alpha).replace("weights ", "");
// Only what is 1 is printed as 100 %, only what is 0 as 0 %; near them there is a digit more.
const percent = (x) => {
  if (x === 0 || x === 1) return `${100 * x} %`;
  return x < 0.0005 ? "<0.1 %" : `${digits(100 * Math.min(x, 0.999), x < 0.0995 || x > 0.9905 ? 1 : 0)} %`;
};

const SVG = "http://www.w3.org/2000/svg";
function add(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// -- a tree --------------------------------------------------------------------------------------------------------------

// Where the texts of a card stand, line by line: [what, where from the left in widths of a digit's height]; a negative place is one
// from the right, and what is no number of a move is printed as it is.
const UPRIGHT = [
  [["letter", 0], ["p", -0]],
  [["walks", 0], ["count", -0]],
  [["R̂", 0], ["value", -0]],
  [["Â", 0], ["advantage", -0]],
  [["arrow", 0], ["push", -0]],
];
const FLAT = [["letter", 0], ["p", 4.6], ["count", 6.85], ["arrow", 7.2], ["push", -0]];
const CARDS = {
  wide: { widths: [5.7, 5.7, 12.1, 12.1], reward: 3.3, lines: [UPRIGHT, UPRIGHT, [FLAT, [["R̂", 0], ["value", 4.6], ["Â", 7.2], ["advantage", -0]]], [FLAT]] },
  small: {
    widths: [5.1, 5.1, 5.1, 8.1],
    reward: 3.1,
    lines: [UPRIGHT, UPRIGHT, [UPRIGHT[0], [["arrow", 0], ["count", -0]]], [[["letter", 0], ["p", 4.3], ["count", 6.5], ["arrow", -0]]]],
  },
};

const trees = []; // what changes from step to step in each of the two drawings
const isSmall = () => innerWidth < 960;

// Cards and links of all moves, for a size of the window and a target; `drawTree` fills them in.
function layTree(svg, room) {
  const width = svg.parentElement.clientWidth, { widths, reward, lines } = CARDS[isSmall() ? "small" : "wide"];
  const font = isSmall() ? Math.min(12, width / 29.5) : Math.max(12, Math.min(26, width / 51, room / LEAVES / 1.75));
  const row = isSmall() ? 2.1 * font : Math.max(1.75 * font, Math.min(2.5 * font, room / LEAVES));
  const height = row * LEAVES, between = (width - 8 - font * (sum(widths) + reward)) / sum([1.3, 1.1, 0.9, 0.7]);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("font-size", font);
  svg.replaceChildren();
  const links = add(svg, "g"), cards = add(svg, "g");
  const aims = new Set(movesTo(race.settings.target));
  const parts = { svg, moves: [], root: { right: 8, middle: height / 2 }, thickest: 2.2 * font };
  add(svg, "rect", { class: "root", x: 2, y: height / 2 - parts.thickest / 2, width: 6, height: parts.thickest, rx: 2 });
  let left = 8;
  for (let level = 1; level <= DEPTH; level++) {
    left += between * [1.3, 1.1, 0.9, 0.7][level - 1];
    const wide = widths[level - 1] * font;
    for (let place = 0; place < 2 ** level; place++) {
      const move = 2 ** level - 2 + place, middle = (height * (place + 0.5)) / 2 ** level;
      const aim = aims.has(move) ? " aim" : "", tall = lines[level - 1].length * 1.22 * font + 0.3 * font;
      const link = add(links, "path", { class: `link${aim}` }), drawn = add(links, "path", { class: `drawn${aim}` });
      const card = add(cards, "g", { class: aim.trim() });
      add(card, "rect", { x: left, y: middle - tall / 2, width: wide, height: tall, rx: 0.3 * font });
      const texts = {};
      lines[level - 1].forEach((line, i) =>
        line.forEach(([what, at]) => {
          const y = middle - tall / 2 + font * (1.08 + 1.22 * i), atEnd = Object.is(at, -0);
          const fromRight = atEnd || ["p", "count", "value"].includes(what);
          const x = atEnd ? left + wide - 0.35 * font : left + (at + 0.35) * font;
          const text = add(card, "text", { x, y, class: what, ...(fromRight ? { "text-anchor": "end" } : {}) });
          if (what === "letter") text.textContent = "LR"[place % 2];
          (texts[what] ??= []).push(text);
        }),
      );
      parts.moves.push({ link, drawn, card, texts, aim, left, middle, right: left + wide, parent: level === 1 ? null : (move >> 1) - 1 });
    }
    left += wide;
  }
  for (let leaf = 0; leaf < LEAVES; leaf++) {
    const aim = leaf === race.settings.target, y = row * (leaf + 0.5) + font * 0.36;
    const at = { x: width - 1, y, "text-anchor": "end", class: aim ? "letter" : "soft" };
    add(svg, "text", at, `${aim ? "★ " : ""}${short(rewardOf(leaf, race.settings))}`);
  }
  return parts;
}

// A link is as thick as its prefix is likely and leaves its parent's card beside its sister; the dark line in it is the group's share.
function drawTree({ moves, root, thickest }, runner) {
  const p = stage === "updated" ? runner.p : runner.before, { group } = runner;
  const reach = new Float64Array(MOVES), hidden = NOT_YET[stage];
  moves.forEach((part, move) => {
    const from = part.parent === null ? root : moves[part.parent], whole = part.parent === null ? 1 : reach[part.parent];
    reach[move] = p[move] * whole;
    const start = from.middle + (thickest * (move % 2 ? whole - reach[move] : reach[move] - whole)) / 2;
    const bend = (from.right + part.left) / 2;
    const d = `M${from.right} ${start.toFixed(2)}C${bend} ${start.toFixed(2)} ${bend} ${part.middle} ${part.left} ${part.middle}`;
    part.link.setAttribute("d", d);
    part.link.setAttribute("stroke-width", Math.max(0.8, thickest * reach[move]).toFixed(2));
    const count = group ? group.count[move] : 0;
    const share = count ? Math.max(1.6, (0.45 * thickest * count) / race.settings.k) : 0;
    part.drawn.setAttribute("d", count ? d : "");
    part.drawn.setAttribute("stroke-width", share.toFixed(2));
    const push = count && !hidden.includes("push") ? sign(group.push[move]) : 0;
    part.card.setAttribute("class", `${part.aim} ${count ? "visited" : ""} ${["down", "", "up"][push + 1]}`);
    const shown = {
      p: percent(p[move]),
      walks: count ? "|λ|" : "",
      count: count ? `×${count}` : "",
      arrow: count && !hidden.includes("push") ? "▼·▲"[push + 1] : "",
    };
    for (const name of ["value", "advantage", "push"]) shown[name] = count && !hidden.includes(name) ? withSign(group[name][move]) : "";
    if (shown.push.length > 5) shown.push = withSign(group.push[move], 1); // room for two digits before the point
    shown["R̂"] = shown.value && "R̂";
    shown["Â"] = shown.advantage && "Â";
    for (const [name, text] of Object.entries(shown)) for (const element of part.texts[name] ?? []) write(element, text);
  });
}

// -- the curve -----------------------------------------------------------------------------------------------------------

let plot; // its lines and texts, and the places of step and share

function layCurve() {
  const svg = $("curve"), small = isSmall(), width = svg.parentElement.clientWidth;
  const height = small ? 190 : innerHeight < 900 ? 150 : 205;
  const font = small ? 13 : Math.max(13, Math.min(20, width / 42));
  const [left, right, top, bottom] = [2.2 * font, 6.2 * font, 0.7 * font, 1.5 * font];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("font-size", font);
  svg.replaceChildren();
  const y = (share) => top + (height - top - bottom) * (1 - share);
  for (const share of [0, 0.5, 1]) {
    add(svg, "line", { class: share ? "grid" : "axis", x1: left, x2: width - right, y1: y(share), y2: y(share) });
    add(svg, "text", { x: left - 6, y: y(share) + font * 0.35, "text-anchor": "end" }, String(share));
  }
  const ticks = [0, 0.5, 1].map((at) => add(svg, "text", { x: left + (width - left - right) * at, y: height - 3, "text-anchor": "middle" }));
  add(svg, "text", { x: width - right + 3 * font, y: height - 3, class: "soft" }, "steps");
  const each = (make) => ["first", "second"].map(make);
  plot = {
    svg, width, height, font, left, right, top, bottom, y, ticks,
    past: each((which) => add(svg, "path", { class: `past ${which}` })),
    dots: each((which) => add(svg, "path", { class: `dots ${which}` })),
    lines: each((which) => add(svg, "polyline", { class: `line ${which}` })),
    names: each((which) => add(svg, "text", { class: "name" })),
  };
}

const atMost = (values, n) => {
  const every = Math.ceil(values.length / n);
  return values.map((value, step) => [step, value]).filter(([step]) => step % every === 0 || step === values.length - 1);
};

function drawCurve() {
  const { svg, width, height, font, left, right, top, bottom, y, ticks, past, dots, lines, names } = plot;
  const last = SCALES.find((end) => race.step <= end && (end >= 250 || !earlier.length)) ?? Math.ceil(race.step / 1000) * 1000;
  const x = (step) => left + ((width - left - right) * step) / last;
  ticks.forEach((tick, i) => write(tick, String((last * i) / 2)));
  // The names stand at the ends of the curves, one above the other where these are close.
  const ends = race.runners.map((runner) => Math.min(height - bottom - font * 0.2, Math.max(top + font * 0.7, y(runner.curve.at(-1)) + font * 0.35)));
  const [upper, lower] = ends[0] <= ends[1] ? [0, 1] : [1, 0];
  if (ends[lower] - ends[upper] < 1.15 * font) {
    ends[lower] = Math.min(ends[upper] + 1.15 * font, height - bottom);
    ends[upper] = ends[lower] - 1.15 * font;
  }
  const point = ([step, share]) => `${x(step).toFixed(1)} ${y(share).toFixed(1)}`;
  race.runners.forEach((runner, i) => {
    lines[i].setAttribute("points", atMost(runner.curve, 500).map(point).join(" "));
    dots[i].setAttribute("d", atMost(runner.drawn, 250).map((at) => `M${point(at)}h0`).join(""));
    const key = `${earlier.length} ${earlier.at(-1)?.seed} ${last} ${width}`; // the curves of earlier seeds change seldom
    if (past[i].dataset.key !== key) {
      const curves = earlier.slice(-DRAWN).map((run) => atMost(run.curves[i], 50).map(point).join("L"));
      past[i].setAttribute("d", curves.map((curve) => `M${curve}`).join(""));
      past[i].dataset.key = key;
    }
    write(names[i], briefly(runner.alpha));
    names[i].setAttribute("x", x(race.step) + 8);
    names[i].setAttribute("y", ends[i]);
  });
}

// -- the table and the whole ---------------------------------------------------------------------------------------------

const COLUMNS = ["p", "|λ|", "R̂", "Â", "push", "new p"];

function layTable(body, runner) {
  const rows = Array.from({ length: DEPTH + 1 }, () => document.createElement("tr"));
  rows.forEach((row, i) => {
    const head = document.createElement("th");
    head.textContent = i ? path(race.settings.target).slice(0, i) : briefly(runner.alpha);
    head.scope = i ? "row" : "col";
    row.append(head);
    for (const name of COLUMNS) row.append(Object.assign(document.createElement(i ? "td" : "th"), { textContent: i ? "" : name }));
  });
  body.replaceChildren(...rows);
}

// The target's moves in the last group: before the update, what the group says, and after it.
function drawTable(body, runner) {
  const { group } = runner, hidden = NOT_YET[stage];
  movesTo(race.settings.target).forEach((move, level) => {
    const cells = body.rows[level + 1].cells, seen = group && group.count[move] > 0;
    write(cells[1], digits(runner.before[move], 3));
    write(cells[2], group ? String(group.count[move]) : "–");
    ["value", "advantage", "push"].forEach((name, i) => write(cells[i + 3], seen && !hidden.includes(name) ? withSign(group[name][move]) : "–"));
    cells[5].className = seen && !hidden.includes("push") ? ["down", "", "up"][sign(group.push[move]) + 1] : "";
    write(cells[6], group && stage === "updated" ? digits(runner.p[move], 3) : "–");
  });
}

function layOut() {
  const mains = document.querySelector("main"), reading = $("reading");
  const extra = reading.clientHeight - reading.firstElementChild.clientHeight; // opened, it may be scrolled to
  race.runners.forEach((runner, i) => layTable($(`path${i}`), runner));
  layCurve();
  const heading = mains.querySelector("h2").offsetHeight;
  const others = document.body.offsetHeight - mains.offsetHeight + heading - extra;
  for (const i of [0, 1]) trees[i] = layTree($(`tree${i}`), innerHeight - others - 12);
  draw();
}

const STATES = { found: "has found it", lost: "has lost it", searching: "is searching" };

function draw() {
  race.runners.forEach((runner, i) => {
    drawTree(trees[i], runner);
    const dead = runner.group?.advantages.every((a) => a === 0) ? "; all rewards equal: no push" : "";
    const words = `${briefly(runner.alpha)}: target ${percent(runner.curve.at(-1))}`;
    write($(`name${i}`), `${words} · ${STATES[outcome(runner, race.settings)]}${dead}`);
    $(`tree${i}`).setAttribute("aria-label", `The tree of ${words}`);
    drawTable($(`path${i}`), runner);
  });
  drawCurve();
  const say = (runner) => `${nameOf(runner.alpha)} ${percent(runner.curve.at(-1))}`;
  plot.svg.setAttribute("aria-label", `Probability of the target after ${race.step} steps: ${race.runners.map(say).join(", ")}.`);
  write($("counter"), `Seed ${race.settings.seed}, step ${race.step}`);
  write($("tally"), earlier.length ? tallied() : "");
}
