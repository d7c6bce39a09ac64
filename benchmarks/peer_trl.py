"""The other opponent of the benchmark: a step of TRL's `GRPOTrainer` on the same workload, on the
CPU in float32.

TRL trains Hugging Face models on text.  So the model is a random `LlamaForCausalLM` of the given
sizes, token i is the word "i" of a word-level tokenizer, and a prompt of 16 tokens is a text of 16
words.  Whatever a benchmark can switch off is off: no logging, saving or reporting, no gradient
checkpointing (on by default), no bfloat16 (on by default), no reference model.

Completions always have full length: the tokenizer's EOS has an id one past the vocabulary, which
the model cannot draw, so nothing has to suppress it (`min_new_tokens` would cost a pass over the
logits for each token).

A step is everything that the trainer does for one update, generation and reward included:
generation happens between two steps' callbacks (in `_prepare_inputs`), so a step is timed from the
end of one to the end of the next.
"""

from __future__ import annotations

import tempfile
import time
import warnings

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from minigrpo import TransformerConfig


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words "0", "1", … are tokens 0, 1, …; EOS, and padding, is token V."""
    words = {str(token): token for token in range(vocab_size)} | {"<eos>": vocab_size}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )


def make_model(config: TransformerConfig, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of these sizes, in float32."""
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,  # the defaults, 1 and 2, are ordinary tokens here
        eos_token_id=None,
    )
    model = LlamaForCausalLM(settings).float()
    model.config.eos_token_id = model.generation_config.eos_token_id = (
        config.vocab_size
    )  # as the tokenizer's
    return model


class Clock(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Called by the trainer after the optimiser's step."""
        self.ends.append(time.perf_counter())


def trl_step_times(
    config: TransformerConfig,
    n_prompts: int,
    prompt_length: int,
    group_size: int,
    new_tokens: int,
    steps: int,
    *,
    warmup: int = 2,
    micro_batch: int | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Seconds of each of `steps` full steps, after `warmup` others.

    A step samples n_prompts · group_size completions.

    micro_batch: completions that go forward and backward at a time (gradient accumulation; sampling
    is always done for all at once); None for all.  Threads are what `torch.set_num_threads` says.
    Raises ValueError if micro_batch does not divide the batch or warmup < 1, RuntimeError if a
    completion is not of full length.
    """
    batch = n_prompts * group_size
    micro_batch = micro_batch or batch
    if batch % micro_batch or warmup < 1:
        wanted = f"divide the batch of {batch}, and warmup ({warmup}) be at least 1"
        raise ValueError(f"micro_batch {micro_batch} must {wanted}")

    def share_of_even(completion_ids: list[list[int]], **_: object) -> list[float]:
        ids = np.array(completion_ids)  # (B,T), or ragged, which raises
        if ids.shape != (batch, new_tokens):
            raise RuntimeError(
                f"expected {batch} completions of {new_tokens} tokens, got {ids.shape}"
            )
        return (ids % 2 == 0).mean(1).tolist()

    rng = np.random.default_rng(seed)
    prompts = rng.integers(config.vocab_size, size=((warmup + steps) * n_prompts, prompt_length))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # TRL and transformers, about each other's names
        settings = GRPOConfig(
            output_dir=folder,
            # the work
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=batch
            // micro_batch,  # completions are sampled once for all of these
            num_generations=group_size,
            max_completion_length=new_tokens,
            max_steps=warmup + steps,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            num_iterations=1,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            seed=seed,
            # what would only cost time
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=make_model(config, seed),
            reward_funcs=share_of_even,
            args=settings,
            train_dataset=Dataset.from_dict(
                {"prompt": [" ".join(map(str, prompt)) for prompt in prompts.tolist()]}
            ),
            processing_class=make_tokenizer(config.vocab_size),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return np.diff(clock.ends)[warmup - 1 :].tolist()


if __name__ == "__main__":
    times = trl_step_times(
        TransformerConfig(64, 128, 4, 4, 4, 344, max_seq_len=64), 16, 16, 16, 32, steps=3
    )
    print("seconds a step:", " ".join(f"{seconds:.2f}" for seconds in times))
