// The explorer's state in the address: what is behind #, so that a link restores the group and how it is seen.
//
//   #mode=projector&reveal=2&zoom=fit&rate=0.5&fold=0.1,4.1&preset=exploration
//   #…&group={"unit":…,"completions":[…],"rewards":[…]}      a group that is not one of the package's own, in full
//
// Parts that are as they were at first are left out.  The group comes last, so that a link that was cut is noticed.
"use strict";

const MAX_TOKENS = 4000; // as in __init__.py
const RATE = 0.3; // of the update, at first
const PUSHED = 4; // all numbers of the group are seen, no update

const escaped = (text) => encodeURIComponent(text).replace(/['()*!~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

function linkOf() {
  const parts = [];
  if (view.projector) parts.push("mode=projector");
  if (view.reveal !== PUSHED) parts.push(`reveal=${view.reveal}`);
  if (view.zoom) parts.push(`zoom=${view.zoom}`);
  if (view.rate !== RATE) parts.push(`rate=${view.rate}`);
  const folded = current.steps.filter(isFolded).map(keyOf);
  if (folded.length) parts.push(`fold=${folded.join(",")}`);
  const { id } = choices[view.chosen] ?? {};
  if (id) parts.push(view.chosen ? `preset=${id}` : "");
  else if (view.chosen !== 0) parts.push(`group=${escaped(JSON.stringify(state))}`);
  return parts.filter((part) => part).join("&");
}

let written = ""; // the link that the page itself has put into the address
let waiting; // browsers slow down a page that changes its address at every key
function keepLink() {
  const link = linkOf();
  if (link === written) return;
  written = link;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    try {
      history.replaceState(null, "", link ? `#${link}` : location.href.split("#")[0]);
    } catch {
      // a page without an address of its own, in a frame, goes on without the link
    }
  }, 200);
}

// -- reading -------------------------------------------------------------------------------------------------------------

const number = (text) => (/^\d+(\.\d+)?(e-?\d+)?$/.test(text) ? Number(text) : NaN);
const READERS = {
  mode: (text) => ({ projector: text === "projector" || null }),
  reveal: (text) => ({ reveal: /^\d$/.test(text) && Number(text) < STAGES.length ? Number(text) : null }),
  zoom: (text) => ({ zoom: text === "fit" ? text : number(text) >= LEAST && number(text) <= MOST ? number(text) : null }),
  rate: (text) => ({ rate: isRate(number(text)) ? number(text) : null }),
  fold: (text) => ({ folded: /^\d+\.\d+(,\d+\.\d+)*$/.test(text) ? new Set(text.split(",")) : null }),
  preset: (text) => {
    const chosen = choices.findIndex((choice) => choice.id === text);
    return { chosen: chosen < 0 ? null : chosen };
  },
  group: (text) => ({ group: groupOf(JSON.parse(text)) }),
};

const isRate = (x) => x >= 0 && x <= 100;

function groupOf({ unit, completions, rewards }) {
  const sound =
    ["characters", "words", "tokens"].includes(unit) &&
    Array.isArray(completions) &&
    completions.length >= 2 &&
    completions.length <= MAX_TOKENS && // a group out of a log may have more than the editor adds
    completions.every((text) => typeof text === "string") &&
    Array.isArray(rewards) &&
    rewards.length === completions.length &&
    rewards.every((r) => typeof r === "number" && Math.abs(r) <= LARGEST) &&
    sum(completions.map((text) => tokensOf(text, unit).length)) <= MAX_TOKENS;
  return sound ? { unit, completions, rewards } : null;
}

// What a link asks for, an object; the name of the part that cannot be read, a string.
function readLink(link) {
  const found = {};
  for (const part of link.split("&").filter((text) => text)) {
    const [name] = part.split("=");
    try {
      if (!Object.hasOwn(READERS, name)) return name;
      const value = READERS[name](decodeURIComponent(part.slice(name.length + 1)));
      if (Object.values(value).includes(null)) return name;
      Object.assign(found, value);
    } catch {
      return name;
    }
  }
  return found;
}

// Show what the address asks for; what is not in it is as at first.
function restore(link) {
  const found = readLink(link);
  const damaged = typeof found === "string";
  const { group, ...seen } = damaged ? {} : found;
  Object.assign(view, { chosen: 0, projector: false, reveal: PUSHED, zoom: 0, rate: RATE, folded: new Set() }, seen);
  $("damage").textContent = damaged
    ? `The link is damaged: its part “${shorten(visible(found), 20)}” cannot be read, ` +
      "so this is the page as it opens without a link."
    : "";
  const shown = group ?? choices[view.chosen];
  const same = choices.findIndex((choice) => JSON.stringify(groupOf(choice)) === JSON.stringify(shown));
  if (group) view.chosen = same;
  state = { unit: shown.unit, completions: [...shown.completions], rewards: [...shown.rewards] };
  $("rate").value = view.rate;
  drawEditor();
  update();
}
