"""Is the number of ones odd?  In steps, the parity of all so far: 01101= is answered by 01001."""

from minigrpo.tasks import CharTokenizer, draw_problems, score_texts


class Parity:
    tokenizer = CharTokenizer("01=")
    max_new_tokens = 10

    def prompts(self, rng, n, split="train"):
        def draw(rng):
            return "".join(rng.choice(list("01"), 8)) + "="

        return [self.tokenizer.encode(p) for p in draw_problems(rng, n, split, draw, str, 0.4)]

    def demonstrations(self, rng, n):  # by someone who mostly forgets the last digit
        pairs = [(p, p[:-1].cumsum() % 2) for p in self.prompts(rng, n)]
        for _, steps in pairs:
            if rng.random() < 0.6:
                steps[-1] = steps[-2]
        return [(p, self.tokenizer.encode_with_eos("".join(map(str, s)))) for p, s in pairs]

    def score(self, rollouts):
        def reward(prompt, completion):
            return float(len(completion) == 8 and completion[-1] == str(prompt.count("1") % 2))

        return score_texts(rollouts, self.tokenizer, reward)
