// The explorer's drawing: the tree as nested boxes, its numbers as a table, and the step that is pointed at.
//
// What is not revealed yet carries `data-from`, the stage that shows it, and keeps its place while it is hidden.
// A reader's texts become text nodes, never HTML.
"use strict";

const [LETTERS, LETTERS_IN_LINES] = [40, 60]; // of a step's tokens in a box of one row, and of several; its card has more
const MUCH = 2000; // letters of a step's text in its card

// An element with attributes and children; strings among these become text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const span = (name, text, from = 0) => make("span", { ...(name && { class: name }), ...(from && { "data-from": from }) }, text);
const unbroken = (text) => text.replaceAll("|λ|", "|\u2060λ\u2060|").replaceAll("λ-GRPO", "λ-\u2060GRPO"); // at line ends
const paragraphs = (sentences) => sentences.map((sentence) => make("p", {}, unbroken(sentence)));

// -- the tree ------------------------------------------------------------------------------------------------------------

// A step's name in a link: its first completion and its level; no two steps have the same.
const keyOf = (step) => `${step.members[0]}.${step.level}`;
const canFold = (step) => step.below.length > 0;
const isFolded = (step) => canFold(step) && view.folded.has(keyOf(step));

// A step's tokens; of many, the first and the last.
function tokensIn(step) {
  const texts = step.nodes.map((node) => printed(node.token));
  const most = step.rows > 1 ? LETTERS_IN_LINES : LETTERS;
  const spans = (some) => some.map((text) => span("token", shorten(text, most * 0.75)));
  const letters = (some) => sum(some.map((text) => text.length));
  if (letters(texts) <= most) return spans(texts);
  let [head, tail] = [1, texts.length];
  while (head < tail && letters(texts.slice(0, head + 1)) <= most * 0.6) head += 1;
  while (tail > head && letters(texts.slice(tail - 1)) <= most * 0.25) tail -= 1;
  const left = tail > head ? [span("left", `… ${tail - head} more …`)] : [];
  return [...spans(texts.slice(0, head)), ...left, ...spans(texts.slice(tail))];
}

// A step's box: tokens and numbers at the left, bars at the right.   size: of the bars, see barSizes
function stepBox(step, size, a) {
  const stepping = view.reveal === WITH_STEP;
  const bar = (name, value) => make("i", { class: `bar ${name}`, style: `--size: ${value}` });
  const { before, grpo, lambda } = step.nodes[0].chance;
  const numbers = stepping
    ? [span("", `p ${chance(before)}`)]
    : [span("", `R̂ ${rewardText(step.value, a)}`, WITH_VALUE), span("", `Â ${signed(step.advantage)}`, WITH_ADVANTAGE)];
  const pushes = stepping
    ? [span("grpo", chance(grpo)), span("lambda", chance(lambda))]
    : [span("grpo", signed(step.grpo), WITH_PUSH), span("lambda", signed(step.lambda), WITH_PUSH)];
  const facts = make(
    "div",
    { class: "facts" },
    make("div", { class: step.rows > 1 ? "tokens wraps" : "tokens" }, ...tokensIn(step), span("count", `×${step.count}`, WITH_COUNT)),
    make("div", { class: "numbers" }, ...numbers),
    make("div", { class: "pushes" }, ...pushes),
  );
  const bars = stepping
    ? make("div", { class: "bars chances" }, bar("before", before), bar("grpo", grpo), bar("lambda", lambda))
    : make("div", { class: "bars", "data-from": WITH_PUSH }, bar("grpo", size.grpo), bar("lambda", size.lambda));
  const colours = view.reveal >= WITH_ADVANTAGE ? { "-1": "down", 0: "", 1: "up" }[sign(step.grpo)] : "";
  const folded = isFolded(step) ? " folded" : "";
  return make("div", { class: `step ${colours}${folded}`, style: `--tint: ${Math.round(38 * size.tint)}%` }, facts, bars);
}

// The bars of all steps have one scale.  A GRPO bar is |Â| / (largest |Â|) of half its box, which is |λ| rows high; a λ-GRPO bar,
// of half a row.  Where something is folded, boxes have fewer rows, and all bars shrink until each fits its box.
function barSizes(a) {
  const largest = Math.max(NEGLIGIBLE, ...a.steps.slice(1).map((step) => Math.abs(step.advantage)));
  const tints = a.steps.map((step) => (step.parent ? Math.abs(step.advantage) / largest : 0));
  const shrink = Math.min(1, ...a.steps.map((step, s) => (tints[s] && step.rows ? step.rows / (tints[s] * step.count) : 1)));
  return a.steps.map((step, s) => {
    const size = (tints[s] * shrink) / step.rows;
    return { tint: tints[s], grpo: size * step.count, lambda: size };
  });
}

const promptBox = (a) =>
  make("div", { class: "step prompt" }, make("span", {}, "prompt", span("", `\u00a0· mean r ${rewardText(a.average, a)}`, WITH_VALUE)));

// The end of a completion: a dotted line to its outcome.
function endOf(i, a) {
  const shown = ({ grpo, lambda }, print) => [span("grpo", print(grpo[i]), WITH_PUSH), span("lambda", print(lambda[i]), WITH_PUSH)];
  const stepping = view.reveal === WITH_STEP;
  const last = stepping ? span("", `p ${chance(a.chances.before[i])}`) : span("", `a ${signed(a.advantages[i])}`, WITH_ADVANTAGE);
  const sums = stepping ? shown(a.chances, chance) : shown(a.pathSums, (x) => `Σ ${signed(x)}`);
  const outcome = make(
    "div",
    { class: "outcome" },
    make("div", {}, make("b", {}, `y${i}`), span("", `r ${rewardText(a.rewards[i], a)}`), last),
    make("div", { class: "sums" }, ...sums),
  );
  return make("div", { class: "end", "data-member": i }, span("leader", ""), outcome);
}

const foldedEnd = (step) =>
  make(
    "div",
    { class: "end fold" },
    span("leader", ""),
    make("div", { class: "outcome" }, make("b", {}, `${step.count} folded`), span("", everyName(step.members))),
  );

function drawTree(a) {
  for (const step of [...a.steps].reverse()) {
    step.rows = isFolded(step) ? 1 : step.ends.length + sum(step.below.map((child) => child.rows));
  }
  const sizes = barSizes(a);
  const draw = (step) => {
    const prompt = step.parent === null;
    const box = prompt ? promptBox(a) : stepBox(step, sizes[step.index], a);
    // Steps and endings below, by their first completion.
    const parts = [...step.below.map((child) => [child.members[0], child]), ...step.ends.map((i) => [i, null])];
    const drawn = ([i, child]) => (child ? draw(child) : endOf(i, a));
    const below = isFolded(step) ? [foldedEnd(step)] : parts.sort((x, y) => x[0] - y[0]).map(drawn);
    const label = explain(step, a, view.reveal).join(" ");
    const attributes = { class: "branch", role: "treeitem", tabindex: prompt ? 0 : -1, "aria-label": label };
    if (canFold(step)) attributes["aria-expanded"] = String(!isFolded(step));
    const place = { "data-step": step.index, style: `--rows: ${step.rows}` };
    return make("div", { ...attributes, ...place }, box, make("div", { class: "below", role: "group" }, ...below));
  };
  $("tree").replaceChildren(draw(a.steps[0]));
}

function drawTable(a) {
  const rows = a.steps.slice(1).map((step) => {
    const { before, grpo, lambda } = step.nodes[0].chance;
    const cells = [
      [quoted(step.nodes), 0],
      [step.members.map((i) => `y${i}`).join(" "), WITH_COUNT],
      [String(step.count), WITH_COUNT],
      [plain(step.value, Math.max(4, digitsOf(a.std))), WITH_VALUE],
      [signed(step.advantage, 4), WITH_ADVANTAGE],
      ...[step.grpo, step.lambda].map((x) => [signed(x, 4), WITH_PUSH]),
      ...[before, grpo, lambda].map((p) => [plain(p, 4), WITH_STEP]),
    ];
    return make("tr", {}, ...cells.map(([cell, from]) => make("td", from ? { "data-from": from } : {}, cell)));
  });
  $("table").replaceChildren(...rows);
  const completions = state.unit === "tokens" ? sequences() : state.completions;
  $("json").textContent = JSON.stringify({ completions, rewards: state.rewards });
}

// -- the step that is pointed at -----------------------------------------------------------------------------------------

const stepAt = (element) => current?.steps[element?.closest(".branch")?.dataset.step] ?? null;

// Highlight a step and the completions that share it, wherever they are; null for none.
function point(step) {
  const members = new Set(step ? step.members : []);
  for (const branch of $("tree").querySelectorAll(".branch")) {
    const other = current.steps[branch.dataset.step];
    if (!other) continue; // of the last drawing, which loses the focus while it is replaced
    branch.classList.toggle("on", other.members.some((i) => members.has(i)));
    branch.classList.toggle("here", other === step);
  }
  for (const element of document.querySelectorAll("[data-member]")) {
    element.classList.toggle("on", members.has(Number(element.dataset.member)));
  }
  document.querySelector("main").classList.toggle("pointing", step !== null);
  $("details").replaceChildren(...(step ? paragraphs(explain(step, current, view.reveal)) : []));
  if (step && quoted(step.nodes, MUCH) !== quoted(step.nodes)) {
    $("details").append(make("p", { class: "whole" }, quoted(step.nodes, MUCH)));
  }
  $("fold").hidden = !step || !canFold(step);
  $("fold").textContent = step && isFolded(step) ? "Unfold what follows" : "Fold what follows";
}
