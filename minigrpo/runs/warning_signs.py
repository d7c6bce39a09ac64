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

    past: the metrics so far, of which nothing is said again;  flat: the parameters as one vector,
    which the n_steps to come will change in place.
    "collapse": the reward fell from that of a live step, and all groups of the last 10 are dead
    (equal rewards); or it fell by half of its distance from the lowest step, and by 5 standard
    errors; or greedy accuracy fell by a third, and by 5 standard errors.
    "nothing to compare": all groups of the last 10 steps are dead, and not because all is right.
    "no gradient": it was 0 in 10 steps whose rewards differ.  "no movement": at this pace the
    parameters will move by less than 1e-4 of their size.  "clipped": clipping leaves out a quarter
    of the tokens.  "far": a KL of half a nat per token, and no better reward.
    """

    def __init__(self, past: Iterable[Metrics] = (), flat: Any = None, n_steps: int = 1) -> None:
        self._steps, self._rewards, self._evaluated = deque[Metrics](maxlen=WINDOW), [], {}
        self._best, self._said = (-np.inf, 0), set[str]()  # the reward of a live step, and which
        self._some = None
        for metrics in past:
            self.look(metrics)
        self._n_past, self._n_steps = len(self._rewards), n_steps
        if flat is not None:
            self._some = flat[:: max(1, flat.size // 4096)]  # a view
            self._before = self._some.copy()

    def look(self, metrics: Metrics) -> dict[str, str]:
        """What is new after a step, or an evaluation."""
        if GREEDY in metrics:
            self._evaluated = self._evaluated or metrics
        if "reward" in metrics:
            self._steps.append(metrics)
            self._rewards.append(metrics["reward"])
            if _dead(metrics) <= 0.5:
                self._best = max(self._best, (metrics["reward"], metrics["step"]))
        new = {kind: said for kind, said in self._signs(metrics) if kind not in self._said}
        self._said |= set(new)
        return new

    def _signs(self, metrics: Metrics) -> Iterator[tuple[str, str]]:
        if GREEDY in metrics and (fell := _fall_of_greedy(self._evaluated, metrics)):
            yield "collapse", f"greedy accuracy on held-out problems {fell}: {AGAIN}"
        if "reward" not in metrics or len(self._steps) < WINDOW:
            return
        dead = [_dead(m) == 1 for m in self._steps]
        lately = f"in steps {self._steps[0]['step']} to {metrics['step']}"
        cut = self._mean("completions/clipped_ratio") > MOST
        rewards, (best, when) = np.array(self._rewards), self._best
        first, last, lowest = rewards[:START], rewards[-WINDOW:], rewards.min()
        variance = (first.var() * START + last.var() * WINDOW) / (START + WINDOW - 2)
        error = np.sqrt(variance * (1 / START + 1 / WINDOW))  # of the difference of their means
        later, was, now = len(rewards) >= START + WINDOW, first.mean(), last.mean()
        fell = f"step {metrics['step']}: the mean reward fell from"
        if all(dead) and best > now + 0.25 * (best - lowest) + 1e-9:
            self._said.add("nothing to compare")  # as that is a part of it
            same = "all completions of a prompt now earn the same, so nothing more is learned"
            yield "collapse", f"{fell} {best:.3g} at step {when} to {now:.3g}, and {same}: {AGAIN}"
        elif later and was - now > max(5 * error, 0.5 * (was - lowest), 1e-9):
            steps = f"in the first {START} steps to {now:.3g} in the last {WINDOW}"
            yield "collapse", f"{fell} {was:.3g} {steps}: {AGAIN}"
        elif all(dead) and self._mean("frac_correct") < SOLVED:
            same = f"all completions of every prompt earned the same {lately} (mean {now:.3g}), so "
            alike = f"they are all alike, so raise --temperature, or {AGAIN}"
            way_out = LONGER if cut else alike if self._mean("entropy", 1) < ALIKE else EASIER
            yield "nothing to compare", f"{same}nothing is learned: {way_out}"
        if sum(dead) < WINDOW / 2 and self._mean("grad_norm", 1) == 0:
            apart = "make them differ more, or take another --objective"
            why = f"{LONGER} (the objective masks such)" if cut else apart
            yield "no gradient", f"the gradient was 0 {lately}, although rewards differ: {why}"
        elif not any(dead) and self._some is not None and len(rewards) >= self._n_past + WINDOW:
            moved = float(((self._some - self._before) ** 2).sum() / (self._before**2).sum()) ** 0.5
            pace = moved / (len(rewards) - self._n_past)
            if max(moved, pace * self._n_steps) < STILL:
                each = f"the parameters move by {pace:.1g} of their size per step"
                yield "no movement", f"{each}, too little to learn: raise --learning-rate"
        clipped = self._mean("clip_ratio/low_mean") + self._mean("clip_ratio/high_mean")
        if clipped > CLIPPED:
            share = f"clipping left out {clipped:.0%} of the tokens {lately}"
            yield "clipped", f"{share}, as a step moves too far: lower --inner-epochs, or {GENTLER}"
        if later and (kl := self._mean("kl")) > FAR and now < was + 2 * error:
            far = f"the KL to the reference was {kl:.2g} nats per token {lately}, and the reward no"
            yield "far", f"{far} better for it: raise --objective-option beta=…, or {AGAIN}"

    def _mean(self, name: str, missing: float = 0.0) -> float:
        return float(np.mean([m.get(name, missing) for m in self._steps]))


def _dead(metrics: Metrics) -> float:
    """The share of groups of equal rewards that do not learn from their steps either."""
    return metrics.get("frac_reward_zero_std", 0) - metrics.get("frac_groups_steps_only", 0)


def _fall_of_greedy(before: Metrics, after: Metrics) -> str | None:
    p, q, n = before[GREEDY], after[GREEDY], before["eval/prompts"]
    error = np.sqrt((p * (1 - p) + q * (1 - q)) / n) + 1 / n
    if p - q <= max(5 * error, p / 3):
        return None
    return f"fell from {p:.0%} at step {before['step']} to {q:.0%} at step {after['step']}"
