// The live walk's page: settings, buttons, keys and the address.  The numbers come from walk_mathematics.js, the pictures from
// walk_drawing.js.  Settings and the step stand in the address after #, so that a link shows the same run.
"use strict";

const STARTS = { "1/4": 1 / 4, "1/8": 1 / 8, "1/16": 1 / 16, "1/64": 1 / 64, "1/256": 1 / 256 };
const USUAL = { target: 15, n: 1, rNeg: -1, k: 16, rate: 10, alpha: 1, seed: 0, start: 1 / 16 };
// Who is ahead where is in results/README.md, “When does λ-GRPO matter?”; a test trains each of these settings with many seeds.
const PRESETS = [
  { name: "λ-GRPO is far ahead: rate 10", ahead: "λ-GRPO" },
  { name: "… and at a small rate, 1", rate: 1, ahead: "λ-GRPO" },
  { name: "… and at a large rate, 30", rate: 30, ahead: "λ-GRPO" },
  { name: "both find it: n = 2, rate 1", n: 2, rate: 1 },
  { name: "GRPO is ahead: a common target", start: 1 / 4, rate: 0.3, ahead: "GRPO" },
  { name: "both fail: a very rare target", start: 1 / 256 },
  { name: "twice the same: α = 0", alpha: 0 },
];
const LIMITS = { k: [2, 64, true], rate: [0.01, 1000], alpha: [0, 2], seed: [0, 2 ** 32 - 1, true], rNeg: [-5, 0.6] };
const LABELS = { k: "k", rate: "the rate", alpha: "α", seed: "the seed", rNeg: "r_neg" };
const RUN = 250; // steps, as in the paper: then a run pauses, or the next seed begins
const MOST_STEPS = 5000; // a link does not make a browser compute for long
const DRAWN = 24; // curves of earlier seeds
const PAUSE = 3000; // milliseconds from one seed to the next
const SPEEDS = [1, 3, 10, 30, 60, 300]; // steps a second; beyond 60 several a frame
const STAGES = ["sampled", "values", "pushes", "updated"]; // of a step in slow motion

let race; // the two policies
let stage = "updated";
let running = false;
let earlier = []; // runs of the same settings, a seed each: { seed, curves, found }
let counting = 0; // which press of “100 seeds” is at work; a later one, and every new beginning, ends it

// -- what is said --------------------------------------------------------------------------------------------------------

function say(words) {
  write($("said"), words);
}

function sayWhereWeAre() {
  const states = race.runners.map((runner) => `${briefly(runner.alpha)} ${STATES[outcome(runner, race.settings)]}`);
  const told = {
    sampled: "the groups are sampled",
    values: "each move has R̂ and Â",
    pushes: "the pushes",
    updated: states.join(", "),
  };
  say(`Step ${race.step}: ${told[stage]}.`);
}

function sayTheTask() {
  const { target, n, rNeg } = race.settings;
  const begin = path(target).slice(0, n);
  $("task").textContent = `${path(target)} earns 1, other walks that begin with ${begin} earn ${digits(rNeg, 2)}, all others 0.7.`;
}

// How many of the earlier runs found the target, and their mean probability of it at the end.
function tallied() {
  const each = race.runners.map((runner, i) => {
    const found = earlier.filter((run) => run.found[i]).length;
    return `${nameOf(runner.alpha)} found it in ${found}, mean p ${digits(mean(earlier.map((run) => run.curves[i].at(-1))), 2)}`;
  });
  return `${plural(earlier.length, "seed")}: ${each.join("; ")}.`;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function record(one) {
  const { seed } = one.settings, curves = one.runners.map((runner) => runner.curve.slice(0, RUN + 1));
  earlier = earlier.filter((run) => run.seed !== seed); // no seed counts twice
  earlier.push({ seed, curves, found: curves.map((curve) => curve.at(-1) > 0.5) });
  const old = earlier.at(-DRAWN - 1); // of those that are drawn no more the end is kept: a wall runs for weeks
  if (old) old.curves = old.curves.map((curve) => curve.slice(-1));
}

// -- settings and the address --------------------------------------------------------------------------------------------

// The settings of the controls, or null after saying what is wrong with one.
function readControls() {
  const settings = { target: Number($("target").value), n: Number($("n").value), start: STARTS[$("start").value] };
  $("problem").textContent = "";
  for (const [name, [low, high, whole]] of Object.entries(LIMITS)) {
    const value = $(name).valueAsNumber;
    const good = value >= low && value <= high && (!whole || Number.isInteger(value));
    $(name).setAttribute("aria-invalid", !good);
    if (!good) {
      $("problem").textContent = `${LABELS[name]} must be ${whole ? "a whole number" : "a number"} from ${low} to ${high}.`;
      return null;
    }
    settings[name] = value;
  }
  return settings;
}

function writeControls(settings) {
  for (const name of [...Object.keys(LIMITS), "target", "n"]) {
    $(name).value = settings[name];
    $(name).removeAttribute("aria-invalid");
  }
  $("start").value = Object.keys(STARTS).find((name) => STARTS[name] === settings.start);
}

const SWITCHES = ["slow", "loop"];

// Not while the page runs: browsers refuse an address that changes many times a second.  A link goes as far as MOST_STEPS.
function writeAddress() {
  const { target, ...others } = race.settings;
  const start = Object.keys(STARTS).find((name) => STARTS[name] === others.start);
  const step = Math.min(race.step, MOST_STEPS);
  const words = new URLSearchParams({ target: path(target), ...others, start, step, speed: SPEEDS[$("speed").value] });
  for (const name of SWITCHES) if ($(name).checked) words.set(name, 1);
  history.replaceState(null, "", `#${words}`);
}

const cut = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text);

// Settings, step and switches from the address; what is missing is as usual.   Throws an Error with a sentence.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1)), settings = { ...USUAL };
  const others = { step: 0, speed: SPEEDS[2], slow: 0, loop: 0, run: 0 };
  const limits = { ...LIMITS, n: [1, DEPTH - 1, true], step: [0, MOST_STEPS, true], slow: [0, 1, true], loop: [0, 1, true], run: [0, 1, true] };
  for (const [name, text] of words) {
    const value = Number(text), [low, high, whole] = Object.hasOwn(limits, name) ? limits[name] : [1, 0];
    const inside = text.trim() && value >= low && value <= high && (!whole || Number.isInteger(value));
    if (name === "target" && new RegExp(`^[LR]{${DEPTH}}$`).test(text)) settings.target = leafOf(text);
    else if (name === "start" && Object.hasOwn(STARTS, text)) settings.start = STARTS[text];
    else if (name === "speed" && SPEEDS.includes(value)) others.speed = value;
    else if (inside) (Object.hasOwn(others, name) ? others : settings)[name] = value;
    else throw new Error(`The link says ${cut(name)} = ${cut(text)}, which this page does not know: it begins with the usual settings.`);
  }
  return { settings, ...others };
}

// -- running -------------------------------------------------------------------------------------------------------------

function nameTheSpeed() {
  $("speed").setAttribute("aria-valuetext", `${plural(SPEEDS[$("speed").value], "step")} a second`);
}

function begin(settings, step = 0) {
  stop();
  counting = 0;
  earlier = [];
  raceWith(settings);
  for (let i = 0; i < step; i++) race.advance();
  draw();
  sayWhereWeAre();
  writeAddress();
}

function raceWith(settings) {
  race = new Race(settings);
  stage = "updated";
  sayTheTask();
  layOut();
}

function reset() {
  const settings = readControls();
  if (settings) begin(settings);
}

function stop() {
  running = false;
  $("run").textContent = "Run";
}

function stepOnce() {
  if ($("slow").checked) {
    stage = STAGES[(STAGES.indexOf(stage) + 1) % STAGES.length];
    if (stage === "sampled") race.sample();
    if (stage === "updated") race.update();
  } else if (stage === "updated") race.advance();
  else {
    race.update(); // a step that slow motion has begun
    stage = "updated";
  }
}

const atTheEnd = () => stage === "updated" && race.step > 0 && race.step % RUN === 0;

let due = 0; // steps that the clock has asked for and that were not taken yet
let last = 0; // frame
let rested = 0; // milliseconds at the end of a run

function frame(now) {
  if (!running) return;
  const passed = now - last;
  last = now;
  if (atTheEnd() && rested !== null) {
    rested += passed;
    if (!$("loop").checked) return pause();
    if (rested > PAUSE) nextSeed();
  } else {
    due = Math.min(due + (passed / 1000) * SPEEDS[$("speed").value], 20);
    const any = due >= 1;
    for (; due >= 1 && running; due--) {
      stepOnce();
      rested = 0;
      if (atTheEnd()) due = 0;
    }
    if (any) draw();
  }
  requestAnimationFrame(frame);
}

// The next seed of the same settings; what the last one came to stays in the picture.
function nextSeed() {
  record(race);
  const seed = (race.settings.seed + 1) % 2 ** 32;
  raceWith({ ...race.settings, seed });
  $("seed").value = seed;
}

function pause() {
  stop();
  sayWhereWeAre();
  writeAddress();
}

// Run, Step and 100 seeds refuse while a field holds what is no setting.
function run() {
  if (running) return pause();
  if (!readControls()) return;
  running = true;
  counting = 0;
  say(""); // a screen reader is not told of every step
  $("run").textContent = "Pause";
  rested = $("loop").checked ? 0 : null; // after its end a run may go on
  last = performance.now();
  due = 1;
  requestAnimationFrame(frame);
}

function step() {
  stop();
  if (!readControls()) return;
  stepOnce();
  draw();
  sayWhereWeAre();
  writeAddress();
}

// As many runs as `seeds`, from seed 0 on, RUN steps each: how often is the target found?
async function runMany(seeds = 100) {
  stop();
  if (!readControls()) return;
  const mine = (counting = performance.now()), { settings } = race;
  earlier = [];
  say("");
  for (let seed = 0; seed < seeds; seed++) {
    const one = new Race({ ...settings, seed });
    for (let i = 0; i < RUN; i++) one.advance();
    record(one);
    if (seed % 2) {
      draw();
      await new Promise((done) => setTimeout(done));
      if (counting !== mine) return; // something else was begun
    }
  }
  draw();
  say(`All ${seeds} seeds are done.`);
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

const presetSettings = ({ name, ahead, ...changes }) => ({ ...USUAL, ...changes });

$("preset").addEventListener("change", () => {
  if ($("preset").value === "") return;
  const { target, seed } = race.settings;
  writeControls({ ...presetSettings(PRESETS[$("preset").value]), target, seed });
  reset();
});
$("controls").addEventListener("change", (event) => {
  if (event.target.id === "preset") return;
  $("preset").value = "";
  reset();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
for (const name of [...SWITCHES, "speed"]) $(name).addEventListener("change", () => running || writeAddress());
$("speed").addEventListener("input", nameTheSpeed);
$("run").addEventListener("click", run);
$("step").addEventListener("click", step);
$("reset").addEventListener("click", reset);
$("many").addEventListener("click", () => runMany());
addEventListener("resize", layOut);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layOut);
// A window that moves to another screen need not change its size in points.
function watchScreen() {
  const again = () => (layOut(), watchScreen());
  matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener("change", again, { once: true });
}
watchScreen();
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = (what) => event.target.closest?.(what);
  const own = { " ": "button, [type=checkbox]", ArrowRight: "[type=range]" }[event.key]; // what the browser does with the key
  if (at("input[type=number], select, summary") || (own && at(own))) return;
  const ways = { " ": run, ArrowRight: step, r: reset, R: reset };
  if (!Object.hasOwn(ways, event.key)) return;
  event.preventDefault();
  if (!event.repeat || event.key === "ArrowRight") ways[event.key](); // a key held down steps on
});
// Who changed a control with the mouse goes on with the keys of the page, not with those of the control.
let byPointer = false;
addEventListener("pointerdown", () => (byPointer = true), true);
addEventListener("keydown", () => (byPointer = false), true);
addEventListener("change", ({ target }) => byPointer && !target.matches("[type=number]") && target.blur());
addEventListener("hashchange", open);

// A link may start itself with run=1; not for who wants less motion.
function open() {
  let wanted = { settings: { ...USUAL }, step: 0, speed: SPEEDS[2] }, problem = "";
  try {
    wanted = readAddress();
  } catch (error) {
    problem = error.message;
  }
  writeControls(wanted.settings);
  $("preset").value = "";
  $("speed").value = SPEEDS.indexOf(wanted.speed);
  nameTheSpeed();
  for (const name of SWITCHES) $(name).checked = Boolean(wanted[name]);
  begin(wanted.settings, wanted.step);
  $("problem").textContent = problem;
  if (wanted.run && !matchMedia("(prefers-reduced-motion: reduce)").matches) run();
}
open();
