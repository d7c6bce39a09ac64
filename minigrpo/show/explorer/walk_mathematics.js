// The live walk's numbers: two tabular policies on the paper's tree walk, one step at a time.
//
// The same as experiments/many_walks.py and its policy `Tabular` (a softmax of its own for every prefix, plain SGD), for the same
// uniform numbers; tests/test_live_walk.py compares them.  Moves are numbered level by level, from left to right: 0 is L, 1 is R,
// 2 is LL, …; move j follows the inner node j >> 1 and leads to the inner node j + 1, and inner node 0 is the root.
// The tree of a group, R̂ and Â come from `analyse` in mathematics.js.  What this leaves out: drawing, in walk_view.js.
"use strict";

const DEPTH = 4;
const LEAVES = 2 ** DEPTH;
const MOVES = 2 * LEAVES - 2;
const R_OTHER = 0.7; // what a walk earns that does not begin like the target

const movesTo = (leaf) => Array.from({ length: DEPTH }, (_, i) => 2 ** (i + 1) - 2 + (leaf >> (DEPTH - 1 - i)));
const lettersOf = (leaf) => [...leaf.toString(2).padStart(DEPTH, "0")].map((bit) => "LR"[bit]);
const leafOf = (letters) => parseInt([...letters].map((letter) => "LR".indexOf(letter)).join(""), 2);

// Uniform numbers in [0, 1), the same in every language that has 32-bit integers (mulberry32).
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Logits that give the target the probability `start`, each of its moves the same; all 0, the uniform policy, for 1/16.
function firstLogits(target, start) {
  const logits = new Float64Array(MOVES);
  if (start === 1 / LEAVES) return logits;
  const p = start ** (1 / DEPTH);
  for (const move of movesTo(target)) logits[move] = Math.log(p / (1 - p));
  return logits;
}

// p of every move, given its prefix.   log p = z - log Σ exp z over the two moves
function probabilities(logits) {
  return logits.map((z, move) => {
    const other = logits[move ^ 1];
    return Math.exp(z - (Math.max(z, other) + Math.log1p(Math.exp(-Math.abs(z - other)))));
  });
}

const pathProbability = (p, leaf) => movesTo(leaf).reduce((product, move) => product * p[move], 1);

// k walks, one uniform number for each move.   uniform: k lists of DEPTH numbers -> k leaves
function drawWalks(p, uniform) {
  return uniform.map((numbers) =>
    numbers.reduce((place, u, level) => 2 * place + Number(u >= p[2 * (2 ** level - 1 + place)]), 0),
  );
}

// 1 at the target, rNeg at walks that share its first n moves, R_OTHER at all others.
function rewardOf(leaf, { target, n, rNeg }) {
  if (leaf === target) return 1;
  return leaf >> (DEPTH - n) === target >> (DEPTH - n) ? rNeg : R_OTHER;
}

// What a group says of every move: how many took it, R̂, Â, and the push Σ aᵢ / |λ|^α.   Moves that nobody took have the count 0.
function judge(leaves, settings, alpha) {
  const rewards = leaves.map((leaf) => rewardOf(leaf, settings));
  const a = analyse(leaves.map(lettersOf), rewards);
  const group = { leaves, rewards, advantages: a.advantages };
  for (const name of ["count", "value", "advantage", "push"]) group[name] = new Float64Array(MOVES);
  a.paths.forEach((path, i) => {
    movesTo(leaves[i]).forEach((move, level) => {
      const node = path[level];
      group.count[move] = node.count;
      group.value[move] = node.value;
      group.advantage[move] = node.advantage;
      group.push[move] = node.grpo / node.count ** alpha;
    });
  });
  return group;
}

// One step of plain SGD up the objective.   dz = (push - p · (sum of the pushes of the two moves)) / tokens
function updated(logits, p, push, rate, tokens) {
  return logits.map((z, move) => z + (rate * (push[move] - p[move] * (push[move] + push[move ^ 1]))) / tokens);
}

// Two policies that see the same uniform numbers: GRPO, and weights |λ|^-α (λ-GRPO for α = 1).
// settings: { target, n, rNeg, k, rate, alpha, seed, start }
class Race {
  constructor(settings) {
    this.settings = settings;
    this.random = generator(settings.seed);
    this.step = 0;
    const { target, start, alpha } = settings;
    this.runners = [0, alpha].map((power) => {
      const logits = firstLogits(target, start);
      const p = probabilities(logits);
      return { alpha: power, logits, p, before: p, group: null, curve: [pathProbability(p, target)], drawn: [] };
    });
  }

  // Sample a group for each policy and judge it; `advance` then updates.
  sample() {
    const { k, target } = this.settings;
    const uniform = Array.from({ length: k }, () => Array.from({ length: DEPTH }, this.random));
    for (const runner of this.runners) {
      runner.before = runner.p;
      runner.group = judge(drawWalks(runner.p, uniform), this.settings, runner.alpha);
      runner.drawn.push(runner.group.leaves.filter((leaf) => leaf === target).length / k);
    }
  }

  update() {
    const { k, rate, target } = this.settings;
    for (const runner of this.runners) {
      runner.logits = updated(runner.logits, runner.p, runner.group.push, rate, k * DEPTH);
      runner.p = probabilities(runner.logits);
      runner.curve.push(pathProbability(runner.p, target));
    }
    this.step += 1;
  }

  advance() {
    this.sample();
    this.update();
  }
}

// found: the target is drawn more often than not.  lost: it is not, and less than one walk in 50 groups takes its first n moves, so
// that nearly all groups have equal rewards and nothing more is learned.
function outcome(runner, { target, n, k }) {
  if (runner.curve.at(-1) > 0.5) return "found";
  const begin = movesTo(target).slice(0, n).reduce((product, move) => product * runner.p[move], 1);
  return 50 * k * begin < 1 ? "lost" : "searching";
}
