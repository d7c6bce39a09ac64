// The explorer's numbers and words: from a group's texts and rewards to its tree, step rewards, advantages and pushes.
//
// Read `buildTree` and `analyse` first: they are the mathematics, the same as in tree.py, rewards.py and objectives.py.  The words
// follow from the numbers alone.  What this leaves out: drawing and editing, in view.js.
"use strict";

const EPS = 1e-4; // added to the standard deviation, as in objectives.py
const LARGEST = 1e100; // of a reward, as in rewards.py: the squares of what is much larger overflow

// -- the tree and its numbers --------------------------------------------------------------------------------------------

// A text as tokens: code points; words, which keep the white space before them, as in groups.py; or what stands between spaces.
function tokensOf(text, unit) {
  if (unit === "characters") return [...text];
  if (unit === "words") return text.match(/^\s+|\s*\S+|\s+$/g) ?? [];
  return text.split(" ").filter((token) => token !== "");
}

// A node is a distinct (prefix, token); its members, the completions that pass through it, are the process set λ.
// The root stands for the prompt: all are members, and it has no token.
function buildTree(sequences) {
  const root = { token: "", parent: null, depth: 0, members: [], children: [], ends: [] };
  const paths = sequences.map((sequence, i) => {
    const path = [];
    let node = root;
    root.members.push(i);
    for (const token of sequence) {
      let child = node.children.find((c) => c.token === token);
      if (!child) {
        child = { token, parent: node, depth: node.depth + 1, members: [], children: [], ends: [] };
        node.children.push(child);
      }
      child.members.push(i);
      path.push(child);
      node = child;
    }
    node.ends.push(i); // this completion ends here, others may go on
    return path;
  });
  return { root, paths };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;

// Everything that is shown of a group.   sequences: k lists of tokens, rewards: k numbers, k ≥ 2
//
//   aᵢ = (rᵢ - mean r) / (std r + EPS), 0 if all rewards are equal        std: of a sample, ddof 1
//   R̂  = mean of rᵢ over the members            Â = (R̂ - mean r) / (std r + EPS)
//   push = d objective / d log p · number of tokens:   GRPO Σ aᵢ over the members = |λ|·Â,   λ-GRPO the same divided by |λ|
function analyse(sequences, rewards) {
  const { root, paths } = buildTree(sequences);
  const average = mean(rewards);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const equal = low === high;
  // Rewards that differ in late digits only are compared without the digits that they share, which a mean would fill up.
  const shift = high - low < 1e-3 * Math.max(Math.abs(low), Math.abs(high)) ? low : 0;
  const shifted = rewards.map((r) => r - shift);
  const std = Math.sqrt(sum(shifted.map((r) => (r - mean(shifted)) ** 2)) / (rewards.length - 1));
  const relative = (members) => (equal ? 0 : (mean(members.map((i) => shifted[i])) - mean(shifted)) / (std + EPS));
  const advantages = rewards.map((_, i) => relative([i]));

  const nodes = [root, ...new Set(paths.flat())];
  for (const node of nodes) {
    node.count = node.members.length; // |λ|
    node.value = mean(node.members.map((i) => rewards[i])); // R̂
    node.advantage = relative(node.members); // Â
    node.grpo = sum(node.members.map((i) => advantages[i]));
    node.lambda = node.grpo / node.count;
  }
  const along = (name) => paths.map((path) => sum(path.map((node) => node[name])));
  const pathSums = { grpo: along("grpo"), lambda: along("lambda") };
  return { root, paths, nodes, rewards, advantages, average, std, equal, pathSums, steps: stepsOf(root) };
}

// The tree with chains contracted: a process step is a run of nodes with the same members.  The root's own step is the prompt.
function stepsOf(root) {
  const steps = [];
  const visit = (head, parent) => {
    const nodes = [head];
    let last = head;
    while (last.parent && last.children.length === 1 && last.ends.length === 0) nodes.push((last = last.children[0]));
    const place = { parent, level: parent ? parent.level + 1 : 0, index: steps.length, below: [] };
    const step = { ...head, ...place, nodes, ends: last.ends };
    steps.push(step);
    parent?.below.push(step);
    for (const child of last.children) visit(child, step);
  };
  visit(root, null);
  return steps;
}

// -- words ---------------------------------------------------------------------------------------------------------------

let state; // the group on the screen: { unit, completions: texts, rewards: numbers, NaN while one is being typed }

const sign = (x) => (Math.abs(x) < 1e-9 ? 0 : Math.sign(x)); // a sum of advantages that cancel leaves a rounding
const plain = (x, digits = 2) => {
  const text = Math.abs(x) >= 1e4 ? x.toExponential(1) : x.toFixed(digits);
  return (Number(text) === 0 ? (0).toFixed(digits) : text).replaceAll("-", "−"); // never -0.00
};
const signed = (x, digits = 2) => (Number(x.toFixed(digits)) > 0 ? "+" : "") + plain(x, digits);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const times = (n) => (n === 1 ? "as hard as" : n === 2 ? "twice as hard as" : `${n} times as hard as`);
const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const names = (members) => (members.length > 6 ? `${members.length} completions` : list(members.map((i) => `y${i}`)));

// Tokens in print: white space can be seen, but for the space that only opens a word; what cannot be printed is �.
const MARKS = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };
const visible = (text) => text.replace(/ |\p{C}/gu, (c) => MARKS[c] ?? "�");
const printed = (token) => visible(state.unit === "words" && token.trim() ? token.replace(/^ /, "") : token);
const quoted = (nodes) => {
  const text = nodes.map((node) => printed(node.token)).join(state.unit === "characters" ? "" : " ");
  return `“${text.length > 28 ? `${text.slice(0, 18)}…${text.slice(-9)}` : text}”`;
};

const sizes = (a) => {
  const total = sum(a.paths.map((path) => path.length));
  return `${plural(a.paths.length, "completion")}, ${plural(total, "token")}, ${a.nodes.length - 1} of them distinct.`;
};

// What there is to see, in sentences.
function statement(a) {
  const out = [];
  const ending = a.nodes.filter((node) => node.parent && node.ends.length);
  const copies = ending.filter((node) => node.ends.length > 1).map((node) => names(node.ends));
  const inside = ending.filter((node) => node.children.length).flatMap((node) => node.ends);
  const empty = a.root.ends;
  if (empty.length) out.push(`Without a token: ${names(empty)}. The reward counts in mean r, but there is nothing to push.`);
  if (copies.length) out.push(`The same text: ${copies.join("; ")}. Even its last token is shared.`);
  if (inside.length) out.push(`Ending inside the tree, where others go on: ${names(inside)}.`);
  if (a.equal) return [...out, "All rewards are equal: every advantage is exactly 0, nothing is pushed, neither objective learns."];
  const shared = a.nodes.some((node) => node.parent && node.count > 1);
  if (!shared) return [...out, "No step is shared: the group is flat, every |λ| is 1, and GRPO and λ-GRPO are the same."];
  return [...out, ...aboutTheBest(a)];
}

// Does GRPO work against the best completion?  First: a step that it shares is pushed down.  Second: a rival step beside its path
// is pushed up harder.
function aboutTheBest(a) {
  const best = a.rewards.indexOf(Math.max(...a.rewards));
  const path = a.paths[best];
  if (!path.length) return [`y${best} is the best completion, and empty: no token can be pushed towards it.`];
  const { grpo, lambda } = a.pathSums;
  const along = `Σ along y${best}: ${signed(grpo[best])} under GRPO, ${signed(lambda[best])} under λ-GRPO.`;

  const worst = path.reduce((x, y) => (y.grpo < x.grpo ? y : x));
  if (sign(worst.grpo) < 0) {
    const last = path.at(-1);
    const gets = last.count === 1 ? `${signed(last.grpo)} from both` : `${signed(last.grpo)} and ${signed(last.lambda)}`;
    return [
      `y${best} is the best completion, yet its ${quoted([worst])} is pushed down: ` +
        `the ${worst.count} that share it did worse than the group.`,
      `GRPO pushes it ${times(worst.count)} λ-GRPO: ${signed(worst.grpo)} against ${signed(worst.lambda)}. ` +
        `The last token of y${best} gets ${gets}.`,
      along,
    ];
  }

  const forks = path.flatMap((own) => own.parent.children.map((rival) => ({ own, rival, lead: rival.grpo - own.grpo })));
  const { own, rival, lead } = forks.reduce((x, y) => (y.lead > x.lead ? y : x));
  if (sign(lead) > 0) {
    const ratio = (name) => (sign(own[name]) ? `${plain(rival[name] / own[name], 1)} times as hard` : "and the other not at all");
    return [
      `y${best} is the best completion, and no token of it is pushed down. But at a fork ${own.count} took its ${quoted([own])} ` +
        `(R̂ ${plain(own.value)}) and ${rival.count} the other way, ${quoted([rival])} (R̂ ${plain(rival.value)}).`,
      `GRPO pushes the other way up ${ratio("grpo")}, λ-GRPO ${ratio("lambda")}.`,
      along,
    ];
  }
  return [`y${best} is the best completion: no token of it is pushed down, and no other way at a fork is pushed up harder.`, along];
}

// A step's numbers, worked out.
function explain(step, a) {
  const [average, scale] = [plain(a.average), plain(a.std + EPS)];
  if (!step.parent) return [`The prompt. mean r = ${average}, std r = ${plain(a.std)}: what every step is compared with.`];
  const rewards = step.members.map((i) => plain(a.rewards[i]));
  const terms = (rewards.length > 6 ? [...rewards.slice(0, 5), "…"] : rewards).join(" + ").replaceAll("+ −", "− ");
  const difference = `${plain(step.value)} − ${average}`.replace("− −", "+ ");
  const verdict = { "-1": "worse than the group", 0: "the group’s mean", 1: "better than the group" }[sign(step.grpo)];
  const each = step.nodes.length > 1 ? `each of the ${step.nodes.length} tokens` : "the token";
  return [
    `${names(step.members)} ${step.count > 1 ? "share" : "alone has"} ${quoted(step.nodes)}: |λ| = ${step.count}.`,
    `R̂ = (${terms}) / ${step.count} = ${plain(step.value)}.`,
    a.equal ? "Â = 0: all rewards are equal." : `Â = (${difference}) / ${scale} = ${signed(step.advantage)}: ${verdict}.`,
    `Push on ${each}: GRPO ${step.count} × ${signed(step.advantage)} = ${signed(step.grpo)}, λ-GRPO ${signed(step.lambda)}.`,
  ];
}
