"""The explorer's numbers against the package, on random groups in headless Chromium; which groups
it offers, and the command.
"""

import io
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from chromium import browse, in_browser, page_of
from helpers import random_group, rollouts_of

import minigrpo as mg
from minigrpo.command.cli import main
from minigrpo.experiments.flaw import push
from minigrpo.logs.groups import read_groups
from minigrpo.show.explorer import MAX_TOKENS, PRESETS, explorer_page

RATES = [0.3, 1.0, 0.05, 20.0, 0.0]


# -- numbers ---------------------------------------------------------------------------------------


def random_objects(rng, n):
    """Groups of characters, words, token ids and token texts in turn; rewards of several kinds, all
    equal now and then.
    """
    alphabets = [list("a</😀 "), [" so", " so", "\n=", "  12"], None, ["un", " un", "\n", ""]]
    for g in range(n):
        k = int(rng.integers(2, 10))
        ids, alphabet = (
            random_group(rng, k, length=int(rng.integers(0, 9)), vocab_size=4),
            alphabets[g % 4],
        )
        if g % 5 == 0:  # all begin alike: the advantages of the first step cancel but for rounding
            ids = [np.append(0, s) for s in ids]
        if alphabet is None:
            completions = [s.tolist() for s in ids]
        else:
            completions = [[alphabet[t] for t in s] for s in ids]
            completions = ["".join(c) for c in completions] if g % 4 < 2 else completions
        kinds = [
            rng.integers(2, size=k),
            rng.standard_normal(k),
            np.full(k, 0.1),
            1e3 * rng.random(k),
            rng.choice([-1, 0.7, 1], k),
        ]
        yield (
            g % 4,
            {
                "prompt": f"{g}",
                "completions": completions,
                "rewards": kinds[rng.integers(len(kinds))].tolist(),
            },
        )


def after_one_step(sequences, pushes, rate):
    """Probabilities of every completion's moves, its end the last, before and after one update.

    One softmax per prefix, from the group's frequencies: the logits' gradient is the sum over the
    moves of push · (onehot - p).   pushes: as the sequences -> two lists of lists
    """
    moves = {}  # of every prefix: how often each was made, and its push
    for sequence, values in zip(sequences, pushes, strict=True):
        tokens = [*map(int, sequence), "end"]
        for t, (token, value) in enumerate(zip(tokens, [*values, 0.0], strict=True)):
            here = moves.setdefault(tuple(tokens[:t]), {})
            here[token] = (here.get(token, (0, 0))[0] + 1, value)
    before, after = {}, {}
    for prefix, here in moves.items():
        count, push = np.array(list(here.values()), dtype=float).T
        p = count / count.sum()
        gradient = sum(x * (np.eye(len(p))[c] - p) for c, x in enumerate(push))
        logits = np.log(p) + rate * gradient
        q = np.exp(logits - logits.max())
        before[prefix] = dict(zip(here, p, strict=True))
        after[prefix] = dict(zip(here, q / q.sum(), strict=True))

    def along(chances, sequence):
        tokens = [*map(int, sequence), "end"]
        return [chances[tuple(tokens[:t])][token] for t, token in enumerate(tokens)]

    return [[along(chances, s) for s in sequences] for chances in (before, after)]


@in_browser
def test_random_groups_have_the_numbers_of_the_package(tmp_path, request):
    """80 have every kind; pytest --long tests/test_explorer.py tries 200."""
    n_groups = 200 if request.config.getoption("--long") else 80
    rng = np.random.default_rng(1)
    groups = []
    for kind, item in random_objects(rng, n_groups):
        groups += read_groups(json.dumps(item), unit=("characters", "words", "auto", "auto")[kind])
    of_everyone = """
        const along = (name) => current.paths.map((path) => path.map((node) => node[name]));
        const numbers = ".count, .numbers span, .pushes span";
        const shown = (step) => [...step.querySelectorAll(numbers)].map((s) => s.textContent);
        return Array.from({length: N}, (_, g) => {
          view.rate = RATES[g % RATES.length];
          choose(g);
          const names = ["count", "value", "advantage", "grpo", "lambda"];
          const place = (s) => [s.members, s.nodes[0].depth - 1, s.nodes.at(-1).depth];
          const steps = current.steps.slice(1).map(place);
          const boxes = [...document.querySelectorAll("#tree .step:not(.prompt)")].map(shown);
          const said = document.getElementById("statement").textContent;
          const along_paths = Object.fromEntries(names.map((name) => [name, along(name)]));
          const ends = document.querySelectorAll("#tree .end").length;
          const {pathSums: sums, advantages: a, chances, paths} = current;
          const kinds = {down: [], fork: [], lambda: [], fine: [], empty: []};
          for (const {kind, members} of findings(current)) kinds[kind].push(...members);
          const moves = paths.map((path) => path.map((node) => node.chance));
          return {said, ...along_paths, steps, boxes, sums, a, ends, chances, moves, kinds};
        });"""
    of_everyone = of_everyone.replace("N}", f"{n_groups}}}").replace("RATES", str(RATES))
    found = browse(tmp_path, explorer_page(*groups), of_everyone)
    seen = dict.fromkeys(
        (
            "copies",
            "prefix",
            "empty",
            "equal",
            "all empty",
            "one step",
            "down",
            "fork",
            "lambda",
            "tied",
            "mixed",
        ),
        0,
    )
    for g, (group, page) in enumerate(zip(groups, found, strict=True)):
        tree, rewards = group.tree, group.rewards
        rollouts = rollouts_of(
            [np.array([0])], [group.sequences]
        )  # with a prompt, as a policy would have drawn them
        np.testing.assert_allclose(
            page["a"], mg.advantages(rewards, tree.completion_group), rtol=1e-9, atol=1e-12
        )
        node = {
            "count": tree.count,
            "value": mg.step_rewards(tree, rewards),
            "advantage": mg.step_advantages(tree, rewards),
        }
        expected = {name: [values[p[p >= 0]] for p in tree.paths] for name, values in node.items()}
        pushes = {name: push(name, rollouts, rewards) for name in ("grpo", "lambda_grpo")}
        for name, values in zip(("grpo", "lambda"), pushes.values(), strict=True):
            expected[name] = [values[p[p >= 0]] for p in rollouts.tree.paths]
            np.testing.assert_allclose(
                page["sums"][name], [p.sum() for p in expected[name]], rtol=1e-9, atol=1e-10
            )
        for name, rows in expected.items():
            assert [len(row) for row in page[name]] == tree.lengths.tolist()
            for ours, theirs in zip(page[name], rows, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=name)
        steps = {(s.members, s.start, s.end): s.nodes[0] for s in tree.steps() if s.nodes}
        assert sorted((tuple(m), start, end) for m, start, end in page["steps"]) == sorted(steps)
        assert page["ends"] == len(group.sequences)
        for (members, start, end), box in zip(
            page["steps"], page["boxes"], strict=True
        ):  # what is on the screen
            i = steps[tuple(members), start, end]
            printed = [float(text.replace("−", "-").split()[-1]) for text in box[1:]]
            values = [
                node["value"][i],
                node["advantage"][i],
                *(expected[name][members[0]][start] for name in ("grpo", "lambda")),
            ]
            assert box[0] == f"×{len(members)}"
            np.testing.assert_allclose(printed, values, rtol=0, atol=0.005 + 1e-9)
        for name in ("grpo", "lambda"):
            after = after_one_step(group.sequences, expected[name], RATES[g % len(RATES)])
            for moment, chances in zip(("before", name), after, strict=True):
                ours = [[move[moment] for move in moves] for moves in page["moves"]]
                for own, theirs in zip(ours, chances, strict=True):
                    np.testing.assert_allclose(own, theirs[:-1], rtol=1e-9, atol=1e-12)
                products = [np.prod(moves) for moves in chances]
                np.testing.assert_allclose(page["chances"][moment], products, rtol=1e-9, atol=1e-12)
        parent, grpo, scaled = rollouts.tree.parent, pushes["grpo"], pushes["lambda_grpo"]
        best = np.flatnonzero(np.max(page["a"]) - page["a"] < 1e-9)
        kinds = {"down": [], "fork": [], "lambda": [], "fine": [], "empty": []}
        for i in best:
            path = rollouts.tree.paths[i, : tree.lengths[i]]
            down = min(grpo[path], default=0) < -1e-9
            fork, alone = (
                max([p[parent == parent[n]].max() - p[n] for n in path], default=0) > 1e-9
                for p in (grpo, scaled)
            )
            kind = "empty" if not len(path) else "down" if down else "fork" if fork else "fine"
            kinds["lambda" if kind == "fine" and alone else kind].append(int(i))
        assert {kind: sorted(members) for kind, members in page["kinds"].items()} == kinds
        informative = np.ptp(rewards) > 0 and not tree.is_flat.all()
        down, fork, alone = (informative and bool(kinds[k]) for k in ("down", "fork", "lambda"))
        assert ("pushed down: the" in page["said"]) == down
        assert ("But at a fork" in page["said"]) == (fork or alone)
        assert ("GRPO does not push the other way up harder" in page["said"]) == alone
        assert ("All rewards are equal" in page["said"]) == (np.ptp(rewards) == 0)
        assert ("the group is flat" in page["said"]) == (np.ptp(rewards) > 0 and tree.is_flat.all())
        if np.ptp(rewards) == 0:
            assert not any(page["a"]) and not any(
                map(any, page["advantage"] + page["grpo"] + page["lambda"])
            )
        seen["down"] += down
        seen["fork"] += fork
        seen["lambda"] += alone
        seen["tied"] += informative and len(best) > 1
        seen["mixed"] += informative and sum(map(bool, kinds.values())) > 1
        texts, everyone = [tuple(s) for s in group.sequences], len(group.sequences)
        seen["copies"] += len(set(texts)) < everyone
        seen["prefix"] += any(a != b and a == b[: len(a)] for a in texts for b in texts)
        seen["empty"] += () in texts
        seen["all empty"] += not any(texts)
        seen["equal"] += np.ptp(rewards) == 0
        seen["one step"] += len(steps) == 1
    assert (
        seen.pop("lambda") > 2
    )  # few of these groups are of this kind; test_explorer_page.py has more
    assert min(seen.values()) > 3, seen


@in_browser
def test_rounding_has_no_colour_and_no_reward_is_too_large_to_compare(tmp_path):
    """A step that all share has Â = 0; rewards that differ in late digits only differ; those whose
    squares overflow are refused.
    """
    items = [
        (["a", "a"], [1, 0.3]),
        (["a", "a", "a"], [0.1, 1, 0.3]),
        (["a", "b"], [1e16, 1e16 + 2]),
        (["a", "b"], [1e99, -1e99]),
    ]
    page = explorer_page(
        *(read_groups(json.dumps({"completions": c, "rewards": r}))[0] for c, r in items)
    )
    script = """
        const out = [0, 1, 2, 3].map((g) => {
          choose(g);
          const boxes = [...document.querySelectorAll("#tree .step")];
          return {a: current.advantages, tints: boxes.map((s) => s.getAttribute("style"))};
        });
        state.rewards[0] = 1e101;
        update();
        return {out, problem: document.getElementById("problem").textContent};"""
    found = browse(tmp_path, page, script)
    for group in found["out"][:2]:
        assert [tint for tint in group["tints"] if tint] == ["--tint: 0%"]
    for group, (_, rewards) in zip(found["out"][2:], items[2:], strict=True):
        np.testing.assert_allclose(
            group["a"], mg.advantages(rewards, np.zeros(2, dtype=int)), rtol=1e-12
        )
    assert found["problem"] == "y0 has a reward above 1e+100 in size: give it a number."


def test_the_notes_of_the_presets_are_true():
    """What is said beside the groups to choose from, by the package's numbers."""
    groups = {p["name"]: p for p in PRESETS}
    assert all(len(p["completions"]) == len(p["rewards"]) and p["note"] for p in PRESETS)

    def numbers(name):
        group = read_groups(json.dumps(groups[name]), unit=groups[name]["unit"])[0]
        rollouts = rollouts_of([np.array([0])], [group.sequences])
        paths = rollouts.tree.paths
        grpo, fixed = (
            push(objective, rollouts, group.rewards) for objective in ("grpo", "lambda_grpo")
        )
        return group, paths, grpo, fixed, mg.step_rewards(rollouts.tree, group.rewards)

    _, paths, _, _, values = numbers("A sum in steps")
    assert values[paths[0, 4]] == pytest.approx(2 / 3)  # after = 12
    assert values[paths[3, 4]] == 0  # after = 13
    _, paths, grpo, fixed, _ = numbers("Exploration")
    assert -grpo[paths[0, 0]] > 2 * grpo[paths[0, 2]] > 0
    assert grpo[paths[0]].sum() < 0 < fixed[paths[0]].sum()
    group, paths, grpo, fixed, values = numbers("The paper’s example")
    averages = [np.mean(group.rewards), values[paths[2, 2]], values[paths[3, 4]]]
    assert np.round(averages, 2).tolist() == [
        0.42,
        0.33,
        0,
    ]  # the group, JKL, JKLNQ: the numbers of the authors' figure
    assert np.round(fixed[paths[[0, 2, 2, 3, 5], [0, 2, 3, 4, 0]]], 2).tolist() == [
        0.22,
        -0.22,
        1.55,
        -1.11,
        0.22,
    ]
    assert group.texts[int(np.argmax(group.rewards))] == "JKLM"
    np.testing.assert_allclose(grpo[paths[2, :4]], [3, 3, 3, 1] * fixed[paths[2, :4]], rtol=1e-12)
    population = mg.advantages(group.rewards, np.zeros(6, dtype=int), ddof=0)
    assert (
        np.mean(population[2:5]).round(2) == -0.24
    )  # so the figure's −0.22 takes the std of a sample
    _, paths, grpo, fixed, _ = numbers("Exploitation")
    assert (fixed[paths[0]] > 0).all()
    assert grpo[paths[2, 1]] / grpo[paths[0, 1]] == pytest.approx(3, abs=0.05)
    assert fixed[paths[2, 1]] / fixed[paths[0, 1]] == pytest.approx(1.5, abs=0.03)
    group = numbers("Duplicates")[0]
    assert group.tree.count[group.tree.paths[0]].tolist() == [4, 3]
    group = numbers("Prefix of another")[0]
    assert (group.tree.on_tokens(group.tree.count, fill=9)[:2] > 1).all()
    assert group.texts[2].startswith(group.texts[1]) and group.texts[1].startswith(group.texts[0])
    group, _, grpo, fixed, _ = numbers("All different")
    assert group.tree.is_flat.all() and (grpo == fixed).all()
    group = numbers("All equal")[0]
    assert len(set(group.texts)) == 1 and np.ptp(group.rewards) == 0
    group = numbers("Equal rewards")[0]
    assert len(group.tree.steps()) > 3 and np.ptp(group.rewards) == 0


# -- the file --------------------------------------------------------------------------------------


def test_one_small_file_that_asks_nothing_of_a_network():
    page = explorer_page()
    assert len(page.encode()) < 90_000
    assert "default-src 'none'" in page
    assert f"const MAX_TOKENS = {MAX_TOKENS};" in page
    assert not re.search(
        r"https?:|\bsrc=|\bhref=(?!\"#)|url\(|@import|\bimport\(|fetch\(|XMLHttp"
        r"|innerHTML|insertAdjacent|\beval\(",
        page,
    )
    assert not re.search(r"/\* (STYLE|SCRIPT|GROUPS) \*/", page)


def test_its_parts_are_installed_with_the_package():
    root, repository = Path(mg.__file__).parent, Path(__file__).parents[1]
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    data = project["tool"]["setuptools"]["package-data"]
    listed = {
        file
        for package, patterns in data.items()
        for pattern in patterns
        for file in root.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    here = {file for file in root.rglob("*") if file.suffix not in (".py", ".pyc", ".md", "")}
    files = {file for file in here if root / "data" not in file.parents}  # a wheel's copies
    assert files == listed and root / "py.typed" in files


# -- which groups ----------------------------------------------------------------------------------


def offered(page):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_given_groups_come_first():
    page = page_of(
        {"prompt": "2+3=", "completions": ["5", "6"], "rewards": [1, 0]},
        {"completions": ["a b", "a c"]},
    )
    first, second, *presets = offered(page)
    assert first == {
        "name": "2+3=",
        "note": "",
        "unit": "words",
        "completions": ["5", "6"],
        "rewards": [1, 0],
    }
    assert (second["name"], second["rewards"], "start at 0" in second["note"]) == (
        "Your group",
        [0, 0],
        True,
    )
    assert presets == PRESETS
    ids, pieces = offered(
        page_of({"completions": [[5, 7], []]}, {"completions": [["un", " it"], ["", "\n"]]})
    )[:2]
    assert (ids["unit"], ids["completions"]) == ("tokens", ["5 7", ""])
    assert (pieces["unit"], pieces["completions"]) == ("tokens", ["un ␣it", "∎ \n"])


def test_groups_that_it_cannot_show():
    with pytest.raises(
        ValueError, match="Your group: one completion has nothing to be compared with"
    ):
        page_of({"completions": ["a"], "rewards": [1]})
    with pytest.raises(
        ValueError, match="q: 8000 characters are too many for the explorer, which takes up to 4000"
    ):
        page_of({"prompt": "q", "completions": ["a" * MAX_TOKENS] * 2})


def test_the_command(capsys, monkeypatch, tmp_path):
    def run(text, *flags):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = main(["tree", "-", "--html", str(tmp_path / "page.html"), *flags])
        return code, *capsys.readouterr()

    log = [
        {"prompt": p, "completion": c, "reward": 0}
        for p, c in ("pa", "qa", "qb", "ra", "rb", "sa", "sb")
    ]
    code, out, err = run("\n".join(map(json.dumps, log)), "--show", "2")
    assert (code, err) == (0, "")
    assert f"explorer, for a browser: {tmp_path / 'page.html'}" in out
    names = [
        choice["name"] for choice in offered((tmp_path / "page.html").read_text(encoding="utf-8"))
    ]
    assert names[:3] == ["q", "r", PRESETS[0]["name"]]  # p has one completion
    code, _, err = run('{"completions": ["ab"]}')
    assert code == 2
    why = "one completion has nothing to be compared with, so the explorer needs at least two"
    assert err == f"minigrpo tree: Your group: {why}\n"
