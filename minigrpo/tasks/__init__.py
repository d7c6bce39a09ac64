"""What a task is: prompts as token ids, a tokenizer, and an outcome reward for every completion.

A task may be a file of your own of about 20 lines: a class with the attributes of `Task` below, named as "path/to/file.py:MyTask"
wherever a built-in name may stand.  `CharTokenizer`, `score_texts`, `in_test_split` and `draw_problems` are what the built-in
tasks are made of and may be used by yours.

For a pretrained language model a task is made of text instead, and the model brings the tokenizer: see `text.py`.

Left out: data sets read from disk, and process rewards (see `rewards.py`; a task only judges outcomes).
"""

from minigrpo.tasks.loading import BUILT_IN, find_task, load_task
from minigrpo.tasks.task import (
    CharTokenizer,
    Task,
    Tokenizer,
    check_split,
    draw_problems,
    draw_prompts,
    in_test_split,
    optional,
    pairs,
    prompt_text,
    real_number,
    sampling_limits,
    score_texts,
    whole_number,
)
from minigrpo.tasks.text import FEW_SHOT_SETTINGS, TextTask, Tokenised, few_shot

__all__ = [
    "BUILT_IN",
    "FEW_SHOT_SETTINGS",
    "CharTokenizer",
    "Task",
    "TextTask",
    "Tokenised",
    "Tokenizer",
]
__all__ += [
    "check_split",
    "draw_problems",
    "draw_prompts",
    "few_shot",
    "find_task",
    "in_test_split",
    "load_task",
]
__all__ += [
    "optional",
    "pairs",
    "prompt_text",
    "real_number",
    "sampling_limits",
    "score_texts",
    "whole_number",
]
