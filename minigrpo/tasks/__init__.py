"""What a task is: prompts as token ids, a tokenizer, and an outcome reward for every completion.

A task of your own is a class of about 20 lines with the attributes of `Task` (task.py), named as
"path/to/file.py:MyTask" wherever a built-in name may stand.  Yours may use what the built-in tasks
are made of: tools.py and problems.py.  A task for a pretrained language model is made of text
instead, and the model brings the tokenizer: see text.py, and rows.py for problems from a table.  A
reward may be a dict of parts, {"format": 0.5, "answer": 1.0}, weighed by the task's reward_weights.

A task may also judge the steps of a completion: see process_rewards.py.
"""

from minigrpo.tasks.loading import BUILT_IN, find_task, load_task
from minigrpo.tasks.problems import check_split, draw_problems, few_shot, in_test_split
from minigrpo.tasks.process_rewards import process_rewards_of
from minigrpo.tasks.rows import Rows
from minigrpo.tasks.task import (
    Task,
    Tokenizer,
    draw_prompts,
    optional,
    pairs,
    sampling_limits,
    score,
)
from minigrpo.tasks.text import TextTask, Tokenised
from minigrpo.tasks.tools import CharTokenizer, prompt_text, real_number, score_texts, whole_number

__all__ = ["BUILT_IN", "CharTokenizer", "Rows", "Task", "TextTask", "Tokenised", "Tokenizer"]
__all__ += ["check_split", "draw_problems", "draw_prompts", "few_shot", "find_task", "load_task"]
__all__ += ["in_test_split", "optional", "pairs", "process_rewards_of", "prompt_text"]
__all__ += ["real_number", "sampling_limits", "score", "score_texts", "whole_number"]
