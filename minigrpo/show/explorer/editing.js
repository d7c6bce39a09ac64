// The explorer's editor: a row per completion, and what follows from an edit.
"use strict";

const MAX_COMPLETIONS = 64;
const LONG = 18; // letters of a completion that fit beside its reward; longer ones get a line of their own

// White space that a <textarea> would change is written as a sign.
const shownText = (text) => text.replaceAll("\r", "␍");
const typedText = (text) => text.replaceAll("␍", "\r");

function fitText(completion) {
  const lines = completion.value.split("\n");
  completion.parentElement.classList.toggle("long", lines.length > 1 || lines[0].length > LONG);
  completion.rows = Math.min(12, sum(lines.map((line) => 1 + Math.floor(line.length / 30)))); // where CSS does not size it
}

function drawEditor() {
  const rows = state.completions.map((text, i) => {
    const quiet = { spellcheck: "false", autocomplete: "off", autocapitalize: "off" };
    const completion = make("textarea", { class: "text", rows: 1, "aria-label": `completion y${i}`, ...quiet });
    const reward = make("input", { type: "number", step: "0.1", "aria-label": `reward of y${i}` });
    const remove = make("button", { type: "button", "aria-label": `remove y${i}` }, "×");
    completion.value = shownText(text);
    reward.value = state.rewards[i];
    remove.disabled = state.completions.length <= 2; // a group of one has nothing to be compared with
    completion.addEventListener("input", () => {
      fitText(completion);
      edit(() => (state.completions[i] = typedText(completion.value)));
    });
    completion.addEventListener("keydown", (event) => onEnter(event, i));
    reward.addEventListener("input", () => edit(() => (state.rewards[i] = reward.valueAsNumber)));
    remove.addEventListener("click", () => resize(i, () => [state.completions, state.rewards].forEach((all) => all.splice(i, 1))));
    const advantage = make("output", { "data-from": WITH_ADVANTAGE });
    const row = make("div", { class: "row", "data-member": i }, make("b", {}, `y${i}`), completion, reward, advantage, remove);
    fitText(completion);
    return row;
  });
  $("rows").replaceChildren(...rows);
  $("add").disabled = state.completions.length >= MAX_COMPLETIONS;
  $("unit").value = state.unit;
}

// Enter goes on to the next completion; a line end is Shift and Enter.
function onEnter(event, i) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  const texts = $("rows").querySelectorAll(".text");
  (texts[i + 1] ?? $("add")).focus();
}

function edit(change) {
  change();
  view.chosen = -1;
  update();
}

// Add or remove a row, and leave the keyboard at that place.
function resize(i, change) {
  change();
  drawEditor();
  edit(() => {});
  const texts = $("rows").querySelectorAll(".text");
  texts[Math.min(i, texts.length - 1)].focus();
}

// Open one of the groups that are offered.
function choose(index) {
  const { unit, completions, rewards } = choices[index];
  state = { unit, completions: [...completions], rewards: [...rewards] };
  view.chosen = index;
  view.folded.clear();
  drawEditor();
  update();
}

function drawChoices() {
  [...$("choices").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === view.chosen)));
  $("pick").value = String(view.chosen);
  $("note").textContent = unbroken(choices[view.chosen]?.note ?? "Your own group now. Choose one above to start again.");
  $("note").dataset.from = view.chosen < 0 ? 0 : WITH_PUSH; // the notes of the groups tell what is to be guessed
}
