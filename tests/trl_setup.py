"""What the tests of λ-GRPO in TRL share: a tiny Llama with opinions in both worlds, groups that
branch, brute-force weights.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from helpers import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

from minigrpo import Transformer, TransformerConfig
from minigrpo.engine.parameters import rotate_halves
from minigrpo.integrations.trl import LambdaGRPOTrainer

torch.set_num_threads(1)  # for a model so small, more cost time
VOCAB, EOS, LENGTH = 5, 4, 6  # padding is EOS too: lengths must not be read off the ids
PROMPTS = ["0", "1 2", "2 3 1", "3 3"]
K = 4
SHAPE = {"vocab_size": VOCAB, "seed": 3, "dtype": "float32"}

# Completions that branch, end early, are copies or beginnings of others; a few are cut off by the
# limit of 6 tokens.
GROUPS = {
    "0": [[1, 2, 3, 1, EOS], [1, 2, 3, 2, 0, 1], [1, 2, EOS], [0, EOS]],
    "1 2": [[2, 2, 2, EOS], [2, 2, 2, EOS], [2, 2, 2, 2, 2, 2], [2, 2, 3, 3, 3, EOS]],
    "2 3 1": [[3, 0, 1, EOS], [3, 0, 2, 2, 2, 2], [3, 1, EOS], [3, 0, 1, 1, 1, EOS]],
    "3 3": [[EOS], [0, 1, EOS], [1, 1, EOS], [2, EOS]],
}


def reward(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Some function of the tokens that separates the completions."""
    return [
        float(np.sin(sum((t + 2) * (j + 1) ** 2 for j, t in enumerate(ids))))
        for ids in completion_ids
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words "0", "1", … are tokens 0, 1, …"""
    words = Tokenizer(models.WordLevel({str(token): token for token in range(VOCAB)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=str(EOS), pad_token=str(EOS), padding_side="left"
    )


def hugging_face(
    parameters: dict[str, np.ndarray], config: TransformerConfig
) -> dict[str, np.ndarray]:
    """Our weights, or gradients, in the order of a Hugging Face Llama."""
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    return {
        n: rotate_halves(p, heads[n.split(".")[-2]]) if n.split(".")[-2] in heads else p
        for n, p in parameters.items()
    }


def llama(mine: Transformer) -> LlamaForCausalLM:
    """The same model in PyTorch."""
    c = mine.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            intermediate_size=c.ffn_dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            max_position_embeddings=c.max_seq_len,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            tie_word_embeddings=c.tie_embeddings,
            bos_token_id=None,
            eos_token_id=EOS,
        )
    ).float()
    copy_weights(mine, model)
    return model


def copy_weights(mine: Transformer, model: LlamaForCausalLM) -> None:
    """Ours into PyTorch's."""
    weights = {
        name: torch.tensor(np.array(view))
        for name, view in hugging_face(dict(mine.parameters), mine.config).items()
    }
    model.load_state_dict(weights, strict=True)


def moved(mine: Transformer, seed: int = 1, by: float = 0.05) -> Transformer:
    """The model after some training, as it were: so that ratios are not 1, nor divergences 0."""
    mine.parameters.flat[:] += by * np.random.default_rng(seed).standard_normal(
        mine.parameters.flat.size
    ).astype(np.float32)
    return mine


def stored_model(folder: Path) -> str:
    """A folder with the tiny model, from which TRL can load policy and reference."""
    path = folder / "model"
    if not path.exists():
        llama(tiny_model(**SHAPE)).save_pretrained(path)
    return str(path)


def fixed_groups(prompts: list[str], trainer: LambdaGRPOTrainer) -> dict[str, list]:
    """A rollout function that deals out GROUPS: the row's place among those of all processes says
    which completion it is.
    """
    first = trainer.accelerator.process_index * len(prompts)
    completions = [GROUPS[prompt][(first + i) % K] for i, prompt in enumerate(prompts)]
    prompt_ids = [[int(word) for word in prompt.split()] for prompt in prompts]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "logprobs": [[0.0] * len(c) for c in completions],
    }


def make_trainer(
    folder: Path,
    kind: type = LambdaGRPOTrainer,
    prompts: list[str] | None = None,
    **options: object,
):
    """A trainer on the CPU in float32, without anything that only costs time.

    options: of the trainer or of GRPOConfig
    """
    own = {
        name: options.pop(name)
        for name in ("alpha", "rollout_func", "callbacks", "eval_dataset")
        if name in options
    }
    settings = {
        "per_device_train_batch_size": 8,
        "num_generations": K,
        "max_completion_length": LENGTH,
        "max_steps": 1,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL and transformers, about each other
        return kind(
            model=stored_model(folder),
            reward_funcs=reward,
            args=GRPOConfig(output_dir=str(folder / "run"), **(settings | options)),
            train_dataset=Dataset.from_dict({"prompt": prompts or PROMPTS}),
            processing_class=tokenizer(),
            **own,
        )


def brute_weights(group: list[list[int]], masked: bool = False) -> list[np.ndarray]:
    """1/|λ(i,t)| as it is defined: one over how many completions begin as completion i does up to
    and including token t.

    masked: those that did not end with EOS do not count, neither here nor in the loss.
    """
    counted = [b for b in group if b[-1] == EOS or not masked]
    return [
        np.array(
            [1 / max(sum(b[: t + 1] == a[: t + 1] for b in counted), 1) for t in range(len(a))]
        )
        for a in group
    ]


def brute_advantages(group: list[list[int]]) -> np.ndarray:
    """(r - mean) / (std + 1e-4)."""
    r = np.array(reward(group))
    return (r - r.mean()) / (r.std(ddof=1) + 1e-4)


def gradients_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Name and gradient of every parameter."""
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖a - b‖ / ‖b‖ over all parameters together."""
    assert a.keys() == b.keys()
    x, y = (np.concatenate([np.ravel(d[name]).astype(np.float64) for name in b]) for d in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
