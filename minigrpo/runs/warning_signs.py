"""Signs that a run is not learning, each as one sentence that names the setting to change.

Only the metrics of the steps and some parameters are looked at, so it costs nothing.  A healthy run
should stay silent: what is said must be beyond the noise of the rewards.  Left out are parameters
that are not finite, which end a run (`engine/divergence.py`), and ratios that nothing clips.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minigrpo.engine.backend import Array

WINDOW = 10  # steps that are looked at together
START = 5  # steps that stand for the policy before it was trained
SOLVED = 0.75  # share of right completions from which on equal rewards are a success
MOST = 0.9  # share of completions that were cut off
ALIKE = 0.01  # nats per token: all completions of a prompt are the same
CLIPPED = 0.25  # share of tokens; runs that learn from several epochs clip below 0.1
FAR = 0.5  # nats per token from the reference, for a policy that is not better for it
STILL = 1e-4  # of their size: the parameters would hardly move in the whole run
GREEDY = "eval/pass@1_greedy"
GENTLER = "lower --learning-rate (or raise --prompts-per-step, or --warmup-steps)"
AGAIN = f"start again and {GENTLER}"
LONGER = "all were cut off at the length limit, so raise max_new_tokens of the task"
EASIER = "take easier problems (harder ones if this is the best reward), finer rewards, "
EASIER += "a warm start, or a larger --group-size"
Metrics = Mapping[str, Any]


class Watchman:
    """Looks at a run after each step.   look(metrics) -> {kind: sentence}, each kind once

    past: the metrics so far, of which nothing is said again;  parameters: one vector, which the
    n_steps to come will change in place.
    "collapse": the reward fell from that of a live step, and all groups of the last 10 are dead
    (equal rewards); or it fell by half of its distance from the lowest step, and by 5 standard
    errors; or greedy accuracy fell by a third, and by 5 standard errors.
    "nothing to compare": all groups of the last 10 steps are dead, and not because all is right.
    "no gradient": it was 0 in 10 steps whose rewards differ.  "no movement": at this pace the
    parameters will move by less than 1e-4 of their size.  "clipped": clipping leaves out a quarter
    of the tokens.  "far": a KL of half a nat per token, and no better reward.
    """

    def __init__(
        self, past: Iterable[Metrics] = (), parameters: Array | None = None, n_steps: int = 1
    ) -> None:
        self._steps, self._evaluated, self._said = deque[Metrics](maxlen=WINDOW), {}, set[str]()
        self._first, self._best, self._lowest = [], {"reward": -np.inf}, np.inf
        self._some, self._n_seen, self._n_steps = None, 0, n_steps
        for metrics in past:
            self.look(metrics)
        if parameters is not None:
            self._some, self._n_seen = parameters[:: max(1, parameters.size // 4096)], 0  # a view
            self._before = self._some.copy()

    def look(self, metrics: Metrics) -> dict[str, str]:
        """What is new after a step, or an evaluation."""
        if GREEDY in metrics:
            self._evaluated = self._evaluated or metrics
        if "reward" in metrics:
            self._steps.append(metrics)
            self._first += [metrics] * (len(self._first) < START)
            if metrics.get("frac_reward_zero_std", 1) <= 0.5:  # most groups were alive
                self._best = max(self._best, metrics, key=lambda m: m["reward"])
            self._lowest = min(self._lowest, metrics["reward"])
            self._n_seen += 1
        new = {kind: said for kind, said in self._signs(metrics) if kind not in self._said}
        self._said |= set(new)
        return new

    def _signs(self, metrics: Metrics) -> Iterator[tuple[str, str]]:
        if GREEDY in metrics and (fell := _fall_of_greedy(self._evaluated, metrics)):
            yield "collapse", f"greedy accuracy on held-out problems fell {fell}: {AGAIN}"
        if "reward" not in metrics or len(self._steps) < WINDOW:
            return
        equal, alive = "frac_reward_zero_std", "frac_groups_steps_only"  # these learn from steps
        dead = [m.get(equal, 0) - m.get(alive, 0) == 1 for m in self._steps]
        lately = f"in steps {self._steps[0]['step']} to {metrics['step']}"
        now, cut = self._mean("reward"), self._mean("completions/clipped_ratio") > MOST
        if fell := self._fall_of_reward(now, all(dead)):
            self._said.add("nothing to compare")  # as that is a part of it
            yield "collapse", f"step {metrics['step']}: the mean reward fell {fell}: {AGAIN}"
        elif all(dead) and self._mean("frac_correct") < SOLVED:
            same = f"all completions of every prompt earned the same {lately} (mean {now:.3g}), so "
            alike = f"they are all alike, so raise --temperature, or {AGAIN}"
            way_out = LONGER if cut else alike if self._mean("entropy", 1) < ALIKE else EASIER
            yield "nothing to compare", f"{same}nothing is learned: {way_out}"
        if sum(dead) < WINDOW / 2 and self._mean("grad_norm", 1) == 0:
            apart = "make them differ more, or take another --objective"
            why = f"{LONGER} (the objective masks such)" if cut else apart
            yield "no gradient", f"the gradient was 0 {lately}, although rewards differ: {why}"
        elif not any(dead) and self._n_seen >= WINDOW and self._some is not None:
            moved = float(((self._some - self._before) ** 2).sum() / (self._before**2).sum()) ** 0.5
            if moved * max(1, self._n_steps / self._n_seen) < STILL:
                each = f"the parameters move by {moved / self._n_seen:.1g} of their size per step"
                yield "no movement", f"{each}, too little to learn: raise --learning-rate"
        clipped = self._mean("clip_ratio/low_mean") + self._mean("clip_ratio/high_mean")
        if clipped > CLIPPED:
            share = f"clipping left out {clipped:.0%} of the tokens {lately}"
            yield "clipped", f"{share}, as a step moves too far: lower --inner-epochs, or {GENTLER}"
        if self._first[-1]["step"] >= self._steps[0]["step"]:
            return
        first, error = self._start_and_error()
        if (kl := self._mean("kl")) > FAR and now < first + 2 * error:
            far = f"the KL to the reference was {kl:.2g} nats per token {lately}, and the reward no"
            yield "far", f"{far} better for it: raise --objective-option beta=…, or {AGAIN}"

    def _mean(self, name: str, missing: float = 0.0) -> float:
        return float(np.mean([m.get(name, missing) for m in self._steps]))

    def _start_and_error(self) -> tuple[float, float]:
        """Mean reward of the first steps, and the standard error of its difference from now."""
        first, last = ([m["reward"] for m in some] for some in (self._first, self._steps))
        variance = (np.var(first) * START + np.var(last) * WINDOW) / (START + WINDOW - 2)
        return float(np.mean(first)), float(np.sqrt(variance * (1 / START + 1 / WINDOW)))

    def _fall_of_reward(self, now: float, all_dead: bool) -> str | None:
        best = self._best["reward"]
        if all_dead and now < best - 0.25 * (best - self._lowest) - 1e-9:
            fell = f"from {best:.3g} at step {self._best['step']} to {now:.3g}, and all completions"
            return f"{fell} of a prompt now earn the same, so nothing more is learned"
        first, error = self._start_and_error()
        room = max(5 * error, 0.5 * (first - self._lowest), 1e-9)
        if self._first[-1]["step"] < self._steps[0]["step"] and first - now > room:
            return f"from {first:.3g} in the first {START} steps to {now:.3g} in the last {WINDOW}"
        return None


def _fall_of_greedy(before: Metrics, after: Metrics) -> str | None:
    p, q, n = before[GREEDY], after[GREEDY], before["eval/prompts"]
    error = np.sqrt((p * (1 - p) + q * (1 - q)) / n) + 1 / n
    if p - q <= max(5 * error, p / 3):
        return None
    return f"from {p:.0%} at step {before['step']} to {q:.0%} at step {after['step']}"
