// The explorer in a lecture: revealing stage by stage, the projector's view, the size of the tree, and the keys.
"use strict";

const ZOOMS = [0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4];
const [LEAST, MOST] = [ZOOMS[0], ZOOMS.at(-1)];
const NARROW = "(max-width: 58rem)"; // as in style.css: a phone
const BY_ITSELF = [0.75, 1.2]; // so far a tree shrinks and grows to its place before it scrolls, or leaves room

// -- revealing -----------------------------------------------------------------------------------------------------------

function reveal(stage) {
  view.reveal = Math.min(Math.max(stage, 0), STAGES.length - 1);
  update();
}

// Hide what a later stage shows; it keeps its place.
function veil() {
  for (const element of document.querySelectorAll("[data-from]")) {
    element.classList.toggle("later", view.reveal < Number(element.dataset.from));
  }
  [...$("stages").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === view.reveal)));
  $("back").disabled = view.reveal === 0;
  $("next").disabled = view.reveal === STAGES.length - 1;
  $("update").hidden = view.reveal !== WITH_STEP;
  document.documentElement.classList.toggle("stepping", view.reveal === WITH_STEP);
  document.documentElement.classList.toggle("folding", current.steps.some(isFolded));
}

// -- the size of the tree ------------------------------------------------------------------------------------------------

function projector(on) {
  view.projector = on;
  update();
}

// Set the tree's scale, and in the projector's view the place of the words: beside the tree or below it, where the tree is larger.
function layOut() {
  const [tree, main] = [$("tree"), document.querySelector("main")];
  const scale = (z) => tree.style.setProperty("--zoom", z);
  const narrow = matchMedia(NARROW).matches;
  document.documentElement.classList.toggle("projector", view.projector);
  $("projector").setAttribute("aria-pressed", String(view.projector));
  scale(1);
  // As much room for the outcomes as the widest of them needs; sums along a long completion have many digits.
  tree.style.setProperty("--widest", 0);
  const tight = [...tree.querySelectorAll(".end:not(.fold) .outcome")].filter((box) => box.scrollWidth > box.clientWidth);
  const widest = Math.max(0, ...tight.map((box) => box.scrollWidth + 1));
  tree.style.setProperty("--widest", widest / parseFloat(getComputedStyle(document.documentElement).fontSize));
  const [width, height] = [tree.firstElementChild.offsetWidth, tree.firstElementChild.offsetHeight];
  const rigid = 6 * Math.max(...current.steps.map((step) => step.level + 1)); // borders and margins, which do not scale
  // The largest scale at which the tree has room, in its width and as a whole.
  const fitting = () => {
    const wide = (tree.clientWidth - 12 - rigid) / (width - rigid);
    const high = (view.projector ? tree.clientHeight - 8 : window.innerHeight * 0.7) / height;
    return [wide, Math.min(wide, high)].map((z) => Math.floor(Math.min(Math.max(z, LEAST), MOST) * 200) / 200);
  };
  main.classList.remove("beside");
  let [wide, whole] = fitting();
  if (view.projector && !narrow) {
    main.classList.add("beside");
    const beside = fitting()[1];
    main.classList.toggle("beside", beside > whole);
    whole = Math.max(beside, whole);
  }
  const hall = Math.max(1, whole); // never so small that the last row of seats could not read it
  const [least, most] = BY_ITSELF;
  const usual = view.projector ? hall : narrow ? 1 : wide < 1 ? Math.max(least, wide) : Math.max(1, Math.min(most, whole));
  view.scale = view.zoom === "fit" ? whole : view.zoom || usual;
  scale(view.scale);
  $("scale").textContent = `${Math.round(100 * view.scale)} %`;
  $("whole").setAttribute("aria-pressed", String(view.zoom === "fit"));
}

function zoom(to) {
  view.zoom = to;
  layOut();
  keepLink();
}

const zoomIn = () => zoom(ZOOMS.find((z) => z > view.scale + 0.005) ?? MOST);
const zoomOut = () => zoom(ZOOMS.findLast((z) => z < view.scale - 0.005) ?? LEAST);

// -- folding -------------------------------------------------------------------------------------------------------------

// Fold what follows a step into one row, or unfold it.  At the prompt: all that follows the first steps, or everything back.
function fold(step) {
  if (!step || !canFold(step)) return;
  if (step.parent) {
    if (!view.folded.delete(keyOf(step))) view.folded.add(keyOf(step));
  } else if (current.steps.some(isFolded)) {
    view.folded.clear();
  } else {
    for (const first of step.below.filter(canFold)) view.folded.add(keyOf(first));
  }
  update();
}

// -- keys ----------------------------------------------------------------------------------------------------------------

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

function onTreeKey(event) {
  const step = stepAt(event.target);
  const seen = current.steps.filter((other) => $("tree").querySelector(`[data-step="${other.index}"]`)); // not folded away
  const level = seen.filter((other) => other.level === step.level);
  const ways = {
    ArrowRight: isFolded(step) ? undefined : step.below[0],
    ArrowLeft: step.parent,
    ArrowDown: level[level.indexOf(step) + 1],
    ArrowUp: level[level.indexOf(step) - 1],
    Home: seen[0],
    End: seen.at(-1),
  };
  if (event.key === "Escape") leave();
  else if (event.key === "Enter" || event.key === " ") fold(step);
  else if (!(event.key in ways)) return;
  event.preventDefault();
  event.stopPropagation();
  if (ways[event.key]) focusStep(ways[event.key]);
}

// Keys of the page; where text is typed they are letters.  A presenter's remote control sends the page keys.
function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("input, textarea, select")) return;
  const next = () => reveal(view.reveal + 1);
  const back = () => reveal(view.reveal - 1);
  const always = { n: next, b: back, p: () => projector(!view.projector), f: () => zoom(view.zoom === "fit" ? 0 : "fit") };
  const sizes = { "+": zoomIn, "=": zoomIn, "-": zoomOut, 0: () => zoom(0) };
  const hall = { PageDown: next, PageUp: back, ArrowRight: next, ArrowLeft: back, Escape: () => projector(false) };
  const action = { ...always, ...sizes, ...(view.projector && hall) }[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
}
