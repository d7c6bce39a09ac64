"""Make results/smollm2-sums.json, the record from which chapter 8 is drawn without the model.

    minigrpo pull smollm2
    minigrpo train --model smollm2 --task sums --objective lambda_grpo \\
        --log-samples-every 1 --out RUN
    python tutorials/record_of_a_run.py RUN          # a few minutes; needs the extra `lm`

It holds the run's metrics and sampled texts, its first and last batch as tokens, greedy answers to
all problems and groups of held-out problems, both before and after, and facts of the model's file.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from minigrpo.models import cached, load_model, load_tokenizer
from minigrpo.models.gguf_file import GGUFFile
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.policy import load_run
from minigrpo.sampler import sample
from minigrpo.system.files import read_records
from minigrpo.tasks import Tokenised, few_shot, load_task, sampling_limits
from minigrpo.transformer import Transformer
from minigrpo.tree import PrefixTree

FILE = Path(__file__).parents[1] / "results" / "smollm2-sums.json"
KEPT = (
    "step",
    "reward",
    "frac_reward_zero_std",
    "grad_norm",
    "entropy",
    "learning_rate",
    "eval/pass@1_greedy",
    "step_time",
)
KEPT += ("tree/unique_tokens", "tree/flat_tokens")
CHUNK, GROUPS, GROUP_SIZE = 82, 8, 8
PROBLEMS_SEED, SAMPLES_SEED = 1, 2  # of the held-out groups
BLOCK, LEVELS = 32, 16  # of Q4_1
Groups = list[dict[str, Any]]  # question and completions as token ids, rewards


def greedy(model: Transformer, task: Tokenised) -> list[str]:
    """The likeliest completion of every problem a ≤ b, up to the end of its line."""
    numbers = range(task.task.low, task.task.high + 1)
    texts = [few_shot(task.task.solved, f"{a} + {b} =") for a in numbers for b in numbers if a <= b]
    found: list[str] = []
    for start in range(0, len(texts), CHUNK):
        prompts = [task.tokenizer.encode(text) for text in texts[start : start + CHUNK]]
        rollouts = sample(
            model, prompts, 1, np.random.default_rng(0), temperature=0.0, **sampling_limits(task)
        )
        found += [
            task.tokenizer.decode(group[0]).split(task.task.stop)[0]
            for group in rollouts.completions
        ]
    return found


def draw(
    model: Transformer, task: Tokenised, prompts: list[np.ndarray], rng: np.random.Generator
) -> Groups:
    """Groups of completions, with the tokens that were sampled."""
    rollouts = sample(model, prompts, GROUP_SIZE, rng, **sampling_limits(task))
    rewards = task.score(rollouts).reshape(len(prompts), GROUP_SIZE).tolist()
    return [
        as_group(task, p, cs, r)
        for p, cs, r in zip(prompts, rollouts.completions, rewards, strict=True)
    ]


def as_group(
    task: Tokenised, prompt: np.ndarray, completions: list[np.ndarray], rewards: list[float]
) -> dict[str, Any]:
    """What is kept of a group; the question is what follows the examples."""
    question = prompt[len(preamble(task)) :].tolist()
    return {
        "question": question,
        "completions": [c.tolist() for c in completions],
        "rewards": [int(r) for r in rewards],
    }


def preamble(task: Tokenised) -> list[int]:
    """The tokens of the solved examples."""
    return task.tokenizer.encode(few_shot(task.task.solved, "")).tolist()


def logged(run: Path) -> list[list[dict[str, Any]]]:
    """The groups of every step as texts: the last line of the prompt, completions, rewards."""
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    rows = read_records(run / "samples.jsonl")
    for i in range(0, len(rows), GROUP_SIZE):
        group = rows[i : i + GROUP_SIZE]
        kept = {
            "completions": [row["completion"] for row in group],
            "rewards": [int(row["reward"]) for row in group],
        }
        steps[group[0]["step"]].append({"question": group[0]["prompt"].rsplit("\n", 1)[-1]} | kept)
    return list(steps.values())


def last_batch(task: Tokenised, groups: list[dict[str, Any]], distinct: int) -> Groups:
    """The last step's groups in tokens.   Raises ValueError if their tree has another size."""
    shown = few_shot(task.task.solved, "")
    completions = [[task.tokenizer.encode(text) for text in g["completions"]] for g in groups]
    if PrefixTree.from_groups([()] * len(groups), completions).n_nodes != distinct:
        raise ValueError(
            "the texts of the last step encode to other tokens: train with another seed"
        )
    found = []
    for group, texts in zip(groups, completions, strict=True):
        prompt = task.tokenizer.encode(shown + group["question"])
        found.append(as_group(task, prompt, texts, group["rewards"]))
    return found


def file_of_the_model() -> dict[str, Any]:
    """Bytes; kind of storage -> tensors, numbers, bytes; the rms of a level of a Q4_1 block."""
    file, kinds = GGUFFile(cached("smollm2")), defaultdict(lambda: [0, 0, 0])
    levels = []
    for name, info in file.tensors.items():
        one = 1, int(np.prod(info.shape)), file.stored_bytes(info)
        kinds[info.kind] = [x + y for x, y in zip(kinds[info.kind], one, strict=True)]
        if info.kind == "Q4_1":
            blocks = file.read(name).reshape(-1, BLOCK)
            levels.append(((np.ptp(blocks, axis=1) / (LEVELS - 1)) ** 2).mean())
    return {
        "bytes": file.path.stat().st_size,
        "kinds": dict(kinds),
        "rms level of Q4_1": float(np.sqrt(np.mean(levels))),
    }


def main() -> None:
    """Read the command line, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    task, metrics = load_task("sums", load_tokenizer("smollm2")), read_metrics(options.run)
    settings = json.loads((options.run / "settings.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = {
        "settings": {k: settings[k] for k in ("objective", "seed", "steps", "learning_rate")}
    }
    record["file"] = file_of_the_model()
    record["metrics"] = [
        {k: row[k] for k in KEPT if k in row}
        for row in (read_records(options.run / "metrics.jsonl")[0], *metrics)
    ]
    record["training"] = logged(options.run)
    model, _ = load_model("smollm2")
    record["config"] = model.settings()
    start, rng = model.parameters.flat.copy(), np.random.default_rng(settings["seed"])
    record["first batch"] = draw(model, task, task.prompts(rng, settings["prompts_per_step"]), rng)
    record["last batch"] = last_batch(
        task, record["training"][-1], metrics[-1]["tree/unique_tokens"]
    )
    again, trained = record["first batch"], record["training"][0]
    if [group["rewards"] for group in again] != [group["rewards"] for group in trained]:
        raise ValueError(
            "the first step was sampled otherwise in the run: make the record on the same machine"
        )
    problems = task.prompts(np.random.default_rng(PROBLEMS_SEED), GROUPS, "test")
    for name in ("before", "after"):
        if name == "after":
            model, _, _ = load_run(options.run)
        record[f"held out, {name}"] = draw(
            model, task, problems, np.random.default_rng(SAMPLES_SEED)
        )
        record[f"greedy, {name}"] = greedy(model, task)
    change = model.parameters.flat - start
    record["change"] = {
        "rms": float(np.sqrt(np.mean(change**2, dtype=np.float64))),
        "largest": float(np.abs(change).max()),
    }
    record["change"]["rms of the weights"] = float(np.sqrt(np.mean(start**2, dtype=np.float64)))
    record["preamble"] = preamble(task)
    in_tokens = ("first batch", "last batch", "held out, before", "held out, after")
    ids = {
        i
        for name in in_tokens
        for g in record[name]
        for text in (g["question"], *g["completions"])
        for i in text
    }
    record["pieces"] = {
        str(i): task.tokenizer.decode([i]) for i in sorted(ids.union(record["preamble"]))
    }
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in record.items()
    )
    options.out.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
