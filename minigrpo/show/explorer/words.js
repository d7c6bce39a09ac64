// The explorer's words: what is said about a group follows from the numbers of mathematics.js alone.
//
// `statement` is what there is to see at each stage of the reveal, `explain` the arithmetic of one step.
"use strict";

// What a lecturer reveals one by one: the name on the button, and what the class may guess before the next.
const STAGES = [
  { name: "tree", ask: "Completions that begin alike share boxes. How many completions share each box?" },
  { name: "|λ|", ask: "×n is |λ|: n completions share the step. What is the mean of their rewards?" },
  { name: "R̂", ask: "R̂ is the mean reward of the completions that share the step. Is that better or worse than the group?" },
  { name: "Â", ask: "Â compares R̂ with the group: blue is better, orange is worse. How hard does GRPO push each token?" },
  { name: "push" },
  { name: "take a step" },
];
const [WITH_COUNT, WITH_VALUE, WITH_ADVANTAGE, WITH_PUSH, WITH_STEP] = [1, 2, 3, 4, 5];

// -- numbers and tokens in print -----------------------------------------------------------------------------------------

const plain = (x, digits = 2) => {
  const text = Math.abs(x) >= 1e4 ? x.toExponential(1) : x.toFixed(digits);
  return (Number(text) === 0 ? (0).toFixed(digits) : text).replaceAll("-", "−"); // never -0.00
};
const signed = (x, digits = 2) => (Number(x.toFixed(digits)) > 0 ? "+" : "") + plain(x, digits);
const digitsOf = (x) => (sign(x) && Math.abs(x) < 0.05 ? Math.min(1 - Math.floor(Math.log10(Math.abs(x))), 9) : 2);
const rewardText = (x, a) => plain(x, digitsOf(a.std)); // rewards that differ by thousandths are not all 0.00
const push = (x) => signed(x, digitsOf(x)); // a small one is not 0.00
const chance = (p) => (p > 0 && p < 0.0005 ? p.toExponential(0).replace("-", "−") : p.toFixed(3));
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const times = (n) => (n === 1 ? "as hard as" : n === 2 ? "twice as hard as" : `${n} times as hard as`);
const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const names = (members) => (members.length > 6 ? `${members.length} completions` : list(members.map((i) => `y${i}`)));

// All names, however many there are: y0, y3 to y7 and y9.
function everyName(members) {
  const runs = [];
  for (const i of members) {
    if (runs.length && i === runs.at(-1)[1] + 1) runs.at(-1)[1] = i;
    else runs.push([i, i]);
  }
  return list(runs.flatMap(([a, b]) => (b > a + 1 ? [`y${a} to y${b}`] : b > a ? [`y${a}`, `y${b}`] : [`y${a}`])));
}

// Tokens in print: white space can be seen, but for the space that only opens a word; what cannot be printed is �.
const MARKS = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };
const JOINED = /([\p{Lo}\p{M}\p{Extended_Pictographic}\p{Emoji_Modifier}]\p{Join_Control}(?=[\p{Lo}\p{Extended_Pictographic}]))| |\p{C}/gu;
const visible = (text) => text.replace(JOINED, (c, joined) => joined ?? MARKS[c] ?? "�"); // 👩‍🔬 is joined by U+200D
const printed = (token) => visible(state.unit === "words" && token.trim() ? token.replace(/^ /, "") : token);
const between = () => (state.unit === "characters" ? "" : " ");

// The beginning and the end of a text that is too long, cut between code points.
function shorten(text, most) {
  const points = [...text];
  const tail = Math.floor(most / 3);
  return points.length > most ? `${points.slice(0, most - tail).join("")}…${points.slice(points.length - tail).join("")}` : text;
}
const quoted = (nodes, most = 28) => `“${shorten(nodes.map((node) => printed(node.token)).join(between()), most)}”`;

// -- what there is to see ------------------------------------------------------------------------------------------------

const sizes = (a) => {
  const total = sum(a.paths.map((path) => path.length));
  return `${plural(a.paths.length, "completion")}, ${plural(total, "token")}, ${a.nodes.length - 1} of them distinct.`;
};

function statement(a, stage) {
  if (stage === WITH_STEP) return aboutTheUpdate(a);
  const out = [];
  const ending = a.nodes.filter((node) => node.parent && node.ends.length);
  const copies = ending.filter((node) => node.ends.length > 1).map((node) => names(node.ends));
  const inside = ending.filter((node) => node.children.length).flatMap((node) => node.ends);
  const empty = a.root.ends;
  if (empty.length) out.push(`Without a token: ${names(empty)}. The reward counts in mean r, but there is nothing to push.`);
  if (copies.length) out.push(`The same text: ${copies.join("; ")}. Even its last token is shared.`);
  if (inside.length) out.push(`Ending inside the tree, where others go on: ${names(inside)}.`);
  if (stage < WITH_PUSH) return [...out, STAGES[stage].ask];
  if (a.equal) return [...out, "All rewards are equal: every advantage is exactly 0, nothing is pushed, neither objective learns."];
  if (a.best.length === a.rewards.length) {
    return [...out, "All rewards are equal but for rounding: every advantage is 0 to nine digits, and neither objective learns."];
  }
  const shared = a.nodes.some((node) => node.parent && node.count > 1);
  if (!shared) return [...out, "No step is shared: the group is flat, every |λ| is 1, and GRPO and λ-GRPO are the same."];
  return [...out, ...aboutTheBest(a)];
}

// Does GRPO work against the best completions?  A finding for each text that is best: first, a step that it shares is pushed down;
// else a rival step beside its path is pushed up harder, by GRPO ("fork") or by λ-GRPO alone ("lambda"); else neither.  Several texts
// may be best, and each has its own.
function findings(a) {
  const texts = new Map(); // copies end at one node
  for (const i of a.best) {
    const end = a.paths[i].at(-1) ?? a.root;
    texts.set(end, [...(texts.get(end) ?? []), i]);
  }
  return [...texts.values()].map((members) => {
    const path = a.paths[members[0]];
    if (!path.length) return { kind: "empty", members, path };
    const worst = path.reduce((x, y) => (y.grpo < x.grpo ? y : x));
    if (sign(worst.grpo) < 0) return { kind: "down", members, path, own: worst };
    const forks = path.flatMap((own) => own.parent.children.map((rival) => ({ own, rival })));
    for (const [kind, name] of [["fork", "grpo"], ["lambda", "lambda"]]) {
      const lead = ({ own, rival }) => rival[name] - own[name];
      const hardest = forks.reduce((x, y) => (lead(y) > lead(x) ? y : x));
      if (sign(lead(hardest)) > 0) return { kind, members, path, ...hardest };
    }
    return { kind: "fine", members, path };
  });
}

function aboutTheBest(a) {
  const each = findings(a);
  const merged = []; // the same is said once of all for whom it holds
  for (const finding of each) {
    const same = merged.find((m) => m.kind === finding.kind && m.own === finding.own && m.rival === finding.rival);
    if (same) same.members = [...same.members, ...finding.members].sort((x, y) => x - y);
    else merged.push({ ...finding });
  }
  const [who, alone] = [everyName(a.best), a.best.length === 1];
  const best = alone ? `${who} is the best completion` : `${who} are the best completions`;
  if (merged.length === 1) return [...aboutOne(merged[0], a, best, alone), ...along(each, a)];
  // Of each kind one is worked out, the one with the largest push, and for whom else it holds is said.
  const others = {
    down: (whom) => `Of ${whom}, too, a token is pushed down.`,
    fork: (whom) => `Beside ${whom}, too, GRPO pushes another way at a fork up harder.`,
    lambda: (whom) => `Beside ${whom}, too, λ-GRPO alone pushes another way at a fork up harder.`,
  };
  const sentences = ["down", "fork", "lambda", "fine", "empty"].flatMap((kind) => {
    const size = ({ own, rival }) => Math.abs((rival ?? own)?.grpo ?? 0);
    const [first, ...rest] = merged.filter((m) => m.kind === kind).sort((x, y) => size(y) - size(x));
    const also = rest.length ? [others[kind](everyName(rest.flatMap((m) => m.members).sort((x, y) => x - y)))] : [];
    return first ? [...aboutOne(first, a), ...also] : [];
  });
  return [`${best}, equally good.`, ...sentences, ...along(each, a)];
}

// One finding.   best: how the sentence begins if it holds for all that are best, else null, and the members are named
function aboutOne({ kind, members, path, own, rival }, a, best = null, alone = members.length === 1) {
  const [who, it] = best ? [alone ? "it" : "them", alone ? "its" : "their"] : [everyName(members), null];
  if (kind === "empty") {
    const nothing = `no token can be pushed towards ${alone ? "it" : "them"}`;
    return [best ? `${best}, and empty: ${nothing}.` : `${who} ${alone ? "is" : "are"} empty: ${nothing}.`];
  }
  if (kind === "fine") {
    const neither = `no token of ${who} is pushed down, and no other way at a fork is pushed up harder.`;
    return [best ? `${best}: ${neither}` : capital(neither)];
  }
  if (kind === "down") {
    const group = `the ${own.count} that share it did worse than the group.`;
    const which = best ? `${best}, yet ${it} ${quoted([own])}` : `The ${quoted([own])} of ${who}`;
    const last = path.at(-1);
    const gets = last.count === 1 ? `${push(last.grpo)} from both` : `${push(last.grpo)} and ${push(last.lambda)}`;
    const ending = members.every((i) => a.paths[i].at(-1) === last) ? ` The last token of ${everyName(members)} gets ${gets}.` : "";
    return [
      `${which} is pushed down: ${group}`,
      `GRPO pushes it ${times(own.count)} λ-GRPO: ${push(own.grpo)} against ${push(own.lambda)}.${ending}`,
    ];
  }
  const ratio = (name) => `${plain(rival[name] / own[name], 1)} times as hard`;
  const against = (name) => `${push(rival[name])} against ${push(own[name])}`;
  const harder =
    kind === "fork"
      ? `GRPO pushes the other way up ${ratio("grpo")}, λ-GRPO ${ratio("lambda")}.`
      : `GRPO does not push the other way up harder, ${against("grpo")}; λ-GRPO does, ${against("lambda")}.`;
  const asGood = a.best.filter((i) => rival.members.includes(i));
  const way = asGood.length ? `, the way to ${everyName(asGood)}, as good` : "";
  const down = best ? `${best}, and no token of ${who} is pushed down.` : `No token of ${who} is pushed down.`;
  return [
    `${down} But at a fork ${own.count} took ${it ?? "the"} ${quoted([own])} ` +
      `(R̂ ${rewardText(own.value, a)}) and ${rival.count} the other way, ${quoted([rival])} (R̂ ${rewardText(rival.value, a)})${way}.`,
    sign(own.grpo) ? harder : "Both objectives push the other way up, and this one not at all.",
  ];
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Σ along each text that is best, at most four of them one by one.
function along(each, a) {
  const texts = each.filter((finding) => finding.path.length);
  const { grpo, lambda } = a.pathSums;
  if (texts.length <= 4) {
    return texts.map(({ members: [i, ...copies] }) => {
      const who = everyName([i, ...copies]);
      return `Σ along ${who}: ${signed(grpo[i])} under GRPO, ${signed(lambda[i])} under λ-GRPO.`;
    });
  }
  const range = (sums) => {
    const values = texts.map(({ members: [i] }) => sums[i]);
    return `${signed(Math.min(...values))} to ${signed(Math.max(...values))}`;
  };
  return [`Σ along these ${texts.length} texts: ${range(grpo)} under GRPO, ${range(lambda)} under λ-GRPO.`];
}

// -- one update ----------------------------------------------------------------------------------------------------------

function aboutTheUpdate(a) {
  const out = [
    "The policy before the step samples as this group did: p of a move is its share of the completions that came to the fork.",
  ];
  if (a.best.length === a.rewards.length) return [...out, "All rewards are equal: nothing is pushed, and every p stays."];
  const texts = findings(a).map((finding) => finding.members);
  const after = (of, who) =>
    `${who}: probability ${chance(of("before"))}, after GRPO’s step ${chance(of("grpo"))}, after λ-GRPO’s ${chance(of("lambda"))}.`;
  if (texts.length === 1 || texts.length > 3) {
    const who = `The best completion${a.best.length > 1 ? "s" : ""}, ${everyName(a.best)}${texts.length > 1 ? ", together" : ""}`;
    out.push(after((name) => sum(texts.map(([i]) => a.chances[name][i])), who));
  } else {
    out.push(`The best completions are ${everyName(a.best)}, equally good.`);
    out.push(...texts.map((members) => after((name) => a.chances[name][members[0]], everyName(members))));
  }
  return [...out, aboutRivals(a)];
}

// A push on one move also moves its rivals: the move for which that is seen best, against its own push under GRPO.
function aboutRivals(a) {
  const moved = a.nodes.filter((node) => node.parent).map((node) => ({ node, change: node.chance.grpo - node.chance.before }));
  const against = moved.filter(({ node, change }) => sign(node.grpo) * sign(change) < 0);
  if (against.length) {
    const { node, change } = against.reduce((x, y) => (Math.abs(y.change) > Math.abs(x.change) ? y : x));
    const [way, gain] = change < 0 ? ["up", "falls"] : ["down", "grows"];
    return (
      `A push moves the rivals too: ${quoted([node])} of ${names(node.members)} is pushed ${way} (${push(node.grpo)}), ` +
      `yet under GRPO its p ${gain}, ${chance(node.chance.before)} → ${chance(node.chance.grpo)}: the pushes on its rivals outweigh its own.`
    );
  }
  const forks = moved.filter(({ node }) => node.chance.before < 1);
  if (!forks.length) return "There is no fork: with no rival to take it from, every p stays 1, whatever the push.";
  return "A push moves the rivals too: at each fork, what one move gains the others lose.";
}

// -- one step ------------------------------------------------------------------------------------------------------------

// A step's numbers, worked out, as far as they are revealed.
function explain(step, a, stage = WITH_PUSH) {
  const [average, scale] = [a.average, a.std + EPS].map((x) => rewardText(x, a));
  if (!step.parent) {
    const compared = `mean r = ${average}, std r = ${rewardText(a.std, a)}: what every step is compared with.`;
    return [stage < WITH_ADVANTAGE ? "The prompt, which all completions share." : `The prompt. ${compared}`];
  }
  const rewards = step.members.map((i) => rewardText(a.rewards[i], a));
  const terms = (rewards.length > 6 ? [...rewards.slice(0, 5), "…"] : rewards).join(" + ").replaceAll("+ −", "− ");
  const difference = `${rewardText(step.value, a)} − ${average}`.replace("− −", "+ ");
  const verdict = { "-1": "worse than the group", 0: "the group’s mean", 1: "better than the group" }[sign(step.grpo)];
  const each = step.nodes.length > 1 ? `each of the ${step.nodes.length} tokens` : "the token";
  const lines = [
    `${names(step.members)} ${step.count > 1 ? "share" : "alone has"} ${quoted(step.nodes)}: |λ| = ${step.count}.`,
    `R̂ = (${terms}) / ${step.count} = ${rewardText(step.value, a)}.`,
    a.equal ? "Â = 0: all rewards are equal." : `Â = (${difference}) / ${scale} = ${signed(step.advantage)}: ${verdict}.`,
    `Push on ${each}: GRPO ${step.count} × ${signed(step.advantage)} = ${signed(step.grpo)}, λ-GRPO ${signed(step.lambda)}.`,
  ];
  if (stage === WITH_STEP) return [lines[0], ...explainUpdate(step.nodes[0], a)];
  return stage < WITH_COUNT ? [`${quoted(step.nodes)}: how many completions share it?`] : lines.slice(0, stage);
}

function explainUpdate(node, a) {
  const { before, grpo, lambda } = node.chance;
  const came = node.parent.count;
  if (before === 1) return [`p = 1: all ${came} that came here went on like this. Without a rival p stays 1, whatever the push.`];
  const shift = (name) => {
    const total = sum(node.parent.children.map((child) => child[name]));
    const inner = `${signed(node[name])} − ${chance(before)} × ${signed(total)}`;
    return `${plain(a.rate)} × (${inner}) = ${signed(a.rate * (node[name] - before * total))}`;
  };
  const first = node.token ? quoted([node]) : "it";
  return [
    `p = ${node.count} / ${came} = ${chance(before)}: of the ${came} that came to this fork, ${node.count} went on with ${first}.`,
    `Its logit moves by η × (push − p × sum of the pushes at the fork). GRPO: ${shift("grpo")}, so p becomes ${chance(grpo)}.`,
    `λ-GRPO: ${shift("lambda")}, so p becomes ${chance(lambda)}.`,
  ];
}
