"""What a task is: prompts as token ids, a tokenizer, and an outcome reward for every completion.

A task of your own is a class of about 20 lines with the attributes of `Task` (task.py), named as
"path/to/file.py:MyTask" wherever a built-in name may stand.  Yours may use what the built-in tasks
are made of: tools.py and problems.py.  A task for a pretrained language model is made of text
instead, and the model brings the tokenizer: see text.py, and rows.py for problems that are the rows
of a table of yours.  A reward may be a dict of named parts, such as {"format": 0.5, "answer": 1.0}:
the task's reward_weights weigh them (1 without any), and each is logged as rewards/NAME/mean.

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
__all__ += ["check_split"]
__all__ += ["draw_problems", "draw_prompts", "few_shot", "find_task", "in_test_split", "load_task"]
__all__ += ["optional", "pairs", "process_rewards_of", "prompt_text", "real_number"]
__all__ += ["sampling_limits", "score", "score_texts", "whole_number"]
