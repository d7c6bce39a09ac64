"""What a task is: prompts as token ids, a tokenizer, and an outcome reward for every completion.

A task of your own is a class of about 20 lines with the attributes of `Task` (task.py), named as
"path/to/file.py:MyTask" wherever a built-in name may stand.  Yours may use what the built-in tasks
are made of: tools.py and problems.py.  A task for a pretrained language model is made of text
instead, and the model brings the tokenizer: see text.py.

A task may also judge the steps of a completion: see process_rewards.py.

Left out: data sets read from disk.
"""

from minigrpo.tasks.loading import BUILT_IN, find_task, load_task
from minigrpo.tasks.problems import check_split, draw_problems, few_shot, in_test_split
from minigrpo.tasks.process_rewards import process_rewards_of
from minigrpo.tasks.task import Task, Tokenizer, draw_prompts, optional, pairs, sampling_limits
from minigrpo.tasks.text import TextTask, Tokenised
from minigrpo.tasks.tools import CharTokenizer, prompt_text, real_number, score_texts, whole_number

__all__ = ["BUILT_IN", "CharTokenizer", "Task", "TextTask", "Tokenised", "Tokenizer", "check_split"]
__all__ += ["draw_problems", "draw_prompts", "few_shot", "find_task", "in_test_split", "load_task"]
__all__ += [
    "optional",
    "pairs",
    "process_rewards_of",
    "prompt_text",
    "real_number",
    "sampling_limits",
    "score_texts",
]
__all__ += ["whole_number"]
