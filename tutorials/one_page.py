"""GRPO is secretly a process reward model: the whole result on one page, in plain NumPy.

A group of completions is graded at the end only.  But completions share prefixes, so the group is
a tree, and over this tree GRPO is exactly an objective with a reward for every step: Theorem 1 of
Sullivan & Koller (ICML 2026, arXiv:2509.21154).  The tree also shows a flaw: GRPO counts a step as
often as it was sampled.  λ-GRPO is the fix: one division, and every step counts once.

Shapes: k completions in a group, T tokens, D model width.  dx stands for d loss / d x.
"""

import numpy as np

# == 1. The walk, and a reward for its outcome =====================================================
# A completion is a walk of T moves, L = 0 or R = 1, down a binary tree.  The target earns +1.  Who
# begins with the target's first n moves but misses it earns r_neg; all others earn 0.7.
T, BOS = 4, 2  # The token BOS is the root: every walk starts there, and none can draw it.


def outcome_rewards(y, target, n=2, r_neg=-1.0):
    """The outcome reward model (ORM): one number for a whole completion.   y (k,T) -> (k,)"""
    agrees = y == target  # (k,T)
    return np.where(agrees.all(1), 1.0, np.where(agrees[:, :n].all(1), r_neg, 0.7))


# == 2. A tiny transformer, forward and backward by hand ===========================================
# One layer with one head: RMSNorm, rotary positions, causal attention, SwiGLU.  The weights W are
# eight matrices in one array (8,D,D); the first three rows of EMBED are for L, R and BOS.
D = 32
EMBED, QUERY, KEY, VALUE, OUT, GATE, UP, DOWN = range(8)
START = D**-0.5 * np.array([0.1] + 7 * [1.0])[:, None, None]  # starts as a nearly fair coin
TURN = np.exp(1j * np.arange(T)[:, None] * 10000 ** (-np.arange(0, D, 2) / D))  # (T,D/2)
FUTURE = np.triu(np.full((T, T), -np.inf), 1)  # (T,T) added to scores: no token sees a later one


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rmsnorm(x):
    """y, and its backward: a longer x gives the same y, so the part of dy along y drops out."""
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    y = x / rms
    return y, lambda dy: (dy - y * (dy * y).mean(-1, keepdims=True)) / rms


def forward(W, tokens):
    """p(next move) after every token, and its backward.   tokens (k,T) -> (k,T,2), function"""
    x0 = W[EMBED, tokens]  # (k,T,D)
    h1, norm1_backward = rmsnorm(x0)
    query, key, value = (h1 @ W[i].T for i in (QUERY, KEY, VALUE))
    # Two neighbours in a query or key are read as one complex number, which its position turns.
    query, key = (x.view(complex) * TURN for x in (query, key))  # (k,T,D/2)
    p = softmax((query @ key.conj().mT).real / D**0.5 + FUTURE)  # (k,T,T) who attends to whom
    mixed = p @ value
    x1 = x0 + mixed @ W[OUT].T
    h2, norm2_backward = rmsnorm(x1)
    gate, up = h2 @ W[GATE].T, h2 @ W[UP].T
    sigmoid = 1 / (1 + np.exp(-gate))
    hidden = gate * sigmoid * up
    x2 = x1 + hidden @ W[DOWN].T
    h3, norm3_backward = rmsnorm(x2)
    moves = softmax(h3 @ W[EMBED, :2].T)  # (k,T,2) The head is the embedding of L and R.

    def backward(dlogits):  # (k,T,2) -> dW (8,D,D): the chain rule, from the last line above up
        dx2 = norm3_backward(dlogits @ W[EMBED, :2])
        dhidden = dx2 @ W[DOWN]
        dgate = dhidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        dup = dhidden * gate * sigmoid
        dx1 = dx2 + norm2_backward(dgate @ W[GATE] + dup @ W[UP])  # x1 is used twice: a sum
        dmixed = dx1 @ W[OUT]
        dp, dvalue = dmixed @ value.mT, p.mT @ dmixed
        dscore = p * (dp - (p * dp).sum(-1, keepdims=True)) / D**0.5
        dquery = (dscore @ key * TURN.conj()).view(float)  # turned back
        dkey = (dscore.mT @ query * TURN.conj()).view(float)
        dx0 = dx1 + norm1_backward(dquery @ W[QUERY] + dkey @ W[KEY] + dvalue @ W[VALUE])
        onehot = np.eye(D)[tokens]  # x0 = onehot W has dW = onehotᵀ dx0, y = x Wᵀ has dW = dyᵀ x.
        dy = np.array([onehot, dquery, dkey, dvalue, dx1, dgate, dup, dx2]).reshape(8, -1, D)
        x = np.array([dx0, h1, h1, h1, mixed, h2, h2, hidden]).reshape(8, -1, D)
        dW = dy.mT @ x
        dW[EMBED, :2] += dlogits.reshape(-1, 2).T @ h3.reshape(-1, D)  # The embedding is the head.
        return dW

    return moves, backward


# == 3. The sampler ================================================================================
def sample(W, rng, k=16):
    """k walks, drawn move by move.   -> (k,T)"""
    tokens = np.full((k, T + 1), BOS)
    for t in range(T):  # What stands at later positions does not matter: attention is causal.
        moves, _ = forward(W, tokens[:, :-1])
        tokens[:, t + 1] = rng.random(k) < moves[:, t, 1]  # 1, which is R, with R's probability
    return tokens[:, 1:]


# == 4. The group is a tree ========================================================================
# The process set λ(i,t) is all walks that agree with walk i up to and including its token t.  Such
# sets form a tree, with a node for each move that was made (a step is a run of nodes of one set).
def process_sets(y):
    """[i,j,t]: whether walk j is a member of λ(i,t).   y (k,T) -> (k,k,T)"""
    return np.logical_and.accumulate(y[:, None] == y[None], axis=-1)


def draw_tree(y, label, group, t=0):  # -> a line for each distinct walk; shared moves stand once
    lines, fork = [], len(set(y[group, t])) == 2
    for move in sorted(set(y[group, t])):
        child = group[y[group, t] == move]
        first, later = ("┬│" if move == 0 else "└ ") if fork else "─ "
        step = f" {'LR'[move]} {label[child[0], t]} "
        below = draw_tree(y, label, child, t + 1) if t + 1 < T else [""]
        lines += [first + step + below[0]] + [later + " " * len(step) + line for line in below[1:]]
    return lines


# == 5. The process reward model (PRM) that is hidden in the tree ==================================
def process_rewards(y, r):
    """|λ|, R̂ and Â (k,T) of the node of each token, and GRPO's a (k,1).   y (k,T), r (k,)"""
    members = process_sets(y)
    count = members.sum(1)  # |λ|
    R = (members * r[:, None]).sum(1) / count  # R̂: the mean outcome of all who made this move
    A, a = ((x - r.mean()) / (r.std(ddof=1) + 1e-4) for x in (R, r[:, None]))
    return count, R, A, a


# == 6. Theorem 1 ==================================================================================
# An objective gives each token an advantage: GRPO the a of its walk, the hidden PRM the Â of its
# node.  This is the same, for the members of λ share ρ, and their a add up to |λ|·Â.  (The paper's
# KL term, which is the same in both, is left out.)
def objective(W, y, advantage, old=None):
    """loss = -mean(ρ · advantage), ρ = π/π_old; its gradient; log π.   advantage (k,1) or (k,T)"""
    moves, backward = forward(W, np.insert(y[:, :-1], 0, BOS, axis=1))
    chosen = np.eye(2)[y]  # (k,T,2)
    logp = np.log((chosen * moves).sum(-1))  # (k,T)
    ratio = np.exp(logp - (logp if old is None else old))  # 1 at the policy that has sampled
    dlogp = -ratio * advantage / y.size  # as dρ = ρ · dlog π, which is not 0 where ρ = 1
    return -(ratio * advantage).mean(), backward(dlogp[..., None] * (chosen - moves)), logp


# == 7. The flaw and its fix =======================================================================
# So GRPO gives a node the weight |λ|: it counts as often as it was sampled.  λ-GRPO divides by |λ|.
def train(run, fix, n=2, r_neg=-1.0, lr=1e-3, steps=250):  # Of five rates, both do best at this.
    """GRPO, or λ-GRPO if fix.   -> (steps,) the share of the target among the walks of each step"""
    rng = np.random.default_rng(run)  # the same start and the same draws for both
    W, target = START * rng.standard_normal((8, D, D)), run // np.array([8, 4, 2, 1]) % 2
    m, v, hits = 0.0, 0.0, []
    for step in range(1, steps + 1):
        y = sample(W, rng)
        count, _, _, a = process_rewards(y, outcome_rewards(y, target, n, r_neg))
        _, dW, _ = objective(W, y, a / count if fix else a)  # the one division
        m = m + 0.1 * (dW - m)  # Adam: means of dW and dW², corrected for their start at 0
        v = v + 0.001 * (dW * dW - v)
        W -= lr * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        hits.append((y == target).all(1).mean())
    return np.array(hits)


def main(runs=32, seed=2, **setting):  # lr and steps of train
    rng = np.random.default_rng(seed)
    W, other, u = START * rng.standard_normal((3, 8, D, D))  # a policy, another one, a direction
    y = sample(W, rng)
    target, r = y[0], outcome_rewards(y, y[0])  # so that the group has met its target
    count, R, A, a = process_rewards(y, r)
    label = np.vectorize("{:2} {:+.2f} {:+.2f}".format)(count, R, A)
    tree = "\n".join(draw_tree(y, label, np.arange(len(y))))
    loss, dW, old = objective(W, y, a)
    (loss1, dW1, _), (loss2, dW2, _) = (objective(other, y, x, old) for x in (a, A))
    gap = (abs(dW1 - dW2).max((1, 2)) / abs(dW2).max((1, 2))).max()
    up, down = (objective(other + e * u, y, a, old)[0] for e in (1e-6, -1e-6))
    error = abs((up - down) / 2e-6 / (dW1 * u).sum() - 1)
    word, grpo, fixed = "".join("LR"[move] for move in target), count[0] * A[0], A[0]
    print(f"""
1 · The target {word} earns +1, others that begin {word[:2]} earn -1, all the rest +0.7.
2 · The policy is a transformer of {7 * D * D + 3 * D:,} weights, not yet trained.
3 · It has drawn {len(y)} walks of {T} moves.  Only whole walks are graded.
4 · They are a tree of {round((1 / count).sum())} nodes.  |λ| is how many walks share a node.
5 · R̂ is their mean outcome: a process reward.  Â compares it with the whole group.\n
{"   |λ|   R̂     Â   " * T}
{tree}\n
6 · Theorem 1, at another policy than the sampler's (ρ ≠ 1): GRPO's loss is {loss1:.15f},
    the PRM's {loss2:.15f}; their gradients differ by {gap:.0e} of their size.
    The gradient by hand differs from central differences by {error:.0e} of its size.
    Look: at the sampler's policy, the loss is {loss:.0e}, or 0; its gradient {abs(dW).max():.2f}.\n
7 · The flaw: how hard each move of {word} is pushed up, and all of them together.
    GRPO    |λ|·Â  {grpo.round(2)}  {grpo.sum():.2f}
    λ-GRPO      Â  {fixed.round(2)}  {fixed.sum():.2f}
    Look: GRPO pushes {word[:2]} down |λ| times as hard as λ-GRPO does, and with it the best walk.
    Frequency of the target in steps 1-50, 51-100, …, in {runs} runs of each:""")
    share = np.array([[train(run, fix, **setting) for run in range(runs)] for fix in (False, True)])
    for name, part in zip(("GRPO  ", "λ-GRPO"), share, strict=True):
        print(f"    {name}  {part.reshape(runs, -1, 50).mean((0, 2)).round(3)}")
    gain = share[1, :, -50:].mean(-1) - share[0, :, -50:].mean(-1)  # (runs,)
    half = 1.96 * gain.std(ddof=1) / runs**0.5
    print(f"    In the last 50, λ-GRPO is ahead by {gain.mean():.3f} ± {half:.3f} (95 % interval).")
    print("    Look: if this interval holds 0, nothing is decided.  Try lr=3e-4 in train.")


if __name__ == "__main__":
    main()
