"""λ-GRPO for models that are too large for this package: TRL's trainer, with one factor more.

Without a model's name it runs GRPO and λ-GRPO on a tree walk on a laptop, with a random Llama of 25
thousand parameters.  It prints the metrics of the tree that TRL logs, and how often each policy
walks to the target in the end (about a minute).  The walk is easier than the paper's: the target is
RRRR in every run, and the root is the move L.

    pip install -e ".[trl]"
    python tutorials/scaling_out_with_trl.py

With a model's name it trains any model that TRL can train on GPUs, with the settings of the paper's
section 5 as far as they are known to us.  This second half HAS NOT BEEN RUN HERE: it is a start,
not a result.

    pip install -e ".[trl]" peft math-verify
    accelerate launch tutorials/scaling_out_with_trl.py \\
        --model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --beta 0.04

Afterwards `minigrpo tree FOLDER` draws the trees of the completions that TRL logged, with their
hidden process rewards.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging
from trl import GRPOConfig

from minigrpo.integrations.trl import LambdaGRPOTrainer
from minigrpo.tasks.treewalk import TreeWalk

METRICS = ("reward", "tree/unique_tokens", "tree/mean_count", "tree/path_depth")
METRICS += ("tree/flat_fraction",)


# -- small: the tree walk on a CPU -----------------------------------------------------------------


def tiny_llama() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A policy over the moves L = 0 and R = 1.  It cannot draw EOS, which is padding, too."""
    words = Tokenizer(models.WordLevel({"L": 0, "R": 1, "<eos>": 2}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"eos_token": "<eos>", "pad_token": "<eos>", "padding_side": "left"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **options)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "vocab_size": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(bos_token_id=None, eos_token_id=None, **shape))
    model.config.eos_token_id = model.generation_config.eos_token_id = 2
    return model.float(), tokenizer


def walk(
    alpha: float, steps: int, learning_rate: float, seed: int, out: str
) -> tuple[list[dict], np.ndarray]:
    """Train on the tree walk.   -> TRL's logs, and how often each step reached the target"""
    task, found = TreeWalk(depth=4, n=1, r_neg=-1.0, root="L", target="RRRR"), []

    def leaf_reward(completion_ids: list[list[int]], **_: object) -> list[float]:
        # A path is read as a binary number.
        leaves = np.array(completion_ids) @ (2 ** np.arange(task.depth)[::-1])
        rewards = task.path_rewards()[leaves]
        found.append(task.is_correct(rewards).mean())
        return rewards.tolist()

    model, tokenizer = tiny_llama()
    settings = GRPOConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=16,
        num_generations=16,  # k
        max_completion_length=task.depth,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # do not clip
        loss_type="dapo",  # the mean over all tokens, here of one group, as in the paper
        seed=seed,
        logging_steps=10,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = LambdaGRPOTrainer(
        model=model,
        reward_funcs=leaf_reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["L"]}),  # a prompt that says nothing
        processing_class=tokenizer,
        alpha=alpha,
    )
    trainer.remove_callback(PrinterCallback)  # its lines are long; ours are below
    trainer.train()
    return [log for log in trainer.state.log_history if "reward" in log], np.array(found)


def small(steps: int, learning_rate: float, seed: int, out: str) -> None:
    """GRPO and λ-GRPO from the same start."""
    for name, alpha in (("GRPO", 0.0), ("λ-GRPO", 1.0)):
        started = time.perf_counter()
        logs, found = walk(alpha, steps, learning_rate, seed, out)
        print(f"\n{name}\n  step  " + "  ".join(metric.rjust(18) for metric in METRICS))
        for log in logs[:: max(len(logs) // 5, 1)]:
            print(f"  {log['step']:4}  " + "  ".join(f"{log[metric]:18.3f}" for metric in METRICS))
        seconds, last = time.perf_counter() - started, found[-50:].mean()
        print(f"  target path in the last 50 of {steps} steps: {last:.3f}   ({seconds:.0f} s)")
    print("\nOne seed is an example, not evidence: results/README.md has many.")


# -- large: the paper's section 5.  NOT RUN HERE ---------------------------------------------------


def large(model: str, beta: float, learning_rate: float, alpha: float, out: str) -> None:
    """OpenRS as in the paper: k = 6, T = 0.75, 1,000 steps, one point for a right answer."""
    from peft import LoraConfig
    from trl.rewards import accuracy_reward  # needs math-verify

    instruction = "Let's think step by step and output the final answer within \\boxed{}."

    def as_chat(example: dict) -> dict:
        messages = ("system", instruction), ("user", example["problem"])
        return {"prompt": [{"role": role, "content": content} for role, content in messages]}

    settings = GRPOConfig(
        output_dir=out,
        max_steps=1000,
        num_generations=6,  # k
        per_device_train_batch_size=1,
        steps_per_generation=24,  # four prompts per update; divide by the number of processes
        gradient_accumulation_steps=24,
        temperature=0.75,
        max_completion_length=4096,
        beta=beta,  # the paper has 0 and 0.04
        use_bias_correction_kl=False,  # D as in the paper, without TRL's factor ρ
        # 1e-6 is the default of the authors' code; we do not know the rates of the paper's runs.
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        # The authors' default, a mean per completion; "dapo" is the theorem's token-mean.
        loss_type="grpo",
        log_completions=True,  # `minigrpo tree` reads them
        logging_steps=10,
        save_steps=100,
        bf16=True,
    )
    sizes = {"r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **sizes)
    trainer = LambdaGRPOTrainer(
        model=model,
        reward_funcs=accuracy_reward,  # reads the data set's column "solution"
        args=settings,
        train_dataset=load_dataset("knoveleng/open-rs", split="train").map(as_chat),
        peft_config=lora,
        alpha=alpha,
    )
    trainer.train()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="λ-GRPO in TRL: tiny on a CPU; with --model on GPUs (not run here)"
    )
    add = parser.add_argument
    add("--model", help="name or folder of a Hugging Face model: train it on OpenRS")
    add("--out", default="runs/trl", help="TRL's output folder (default: runs/trl)")
    add("--steps", type=int, default=250, help="of the tree walk (default: 250)")
    add("--seed", type=int, default=0)
    add("--beta", type=float, default=0.0, help="weight of the KL term with --model (default: 0)")
    add("--learning-rate", type=float, help="default: 3e-4, with --model 1e-6")
    add("--alpha", type=float, default=1.0, help="with --model: weights |λ|^-alpha (default: 1)")
    a = parser.parse_args()
    if a.model:
        large(a.model, a.beta, a.learning_rate or 1e-6, a.alpha, a.out)
        return
    warnings.simplefilter("ignore")  # what the libraries say about each other
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # for a model so small, more cost time
    small(a.steps, a.learning_rate or 3e-4, a.seed, a.out)


if __name__ == "__main__":
    main()
