"""λ-GRPO in TRL while it trains: weights on the right tokens through shuffling, splitting, masking,
epochs, eval and processes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason='needs TRL: pip install -e ".[test,trl]"')
pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[test,trl]"')

import torch
from datasets import Dataset
from helpers import tiny_model
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_setup import (
    EOS,
    SHAPE,
    apart,
    brute_advantages,
    brute_weights,
    copy_weights,
    fixed_groups,
    gradients_of,
    make_trainer,
    moved,
)

from minigrpo.command.cli import main
from minigrpo.integrations.trl import LambdaGRPOTrainer

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # what TRL, transformers and PyTorch say about each other is not ours


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def brute_loss(
    trainer: GRPOTrainer,
    model: torch.nn.Module,
    inputs: dict,
    advantages: torch.Tensor,
    weights: torch.Tensor,
):
    """The loss from scratch: a completion's advantage in the clipped term, D beside it, and the
    whole of it times 1/|λ|.
    """
    a, mask = trainer.args, inputs["completion_mask"]
    mode, rows, width = ("train" if model.training else "eval"), *mask.shape
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], mask], 1)
    logp, entropy, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, attention, width, compute_entropy=True
    )
    ratio = torch.exp(logp - inputs.get("old_per_token_logps", logp))
    clipped = ratio.clamp(1 - a.epsilon, 1 + a.epsilon)
    term = torch.min(
        ratio.clamp(max=a.delta or np.inf) * advantages[:, None], clipped * advantages[:, None]
    )
    if a.off_policy_mask_threshold is not None:
        drift = ((inputs.get("old_per_token_logps", logp) - logp) * mask).sum(1) / mask.sum(
            1
        ).clamp(min=1)
        term = term * ((advantages >= 0) | (drift <= a.off_policy_mask_threshold))[:, None]
    if a.top_entropy_quantile < 1:
        term = term * (
            entropy * mask >= torch.quantile(entropy[mask.bool()], 1 - a.top_entropy_quantile)
        )
    if a.beta:
        x = inputs["ref_per_token_logps"] - logp
        term = term - a.beta * (torch.expm1(x) - x) * (ratio if a.use_bias_correction_kl else 1)
    term = -term * weights * mask
    if a.loss_type == "dapo":
        steps = a.gradient_accumulation_steps / a.steps_per_generation if mode == "train" else 1
        return term.sum() / (inputs["num_items_in_batch"].clamp(min=1) * steps)
    mean = {
        "grpo": lambda: (term.sum(1) / mask.sum(1).clamp(min=1)).mean(),
        "bnpo": lambda: term.sum() / mask.sum().clamp(min=1),
        "dr_grpo": lambda: term.sum() / (rows * a.max_completion_length),
    }[a.loss_type]()
    return mean / (a.gradient_accumulation_steps if mode == "train" else 1)


class Checked(LambdaGRPOTrainer):
    """Keeps all groups as the reward function sees them, and recomputes every loss from them by
    brute force.
    """

    worst = 0.0
    shared = 0  # tokens with |λ| > 1 that counted
    losses: tuple = ()

    def __init__(self, *args, **kwargs):
        self.seen = {}
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        seen = self.seen[
            "train" if self.model.training else "eval"
        ] = {}  # an eval comes between the uses of a training batch
        for prompt, ids in zip(prompts, completion_ids_list, strict=True):
            seen.setdefault(prompt, []).append(ids)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        mode, shape = "train" if model.training else "eval", inputs["completion_ids"].shape
        advantages, weights = np.zeros(shape[0]), np.zeros(shape)
        for i in range(shape[0]):
            prompt = " ".join(
                str(int(t)) for t in inputs["prompt_ids"][i][inputs["prompt_mask"][i] == 1]
            )
            group = self.seen[mode][prompt]
            row = inputs["completion_ids"][i].tolist()
            own = row[: row.index(EOS) + 1] if EOS in row else row  # padding is EOS
            place = group.index(own)
            advantages[i] = brute_advantages(group)[place]
            weights[i, : len(own)] = brute_weights(group, self.mask_truncated_completions)[place]
        a, w, mask = (
            torch.tensor(advantages).float(),
            torch.tensor(weights).float(),
            inputs["completion_mask"] == 1,
        )
        torch.testing.assert_close(
            inputs["advantages"][mask], (a[:, None] * w)[mask], rtol=1e-5, atol=1e-5
        )
        with torch.no_grad():
            expected = brute_loss(self, model, inputs, a, w)
        self.worst = max(self.worst, abs(float(loss) - float(expected)))
        self.shared += int((w[mask] < 1).sum())
        self.losses += ((mode, float(expected)),)
        return loss


# Groups of 4 on micro-batches of 3, three to a generation batch; two epochs of two updates each.
HARD = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 8,
    "learning_rate": 0.3,
    "mask_truncated_completions": True,
}


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo"},
        {"loss_type": "bnpo"},
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "dapo", "beta": 0.2},
        {"loss_type": "dr_grpo", "beta": 0.2, "use_bias_correction_kl": False},
        {"loss_type": "dapo", "delta": 1.05, "off_policy_mask_threshold": 0.01},
        {"loss_type": "grpo", "top_entropy_quantile": 0.5, "mask_truncated_completions": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_weights_sit_on_the_right_tokens(options: dict, tmp_path: Path) -> None:
    """Against a brute-force recomputation in every loss, of training and of eval (which has groups
    of 2).
    """
    prompts = ["0", "1", "2 3", "3 2 1", "2", "3"]
    evaluated = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 4,
    }
    dataset = Dataset.from_dict({"prompt": ["0 0", "1 1", "3 1"]})
    trainer = make_trainer(
        tmp_path, Checked, prompts, eval_dataset=dataset, **(HARD | evaluated | options)
    )
    trainer.train()
    modes = [mode for mode, _ in trainer.losses]
    print(f"worst {trainer.worst:.1e} of {len(modes)} losses, {trainer.shared} shared tokens")
    assert trainer.worst < 1e-5
    assert modes.count("train") == 16 and modes.count("eval") >= 4 * 2
    assert trainer.shared > 40 and max(abs(loss) for _, loss in trainer.losses) > 0.01
    logs = trainer.state.log_history
    clipped = [log["clip_ratio/region_mean"] for log in logs if "clip_ratio/region_mean" in log]
    assert max(clipped) > 0  # ratios did move
    assert any(0 < log.get("completions/clipped_ratio", 0) < 1 for log in logs)
    assert all(1 <= log["eval_tree/mean_count"] <= 2 for log in logs if "eval_loss" in log)
    assert any(log.get("tree/mean_count", 0) > 1 for log in logs)


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.1, "loss_type": "grpo"}], ids=["plain", "with KL"]
)
def test_without_weights_it_is_grpo_trainer_to_the_bit(options: dict, tmp_path: Path) -> None:
    runs = []
    for kind, alpha in (
        (GRPOTrainer, {}),
        (LambdaGRPOTrainer, {"alpha": 0.0}),
        (LambdaGRPOTrainer, {}),
    ):
        trainer = make_trainer(tmp_path, kind, **(HARD | options | alpha))
        trainer.train()
        logs = [
            {n: v for n, v in log.items() if "time" not in n and "per_second" not in n}
            for log in trainer.state.log_history
        ]
        runs.append((torch.cat([p.detach().ravel() for p in trainer.model.parameters()]), logs))
    (plain, plain_logs), (none, none_logs), (weighted, _) = runs
    assert torch.equal(plain, none) and not torch.equal(plain, weighted)
    assert plain_logs == [
        {n: v for n, v in log.items() if not n.startswith("tree/")} for log in none_logs
    ]
    assert sum("tree/unique_tokens" in log for log in none_logs) > 1


# -- splits ----------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """The gradients of the first update."""

    found: dict

    def on_pre_optimizer_step(self, *_: object, model: torch.nn.Module, **__: object) -> None:
        """Called by the trainer when all micro-batches have gone back."""
        self.found = gradients_of(getattr(model, "module", model))


def first_update(
    folder: Path, micro_batch: int, accumulation: int, **options: object
) -> tuple[dict, list[dict]]:
    """Gradients and logs of one update on 12 completions, three groups of 4, by a policy that is
    away from its reference.
    """
    callback = Gradients()
    trainer = make_trainer(
        folder,
        prompts=["0", "1 2", "2 3 1"],
        rollout_func=fixed_groups,
        callbacks=[callback],
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    copy_weights(moved(tiny_model(**SHAPE)), trainer.model)
    trainer.train()
    return callback.found, trainer.state.log_history


SPLITS = [
    {"loss_type": "dapo"},
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "dapo", "beta": 0.3},
    {"loss_type": "dapo", "mask_truncated_completions": True},
]  # not bnpo: its normaliser is that of a micro-batch, by design


@pytest.mark.parametrize(
    "options", SPLITS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_micro_batches_do_not_change_the_gradient(options: dict, tmp_path: Path) -> None:
    whole, _ = first_update(tmp_path, 12, 1, **options)
    for micro_batch in (6, 3, 1):
        split, _ = first_update(tmp_path, micro_batch, 12 // micro_batch, **options)
        assert apart(split, whole) < 1e-6


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """Six completions each: half of the second group of four lies in the other process."""
    one = [first_update(tmp_path, 12, 1, **options) for options in SPLITS]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
        str(tmp_path),
    ]
    done = subprocess.run(
        launch, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for i, (gradients, logs) in enumerate(one):
        two = torch.load(tmp_path / f"two{i}.pt", weights_only=True)
        assert two["processes"] == 2
        got = {name: value.numpy() for name, value in two["gradients"].items()}
        print(f"{SPLITS[i]}: {apart(got, gradients):.1e}")
        assert apart(got, gradients) < 1e-6
        assert {n: v for n, v in logs[0].items() if n.startswith("tree/")} == two["tree"]
    unweighted, _ = first_update(tmp_path, 12, 1, alpha=0.0, **SPLITS[0])
    assert apart(unweighted, one[0][0]) > 0.1


def two_processes(folder: Path) -> None:
    """What each of the two does; the first writes what it found."""
    for i, options in enumerate(SPLITS):
        gradients, logs = first_update(folder, 3, 2, ddp_backend="gloo", **options)
        if torch.distributed.get_rank() == 0:
            tree = {name: value for name, value in logs[0].items() if name.startswith("tree/")}
            found = {"gradients": {n: torch.tensor(g) for n, g in gradients.items()}, "tree": tree}
            torch.save(
                found | {"processes": torch.distributed.get_world_size()}, folder / f"two{i}.pt"
            )


# -- what one sees of it ---------------------------------------------------------------------------


def test_completions_that_trl_logs_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer = make_trainer(
        tmp_path, log_completions=True, max_steps=2, per_device_train_batch_size=16
    )
    trainer.train()
    for what, groups in (("run/completions/completions_00001.parquet", 4), ("run", 8)):
        capsys.readouterr()
        assert main(["tree", str(tmp_path / what), "--show", "1"]) == 0
        assert f"groups {groups} with {4 * groups} completions" in " ".join(
            capsys.readouterr().out.split()
        )
    (tmp_path / "spoilt.parquet").write_bytes(b"PAR1")
    assert main(["tree", str(tmp_path / "spoilt.parquet")]) == 2


def test_a_table_with_chats_and_rewards_that_do_not_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """None, as a reward function may return, counts 0; two reward functions are added up."""
    import pandas

    chat = [[{"role": "assistant", "content": text}] for text in ("ab", "ac", "ad")]
    prompt = [[{"role": "user", "content": "hi"}]] * 3
    table = {
        "step": [1, 1, 1],
        "prompt": prompt,
        "completion": chat,
        "first": [np.nan, 2.0, 0.0],
        "second": [0.25, 1.5, 1.0],
    }
    pandas.DataFrame(table | {"advantage": [-0.7835, 1.1262, -0.3428]}).to_parquet(
        tmp_path / "completions_00001.parquet"
    )
    assert main(["tree", str(tmp_path), "--ascii"]) == 0
    out = capsys.readouterr().out
    assert "hi" in out and "0.25" in out and "3.50" in out


def test_the_script_of_the_tutorial(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location(
        "scaling_out", ROOT / "tutorials" / "scaling_out_with_trl.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.small(60, 1e-2, 0, str(tmp_path))
    out = capsys.readouterr().out
    assert (
        all(out.count(name) == 2 for name in script.METRICS)
        and out.count("target path in the last 50 of 60 steps") == 2
    )
    logs, found = script.walk(1.0, 20, 1e-2, 0, str(tmp_path))
    assert len(logs) == 2 and found.shape == (20,) and logs[-1]["tree/mean_count"] > 1


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
