// The live walk's pictures: two trees, the target's curve, and a table of the target's moves.  Where things stand is
// settled once for a size of the window (`layOut`); `draw` then paints what has changed, on canvases, and so keeps up with the screen.
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

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// -- canvases ------------------------------------------------------------------------------------------------------------

const NAMES_OF_COLOURS = ["paper", "ink", "soft", "line", "up", "down", "up-text", "down-text", "band", "deep", "first", "second"];
let colours; // those of walk.css, light or dark

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = Object.fromEntries(NAMES_OF_COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// The nearest edge of a pixel of the screen: what ends there is sharp, and can be painted over without a trace.
const snap = (x) => Math.round(x * devicePixelRatio) / devicePixelRatio;

// An empty canvas of a size in points, to whole pixels of the screen.
function prepare(canvas, ...size) {
  const pen = canvas.getContext("2d", { alpha: false }), [width, height] = size.map(snap);
  canvas.width = Math.max(1, Math.round(width * devicePixelRatio)); // in a hidden frame there is no room
  canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
  pen.scale(devicePixelRatio, devicePixelRatio);
  fill(pen, "paper", 0, 0, width, height);
  return { canvas, pen, width, height };
}

const sizeOf = (element) => element.getBoundingClientRect(); // clientWidth and offsetHeight are rounded

function fill(pen, colour, ...box) {
  pen.fillStyle = colours[colour];
  pen.fillRect(...box);
}

const fontOf = (size, bold = false) => `${bold ? "bold " : ""}${size}px system-ui, sans-serif`;

function stroke(pen, colour, thick) {
  pen.strokeStyle = colours[colour];
  pen.lineWidth = thick;
  pen.stroke();
}

function print(pen, text, x, y, align = "left", colour = "ink") {
  pen.textAlign = align;
  pen.fillStyle = colours[colour];
  pen.fillText(text, x, y);
}

// -- a tree --------------------------------------------------------------------------------------------------------------

// Where the texts of a card stand, line by line: [what, where from the left in heights of a digit]; −0 is the right edge.
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

const GAPS = [1.3, 1.1, 0.9, 0.7]; // from level to level, in parts of what the cards leave
const trees = []; // the two drawings: where everything stands, and the words on every card
const isSmall = () => matchMedia("(max-width: 959px)").matches; // as in walk.css, in parts of a point

// Where cards, links and texts of all moves stand, for a size of the window and a target; `drawTree` draws them.
function layTree(canvas, room) {
  const { width } = sizeOf(canvas.parentElement), small = isSmall() || width < 530;
  const { widths, reward, lines } = CARDS[small ? "small" : "wide"];
  const font = small ? Math.min(12, width / 29.5) : Math.max(12, Math.min(26, width / 51, room / LEAVES / 1.75));
  const row = small ? 2.1 * font : Math.max(1.75 * font, Math.min(2.5 * font, room / LEAVES));
  const height = row * LEAVES, between = (width - 8 - font * (sum(widths) + reward)) / sum(GAPS);
  const root = { middle: height / 2 }, aims = new Set(movesTo(race.settings.target));
  const parts = { ...prepare(canvas, width, height), font, small, root, thickest: 2.2 * font, moves: [] };
  const gap = Math.ceil(2 * devicePixelRatio) / devicePixelRatio; // between a card and its links
  let end = 8; // of what stands so far
  for (let level = 1; level <= DEPTH; level++) {
    const begin = snap(end) + (level > 1 ? gap : 0), left = snap(end + between * GAPS[level - 1]);
    end += between * GAPS[level - 1] + widths[level - 1] * font;
    const wide = snap(end) - left, tall = snap(lines[level - 1].length * 1.22 * font + 0.3 * font);
    for (let place = 0; place < 2 ** level; place++) {
      const top = snap((height * (place + 0.5)) / 2 ** level - tall / 2), right = left + wide;
      const texts = lines[level - 1].flatMap((line, i) =>
        line.map(([what, at]) => {
          const y = top + font * (1.08 + 1.22 * i), atEnd = Object.is(at, -0);
          const align = atEnd || ["p", "count", "value"].includes(what) ? "right" : "left";
          return { what, x: atEnd ? right - 0.35 * font : left + (at + 0.35) * font, y, align };
        }),
      );
      const move = 2 ** level - 2 + place, parent = level === 1 ? null : (move >> 1) - 1;
      const links = { begin, end: left - gap, middle: top + tall / 2, parent, level };
      parts.moves.push({ texts, left, top, wide, tall, ...links, edge: aims.has(move) ? 3 : 1 });
    }
  }
  fill(parts.pen, "deep", 2, (height - parts.thickest) / 2, 6, parts.thickest);
  for (let leaf = 0; leaf < LEAVES; leaf++) {
    const aim = leaf === race.settings.target, reward = short(rewardOf(leaf, race.settings));
    parts.pen.font = fontOf(font, aim);
    print(parts.pen, aim ? `★ ${reward}` : reward, width - 1, row * (leaf + 0.5) + font * 0.36, "right", aim ? "ink" : "soft");
  }
  return parts;
}

// What stands on a move's card, by the names of the places in CARDS.
function wordsOf(move, p, group) {
  const words = { letter: "LR"[move % 2], p: percent(p[move]) }, hidden = NOT_YET[stage];
  if (!group?.count[move]) return words;
  Object.assign(words, { walks: "|λ|", count: `×${group.count[move]}` });
  for (const name of ["value", "advantage", "push"]) if (!hidden.includes(name)) words[name] = withSign(group[name][move]);
  if (words.push?.length > 5) words.push = withSign(group.push[move], 1); // room for two digits before the point
  if (words.push) words.arrow = "▼·▲"[sign(group.push[move]) + 1];
  if (words.value) words["R̂"] = "R̂";
  if (words.advantage) words["Â"] = "Â";
  return words;
}

function drawCard(pen, font, { left, top, wide, tall, edge, texts, words }) {
  const way = { "▲": "up", "▼": "down" }[words.arrow];
  const out = Math.ceil((edge / 2) * devicePixelRatio) / devicePixelRatio; // all of the edge, nothing of a neighbour's
  fill(pen, "paper", left - out, top - out, wide + 2 * out, tall + 2 * out);
  pen.beginPath();
  pen.roundRect(left, top, wide, tall, 0.3 * font);
  if (way) {
    Object.assign(pen, { fillStyle: colours[way], globalAlpha: 0.18 }).fill();
    pen.globalAlpha = 1;
  }
  stroke(pen, edge > 1 ? "ink" : words.count ? "soft" : "line", edge);
  for (const { what, x, y, align } of texts) {
    if (!words[what]) continue;
    pen.font = fontOf(font, what === "letter");
    print(pen, words[what], x, y, align, way && ["arrow", "push"].includes(what) ? `${way}-text` : words.count ? "ink" : "soft");
  }
}

// A link is as thick as its prefix is likely and leaves its parent's card beside its sister; the dark line in it is the group's share.
// A card is drawn only where its words are others than before: texts are what costs the time.
function drawTree({ pen, height, font, small, root, moves, thickest }, runner) {
  const { group } = runner, p = stage === "updated" ? runner.p : runner.before, reach = new Float64Array(MOVES);
  moves.forEach((part, move) => {
    const { begin, end } = part, bend = (begin + end) / 2;
    const from = moves[part.parent] ?? root, before = reach[part.parent] ?? 1, count = group?.count[move] ?? 0;
    if (move + 2 === 2 ** part.level) {
      pen.restore();
      pen.save();
      pen.beginPath();
      pen.rect(begin, 0, end - begin, height);
      pen.clip(); // a thick band that turns at once is wider than the room between the cards
      fill(pen, "paper", begin, 0, end - begin, height);
    }
    reach[move] = p[move] * before;
    const start = from.middle + (thickest * (move % 2 ? before - reach[move] : reach[move] - before)) / 2;
    pen.beginPath();
    pen.moveTo(begin, start);
    pen.bezierCurveTo(bend, start, bend, part.middle, end, part.middle);
    stroke(pen, "band", Math.max(0.8, thickest * reach[move]));
    if (count) stroke(pen, "deep", Math.max(1.6, (0.45 * thickest * count) / race.settings.k));
  });
  pen.restore();
  moves.forEach((part, move) => {
    const words = wordsOf(move, p, group);
    if (small) words.p = words.p.replace(" ", ""); // there is no room for it beside an R
    const now = Object.values(words).join();
    if (part.now === now) return;
    Object.assign(part, { words, now });
    drawCard(pen, font, part);
  });
}

// -- the curve -----------------------------------------------------------------------------------------------------------

let plot; // the curve's canvas, and the ground on which the curves are drawn

function layCurve() {
  const small = isSmall(), { width } = sizeOf($("curve").parentElement), height = small ? 190 : innerHeight < 900 ? 150 : 205;
  const font = small ? 13 : Math.max(13, Math.min(20, width / 42));
  const bottom = height - 1.6 * font, y = (share) => bottom - (bottom - 0.7 * font) * share;
  const ground = prepare(document.createElement("canvas"), width, height);
  plot = { ...prepare($("curve"), width, height), ground, font, left: 2.2 * font, right: width - 6.2 * font, y };
}

const COLOURS_OF_CURVES = ["first", "second"]; // the second policy has dashes and square points

function line(pen, i, curve, every, x, thick, dashes) {
  pen.setLineDash(i ? dashes : []);
  pen.lineJoin = "round";
  pen.beginPath();
  for (let step = 0; step < curve.length; step += every) pen.lineTo(x(step), plot.y(curve[step]));
  pen.lineTo(x(curve.length - 1), plot.y(curve.at(-1)));
  stroke(pen, COLOURS_OF_CURVES[i], thick);
  pen.setLineDash([]);
}

// Axes, the curves of earlier seeds, and each policy's share of hits in its groups: what a step adds is added.
function drawGround(last, every, x) {
  const { ground: { pen }, width, height, font, left, right, y } = plot;
  const key = [last, every, earlier.length, earlier.at(-1)?.seed].join();
  if (plot.key !== key) {
    Object.assign(plot, { key, dots: 0 });
    pen.globalAlpha = 1;
    fill(pen, "paper", 0, 0, width, height);
    pen.font = fontOf(font);
    for (const part of [0, 0.5, 1]) {
      fill(pen, part ? "line" : "soft", left, y(part) - 0.5, right - left, 1);
      print(pen, String(part), left - 6, y(part) + font * 0.35, "right");
      print(pen, String(last * part), left + (right - left) * part, height - 0.3 * font, "center");
    }
    print(pen, "steps", right + 3 * font, height - 0.3 * font, "left", "soft");
    pen.globalAlpha = 0.4;
    for (const i of [0, 1]) for (const run of earlier.slice(-DRAWN)) line(pen, i, run.curves[i], 5, x, 1, [5, 4]);
  }
  for (; plot.dots < race.runners[0].drawn.length; plot.dots += every)
    race.runners.forEach(({ drawn }, i) => {
      pen.beginPath();
      if (i) pen.rect(x(plot.dots) - 2.5, y(drawn[plot.dots]) - 2.5, 5, 5);
      else pen.arc(x(plot.dots), y(drawn[plot.dots]), 2.5, 0, 2 * Math.PI);
      pen.fillStyle = colours[COLOURS_OF_CURVES[i]];
      pen.fill();
    });
}

function drawCurve() {
  const { pen, ground, width, height, font, left, right, y } = plot;
  const last = SCALES.find((end) => race.step <= end && (end >= 250 || !earlier.length)) ?? Math.ceil(race.step / 1000) * 1000;
  const every = Math.ceil(Math.max(race.step, 1) / 500); // of many steps not each is drawn
  const x = (step) => left + ((right - left) * step) / last;
  drawGround(last, every, x);
  pen.drawImage(ground.canvas, 0, 0, width, height);
  race.runners.forEach(({ curve }, i) => line(pen, i, curve, every, x, 3.5, [11, 6]));
  // The names stand at the ends of the curves, one above the other where these are close.
  const ends = race.runners.map(({ curve }) => Math.min(y(0) - font * 0.2, Math.max(y(1) + font * 0.7, y(curve.at(-1)) + font * 0.35)));
  const [upper, lower] = ends[0] <= ends[1] ? [0, 1] : [1, 0];
  if (ends[lower] - ends[upper] < 1.15 * font) {
    ends[lower] = Math.min(ends[upper] + 1.15 * font, y(0));
    ends[upper] = ends[lower] - 1.15 * font;
  }
  pen.font = fontOf(font);
  race.runners.forEach(({ alpha }, i) => print(pen, briefly(alpha), x(race.step) + 8, ends[i]));
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
  readColours();
  const mains = document.querySelector("main"), reading = $("reading");
  const extra = reading.clientHeight - reading.firstElementChild.clientHeight; // opened, it may be scrolled to
  race.runners.forEach((runner, i) => layTable($(`path${i}`), runner));
  layCurve();
  const heading = sizeOf(mains.querySelector("h2")).height;
  const others = sizeOf(document.body).height - sizeOf(mains).height + heading - extra;
  for (const i of [0, 1]) trees[i] = layTree($(`tree${i}`), innerHeight - others - 12);
  draw();
}

const STATES = { found: "has found it", lost: "has lost it", searching: "is searching" };

let told; // the earlier runs of which the tally tells

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
  plot.canvas.setAttribute("aria-label", `Probability of the target after ${plural(race.step, "step")}: ${race.runners.map(say).join(", ")}.`);
  write($("counter"), `Seed ${race.settings.seed}, step ${race.step}`);
  if (told !== earlier) write($("tally"), earlier.length ? tallied() : ""); // after weeks they are many
  told = earlier;
}
