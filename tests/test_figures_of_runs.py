"""`minigrpo plot` says what was run: steps as they were, lines for settings, means over seeds
alone, or one line of refusal.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import hashlib
import json
import os
from dataclasses import asdict

import numpy as np
import pytest
from matplotlib.text import Text
from test_cli import TINY, run  # noqa: F401
from test_cli_errors import one_line

from minigrpo.runs.checkpoint import save_checkpoint
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import signed
from minigrpo.show import comparison
from minigrpo.show.comparison import compare_runs, run_settings, run_title
from minigrpo.show.drawing import LINES
from minigrpo.show.fonts import fonts_for
from minigrpo.show.plots import learning_curves, metrics_figure


def make_run(folder, rewards, every=0, **changes):
    """The folder of a run: a reward for each step, and an evaluation (a tenth of the step) before
    and every so many steps.
    """
    folder.mkdir(parents=True)
    own = {"steps": len(rewards), "eval_every": every, "learning_rate": 0.001}
    settings = asdict(TrainSettings()) | own | changes
    (folder / "settings.json").write_bytes(signed(settings))
    records = [
        {"step": step, "loss": 0.0, "reward": reward} for step, reward in enumerate(rewards, 1)
    ]
    for record in records:
        if every and record["step"] % every == 0:
            record["eval/pass@1_greedy"] = record["step"] / 10
    before = [{"step": 0, "eval/pass@1_greedy": 0.0, "eval/prompts": 1}] if every else []
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in before + records)
    )
    return folder


def add_checkpoint(folder):
    """One that knows the settings, and was written before the metrics."""
    settings = json.loads((folder / "settings.json").read_text())
    settings.pop("sha256")
    nothing = [0, 0, hashlib.sha256().hexdigest()]
    state = {
        "step": 2,
        "settings": settings,
        "files": {},
        "records": {"metrics.jsonl": nothing, "samples.jsonl": nothing},
    }
    save_checkpoint(folder / "checkpoint-000002.mgc", {}, state)


def drawn(figure):
    """The lines of a figure: name -> [(step, mean)]."""
    return {
        line.get_label(): [*zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for line in figure.axes[0].lines
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


# -- where values stand ----------------------------------------------------------------------------


def test_evaluations_stand_at_the_steps_at_which_they_were_made(tmp_path):
    a, b = (
        make_run(tmp_path / "a", [0.0] * 8, every=2),
        make_run(tmp_path / "b", [0.0] * 8, every=4, seed=1),
    )
    for folders in ([a], [a, b]):
        figure = compare_runs(folders, "eval/pass@1_greedy")
        name = "lambda_grpo" if folders == [a] else "eval_every=2"
        assert drawn(figure)[name] == [(0, 0), (2, 0.2), (4, 0.4), (6, 0.6), (8, 0.8)]
        assert {"share of held-out problems", "training step"} <= {
            line for t in texts(figure) for line in t.split("\n")
        }
    assert drawn(figure)["eval_every=4"] == [(0, 0), (4, 0.4), (8, 0.8)]
    panel = metrics_figure(read_metrics(a, before=True)).axes[
        -1
    ]  # one run, all of its usual metrics
    assert panel.get_title(loc="left") == "eval/pass@1_greedy" and panel.lines[
        0
    ].get_xdata().tolist() == [0, 2, 4, 6, 8]
    assert [record["step"] for record in read_metrics(a)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_runs_as_they_are_trained(run, tmp_path, monkeypatch):
    """Evaluated at every step and at every second; two learning rates; the same twice."""
    curves = []
    monkeypatch.setattr(
        comparison,
        "learning_curves",
        lambda *a, **o: curves.append(o["steps"]) or learning_curves(*a, **o),
    )
    made = {
        "a": ["--eval-every", 1, "--eval-prompts", 1, "--seed", 0],
        "c": ["--learning-rate", 0.1],
    }
    made |= {"b": ["--eval-every", 2, "--eval-prompts", 1, "--seed", 1]}
    for name, changes in made.items():
        assert run("train", *TINY, *changes, "--out", tmp_path / name)[0] == 0
    a, b, c = (tmp_path / name for name in "abc")
    assert (
        run("plot", a, b, "--key", "eval/pass@1_greedy")[0]
        == run("plot", a, b)[0]
        == run("plot", a, c)[0]
        == 0
    )
    assert curves[0] == {"eval_every=1": [0, 1, 2, 3, 4], "eval_every=2": [0, 2, 4]}
    assert curves[1] == {"lambda_grpo": [1, 2, 3, 4]}
    assert len(curves[2]) == 2 and "learning_rate=0.1" in curves[2]
    assert "are one run, not two seeds" in one_line(run("plot", a, a))


def test_a_mean_stands_only_where_all_runs_have_a_value(tmp_path):
    whole = make_run(tmp_path / "whole", [0, 1, 2, 3, 4])
    stopped = make_run(tmp_path / "stopped", [2, 3, 4], seed=1, steps=5)
    gap = make_run(tmp_path / "gap", [4, float("nan"), 6, float("inf"), 8], seed=2)
    figure = compare_runs([whole, stopped])
    assert drawn(figure) == {"lambda_grpo": [(1, 1), (2, 2), (3, 3)]}
    assert "mean and 95 % bootstrap band over 2 seeds; only where all have a value" in texts(figure)
    assert drawn(compare_runs([gap, whole, stopped])) == {"lambda_grpo": [(1, 2), (3, 4)]}
    assert drawn(compare_runs([gap])) == {"lambda_grpo": [(1, 4), (3, 6), (5, 8)]}
    late = make_run(tmp_path / "late", [float("nan"), 1], seed=3, steps=5)
    early = make_run(tmp_path / "early", [1, float("nan")], seed=4, steps=5)
    with pytest.raises(
        ValueError, match="the runs of lambda_grpo have reward at no step in common"
    ):
        compare_runs([late, early])


def test_evaluations_of_seeds_that_were_resumed_with_gaps(tmp_path):
    """The same interval, but one run lost records: means stay step by step."""
    a, b = (
        make_run(tmp_path / "a", [0.0] * 8, every=2),
        make_run(tmp_path / "b", [0.0] * 8, every=2, seed=1),
    )
    kept = [
        line
        for line in (b / "metrics.jsonl").read_text().splitlines(keepends=True)
        if json.loads(line)["step"] not in (0, 4)
    ]
    (b / "metrics.jsonl").write_text("".join(kept))
    assert drawn(compare_runs([a, b], "eval/pass@1_greedy")) == {
        "lambda_grpo": [(2, 0.2), (6, 0.6), (8, 0.8)]
    }


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_last_line_that_was_cut_short(cut, tmp_path):
    folder = make_run(tmp_path / "run", [0, 1, 2])
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[: -1 - cut])
    assert drawn(compare_runs([folder])) == {"lambda_grpo": [(1, 0), (2, 1)]}


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_of_a_single_step(seeds, tmp_path):
    figure = compare_runs(
        [make_run(tmp_path / str(seed), [seed], seed=seed) for seed in range(seeds)]
    )
    assert drawn(figure) == {"lambda_grpo": [(1, (seeds - 1) / 2)]}
    assert figure.axes[0].get_xlim() == (0, 2)
    assert figure.axes[0].collections[0].get_linewidth() > 0  # else the band would not be seen


# -- what is one line ------------------------------------------------------------------------------

SAME = [
    {},
    {"backend": "cupy"},
    {"memory_limit": 1.0},
    {"micro_batch_tokens": 77},
    {"checkpoint_every": 3},
    {"log_samples_every": 1},
    {"eval_every": 2},
    {"eval_prompts": 5},
]
OTHER = [
    ({"learning_rate": 0.1}, ["learning_rate=0.001", "learning_rate=0.1"]),
    ({"learning_rate": 1e-5}, ["learning_rate=0.001", "learning_rate=1e-05"]),
    ({"objective": "grpo"}, ["lambda_grpo", "grpo"]),
    ({"objective_options": {"beta": 0.04}}, ["beta=default", "beta=0.04"]),
    ({"max_grad_norm": None}, ["max_grad_norm=1.0", "max_grad_norm=None"]),
    ({"steps": 9}, ["steps=2", "steps=9"]),
    ({"dtype": "float64", "dim": 64}, ["dim=32, dtype=float32", "dim=64, dtype=float64"]),
    ({"a_later_setting": 7}, ["a_later_setting=default", "a_later_setting=7"]),
]


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_settings_that_do_not_change_the_metric_do_not_part_seeds(changes, tmp_path):
    a, b = make_run(tmp_path / "a", [0, 1]), make_run(tmp_path / "b", [2, 3], seed=1, **changes)
    assert drawn(compare_runs([a, b])) == {"lambda_grpo": [(1, 1), (2, 2)]}
    twin = make_run(tmp_path / "twin", [0, 1], **changes)
    with pytest.raises(
        ValueError, match=r"a and .*twin are one run, not two seeds \(seed 0 and all settings"
    ):
        compare_runs([a, b, twin])


@pytest.mark.parametrize(("changes", "names"), OTHER, ids=str)
def test_other_settings_are_lines_named_by_them_and_never_seeds(changes, names, tmp_path):
    a, b = make_run(tmp_path / "a", [0, 1]), make_run(tmp_path / "b", [2, 3], **changes)
    figure = compare_runs([a, b])
    assert drawn(figure) == {names[0]: [(1, 0), (2, 1)], names[1]: [(1, 2), (2, 3)]}
    assert {*names, "one seed each", "reward on treewalk", "reward\nmean outcome reward"} <= set(
        texts(figure)
    )
    assert not any("seeds" in text for text in texts(figure))


def test_what_changes_one_metric_alone(tmp_path):
    """The number of problems is another evaluation; a backend is another speed."""
    a, b = (
        make_run(tmp_path / "a", [0, 1], every=1),
        make_run(tmp_path / "b", [0, 1], every=1, eval_prompts=9, backend="cupy", seed=1),
    )
    assert list(drawn(compare_runs([a, b], "eval/pass@1_greedy"))) == [
        "eval_prompts=200",
        "eval_prompts=9",
    ]
    for folder in (a, b):
        records = [record | {"step_time": 0.5} for record in read_metrics(folder)]
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    assert list(drawn(compare_runs([a, b], "step_time"))) == ["backend=numpy", "backend=cupy"]
    assert list(drawn(compare_runs([a, b]))) == ["lambda_grpo"]


def test_settings_of_an_older_version_are_the_defaults(tmp_path):
    a, b = make_run(tmp_path / "a", [0, 1]), make_run(tmp_path / "b", [2, 3], seed=1)
    settings = json.loads((b / "settings.json").read_text())
    (b / "settings.json").write_bytes(
        signed({name: settings[name] for name in ("task", "steps", "seed", "learning_rate")})
    )
    assert drawn(compare_runs([a, b])) == {"lambda_grpo": [(1, 1), (2, 2)]}


def test_names_of_lines_are_short_and_all_different(tmp_path):
    deep = "/a/very/long/way/that/no/legend/has/room/for"
    runs = [
        make_run(tmp_path / name, [0, 1], init=f"{deep}/{name}/checkpoint-000050.mgc")
        for name in ("first", "second")
    ]
    assert list(drawn(compare_runs(runs))) == ["init=first", "init=second"]
    assert list(drawn(compare_runs([*runs, make_run(tmp_path / "none", [0, 1])])))[2] == "init=None"
    long = [
        make_run(tmp_path / f"l{i}", [0, 1], init="x" * 40 + str(i) + "y" * 40) for i in range(3)
    ]
    names = list(drawn(compare_runs(long)))
    assert len(set(names)) == 3 and max(map(len, names)) < 60
    foreign = [
        make_run(tmp_path / f"f{i}", [0, 1], init=name)
        for i, name in enumerate(("模型/一", "модель\n"))
    ]
    if not fonts_for("模型一"):
        assert list(drawn(compare_runs(foreign))) == ["init=\\u6a21\\u578b/\\u4e00", "init=модель↵"]


MINE = {"objective": "deep/in/a/my.py:Mine", "task": "over/there/tasks.py:Sorting"}
LONG = "q/" * 60 + "x.py:" + "Long" * 40


@pytest.mark.parametrize(
    ("others", "names"),
    [
        ([{}], ["Mine"]),
        ([{"objective": "grpo"}], ["Mine", "grpo"]),
        ([{"objective": "deep/in/a/my.py:Other"}], ["Mine", "Other"]),
        ([{"objective": "deep/in/b/my.py:Mine"}], ["a", "b"]),  # two classes of one name
        ([{"objective_options": {"beta": 1.0}}], ["beta=default", "beta=1.0"]),
        ([{"objective": LONG}], ["Mine", "LongLongLongLongLong…gLongLong"]),
    ],
    ids=str,
)
def test_an_objective_of_the_users_own_is_its_class(others, names, tmp_path):
    runs = [
        make_run(tmp_path / str(i), [0, 1], seed=i, **MINE | own)
        for i, own in enumerate([{}, *others])
    ]
    figure = compare_runs(runs)
    assert list(drawn(figure)) == names
    assert "reward on Sorting" in texts(figure)
    title = run_title(run_settings(runs[0]))
    assert title == "Mine on Sorting, one run (seed 0)"


def test_a_model_is_its_file(tmp_path):
    settings = {"task": "sums", "model": "/somewhere/models/SmolLM2-135M/"}
    run = make_run(tmp_path / "a", [0, 1], **settings)
    assert "reward on sums with SmolLM2-135M" in texts(compare_runs([run]))


# -- labels and smoothing --------------------------------------------------------------------------


def test_labels_are_names_of_the_lines_in_order(run, tmp_path):
    own = [{"objective": "grpo"}, {"objective": "dapo"}, {"objective": "grpo", "seed": 1}]
    runs = [make_run(tmp_path / str(i), [i, i], **more) for i, more in enumerate(own)]
    found = drawn(compare_runs(runs, labels=["ours $x$\n", "x" * 500]))
    assert found["ours $x$↵ (2)"] == [(1, 1), (2, 1)]
    figure = compare_runs(runs, labels=["a", "x" * 500])
    assert figure.get_size_inches()[0] < 14 and max(map(len, drawn(figure))) <= 64
    for labels in (["a"], ["a", "b", "c"]):
        flags = [word for label in labels for word in ("--label", label)]
        told = f"labels: {len(labels)} given, 2 wanted, one for each line: grpo; dapo"
        assert told in one_line(run("plot", *runs, *flags))
    for label in ("a", ""):
        err = one_line(run("plot", *runs, "--label", "a", "--label", label))
        assert "labels must be texts that differ" in err
    err = one_line(run("plot", runs[0], "--label", "a"))
    assert "--label names lines, of one --key or several runs" in err
    out = tmp_path / "x.svg"
    assert run("plot", *runs, "--label", "A b", "--label", "Ç", "--out", out)[0] == 0
    assert "<!-- A b (2) -->" in out.read_text(encoding="utf-8")
    assert list(drawn(compare_runs(runs[:1], "loss", labels=["one"]))) == ["one"]


def test_lines_of_several_runs_are_smoothed_seed_by_seed(tmp_path):
    a, b = make_run(tmp_path / "a", [0, 2, 4, 6]), make_run(tmp_path / "b", [4, 4, 10, 4], seed=1)
    figure = compare_runs([a, b], smooth=3)
    assert drawn(figure) == {"lambda_grpo": [(1, 2), (2, 2.5), (3, 4), (4, 5)]}
    about = "mean and 95 % bootstrap band over 2 seeds; running means of 3 values"
    assert about in texts(figure)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0 and band[:, 1].max() == 6  # not 10: each seed is smoothed
    line, raw = compare_runs([b], smooth=2).axes[0].lines
    assert line.get_ydata().tolist() == [4, 4, 7, 7] and line.get_label() == "lambda_grpo"
    assert raw.get_ydata().tolist() == [4, 4, 10, 4] and raw.get_alpha() < 0.5
    assert raw.get_zorder() < line.get_zorder()
    for folders in ([a], [a, b]):
        once = compare_runs(folders, smooth=1)
        assert drawn(once) == drawn(compare_runs(folders))
        assert not any("running" in text for text in texts(once))
    whole = drawn(compare_runs([b], smooth=100))["lambda_grpo"]
    assert whole == [(1, 4), (2, 4), (3, 6), (4, 5.5)]


def test_panels_of_one_run_are_smoothed(run, tmp_path):
    records = [
        {"step": i, "reward": float(i), "kl": float("nan"), "eval/pass@1_greedy": 0.5}
        for i in range(1, 51)
    ]
    reward, greedy, kl = metrics_figure(records, smooth=4).axes
    assert reward.lines[0].get_ydata().tolist() == [float(i) for i in range(1, 51)]
    assert reward.lines[1].get_ydata().tolist()[:5] == [1, 1.5, 2, 2.5, 3.5]
    assert "(dark: running mean of 4)" in reward.get_xlabel()
    assert not len(kl.lines[0].get_xdata())
    assert greedy.get_ylim()[0] < 0 and greedy.get_ylim()[1] > 1
    assert [len(ax.lines) for ax in metrics_figure(records, smooth=1).axes] == [1, 1, 1]
    assert [len(ax.lines) for ax in metrics_figure(records).axes] == [2, 2, 1]
    folder = make_run(tmp_path / "a", [0, 1, 2])
    for smooth in ("0", "-1", "x"):
        one_line(run("plot", folder, "--smooth", smooth))
    for smooth in (0, -3):
        for draw in (
            lambda n: metrics_figure(records, smooth=n),
            lambda n: compare_runs([folder], smooth=n),
        ):
            with pytest.raises(ValueError, match="take at least 1"):
                draw(smooth)
    out = tmp_path / "x.svg"
    assert run("plot", folder, "--smooth", 2, "--out", out)[0] == 0
    assert "running mean of 2" in out.read_text(encoding="utf-8")


def test_the_parts_of_a_reward_stand_beside_it(tmp_path):
    long = "rewards/" + "a_long_name_" * 5 + "/mean"
    record = {"step": 1, "kl": 0.1, long: 0.5, "rewards/format/mean": 0.25, "reward": 0.75}
    figure = metrics_figure([record | {"rewards/format/std": 0.1}])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [titles[0], *titles[2:]] == ["reward", "rewards/format/mean", "kl"]
    assert len(titles[1]) == 38 and "…" in titles[1]
    assert texts(figure).count("mean of this part") == 2
    folder = make_run(tmp_path / "a", [0, 1])
    line = json.dumps({"loss": 0, **record}) + "\n"
    (folder / "metrics.jsonl").write_text(line, encoding="utf-8")
    shown = texts(compare_runs([folder], "rewards/format/mean"))
    assert "rewards/format/mean\nmean of this part" in shown


def test_many_lines_can_be_told_apart_in_grey(tmp_path):
    curves = {f"line {i}": np.arange(6.0).reshape(2, 3) + i for i in range(36)}
    figure = learning_curves(curves)
    styles = [(LINES[i % 6][1], line.get_marker()) for i, line in enumerate(figure.axes[0].lines)]
    assert len(set(map(str, styles))) == 36
    with pytest.raises(ValueError, match="37 lines cannot be told apart: draw at most 36"):
        learning_curves(curves | {"one more": np.zeros((2, 3))})


# -- refusals, on the command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "arithmetic"},
        {"task_options": {"n": 2}},
        {"model": "smollm2"},
        {"task": "other.py:Walk", "seed": 1},
    ],
    ids=str,
)
def test_runs_of_different_tasks_are_refused(changes, run, tmp_path):
    a, b = make_run(tmp_path / "a", [0, 1]), make_run(tmp_path / "b", [2, 3], **changes)
    err = one_line(run("plot", a, b))
    assert (
        "runs of different tasks cannot be compared, so plot them apart" in err
        and next(iter(changes)) in err
    )
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "again",
    [
        "{a}",
        "{a}/",
        "{a}/../a",
        "{link}",
        "{a}/checkpoint-000002.mgc",
        "{copy}",
        "{link}/metrics.jsonl",
    ],
)
def test_a_run_given_twice_is_not_two_seeds(again, run, tmp_path):
    places = {
        "a": make_run(tmp_path / "a", [0, 1]),
        "copy": make_run(tmp_path / "copy", [0, 1]),
        "link": tmp_path / "link",
    }
    add_checkpoint(places["a"])
    os.symlink(places["a"], places["link"])
    other = make_run(tmp_path / "other", [0, 1], seed=5)
    assert (
        "are one run, not two seeds (seed 0 and all settings that change reward are the same): "
        "leave one out" in one_line(run("plot", places["a"], other, again.format(**places)))
    )


def test_the_path_of_a_checkpoint_is_its_run(run, tmp_path):
    folder = make_run(tmp_path / "a", [0, 1])
    add_checkpoint(folder)
    assert run("plot", folder / "checkpoint-000002.mgc")[0] == 0
    assert (folder / "metrics.png").exists()


def test_the_key_is_honoured_for_one_run_too(run, tmp_path, monkeypatch):
    folder, drawn_keys = make_run(tmp_path / "a", [0, 1], every=1), []
    monkeypatch.setattr(
        comparison,
        "learning_curves",
        lambda *a, **o: drawn_keys.append(o["title"]) or learning_curves(*a, **o),
    )
    assert run("plot", folder, "--key", "loss")[0] == 0
    assert run("plot", folder)[0] == 0
    assert drawn_keys == ["loss on treewalk"]
    for many in ([], [make_run(tmp_path / "b", [0, 1], seed=1)]):
        err = one_line(run("plot", folder, *many, "--key", "joy"))
        assert "there is no '' in" in one_line(run("plot", folder, *many, "--key", ""))
        assert (
            f"{folder}: there is no 'joy' in the metrics of a run: "
            "it has eval/pass@1_greedy, eval/prompts, loss, " in err
        )


def test_a_run_without_the_key_is_named(run, tmp_path):
    a, b = (
        make_run(tmp_path / "a", [0, 1], every=1),
        make_run(tmp_path / "b", [float("nan"), None], seed=1),
    )
    assert f"{b}: there is no 'eval/pass@1_greedy'" in one_line(
        run("plot", a, b, "--key", "eval/pass@1_greedy")
    )
    assert f"{b}: there is no 'reward'" in one_line(run("plot", a, b))
    assert f"{tmp_path / 'c'} holds no run" in one_line(run("plot", a, tmp_path / "c"))


@pytest.mark.parametrize(
    "line",
    ["5", "[]", "null", '{"loss": 1}', '{"step": "2", "loss": 1}', '{"step": NaN, "loss": 1}'],
)
def test_a_line_that_is_no_step(line, run, tmp_path):
    folder = make_run(tmp_path / "a", [0, 1])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    assert "metrics.jsonl holds" in one_line(run("plot", folder))


def test_a_huge_value_does_not_blur_the_others(tmp_path):
    assert drawn(compare_runs([make_run(tmp_path / "a", [1e30, 0.5, 0.25])]))["lambda_grpo"][
        1:
    ] == [(2, 0.5), (3, 0.25)]


@pytest.mark.parametrize("settings", ["[]", "5", '"x"', "[[1, 2]]", "{", "", "null"])
def test_settings_that_are_none(settings, run, tmp_path):
    folder = make_run(tmp_path / "a", [0, 1])
    (folder / "settings.json").write_text(settings)
    assert "settings.json is damaged" in one_line(run("plot", folder))
    assert "settings.json is damaged" in one_line(run("plot", folder, "--key", "reward"))


def test_numbers_that_cannot_be_drawn_are_told(tmp_path):
    folder = make_run(tmp_path / "a", [0, float("nan"), 10**400, 3, 1.7e308, -1.7e308])
    figure = metrics_figure(read_metrics(folder), title="what it is")
    assert figure.axes[0].get_title(loc="left") == "reward (4 not finite)"
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 4]
    assert "what it is" in texts(figure)


# -- one task or several, whatever they are called -------------------------------------------------

CALLED = {  # how two runs name their tasks and where the files were -> whether these are one task
    "one name, two files": ("task.py:T", "/a/task.py", "task.py:T", "/b/task.py", False),
    "two names, one file": ("task.py:T", "/a/task.py", "../a/task.py:T", "/a/task.py", True),
    "two classes of a file": ("task.py:T", "/a/task.py", "task.py:U", "/a/task.py", False),
    "one of an earlier version": ("task.py:T", None, "task.py:T", "/b/task.py", True),
    "of earlier versions": ("task.py:T", None, "../a/task.py:T", None, False),
    "built in, and a file": ("treewalk", None, "task.py:T", "/a/task.py", False),
}


@pytest.mark.parametrize("case", CALLED)
def test_a_task_is_its_file_not_its_name(case, tmp_path):
    *called, same = CALLED[case]
    own = [
        {"task": called[i]} | ({"task_file": called[i + 1]} if called[i + 1] else {})
        for i in (0, 2)
    ]
    a, b = (
        make_run(tmp_path / str(seed), [seed, seed], seed=seed, **own[seed]) for seed in range(2)
    )
    if same:
        assert drawn(compare_runs([a, b])) == {"lambda_grpo": [(1, 0.5), (2, 0.5)]}
    else:
        with pytest.raises(
            ValueError, match=r"has task .* runs of different tasks cannot be compared"
        ):
            compare_runs([a, b])


def test_the_files_of_all_runs_are_compared(tmp_path):
    files = [{}, {"task_file": "/a/t.py"}, {"task_file": "/b/t.py"}]
    runs = [
        make_run(tmp_path / str(i), [0], seed=i, task="t.py:T", **own)
        for i, own in enumerate(files)
    ]
    with pytest.raises(ValueError, match=r"1 has task '/a/t.py:T', .*2 has '/b/t.py:T'"):
        compare_runs(runs)


def test_tasks_of_two_folders_as_they_are_trained(run, tmp_path, monkeypatch):
    for seed, (place, name) in enumerate(
        (("A", "task.py"), ("B", "task.py"), ("A", "../A/task.py"))
    ):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "task.py").write_text(
            "from minigrpo.tasks.treewalk import TreeWalk as T\n"
        )
        monkeypatch.chdir(tmp_path / place)
        small = [*TINY, "--seed", seed, "--out", tmp_path / str(seed)]
        assert run("train", "--task", f"{name}:T", *small)[0] == 0
    assert "runs of different tasks cannot be compared" in one_line(
        run("plot", tmp_path / "0", tmp_path / "1")
    )
    assert list(drawn(compare_runs([tmp_path / "0", tmp_path / "2"]))) == ["lambda_grpo"]


@pytest.mark.parametrize(
    ("task", "options", "same"),
    [
        ("treewalk", {"n": 1}, True),
        ("treewalk", {"n": 1, "target": None, "r_neg": -1}, True),
        ("arithmetic", {"digits": 3, "test_share": 0.1}, True),
        ("treewalk", {"target": "LRLL"}, False),  # what seed 0 would draw, but given
        ("treewalk", {"seed": None, "root": "bos"}, True),
        ("sums", {"low": 11}, False),
        ("treewalk", {"a_later_option": 1}, False),
        ("t.py:T", {"n": 1}, False),
    ],
)
def test_options_that_are_the_defaults(task, options, same, tmp_path):
    a, b = (
        make_run(tmp_path / "a", [0], task=task),
        make_run(tmp_path / "b", [1], seed=1, task=task, task_options=options),
    )
    if same:
        assert drawn(compare_runs([a, b])) == {"lambda_grpo": [(1, 0.5)]}
    else:
        with pytest.raises(ValueError, match="has task_options"):
            compare_runs([a, b])


MANY = {
    "rates": (
        {"learning_rate": 0.003},
        {"learning_rate": 0.0003},
        {"objective": "grpo", "steps": 9, "objective_options": {"beta": 1}},
    ),
    "long values": (
        {"init": "x" * 50 + "1" + "y" * 50},
        {"init": "x" * 50 + "2" + "y" * 50},
        {"init": "x" * 70},
    ),
    "many settings": (
        {"dim": 48},
        {"n_heads": 4},
        {"temperature": 0.5, "weight_decay": 0.1, "optimizer": "sgd", "ffn_dim": 9},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MANY)
def test_names_tell_lines_apart_by_what_differs(case, tmp_path):
    runs = [make_run(tmp_path / str(i), [0, i], **changes) for i, changes in enumerate(MANY[case])]
    figure = compare_runs(runs)
    names = list(drawn(figure))
    assert len(set(names)) == 3 and not any("#" in name for name in names)
    for name, changes in zip(names, MANY[case], strict=True):
        for key, value in (changes | changes.get("objective_options", {})).items():
            told = {"objective": "grpo", "init": "init=…xxxx"}.get(key, f"{key}={value}")
            assert (
                key == "objective_options"
                or told in name.split(",\n")
                or (key == "init" and name.startswith(told))
            )
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    assert box.x0 >= figure.axes[0].get_window_extent().x1
