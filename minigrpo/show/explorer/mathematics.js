// The explorer's numbers: from a group's texts and rewards to its tree, step rewards, advantages and pushes, and to one update.
//
// Read `buildTree` and `analyse` first: they are the mathematics, the same as in tree.py, rewards.py and objectives.py.
// What this leaves out: the sentences that follow from the numbers, in words.js, and all that is drawn.
"use strict";

const EPS = 1e-4; // added to the standard deviation, as in objectives.py
const LARGEST = 1e100; // of a reward, as in rewards.py: the squares of what is much larger overflow
const NEGLIGIBLE = 1e-9; // advantages that differ by less are tied: their rewards differ by a rounding only

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
const sign = (x) => (Math.abs(x) < NEGLIGIBLE ? 0 : Math.sign(x)); // a sum of advantages that cancel leaves a rounding

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
  const top = Math.max(...advantages);
  const best = rewards.map((_, i) => i).filter((i) => top - advantages[i] < NEGLIGIBLE); // all that are best, not one of them
  return { root, paths, nodes, rewards, advantages, average, std, equal, best, pathSums, steps: stepsOf(root) };
}

// One update of a policy over the tree, by each objective: `chance` of every node, `stop` of every node, `chances` of completions,
// each { before, grpo, lambda }.
//
// The policy is one softmax for each prefix, over the moves that were seen there: the next tokens, and the end, where a completion
// ends.  It starts at the group's frequencies:  p(move) = completions that make it / completions that come there.  So the update is
//
//   logit_m  +=  rate · Σ over moves c of push_c · (1[c = m] - p_m)   =   rate · (push_m - p_m · Σ push_c)
//
// and a push on one move also moves its rivals.  The end is no token: it has no push, and is moved by its rivals alone.
function takeStep(a, rate) {
  for (const node of a.nodes) {
    const share = (some) => some / node.count;
    const moves = node.children.map((child) => ({ child, before: share(child.count), grpo: child.grpo, lambda: child.lambda }));
    if (node.ends.length) moves.push({ child: null, before: share(node.ends.length), grpo: 0, lambda: 0 });
    const after = (name) => {
      const total = sum(moves.map((move) => move[name]));
      const shifts = moves.map((move) => rate * (move[name] - move.before * total)); // of the logits
      const weights = shifts.map((shift, m) => moves[m].before * Math.exp(shift - Math.max(...shifts)));
      return weights.map((weight) => weight / sum(weights));
    };
    const [grpo, lambda] = [after("grpo"), after("lambda")];
    node.stop = { before: 0, grpo: 0, lambda: 0 };
    moves.forEach(({ child, before }, m) => {
      const chance = { before, grpo: grpo[m], lambda: lambda[m] };
      if (child) child.chance = chance;
      else node.stop = chance;
    });
  }
  const product = (path, name) => path.reduce((p, node) => p * node.chance[name], (path.at(-1) ?? a.root).stop[name]);
  const all = (name) => a.paths.map((path) => product(path, name));
  a.rate = rate;
  a.chances = { before: all("before"), grpo: all("grpo"), lambda: all("lambda") };
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
