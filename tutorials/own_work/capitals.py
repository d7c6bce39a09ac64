"""A language model learns to answer in JSON, from a table of your own and with partial credit.

minigrpo train --model smollm2 --task tutorials/own_work/capitals.py:Capitals --out capitals
"""

import json

from minigrpo.tasks import Rows


class Capitals(Rows):
    """Each row of capitals.csv is a question, asked through the model's own chat template."""

    file, answer = "capitals.csv", "capital"
    prompt = "Answer in JSON with the keys country and capital: what is the capital of {country}?"
    chat, max_new_tokens, split = True, 40, 0.25
    reward_weights = {"json": 0.2, "keys": 0.3, "right": 0.5}  # noqa: RUF012

    @property
    def defaults(self):
        """Three times the usual learning rate, and enough steps for it."""
        return super().defaults | {"learning_rate": 3e-5, "steps": 40}

    def score_row(self, row, completion):
        """Partial credit: for JSON, for its keys, and for the right capital in it."""
        try:
            found = json.loads(completion)
        except ValueError:
            found = None
        keys = isinstance(found, dict) and set(found) == {"country", "capital"}
        right = keys and found["capital"] == row["capital"]
        return {"json": isinstance(found, dict), "keys": keys, "right": right}
