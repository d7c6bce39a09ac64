"""The loss functions of TRL, verl and OpenRLHF against the vectors.   See README.md.

    python vectors/frameworks.py --out vectors/frameworks.json    # those that are installed

What runs is their own code, on the CPU and without a model: `GRPOTrainer._compute_loss` of TRL; the
registered policy loss, `kl_penalty` and `agg_loss` of verl; `PolicyLoss`, `compute_approx_kl` and
`aggregate_loss` of OpenRLHF.  λ-GRPO is TRL's loss inside `minigrpo.integrations.trl`, and in the
other two their loss on advantages times w.  With --out, what the file says of a framework that is
not installed stays there.
"""

import argparse
import importlib
import json
import sys
import types
import warnings
from collections import defaultdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from check import check, verdict

AGREES = 1e-6  # relative, in float64
NEVER = 1e9  # an epsilon that clips nothing
HEADER = "| framework | what | cases | agree | largest error of those | the others |"
CORRECTED = "loss with a KL term, use_bias_correction_kl"  # TRL's default for D


def trl_way(s):
    """How TRL is asked for the settings of a case; None if it cannot be."""
    if s["beta"] and s["kl"] != "k3":
        return None
    names = {"batch_token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
    names |= {"sequence_sum": "luspo", "group_token_mean": "bnpo"}
    return names[s["aggregation"]]


def trl_loss(bias_correction=False):
    """`_compute_loss` of trainers that have no model; bias_correction: TRL's default for D."""
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from minigrpo.integrations.trl import LambdaGRPOTrainer

    def loss(logp, old, ref, counts, a, w, s, max_new_tokens):
        trainer = object.__new__(LambdaGRPOTrainer if s["alpha"] else GRPOTrainer)
        own = {"loss_type": trl_way(s), "beta": s["beta"], "max_completion_length": max_new_tokens}
        own |= {"epsilon": s["clip_low"] or NEVER, "epsilon_high": s["clip_high"] or NEVER}
        args = GRPOConfig(".", **own, use_bias_correction_kl=bias_correction, use_cpu=True)
        vars(trainer).update(vars(args), args=args, epsilon_low=args.epsilon)
        trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
        trainer._metrics = {"train": defaultdict(list)}
        trainer.model = types.SimpleNamespace(training=True)
        of_one = {"gather": lambda x: x, "reduce": lambda x, **_: x}
        trainer.accelerator = types.SimpleNamespace(num_processes=1, **of_one)
        # "dapo" divides by the tokens of a batch that is split into so many parts
        trainer.current_gradient_accumulation_steps = args.steps_per_generation = 1
        answer = logp, torch.zeros_like(logp), None  # log-probabilities and entropies
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: answer
        given = {"prompt_ids": counts[:, :1], "prompt_mask": counts[:, :1], "advantages": a * w}
        given |= {"completion_ids": counts, "completion_mask": counts}
        given |= {"old_per_token_logps": old, "ref_per_token_logps": ref}
        given |= {"process_weights": w} if s["alpha"] and s["beta"] else {}
        return trainer._compute_loss(None, given | {"num_items_in_batch": counts.sum()})

    return loss


def verl_way(s):
    """verl's loss_agg_mode."""
    names = {"batch_token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean"}
    names |= {"sequence_sum": "seq-mean-token-sum", "constant": "seq-mean-token-sum-norm"}
    return names.get(s["aggregation"], "token-mean")


def verl_loss():
    """verl's policy loss and KL term, put together as its workers do."""
    from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
    from verl.workers.config import ActorConfig

    def loss(logp, old, ref, counts, a, w, s, max_new_tokens):
        low, high = s["clip_low"] or NEVER, s["clip_high"] or NEVER
        own = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1}
        actor = ActorConfig(**own, clip_ratio_low=low, clip_ratio_high=high)
        sizes = {"batch_num_tokens": int(counts.sum()), "global_batch_size": len(counts)}
        actor.global_batch_info.update(sizes, dp_size=1, loss_scale_factor=max_new_tokens)
        mode, mask = verl_way(s), counts.bool()
        total, _ = get_policy_loss_fn("vanilla")(old, logp, a * w, mask, mode, actor)
        if s["beta"]:
            d = kl_penalty(logp, ref, s["kl"])
            total = total + s["beta"] * agg_loss(d, mask, mode, **actor.global_batch_info)
        return total

    return loss


def verl_advantages(epsilon=None):
    """verl's estimators, for the baselines and scales that they have."""
    import numpy as np
    from verl.trainer.ppo import core_algos

    def advantages(rewards, group, mask, baseline, scale):
        given = {"token_level_rewards": rewards[:, None], "response_mask": mask[:, :1] * 0 + 1}
        given["index"] = np.array(group.tolist())
        if baseline == "leave_one_out":
            return core_algos.compute_rloo_outcome_advantage(**given)[0][:, 0]
        scaled = scale == "group_std"
        given |= {"epsilon": epsilon} if epsilon else {}
        found = core_algos.compute_grpo_outcome_advantage(**given, norm_adv_by_std_in_grpo=scaled)
        return found[0][:, 0]

    return advantages


def verl_estimator(s):
    """verl's estimator; None if it has no such advantages."""
    names = {("group_mean", "group_std"): "grpo", ("group_mean", "none"): "grpo"}
    return (names | {("leave_one_out", "none"): "rloo"}).get((s["baseline"], s["scale"]))


def openrlhf_way(s):
    """OpenRLHF's token_level_loss; None for means that it does not have."""
    names = {"batch_token_mean": "True", "group_token_mean": "True", "sequence_mean": "False"}
    return names.get(s["aggregation"])


def openrlhf_loss():
    """OpenRLHF's policy loss and KL term, put together as its actor does."""
    folder = Path(find_spec("openrlhf").submodule_search_locations[0])
    package = types.ModuleType("openrlhf.models")  # without its Actor, which needs DeepSpeed
    package.__path__ = [str(folder / "models")]
    sys.modules["openrlhf.models"] = package
    sys.modules.setdefault("deepspeed", types.ModuleType("deepspeed"))
    losses, utils = (importlib.import_module(f"openrlhf.models.{n}") for n in ("loss", "utils"))

    def loss(logp, old, ref, counts, a, w, s, max_new_tokens):
        by_token = openrlhf_way(s) == "True"
        clip = s["clip_low"] or NEVER, s["clip_high"] or NEVER
        sizes = {"batch_num_tokens": counts.sum(), "global_batch_size": len(counts)}
        policy_loss = losses.PolicyLoss(*clip, token_level_loss=by_token)
        total = policy_loss(logp, old, a * w, counts, **sizes)[0]
        if s["beta"]:
            d = utils.compute_approx_kl(logp, ref, kl_estimator=s["kl"])
            total = total + s["beta"] * losses.aggregate_loss(d, counts, by_token, **sizes)
        return total

    return loss


def with_kl(s):
    """As `trl_way`, of cases with a KL term alone."""
    return trl_way(s) if s["beta"] else None


FRAMEWORKS = {  # of each part: its kind, what makes the function, and how settings are asked for
    "trl": {"loss": (trl_loss, trl_way), CORRECTED: (lambda: trl_loss(True), with_kl)},
    "verl": {
        "loss": (verl_loss, verl_way),
        "advantages": (verl_advantages, verl_estimator),
        "advantages, epsilon 1e-4": (lambda: verl_advantages(1e-4), verl_estimator),
    },
    "openrlhf": {"loss": (openrlhf_loss, openrlhf_way)},
}
TITLES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF"}


def on_batch(loss, s):
    """A function for check(): calls `loss` once, or for each group where that is what is meant."""

    def of_case(logp, old, ref, mask, truncated, group, token_advantages, weights, max_new_tokens):
        counts = mask * (1 - truncated[:, None]) if s["mask_truncated"] else mask
        by_group = s["aggregation"] == "group_token_mean"
        names = sorted(set(group.tolist())) if by_group else [None]
        calls = [(group == name) if by_group else (group == group) for name in names]
        fields = logp, old, ref, counts, token_advantages, weights
        parts = [loss(*(x[rows] for x in fields), s, max_new_tokens) for rows in calls]
        return sum(parts) / len(parts)

    return of_case


def measure(module):
    """For every part of a framework: the cases that agree, how well, and what the others show."""
    data = json.loads(Path(__file__).with_name("grpo.json").read_text(encoding="utf-8"))
    rows = []
    for part, (make, way) in FRAMEWORKS[module].items():
        kind = part.split()[0].strip(",")
        function = make()
        results, asked = [], defaultdict(int)
        for case in [c for c in data["cases"] if c["kind"] == kind]:
            if (name := way(case["settings"])) is None:
                continue
            asked[name] += 1
            options = {"kind": kind, "cases": case["name"], "arrays": "torch"}
            asker = function if kind == "advantages" else on_batch(function, case["settings"])
            found, _ = check(asker, **options, tolerance=AGREES)
            results += [result for result in found if result[0]["name"] == case["name"]]
        agree = [worst for _, right, worst, _, _ in results if right]
        row = {"framework": f"{TITLES[module]} {version(module)}", "what": part}
        row |= {
            "cases": len(results),
            "agree": len(agree),
            "error": max(agree, default=0.0),
            "by": dict(asked),
        }
        found, unexplained = verdict(results)
        row["others"] = {" or ".join(names): n for names, n in found}
        row["others"] |= {"no stored mistake": unexplained} if unexplained else {}
        row["names"] = [case["name"] for case, right, *_ in results if not right]
        rows.append(row)
    return rows


def table(rows):
    """The rows as Markdown."""
    lines = [HEADER, "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        others = "; ".join(f"{n}: {name}" for name, n in row["others"].items())
        cells = [row["framework"], row["what"], row["cases"], row["agree"]]
        cells.append(f"{row['error']:.0e}" if row["agree"] else "")
        lines.append(f"| {' | '.join(map(str, [*cells, others]))} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="a JSON file")
    out = parser.parse_args().out
    found = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}
    for module in FRAMEWORKS:
        if find_spec(module):
            found[module] = measure(module)
    if out:
        text = json.dumps(found, ensure_ascii=False, indent=1)
        out.write_text(text + "\n", encoding="utf-8")
    print(table([row for module in FRAMEWORKS for row in found.get(module, [])]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
