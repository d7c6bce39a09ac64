// The explorer's page, started: what it shows, and who listens to what.
//
//   words.js     sentences                    lecture.js   revealing, the projector, zoom, folding, keys
//   drawing.js   the tree and the table       link.js      the state in the address
//   editing.js   the group                    export.js    the tree as an SVG file
"use strict";

const $ = (id) => document.getElementById(id);
const choices = JSON.parse($("groups").textContent);

let state; // the group on the screen: { unit, completions: texts, rewards: numbers, NaN while one is being typed }
let current; // what `analyse` made of it
const view = {}; // how it is shown: { chosen, -1 for one's own, projector, reveal, zoom, rate, folded }; see `restore`

const sequences = () => state.completions.map((text) => tokensOf(text, state.unit));

// Compute and draw anew.  While a reward is no number (yet), the last drawing stays.
function update() {
  const missing = state.rewards.findIndex((r) => !(Math.abs(r) <= LARGEST));
  const wrong = Number.isFinite(state.rewards[missing]) ? `a reward above ${LARGEST} in size` : "no reward";
  const tokens = sum(sequences().map((sequence) => sequence.length));
  const problems = [
    [missing >= 0, `y${missing} has ${wrong}: give it a number.`],
    [tokens > MAX_TOKENS, `${tokens} ${state.unit} are too many for the explorer, which takes up to ${MAX_TOKENS}.`],
    [!isRate(view.rate), "η, the learning rate, is a number from 0 to 100."],
  ];
  const problem = problems.find(([found]) => found)?.[1] ?? "";
  $("problem").textContent = problem;
  drawChoices();
  if (problem) return;

  const focused = $("tree").contains(document.activeElement) && stepAt(document.activeElement);
  current = analyse(sequences(), state.rewards);
  takeStep(current, view.rate);
  document.querySelectorAll("#rows output").forEach((output, i) => (output.textContent = signed(current.advantages[i])));
  $("statement").replaceChildren(...paragraphs(statement(current, view.reveal)));
  $("size").textContent = sizes(current);
  drawTree(current);
  drawTable(current);
  veil();
  layOut();
  keepLink();
  const again = focused && current.steps.find((step) => keyOf(step) === keyOf(focused));
  if (again && $("tree").querySelector(`[data-step="${again.index}"]`)) focusStep(again);
  else point(null);
}

choices.forEach((choice, i) => {
  const button = make("button", { type: "button" }, choice.name);
  button.addEventListener("click", () => choose(i));
  $("choices").append(button);
  $("pick").append(make("option", { value: i }, choice.name));
});
STAGES.forEach(({ name }, i) => {
  const button = make("button", { type: "button" }, name);
  button.addEventListener("click", () => reveal(i));
  $("stages").append(button);
});
$("pick").addEventListener("change", () => choose(Number($("pick").value)));
$("back").addEventListener("click", () => reveal(view.reveal - 1));
$("next").addEventListener("click", () => reveal(view.reveal + 1));
$("in").addEventListener("click", zoomIn);
$("out").addEventListener("click", zoomOut);
$("scale").addEventListener("click", () => zoom(0));
$("whole").addEventListener("click", () => zoom(view.zoom === "fit" ? 0 : "fit"));
$("projector").addEventListener("click", () => projector(!view.projector));
$("download").addEventListener("click", download);
$("rate").addEventListener("input", () => {
  view.rate = $("rate").valueAsNumber;
  update();
});
$("add").addEventListener("click", () =>
  resize(state.completions.length, () => {
    state.completions.push("");
    state.rewards.push(0);
  }),
);
$("unit").addEventListener("change", () => edit(() => (state.unit = $("unit").value)));
$("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the state
  focusStep(current.steps[0]);
});
$("tree").addEventListener("keydown", onTreeKey);
$("tree").addEventListener("pointerover", (event) => event.target.closest(".step") && point(stepAt(event.target)));
$("tree").addEventListener("pointerleave", () => point(stepAt(document.activeElement)));
$("tree").addEventListener("click", (event) => event.target.closest(".step, .fold") && focusStep(stepAt(event.target)));
$("tree").addEventListener("dblclick", (event) => event.target.closest(".step, .fold") && fold(stepAt(event.target)));
$("tree").addEventListener("focusin", (event) => point(stepAt(event.target)));
$("tree").addEventListener("focusout", () => point(null));
$("pointed").addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays on the step
$("pointed").addEventListener("click", (event) => event.target !== $("fold") && leave()); // on a phone it covers a part of the tree
$("fold").addEventListener("click", () => fold(stepAt(document.activeElement)));
document.addEventListener("keydown", onKey);
// Who chose a group with the mouse goes on with the keys of the page, not with those of the list.
let byPointer = false;
document.addEventListener("pointerdown", () => (byPointer = true), true);
document.addEventListener("keydown", () => (byPointer = false), true);
for (const list of [$("pick"), $("unit")]) list.addEventListener("change", () => byPointer && list.blur());
window.addEventListener("resize", layOut);
window.addEventListener("hashchange", () => restore(location.hash.slice(1)));
restore(location.hash.slice(1));
