// The live walk's page: controls, two trees, the target's curve and the numbers of its moves.  The numbers come from
// walk_mathematics.js.  Settings and the step stand in the address after #, so that a link shows the same run.
"use strict";

const $ = (id) => document.getElementById(id);
const STARTS = { "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16, "1/64": 1 / 64, "1/256": 1 / 256 };
const USUAL = { target: 15, n: 1, rNeg: -1, k: 16, rate: 10, alpha: 1, seed: 0, start: 1 / 16 };
const PRESETS = [
  { name: "the paper’s walk, rate 10", rate: 10 },
  { name: "a large rate, 30", rate: 30 },
  { name: "a small rate, 1", rate: 1 },
  { name: "n = 2, rate 10", n: 2 },
  { name: "common target: GRPO is ahead", start: 1 / 4, rate: 0.3 },
  { name: "twice GRPO (α = 0)", alpha: 0 },
];
const LIMITS = { k: [2, 64, true], rate: [0.01, 1000], alpha: [0, 2], seed: [0, 2 ** 32 - 1, true], rNeg: [-5, 0.6] };
const LABELS = { k: "k", rate: "the rate", alpha: "α", seed: "the seed", rNeg: "r_neg" };
const MOST_STEPS = 100000; // a link does not make a browser compute for minutes
const SPEEDS = [1, 3, 10, 30, 60, 300]; // steps a second; beyond 60 several a frame
const STAGES = ["sampled", "values", "pushes", "updated"]; // of a step in slow motion

let race; // the two policies
let stage = "updated";
let running = false;

const path = (leaf) => lettersOf(leaf).join("");
const digits = (x, n) => x.toFixed(n).replace("-", "−").replace(/^−(0\.?0*)$/, "$1");
const withSign = (x, n = 2) => (Number(x.toFixed(n)) > 0 ? "+" : "") + digits(x, n);
const percent = (x) => (x > 0.9995 && x < 1 ? ">99.9 %" : `${digits(100 * x, x < 0.0995 ? 1 : 0)} %`);
const nameOf = (alpha) => (alpha === 0 ? "GRPO" : alpha === 1 ? "λ-GRPO" : `weights |λ|^−${alpha}`);

// -- drawing -------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
function add(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

const trees = []; // what changes from step to step in each of the two drawings

// Bands and boxes of all moves, once for a size of the window and a target; `drawTree` fills them in.
function layTree(svg, small) {
  const width = svg.parentElement.clientWidth;
  const rows = small ? 30 : Math.max(32, Math.min(46, Math.floor((innerHeight - 505) / LEAVES)));
  const [height, font, last] = [rows * LEAVES, small ? 12 : 18, small ? 40 : 76];
  const columns = small ? [0.23, 0.25, 0.26, 0.26] : [0.22, 0.23, 0.27, 0.28];
  const inset = small ? [3, 6] : [10, 22]; // of a box in its column: at the left, in all
  const left = columns.map((_, i) => 14 + (width - last - 14) * columns.slice(0, i).reduce((a, b) => a + b, 0));
  const wide = columns.map((share) => (width - last - 14) * share);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const aims = new Set(movesTo(race.settings.target));
  const bands = add(svg, "g");
  const parts = { thickest: 3.2 * font, moves: [] };
  const middle = (level, place) => (height * (place + 0.5)) / 2 ** level;
  for (let level = 1; level <= DEPTH; level++) {
    for (let place = 0; place < 2 ** level; place++) {
      const move = 2 ** level - 2 + place;
      const [x, y] = [left[level - 1], middle(level, place)];
      const from = level === 1 ? [0, height / 2] : [left[level - 2] + wide[level - 2] * 0.12, middle(level - 1, place >> 1)];
      const bend = (from[0] + x) / 2 + 8;
      const d = `M ${from[0]} ${from[1]} C ${bend} ${from[1]}, ${bend} ${y}, ${x + 8} ${y} h ${wide[level - 1] - 8}`;
      const aim = aims.has(move) ? " aim" : "";
      const band = add(bands, "path", { class: `band${aim}`, d });
      const group = add(svg, "g", { class: aim.trim() });
      const lines = small || level === DEPTH ? 1 : level === DEPTH - 1 ? (rows >= 33 ? 3 : 2) : 4;
      const tall = lines * font * 1.2 + 5;
      const box = { x: x + inset[0], y: y - tall / 2, width: wide[level - 1] - inset[1], height: tall };
      add(group, "rect", { class: "back", rx: 5, ...box });
      const texts = Array.from({ length: lines }, (_, i) =>
        add(group, "text", { x: box.x + inset[0] / 2, y: box.y + font * (1.06 + 1.2 * i), "font-size": font }),
      );
      parts.moves.push({ band, group, lines: texts, letter: "LR"[place % 2], level });
    }
  }
  for (let leaf = 0; leaf < LEAVES; leaf++) {
    const r = rewardOf(leaf, race.settings);
    const aim = leaf === race.settings.target;
    const at = { x: width - 4, y: middle(DEPTH, leaf) + font * 0.36, "text-anchor": "end", "font-size": font };
    add(svg, "text", { ...at, class: aim ? "move" : "soft" }, `${aim ? "★ " : ""}${withSign(r, 2).replace(/\.?0+$/, "")}`);
  }
  return parts;
}

function piece(line, words, name) {
  const part = add(line, "tspan", name ? { class: name } : {});
  part.textContent = words;
}

function drawTree(parts, runner, small) {
  const p = stage === "updated" ? runner.p : runner.before;
  const reach = new Float64Array(MOVES);
  const { group } = runner;
  parts.moves.forEach(({ band, group: g, lines, letter, level }, move) => {
    reach[move] = p[move] * (level === 1 ? 1 : reach[(move >> 1) - 1]);
    band.setAttribute("stroke-width", Math.max(0.6, parts.thickest * reach[move]).toFixed(2));
    const count = group ? group.count[move] : 0;
    g.setAttribute("class", `${g.classList.contains("aim") ? "aim " : ""}${count ? "visited" : "unvisited"}`);
    lines.forEach((line) => line.replaceChildren());
    piece(lines[0], `${letter} `, "move");
    piece(lines[0], percent(p[move]));
    if (!count) return;
    const [value, advantage, push] = [group.value[move], group.advantage[move], group.push[move]];
    const arrow = Math.abs(push) < 1e-9 ? ["· ", ""] : push > 0 ? ["▲ ", " up"] : ["▼ ", " down"];
    const pushed = (line, short) => piece(line, `${short ? arrow[0].trim() : arrow[0] + withSign(push)}`, `pushed${arrow[1]}`);
    if (lines.length === 1) {
      piece(lines[0], small ? ` ×${count}` : `  ×${count}  `, "sampled");
      pushed(lines[0], small);
    } else if (lines.length === 4) {
      piece(lines[1], `×${count}  R̂ ${withSign(value)}`, "judged");
      piece(lines[2], `Â ${withSign(advantage)}`, "judged");
      piece(lines[3], "push ", "soft pushed");
      pushed(lines[3]);
    } else {
      piece(lines[0], ` ×${count}`, "sampled");
      piece(lines[1], `R̂ ${withSign(value)} Â ${withSign(advantage)}`, "judged");
      const line = lines[2] ?? lines[0];
      piece(line, lines[2] ? "push " : "  ", "soft pushed");
      pushed(line);
    }
  });
}

function drawCurve(small) {
  const svg = $("curve"), [width, height] = [svg.parentElement.clientWidth, small ? 190 : 205], font = small ? 13 : 18;
  const [left, right, top, bottom] = [3.1 * font, 6.6 * font, 8, 1.7 * font];
  const last = Math.max(50, Math.ceil(race.step / 50) * 50);
  const x = (step) => left + ((width - left - right) * step) / last;
  const y = (share) => top + (height - top - bottom) * (1 - share);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  for (const share of [0, 0.5, 1]) {
    add(svg, "line", { class: share ? "grid" : "axis", x1: left, x2: width - right, y1: y(share), y2: y(share) });
    const at = { x: left - 6, y: y(share) + font * 0.35, "text-anchor": "end", "font-size": font };
    add(svg, "text", at, share === 0.5 ? "0.5" : String(share));
  }
  for (const step of [0, last / 2, last]) {
    add(svg, "text", { x: x(step), y: height - 3, "text-anchor": "middle", "font-size": font }, String(step));
  }
  add(svg, "text", { x: (x(last / 2) + x(last)) / 2, y: height - 3, "text-anchor": "middle", "font-size": font, class: "soft" }, "steps");
  // The names stand at the ends of the curves, one above the other where these are close.
  const ends = race.runners.map((runner) => Math.min(height - bottom - font * 0.3, Math.max(top + font * 0.7, y(runner.curve.at(-1)) + font * 0.35)));
  const [upper, lower] = ends[0] <= ends[1] ? [0, 1] : [1, 0];
  if (ends[lower] - ends[upper] < 1.15 * font) {
    ends[lower] = Math.min(ends[upper] + 1.15 * font, height - bottom);
    ends[upper] = ends[lower] - 1.15 * font;
  }
  race.runners.forEach((runner, i) => {
    const every = Math.ceil(runner.curve.length / 600);
    const points = runner.curve.flatMap((share, step) =>
      step % every && step < runner.curve.length - 1 ? [] : [`${x(step).toFixed(1)},${y(share).toFixed(1)}`],
    );
    add(svg, "polyline", { class: `line ${i ? "second" : "first"}`, points: points.join(" ") });
    const name = nameOf(runner.alpha).replace("weights ", "");
    add(svg, "text", { x: Math.min(x(race.step) + 6, width - right + 6), y: ends[i], "font-size": font }, name);
  });
  const say = (runner) => `${nameOf(runner.alpha)} ${percent(runner.curve.at(-1))}`;
  svg.setAttribute("aria-label", `Probability of the target after ${race.step} steps: ${race.runners.map(say).join(", ")}.`);
}

function cell(row, words, name = "", tag = "td") {
  const element = document.createElement(tag);
  element.textContent = words;
  if (name) element.className = name;
  row.append(element);
}

// A table for each policy: the target's moves in the last group.
function drawPath() {
  race.runners.forEach((runner, i) => {
    const head = document.createElement("tr");
    [nameOf(runner.alpha).replace("weights ", ""), "p", "|λ|", "R̂", "Â", "push"].forEach((name) => cell(head, name, "", "th"));
    const p = stage === "updated" ? runner.p : runner.before, { group } = runner;
    const rows = movesTo(race.settings.target).map((move, level) => {
      const row = document.createElement("tr");
      const seen = group && group.count[move] > 0;
      const value = seen && stage !== "sampled", push = value && stage !== "values";
      cell(row, path(race.settings.target).slice(0, level + 1), "", "th");
      cell(row, digits(p[move], 3));
      cell(row, group ? String(group.count[move]) : "–");
      cell(row, value ? withSign(group.value[move]) : "–");
      cell(row, value ? withSign(group.advantage[move]) : "–");
      cell(row, push ? withSign(group.push[move]) : "–", push ? { "-1": "down", 0: "", 1: "up" }[sign(group.push[move])] : "");
      return row;
    });
    $(`path${i}`).replaceChildren(head, ...rows);
  });
}

const isSmall = () => innerWidth < 960;

function layOut() {
  for (const i of [0, 1]) trees[i] = layTree($(`tree${i}`), isSmall());
  draw();
}

function draw() {
  const small = isSmall();
  race.runners.forEach((runner, i) => {
    drawTree(trees[i], runner, small);
    const dead = runner.group?.advantages.every((a) => a === 0) ? " · all rewards equal: no push" : "";
    const words = `${nameOf(runner.alpha)}: target ${percent(runner.curve.at(-1))}${dead}`;
    $(`name${i}`).textContent = words;
    $(`tree${i}`).setAttribute("aria-label", `The tree of ${words}`);
    $(`tree${i}`).classList.toggle("hide-values", stage === "sampled");
    $(`tree${i}`).classList.toggle("hide-pushes", ["sampled", "values"].includes(stage));
  });
  drawCurve(small);
  drawPath();
}

// -- what is said --------------------------------------------------------------------------------------------------------

function say(words) {
  $("said").textContent = words;
}

function sayWhereWeAre() {
  const found = race.runners.map((runner) => `${nameOf(runner.alpha)} ${hasFound(runner) ? "has found it" : "has not found it"}`);
  const told = {
    sampled: "the groups are sampled",
    values: "each move has R̂ and Â",
    pushes: "the pushes",
    updated: found.join(", "),
  };
  say(`Step ${race.step}: ${told[stage]}.`);
}

function sayTheTask() {
  const { target, n, rNeg } = race.settings;
  const begin = path(target).slice(0, n);
  $("task").textContent = `${path(target)} earns 1, other walks that begin with ${begin} earn ${digits(rNeg, 2)}, all others 0.7.`;
}

// -- settings and the address --------------------------------------------------------------------------------------------

// The settings of the controls, or null after saying what is wrong with one.
function readControls() {
  const settings = { target: Number($("target").value), n: Number($("n").value), start: STARTS[$("start").value] };
  for (const [name, [low, high, whole]] of Object.entries(LIMITS)) {
    const value = $(name).valueAsNumber;
    const good = value >= low && value <= high && (!whole || Number.isInteger(value));
    $("problem").textContent = good ? "" : `${LABELS[name]} must be ${whole ? "a whole number" : "a number"} from ${low} to ${high}.`;
    if (!good) return null;
    settings[name] = value;
  }
  return settings;
}

function writeControls(settings) {
  for (const name of [...Object.keys(LIMITS), "target", "n"]) $(name).value = settings[name];
  $("start").value = Object.keys(STARTS).find((name) => STARTS[name] === settings.start);
}

function writeAddress() {
  const { target, ...others } = race.settings;
  const start = Object.keys(STARTS).find((name) => STARTS[name] === others.start);
  const words = new URLSearchParams({ target: path(target), ...others, start, step: race.step });
  history.replaceState(null, "", `#${words}`);
}

// Settings and step from the address; what is missing is as usual.   Throws an Error with a sentence.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1)), settings = { ...USUAL };
  let step = 0;
  for (const [name, text] of words) {
    const value = Number(text), limits = name === "step" ? [0, MOST_STEPS, true] : name === "n" ? [1, DEPTH - 1, true] : LIMITS[name];
    const inside = limits && text.trim() && value >= limits[0] && value <= limits[1] && (!limits[2] || Number.isInteger(value));
    if (name === "target" && new RegExp(`^[LR]{${DEPTH}}$`).test(text)) settings.target = leafOf(text);
    else if (name === "start" && Object.hasOwn(STARTS, text)) settings.start = STARTS[text];
    else if (name === "step" && inside) step = value;
    else if (inside) settings[name] = value;
    else throw new Error(`The link says ${name} = ${text}, which this page does not know: it begins with the usual settings.`);
  }
  return { settings, step };
}

function begin(settings, step = 0) {
  stop();
  race = new Race(settings);
  stage = "updated";
  for (let i = 0; i < step; i++) race.advance();
  sayTheTask();
  layOut();
  sayWhereWeAre();
  writeAddress();
}

function reset() {
  const settings = readControls();
  if (settings) begin(settings);
}

// -- running -------------------------------------------------------------------------------------------------------------

function stop() {
  running = false;
  $("run").textContent = "Run";
}

function stepOnce() {
  if ($("slow").checked) {
    stage = STAGES[(STAGES.indexOf(stage) + 1) % STAGES.length];
    if (stage === "sampled") {
      race.sample();
      for (const runner of race.runners) runner.before = runner.p;
    }
    if (stage === "updated") race.update();
  } else if (stage === "updated") race.advance();
  else {
    race.update(); // a step that slow motion has begun
    stage = "updated";
  }
}

let due = 0; // steps that the clock has asked for and that were not taken yet
let before = 0;

function frame(now) {
  if (!running) return;
  due = Math.min(due + ((now - before) / 1000) * SPEEDS[$("speed").value], 20);
  before = now;
  const any = due >= 1;
  for (; due >= 1; due--) stepOnce();
  if (any) draw();
  if (race.step % 50 === 0 && any) writeAddress();
  requestAnimationFrame(frame);
}

function run() {
  if (running) {
    stop();
    sayWhereWeAre();
    writeAddress();
    return;
  }
  running = true;
  say(""); // a screen reader is not told of every step
  $("run").textContent = "Pause";
  before = performance.now();
  due = 1;
  requestAnimationFrame(frame);
}

function step() {
  stop();
  stepOnce();
  draw();
  sayWhereWeAre();
  writeAddress();
}

// As many runs as `seeds`, from seed 0 on, 250 steps each: how often is the target found?
async function runMany(seeds = 100, steps = 250) {
  stop();
  const settings = race.settings, found = [0, 0];
  $("many").disabled = true;
  for (let seed = 0; seed < seeds; seed++) {
    const one = new Race({ ...settings, seed });
    for (let i = 0; i < steps; i++) one.advance();
    one.runners.forEach((runner, i) => (found[i] += Number(hasFound(runner))));
    if (seed % 5 === 4) {
      say(`${seed + 1} of ${seeds} seeds …`);
      await new Promise((done) => setTimeout(done));
    }
  }
  $("many").disabled = false;
  const [first, second] = race.runners.map((runner) => nameOf(runner.alpha));
  say(`Of ${seeds} seeds, ${steps} steps each: ${first} has found it in ${found[0]}, ${second} in ${found[1]}.`);
  return found;
}

// -- the controls --------------------------------------------------------------------------------------------------------

function option(select, value, words) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = words;
  $(select).append(element);
}
option("preset", "", "choose …");
PRESETS.forEach((preset, i) => option("preset", i, preset.name));
for (let leaf = LEAVES - 1; leaf >= 0; leaf--) option("target", leaf, path(leaf));
Object.keys(STARTS).forEach((name) => option("start", name, name));
$("speed").value = 2;

$("preset").addEventListener("change", () => {
  if ($("preset").value === "") return;
  const { name: _, ...changes } = PRESETS[$("preset").value];
  writeControls({ ...USUAL, ...changes, target: race.settings.target, seed: race.settings.seed });
  reset();
});
$("controls").addEventListener("change", (event) => {
  if (event.target.id === "preset") return;
  $("preset").value = "";
  reset();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("run").addEventListener("click", run);
$("step").addEventListener("click", step);
$("reset").addEventListener("click", reset);
$("many").addEventListener("click", () => runMany());
addEventListener("resize", layOut);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input, select, textarea, summary");
  const pressing = event.target.closest?.("button") && event.key === " "; // the browser presses it
  if (typing || pressing) return;
  const ways = { " ": run, ArrowRight: step, r: reset, R: reset };
  if (!ways[event.key]) return;
  event.preventDefault();
  ways[event.key]();
});
addEventListener("hashchange", open);

function open() {
  let wanted = { settings: { ...USUAL }, step: 0 }, problem = "";
  try {
    wanted = readAddress();
  } catch (error) {
    problem = error.message;
  }
  writeControls(wanted.settings);
  begin(wanted.settings, wanted.step);
  $("problem").textContent = problem;
}
open();
