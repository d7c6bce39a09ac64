"""Close the brackets: ([{< is closed by >}]).  A part of the reward for a right beginning."""

from minigrpo.tasks import CharTokenizer, draw_problems, score_texts

CLOSED_BY = dict(zip("([{<", ")]}>", strict=True))


class Brackets:
    tokenizer = CharTokenizer("([{<)]}>")
    max_new_tokens = 10

    def prompts(self, rng, n, split="train"):
        def draw(rng):
            return "".join(rng.choice(list(CLOSED_BY), 6))

        return [self.tokenizer.encode(p) for p in draw_problems(rng, n, split, draw, str, 0.1)]

    def close(self, prompt):
        return "".join(CLOSED_BY[bracket] for bracket in reversed(prompt))

    def demonstrations(self, rng, n):  # by someone who mostly leaves the last one open
        texts = [(p, self.close(self.tokenizer.decode(p))) for p in self.prompts(rng, n)]
        texts = [(p, text[:-1] if rng.random() < 0.6 else text) for p, text in texts]
        return [(p, self.tokenizer.encode_with_eos(text)) for p, text in texts]

    def score(self, rollouts):
        def reward(prompt, completion):
            right = self.close(prompt)
            begun = max(i for i in range(len(right)) if completion[:i] == right[:i])
            return 1.0 if completion == right else 0.5 * begun / len(right)

        return score_texts(rollouts, self.tokenizer, reward)
