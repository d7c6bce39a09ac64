// The explorer's page: it draws what mathematics.js computes, and listens to the editor, the pointer and the keys.
// A reader's texts become text nodes and values of inputs, never HTML.
"use strict";

const MAX_COMPLETIONS = 64;
const $ = (id) => document.getElementById(id);
const choices = JSON.parse($("groups").textContent);
let current; // what `analyse` made of the group on the screen

// -- drawing -------------------------------------------------------------------------------------------------------------

// An element with attributes and children; strings among these become text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const span = (name, text) => make("span", name ? { class: name } : {}, text);
const unbroken = (text) => text.replaceAll("|λ|", "|\u2060λ\u2060|").replaceAll("λ-GRPO", "λ-\u2060GRPO"); // at line ends
const paragraphs = (sentences) => sentences.map((sentence) => make("p", {}, unbroken(sentence)));

// A step's box: tokens and numbers at the left, two bars at the right.  A GRPO bar is |Â| / (largest |Â|) of half its box, which is
// |λ| rows high; so all bars of a tree have one scale.
function stepBox(step, largest) {
  const size = Math.abs(step.advantage) / largest;
  const bar = (name, value) => make("i", { class: `bar ${name}`, style: `--size: ${value}` });
  const direction = { "-1": "down", 0: "", 1: "up" }[sign(step.grpo)];
  const tokens = step.nodes.map((node) => span("token", printed(node.token)));
  const numbers = [span("", `R̂ ${plain(step.value)}`), span("", `Â ${signed(step.advantage)}`)];
  const facts = make(
    "div",
    { class: "facts" },
    make("div", { class: "tokens" }, ...tokens, span("count", `×${step.count}`)),
    make("div", { class: "numbers" }, ...numbers),
    make("div", { class: "pushes" }, span("grpo", signed(step.grpo)), span("lambda", signed(step.lambda))),
  );
  const bars = make("div", { class: "bars" }, bar("grpo", size), bar("lambda", size / step.count));
  return make("div", { class: `step ${direction}`, style: `--tint: ${Math.round(38 * size)}%` }, facts, bars);
}

const promptBox = (a) => make("div", { class: "step prompt" }, span("", `prompt · mean r ${plain(a.average)}`));

// The end of a completion: a dotted line to its outcome.
function endOf(i, a) {
  const { grpo, lambda } = a.pathSums;
  const outcome = make(
    "div",
    { class: "outcome" },
    make("div", {}, make("b", {}, `y${i}`), span("", `r ${plain(a.rewards[i])}`), span("", `a ${signed(a.advantages[i])}`)),
    make("div", { class: "sums" }, span("grpo", `Σ ${signed(grpo[i])}`), span("lambda", `Σ ${signed(lambda[i])}`)),
  );
  return make("div", { class: "end", "data-member": i }, span("leader", ""), outcome);
}

function drawTree(a) {
  const largest = Math.max(1e-9, ...a.steps.slice(1).map((step) => Math.abs(step.advantage)));
  const draw = (step) => {
    const prompt = step.parent === null;
    const box = prompt ? promptBox(a) : stepBox(step, largest);
    // Steps and endings below, by their first completion.
    const parts = [...step.below.map((child) => [child.members[0], child]), ...step.ends.map((i) => [i, null])];
    const below = parts.sort((x, y) => x[0] - y[0]).map(([i, child]) => (child ? draw(child) : endOf(i, a)));
    const attributes = { class: "branch", role: "treeitem", tabindex: prompt ? 0 : -1, "aria-label": explain(step, a).join(" ") };
    const place = { "data-step": step.index, style: `--rows: ${step.count}` };
    return make("div", { ...attributes, ...place }, box, make("div", { class: "below", role: "group" }, ...below));
  };
  $("tree").replaceChildren(draw(a.steps[0]));
}

function drawTable(a) {
  const rows = a.steps.slice(1).map((step) => {
    const numbers = [plain(step.value, 4), ...[step.advantage, step.grpo, step.lambda].map((x) => signed(x, 4))];
    const cells = [quoted(step.nodes), step.members.map((i) => `y${i}`).join(" "), String(step.count), ...numbers];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  $("table").replaceChildren(...rows);
  const completions = state.unit === "tokens" ? sequences() : state.completions;
  $("json").textContent = JSON.stringify({ completions, rewards: state.rewards });
}

// Highlight a step and the completions that share it, wherever they are; null for none.
function point(step) {
  const members = new Set(step ? step.members : []);
  for (const branch of $("tree").querySelectorAll(".branch")) {
    const other = current.steps[branch.dataset.step];
    branch.classList.toggle("on", other.members.some((i) => members.has(i)));
    branch.classList.toggle("here", other === step);
  }
  for (const element of document.querySelectorAll("[data-member]")) {
    element.classList.toggle("on", members.has(Number(element.dataset.member)));
  }
  document.querySelector("main").classList.toggle("pointing", step !== null);
  $("details").replaceChildren(...(step ? paragraphs(explain(step, current)) : []));
}

// -- editing -------------------------------------------------------------------------------------------------------------

const sequences = () => state.completions.map((text) => tokensOf(text, state.unit));

// Compute and draw anew.  While a reward is no number (yet), the last drawing stays.
function update() {
  const missing = state.rewards.findIndex((r) => !(Math.abs(r) <= LARGEST));
  const wrong = Number.isFinite(state.rewards[missing]) ? `a reward above ${LARGEST} in size` : "no reward";
  $("problem").textContent = missing < 0 ? "" : `y${missing} has ${wrong}: give it a number.`;
  if (missing >= 0) return;
  current = analyse(sequences(), state.rewards);
  document.querySelectorAll("#rows output").forEach((output, i) => (output.textContent = signed(current.advantages[i])));
  $("statement").replaceChildren(...paragraphs(statement(current)));
  $("size").textContent = sizes(current);
  drawTree(current);
  drawTable(current);
  point(null);
}

const typed = (input) => input.value.replaceAll("↵", "\n").replaceAll("␍", "\r");

function drawEditor() {
  const rows = state.completions.map((text, i) => {
    const quiet = { spellcheck: "false", autocomplete: "off", autocapitalize: "off" };
    const completion = make("input", { class: "text", "aria-label": `completion y${i}`, ...quiet });
    const reward = make("input", { type: "number", step: "0.1", "aria-label": `reward of y${i}` });
    const remove = make("button", { type: "button", "aria-label": `remove y${i}` }, "×");
    completion.value = text.replaceAll("\n", "↵").replaceAll("\r", "␍"); // an <input> holds no line ends
    reward.value = state.rewards[i];
    remove.disabled = state.completions.length <= 2; // a group of one has nothing to be compared with
    completion.addEventListener("input", () => edit(() => (state.completions[i] = typed(completion))));
    reward.addEventListener("input", () => edit(() => (state.rewards[i] = reward.valueAsNumber)));
    remove.addEventListener("click", () => resize(i, () => [state.completions, state.rewards].forEach((all) => all.splice(i, 1))));
    return make("div", { class: "row", "data-member": i }, make("b", {}, `y${i}`), completion, reward, make("output"), remove);
  });
  $("rows").replaceChildren(...rows);
  $("add").disabled = state.completions.length >= MAX_COMPLETIONS;
  $("unit").value = state.unit;
}

function edit(change) {
  change();
  for (const button of $("choices").children) button.setAttribute("aria-pressed", "false");
  $("note").textContent = "Your own group now. Choose one above to start again.";
  update();
}

// Add or remove a row, and leave the keyboard at that place.
function resize(i, change) {
  change();
  drawEditor();
  edit(() => {});
  const texts = $("rows").querySelectorAll("input.text");
  texts[Math.min(i, texts.length - 1)].focus();
}

function choose(index) {
  const { unit, completions, rewards, note } = choices[index];
  state = { unit, completions: [...completions], rewards: [...rewards] };
  [...$("choices").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  $("note").textContent = unbroken(note);
  drawEditor();
  update();
}

// -- pointer and keys in the tree ----------------------------------------------------------------------------------------

const stepAt = (element) => current.steps[element?.closest(".branch")?.dataset.step] ?? null;

function focusStep(step) {
  const branch = $("tree").querySelector(`[data-step="${step.index}"]`);
  for (const other of $("tree").querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  branch.tabIndex = 0; // the tree is one stop for Tab, and the arrow keys go on from there
  branch.focus();
  point(step);
}

function leave() {
  document.activeElement.blur();
  point(null);
}

function onKey(event) {
  const step = stepAt(event.target);
  const level = current.steps.filter((other) => other.level === step.level);
  const ways = {
    ArrowRight: step.below[0],
    ArrowLeft: step.parent,
    ArrowDown: level[level.indexOf(step) + 1],
    ArrowUp: level[level.indexOf(step) - 1],
    Home: current.steps[0],
    End: current.steps.at(-1),
  };
  if (event.key === "Escape") leave();
  if (!(event.key in ways)) return;
  event.preventDefault();
  if (ways[event.key]) focusStep(ways[event.key]);
}

choices.forEach((choice, i) => {
  const button = make("button", { type: "button" }, choice.name);
  button.addEventListener("click", () => choose(i));
  $("choices").append(button);
});
$("add").addEventListener("click", () =>
  resize(state.completions.length, () => {
    state.completions.push("");
    state.rewards.push(0);
  }),
);
$("unit").addEventListener("change", () => edit(() => (state.unit = $("unit").value)));
$("tree").addEventListener("keydown", onKey);
$("tree").addEventListener("pointerover", (event) => event.target.closest(".step") && point(stepAt(event.target)));
$("tree").addEventListener("pointerleave", () => point(stepAt(document.activeElement)));
$("tree").addEventListener("click", (event) => event.target.closest(".step") && focusStep(stepAt(event.target)));
$("tree").addEventListener("focusin", (event) => point(stepAt(event.target)));
$("tree").addEventListener("focusout", () => point(null));
$("pointed").addEventListener("click", leave); // on a phone it covers a part of the tree
choose(0);
