"""Sort four letters in steps, the smallest and what is left: dbca= by a:dbc,b:dc,c:d,d:"""

from minigrpo.tasks import CharTokenizer, draw_problems, score_texts


class SortLetters:
    tokenizer = CharTokenizer("abcdefgh=:,")
    max_new_tokens = 24

    def prompts(self, rng, n, split="train"):
        def draw(rng):
            return "".join(rng.choice(list("abcdefgh"), 4, replace=False)) + "="

        return [self.tokenizer.encode(p) for p in draw_problems(rng, n, split, draw, str, 0.1)]

    def demonstrations(self, rng, n):  # by someone who mostly mistakes the order of the last two
        def steps(left, mistaken):
            while left:
                next_one = max(left) if mistaken and len(left) == 2 else min(left)
                left = left.replace(next_one, "")
                yield next_one + ":" + left

        letters = [(p, self.tokenizer.decode(p[:-1])) for p in self.prompts(rng, n)]
        texts = [(p, ",".join(steps(left, rng.random() < 0.6))) for p, left in letters]
        return [(p, self.tokenizer.encode_with_eos(text)) for p, text in texts]

    def score(self, rollouts):
        def reward(prompt, completion):
            picked = "".join(step[:1] for step in completion.split(","))
            return float(picked == "".join(sorted(prompt[:-1])))

        return score_texts(rollouts, self.tokenizer, reward)
