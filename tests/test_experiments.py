"""What experiments share: jobs that remember, arms that are what they say, tables from runs."""

import json
import multiprocessing
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import random_rollouts, relative, tiny_model
from jobs import fails_or_sleeps, noted, square

from minigrpo import Objective, sample
from minigrpo.command.cli import main
from minigrpo.engine.optim import global_norm
from minigrpo.experiments import (
    EXPERIMENTS,
    alpha,
    committed,
    learning,
    module_of,
    parallel,
    table1,
    tables,
)
from minigrpo.experiments.controls import CONTROLS, PRESETS, gradients_of_arm, shuffled_weights
from minigrpo.experiments.learning import table as learning_table
from minigrpo.experiments.parallel import cache_line, code_of, read_cache, run_jobs
from minigrpo.experiments.reproduce import reproduce
from minigrpo.experiments.table1 import (
    ARMS,
    CHUNK,
    PUBLISHED,
    RATES,
    best,
    best_figure,
    comparison,
    paper_figure,
    sweep_figure,
    table,
    text,
    walk,
)
from minigrpo.experiments.tables import sign_test
from minigrpo.runs.settings import TrainSettings
from minigrpo.show.plots import bootstrap_interval
from minigrpo.system.files import Lock, read_records

COMMITTED = Path(__file__).parents[1] / "results"


def test_published_tables_are_found_in_the_repository():
    assert committed("results/table1.json") == json.loads(
        (COMMITTED / "table1.json").read_text(encoding="utf-8")
    )
    with pytest.raises(
        ValueError,
        match=r"^there is no 'results/x\.json' in this installation: install the package again",
    ):
        committed("results/x.json")


def test_jobs_keep_their_order_and_are_not_run_twice(tmp_path):
    cache, log = tmp_path / "cache.jsonl", tmp_path / "log"
    jobs = [{"x": x, "log": str(log)} for x in (3, 1, 2)]
    assert run_jobs(square, jobs[:2], title="", processes=2, cache=cache) == [9, 1]
    with open(cache, "a") as file:
        file.write('{"job": "cut sho')  # stopped while writing
    assert run_jobs(square, jobs, title="", processes=1, cache=cache) == [9, 1, 4]
    assert run_jobs(square, jobs, title="", cache=cache) == [9, 1, 4]
    assert sorted(log.read_text().split()) == ["1", "2", "3"]
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 3


def test_a_failing_job_is_reported_and_what_was_done_is_kept(tmp_path):
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(ValueError, match="no negative numbers"):
        run_jobs(square, [{"x": 2}, {"x": -1}], title="", processes=1, cache=cache)
    assert run_jobs(square, [{"x": 2}], title="", processes=1, cache=cache) == [4]


# -- the cache: what else may happen to it ---------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch):
    """Jobs run here, one after the other.   -> the list of those that were run"""
    ran = []

    def run(function, jobs, keys, title, processes, keep):
        found = {}
        for job, key in zip(jobs, keys, strict=True):
            ran.append(job["x"])
            found[key] = function(**job)
            keep(key, found[key])
        return found

    monkeypatch.setattr(parallel, "_run", run)
    return ran


JOBS = [{"x": x} for x in (3, 1, 2)]


def test_a_kill_at_any_byte_loses_the_line_that_was_being_written(
    tmp_path, in_this_process, monkeypatch
):
    monkeypatch.setattr(parallel, "code_of", lambda function: "code")
    cache = tmp_path / "cache.jsonl"
    assert run_jobs(square, JOBS[:2], title="", cache=cache) == [9, 1]
    whole = cache.read_bytes()
    for end in (0, 1, *range(whole.index(b"\n"), len(whole))):
        in_this_process.clear()
        cache.write_bytes(whole[:end])
        assert run_jobs(square, JOBS[:2], title="", cache=cache) == [9, 1]
        assert in_this_process == [3, 1][whole[:end].count(b"\n") :]
        assert cache.read_bytes() == whole


def test_each_result_is_on_the_disk_before_the_next(tmp_path, in_this_process, monkeypatch):
    cache, synced = tmp_path / "cache.jsonl", []
    sync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda file: (
            sync(file),
            synced.append(cache.exists() and cache.read_bytes().count(b"\n")),
        ),
    )
    run_jobs(square, JOBS, title="", cache=cache)
    assert synced[-3:] == [1, 2, 3]


def test_no_changed_bit_of_a_cache_changes_a_result(tmp_path):
    cache, results = tmp_path / "cache.jsonl", [{"a": 0.5, "b": [1, None]}, "é"]
    lines = [
        cache_line(f'["m", "f", {{"x": {i}}}]', "c", result) for i, result in enumerate(results)
    ]
    cache.write_bytes(b"".join(lines))
    good, rng = read_cache(cache), np.random.default_rng(0)
    assert [record["result"] for record in good] == results
    refused = 0
    for at, byte in enumerate(b"".join(lines)):
        for bit in rng.permutation(8)[:2].tolist():
            data = bytearray(b"".join(lines))
            data[at] = byte ^ (1 << bit)
            cache.write_bytes(data)
            try:
                assert read_cache(cache) in (
                    good,
                    good[:1],
                )  # the end of the last line: as if it was cut short
            except ValueError as error:
                line = data[:at].count(b"\n") + 1
                assert str(error).startswith(
                    f"{cache}, line {line} is damaged, was edited, or is of an earlier version ("
                )
                refused += 1
    assert refused > 0.98 * 2 * sum(map(len, lines))


@pytest.mark.parametrize(
    "line",
    [
        '{"job": "x", "result": 1}',
        "[]",
        "7",
        "null",
        '{"job": ["x"]}',
        "",
        "NaN",
        "[" * 10**5,
        "\x00",
    ],
)
def test_a_line_that_is_no_finished_job_is_refused_by_its_number(line, tmp_path):
    cache = tmp_path / "cache.jsonl"
    cache.write_bytes(cache_line("job", "code", 1) + line.encode() + b"\n")
    with pytest.raises(
        ValueError,
        match=r"cache\.jsonl, line 2 is damaged, was edited, .*: "
        r"delete the line to run its job again",
    ):
        run_jobs(square, JOBS, title="", cache=cache)


def test_results_of_other_code_are_not_taken_unless_asked_for(
    tmp_path, in_this_process, monkeypatch, capsys
):
    cache = tmp_path / "cache.jsonl"
    monkeypatch.setattr(parallel, "code_of", lambda function: "before")
    run_jobs(square, JOBS[:2], title="", cache=cache)
    monkeypatch.setattr(parallel, "code_of", lambda function: "now")
    cube = lambda x: x**3  # noqa: E731
    cube.__module__, cube.__qualname__ = square.__module__, "square"
    assert not capsys.readouterr().err
    in_this_process.clear()
    assert run_jobs(cube, JOBS, title="", cache=cache, any_code=True) == [9, 1, 8]
    assert in_this_process == [2]
    assert (
        capsys.readouterr().err
        == f"note: 2 results in {cache} are of other code than this, and are taken as they are\n"
    )
    assert run_jobs(cube, JOBS, title="", cache=cache) == [27, 1, 8]
    assert in_this_process == [2, 3, 1]
    assert (
        capsys.readouterr().err
        == f"note: 2 results in {cache} are of other code than this, and are computed again\n"
    )
    assert run_jobs(cube, JOBS, title="", cache=cache, any_code=True) == [
        27,
        1,
        8,
    ]  # its own are preferred
    monkeypatch.setattr(parallel, "code_of", lambda function: "before")
    in_this_process.clear()
    assert (
        run_jobs(cube, JOBS[:2], title="", cache=cache) == [9, 1] and not in_this_process
    )  # they are still there


def test_the_code_is_that_of_the_package_and_of_the_function(tmp_path, monkeypatch):
    package, mine = tmp_path / "minigrpo", tmp_path / "mine.py"
    (package / "experiments").mkdir(parents=True)
    files = [package / "a.py", package / "experiments" / "b.py", mine]
    for file in files:
        file.write_text("x = 1\n")
    monkeypatch.setattr(parallel, "__file__", str(package / "experiments" / "parallel.py"))
    monkeypatch.setattr(parallel.inspect, "getfile", lambda function: str(mine))
    seen = [code_of(square)]
    assert code_of(square) == seen[0]
    for file in files:
        file.write_text("x = 2\n")
        seen.append(code_of(square))
    (package / "c.py").touch()
    seen.append(code_of(square))
    (package / "data.json").write_text("{}")
    assert code_of(square) == seen[-1] and len(set(seen)) == 5


def test_a_cache_that_another_process_uses_is_refused(tmp_path, in_this_process):
    cache = tmp_path / "cache.jsonl"
    lock = Lock(tmp_path, ".cache.jsonl.lock")
    with pytest.raises(
        ValueError,
        match=f"is in use by another process .pid {os.getpid()}.: wait until that has ended",
    ):
        run_jobs(square, JOBS, title="", cache=cache)
    assert run_jobs(square, JOBS, title="", cache=tmp_path / "other.jsonl") == [9, 1, 4]
    lock.release()
    assert run_jobs(square, JOBS, title="", cache=cache) == [9, 1, 4]
    with pytest.raises(ValueError, match="no negative"):
        run_jobs(square, [{"x": -1}], title="", cache=cache)
    assert run_jobs(square, JOBS, title="", cache=cache) == [9, 1, 4]  # a failure has released it


def test_a_result_that_is_no_json_is_refused_and_not_written(tmp_path, in_this_process):
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(ValueError, match=r"^the result of .*square.* cannot be written as JSON"):
        run_jobs(square, [{"x": 2.0}, {"x": 1e200}], title="", cache=cache)
    assert [record["result"] for record in read_cache(cache)] == [4.0]


def test_no_worker_outlives_a_failure_or_an_interruption():
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="this one fails"):
        run_jobs(
            fails_or_sleeps, [{"fails": False}, {"fails": True}], title="test", processes=2
        )  # the sleeper has ten minutes
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_and_words_need_nothing_but_the_published_tables(name):
    module = module_of(name)
    tables = committed(f"results/{name}.json")
    published = {path.stem for path in COMMITTED.glob(f"{name}*.png")}
    assert set(module.figures(tables)) == published
    assert len(module.text(tables).splitlines()) > 3


def test_an_interrupted_experiment_goes_on_to_the_same_table(tmp_path, monkeypatch, capsys):
    """All of table1 by its command, with jobs in any order and a last line that is cut short."""

    def run(folder, log):
        monkeypatch.setenv("WALKED", str(tmp_path / log))
        options = ["--quick", "--seeds", "32", "--processes", "1", "--out", str(tmp_path / folder)]
        code = main(["reproduce", "table1", *options])
        return code, [json.loads(line) for line in (tmp_path / log).read_text().splitlines()]

    def by_value(jobs):
        return sorted(json.dumps(job, sort_keys=True) for job in jobs)

    monkeypatch.setattr(table1, "walk", noted)
    monkeypatch.setattr(table1, "figures", lambda tables: {})  # the table only
    code, jobs = run("whole", "whole.log")
    assert code == 0 and len(jobs) == 2 * 3 * 5

    monkeypatch.setenv("INTERRUPT", str(RATES["adamw"][2]))
    assert run("stopped", "first.log")[0] == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "table1.json").exists()
    monkeypatch.delenv("INTERRUPT")
    cache = tmp_path / "stopped" / "table1.cache.jsonl"
    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join(reversed(lines))[:-5])
    kept = [json.loads(record["job"])[2] for record in read_records(cache)]
    assert 0 < len(kept) < len(jobs) - 1

    code, resumed = run("stopped", "second.log")
    assert code == 0
    assert by_value(kept + resumed) == by_value(
        jobs
    )  # each once: what was kept is not computed again
    assert len(read_records(cache)) == len(jobs)
    first, second = (
        (tmp_path / folder / "table1.json").read_bytes() for folder in ("whole", "stopped")
    )
    assert first == second
    assert len({row["target_frequency"] for row in json.loads(first)["rows"]}) > 2


def group(seed=0, n_prompts=2):
    model = tiny_model(seed=seed)
    rng = np.random.default_rng(seed)
    rollouts = sample(model, [[1]] * n_prompts, 8, rng, max_new_tokens=6, eos=0)
    return model, rollouts, rng.choice([-1.0, 0.7, 1.0], size=8 * n_prompts)


def gradient(arm, seed=0):
    model, rollouts, rewards = group(seed)
    gradients_of_arm(arm, model, rollouts, rewards, np.random.default_rng(7))
    return model.gradients.flat.copy(), global_norm(model.gradients)


def test_norm_matched_arms_have_one_direction_and_the_other_norm():
    (grpo, grpo_norm), (fixed, fixed_norm) = gradient("grpo"), gradient("lambda_grpo")
    (a, a_norm), (b, b_norm) = gradient("grpo_at_lambda_norm"), gradient("lambda_at_grpo_norm")
    assert abs(a_norm / fixed_norm - 1) < 1e-12
    assert abs(b_norm / grpo_norm - 1) < 1e-12
    assert relative(a / a_norm, grpo / grpo_norm) < 1e-12
    assert relative(b / b_norm, fixed / fixed_norm) < 1e-12
    assert (
        relative(grpo / grpo_norm, fixed / fixed_norm) > 1e-2
    )  # else the controls would say nothing


def test_arms_of_the_family_lie_between_grpo_and_lambda_grpo():
    for arm, preset in (("alpha=0", "grpo"), ("alpha=1.0", "lambda_grpo")):
        np.testing.assert_array_equal(gradient(arm)[0], gradient(preset)[0])
    model, rollouts, rewards = group()
    half = Objective(alpha=0.5)
    logp = model.forward(rollouts.tree)
    expected = model.backward(half(rollouts, rewards, logp, rollouts.logp)[1]).flat
    assert relative(gradient("alpha=0.5")[0], expected) < 1e-12
    assert (
        min(relative(gradient("alpha=0.5")[0], gradient(arm)[0]) for arm in ("grpo", "lambda_grpo"))
        > 1e-2
    )


def test_placebo_has_the_weights_of_lambda_grpo_on_other_tokens():
    rollouts = random_rollouts(np.random.default_rng(3))
    tree = rollouts.tree
    rewards = np.random.default_rng(4).normal(size=len(tree.paths))
    grpo, fixed = Objective.preset("grpo"), Objective.preset("lambda_grpo")
    shuffled = shuffled_weights(grpo, rollouts, rewards, np.random.default_rng(5))
    assert np.isclose(
        shuffled.weight.sum(), fixed.coefficients(rollouts, rewards).weight.sum(), rtol=1e-12
    )
    assert relative(shuffled.weight, fixed.coefficients(rollouts, rewards).weight) > 1e-2

    class Unshuffled:
        def permutation(self, values):
            return values

    for name in ("positive", "negative", "weight"):
        same = getattr(shuffled_weights(grpo, rollouts, rewards, Unshuffled()), name)
        assert relative(same, getattr(fixed.coefficients(rollouts, rewards), name)) < 1e-12


def test_unknown_arm_is_refused():
    model, rollouts, rewards = group()
    with pytest.raises(ValueError, match=r"unknown arm 'x': choose from .*placebo"):
        gradients_of_arm("x", model, rollouts, rewards, np.random.default_rng(0))
    for bad, message in (
        ("alpha=x", "float: 'x'"),
        ("alpha=-1", r"alpha is -1\.0"),
        ("grpoalpha=1", "unknown arm 'grpoalpha=1'"),
    ):
        with pytest.raises(ValueError, match=message):
            gradients_of_arm(bad, model, rollouts, rewards, np.random.default_rng(0))


@pytest.mark.parametrize("arm", ARMS)
def test_walk_is_a_function_of_its_arguments(arm):
    job = {
        "arm": arm,
        "n": 1,
        "r_neg": -1.0,
        "optimizer": "sgd",
        "learning_rate": 0.3,
        "runs": 3,
        "steps": 20,
    }
    hits = walk(**job, targets="drawn", first_seed=3)
    assert hits == walk(**job, targets="drawn", first_seed=3)
    assert len(hits) == 3
    assert 0 <= min(hits) <= max(hits) <= 20 * (4 if arm == "monte_carlo_prm" else 16)
    assert set(ARMS) == {*PRESETS, *CONTROLS, "monte_carlo_prm"}


def rows_of(**finals):
    """Two cells per arm, of eight runs: finals of the first and last four, for two rates."""
    cells = {}
    for arm, both in finals.items():
        for rate, (first, second) in zip((0.1, 1.0), both, strict=True):
            cells[arm, 1, -1.0, "sgd", rate, "drawn"] = [first] * 4 + [second] * 4
    return table(cells)


def test_the_rate_is_chosen_on_one_half_and_told_of_the_other():
    rows = rows_of(grpo=((400, 80), (200, 800)), lambda_grpo=((0, 800), (800, 600)))
    assert [row["target_frequency"] for row in rows] == [0.3, 0.625, 0.5, 0.875]
    assert [row["first_half"] for row in rows] == [0.5, 0.25, 0.0, 1.0]
    chosen = {row["arm"]: row for row in best(rows)}
    assert (
        chosen["grpo"]["learning_rate"],
        chosen["grpo"]["target_frequency"],
        chosen["grpo"]["found"],
    ) == (0.1, 0.1, 0.0)
    assert (chosen["lambda_grpo"]["learning_rate"], chosen["lambda_grpo"]["target_frequency"]) == (
        1.0,
        0.75,
    )
    assert not chosen["grpo"]["inside"]  # 0.1 is the smallest rate
    told = text({"best": best(rows), "comparison": comparison(rows)}).splitlines()
    row = "sgd 1 -1 drawn grpo 0.1 0.1 0.1 0 4 0.1 False"
    assert " ".join(told[2].split()) == row


def test_the_comparison_is_paired():
    rows = rows_of(grpo=((400, 80), (200, 800)), lambda_grpo=((0, 800), (800, 600)))
    by = {(row["rates"], row["grpo_rate"]): row for row in comparison(rows)}
    assert len(by) == 3
    row = by["best", 0.1]
    assert (row["grpo"], row["lambda_grpo"], row["difference"], row["low"], row["high"]) == (
        0.1,
        0.75,
        0.65,
        0.65,
        0.65,
    )
    assert (row["only_grpo"], row["only_lambda_grpo"], row["p"]) == (0, 4, 0.125)
    assert (row["paper_seeds_grpo"], row["paper_seeds_lambda_grpo"]) == (0, 4)
    assert (row["paper_p_grpo"], row["paper_p_lambda_grpo"]) == (1.0, 1.0)  # shares found 0 and 1
    assert (row["paper_p_mean_grpo"], row["paper_p_mean_lambda_grpo"]) == (
        0.0,
        0.0,
    )  # all runs 0.1, all runs 0.75: never 0 or 0.7535
    row = by["same", 1.0]
    assert row["difference"] == pytest.approx((4 * 0.75 - 4 * 0.25) / 8)
    assert (row["only_grpo"], row["only_lambda_grpo"], row["p"]) == (0, 4, 0.125)
    assert row["paper_p_grpo"] == pytest.approx(0.5**5)
    assert (sign_test(0, 0), sign_test(3, 3), sign_test(1, 6)) == (1.0, 1.0, 0.125)


def test_published_numbers_are_the_papers():
    assert len(PUBLISHED) == 6
    assert all(fixed > grpo for grpo, fixed in PUBLISHED.values())
    assert PUBLISHED[1, -1.0] == (0.0, 0.7535)


def test_table_figures_show_the_numbers_of_the_table():
    rows = rows_of(grpo=((400, 80), (200, 800)), lambda_grpo=((0, 800), (800, 600)))
    cells = [t.get_text() for ax in sweep_figure(rows).axes for t in ax.texts]
    assert sorted(cells) == ["0.30", "0.50", "0.62", "0.88"]
    (panel,) = best_figure(best(rows)).axes[:1]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["GRPO", "λ-GRPO"]
    (panel,) = paper_figure(comparison(rows)).axes
    assert [float(line.get_xdata()[0]) for line in panel.lines] == [0.0, 0.7535, 0.1, 0.75]


def test_runs_must_be_balanced(tmp_path):
    told = r"40 runs do not walk to each of the 16 targets equally often.*multiple of 32"
    for experiment in ("table1", "when"):
        with pytest.raises(ValueError, match=told):
            reproduce(experiment, tmp_path, seeds=40)


def test_learning_table_counts_steps_to_90_percent_of_the_peak():
    run = [
        {"step": 5 * i, "tokens": 100 * i, "greedy": 0.5, "pass@1": p, "pass@4": 1.0}
        for i, p in enumerate((0.1, 0.73, 0.8, 0.7))
    ]
    (row,) = learning_table({("arithmetic", "grpo", 0.0, 1e-4): [run, run]})
    assert (row["steps_to_90"], row["tokens_to_90"], row["peak"], row["pass@1"]) == (
        5,
        100,
        0.8,
        0.7,
    )


def alpha_rows():
    """Two seeds of three α: pass@1 ends at 0.4 and 0.8 under α = 0; the peak is the end."""
    curves = {}
    for power, more in ((0, (0.0, 0.0)), (0.5, (0.1, 0.3)), (1.5, (-0.1, 0.1))):
        runs = [
            [(0, 0.1), (5, 0.1), (10, end + m)] for end, m in zip((0.4, 0.8), more, strict=True)
        ]
        curves["arithmetic", f"alpha={power:g}", 0.0, 1e-4] = [
            [
                {"step": s, "tokens": 9 * s, "greedy": 1 - p, "pass@1": p, "pass@4": 1.0}
                for s, p in run
            ]
            for run in runs
        ]
    return alpha.table(curves)


def test_alpha_table_compares_with_alpha_0_seed_by_seed():
    grpo, half, last = alpha_rows()
    assert [row["alpha"] for row in (grpo, half, last)] == [0, 0.5, 1.5]
    assert half["pass@1_diff"] == 0.2 and (half["pass@1_diff_low"], half["pass@1_diff_high"]) == (
        0.1,
        0.3,
    )  # of two seeds
    assert half["greedy_diff"] == -0.2 and half["mean_pass@1_diff"] == pytest.approx(
        0.2 / 3, abs=1e-4
    )
    assert (
        last["pass@1_diff"] == 0
        and last["pass@1_diff_high"] == 0.1
        and last["steps_to_90_diff"] == 0
    )
    assert all(
        grpo[f"{name}_diff{end}"] == 0 for name in alpha.MEASURES for end in ("", "_low", "_high")
    )
    assert half["pass@1_of_seed"] == [0.5, 1.1] and half["mean_pass@1"] == pytest.approx(
        (0.7 + 1.3) / 6, abs=1e-4
    )
    assert "0.5" in alpha.text([grpo, half]) and "0.2 [0.1, 0.3]" in alpha.text([grpo, half])


def test_alpha_figure_shows_the_numbers_of_the_table():
    rows = alpha_rows()
    ends, _, differences = alpha.figures(rows)["alpha"].axes
    for ax, name in ((ends, "pass@1"), (differences, "pass@1_diff")):
        (bars,) = ax.containers
        np.testing.assert_array_equal(
            bars.lines[0].get_xydata(), [[row["alpha"], row[name]] for row in rows]
        )
        lines = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
        np.testing.assert_allclose(
            lines, [[row[f"{name}_low"], row[f"{name}_high"]] for row in rows], atol=1e-12
        )
    assert [label.get_text() for label in ends.get_xticklabels()] == ["0\nGRPO", "0.5", "1.5"]


def test_committed_alpha_table_fits_the_code_and_itself():
    rows = committed("results/alpha.json")
    keys = [(row["task"], row["arm"], row["beta"], row["learning_rate"]) for row in rows]
    rates = {task: rates[1] for task, rates in learning.RATES.items()}
    assert keys == [
        (task, f"alpha={a:g}", 0.0, rate) for task, rate in rates.items() for a in alpha.ALPHAS
    ]
    for i, row in enumerate(rows):
        grpo = rows[i // len(alpha.ALPHAS) * len(alpha.ALPHAS)]
        assert (
            row["seeds"] == grpo["seeds"] >= 6 and row["curve"][0] == grpo["curve"][0]
        )  # one policy
        for name in alpha.MEASURES:
            own, base = np.array(row[f"{name}_of_seed"]), np.array(grpo[f"{name}_of_seed"])
            assert len(own) == row["seeds"]
            low, high = bootstrap_interval(own - base, np.random.default_rng(0))
            found = [row[f"{name}_diff{end}"] for end in ("", "_low", "_high")]
            np.testing.assert_allclose(
                found, [(own - base).mean(), low, high], rtol=2e-3, atol=1e-4
            )
        assert row["mean_pass@1"] == pytest.approx(np.mean(row["curve"]), abs=2e-4)


def test_committed_learning_table_fits_the_code_and_itself():
    """That it is whole, and made of its seeds, can be seen at once."""
    rows = json.loads((COMMITTED / "learning.json").read_text())
    keys = [(row["task"], row["arm"], row["beta"], row["learning_rate"]) for row in rows]
    assert keys == [key for task in learning.RATES for key in learning.arms(task, quick=False)]
    for row in rows:
        settings = TrainSettings.for_task(row["task"])
        assert len(row["pass@1_of_seed"]) == row["seeds"] == 8
        assert row["pass@1"] == pytest.approx(np.mean(row["pass@1_of_seed"]), abs=1e-3)
        assert row["pass@1_low"] <= row["pass@1"] <= row["pass@1_high"]
        assert len(row["curve"]) == settings.steps // learning.EVERY + 1
        assert row["curve"][-1] == pytest.approx(row["pass@1"], abs=1e-3)
        if row["learning_rate"] == learning.RATES[row["task"]][1]:
            assert row["learning_rate"] == settings.learning_rate
    assert (
        len({(row["task"], row["curve"][0]) for row in rows}) == 2
    )  # all runs of a task begin with one policy


def test_committed_table_can_be_regenerated(request):
    """Two runs of an arm that draws moves alone and of one that draws more: --long has two of each.

    By plain SGD: Adam magnifies a machine's rounding.
    """
    stored = json.loads((COMMITTED / "table1.json").read_text())
    more = ("grpo", "placebo") if request.config.getoption("--long") else ()
    for arm in ("lambda_grpo", "monte_carlo_prm", *more):
        cell = {
            "arm": arm,
            "n": 2,
            "r_neg": -1.0,
            "optimizer": "sgd",
            "learning_rate": RATES["sgd"][2],
            "targets": "drawn",
        }
        (row,) = (r for r in stored["rows"] if cell.items() <= r.items())
        again = walk(
            **cell, first_seed=0, runs=CHUNK if arm in ("placebo", "monte_carlo_prm") else 2
        )[:2]
        whole = 50 * (4 if arm == "monte_carlo_prm" else 16)
        np.testing.assert_allclose(
            np.array(again) / whole, np.array(row["hits_of_run"][:2]) / whole, atol=0.02
        )


@cache
def draws(n, size):
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=size)


class Remembers:
    """In place of a new `default_rng(0)`, whose draws take nearly all the time of a table."""

    def multinomial(self, n, _, size):
        return draws(n, size)


def test_committed_table_fits_itself(monkeypatch):
    """The comparisons are those of the rows; every best rate lies inside its sweep."""
    monkeypatch.setattr(
        tables, "bootstrap_interval", lambda values, rng: bootstrap_interval(values, Remembers())
    )
    stored = json.loads((COMMITTED / "table1.json").read_text())
    assert comparison(stored["rows"]) == stored["comparison"]
    assert [
        {name: row[name] for name in row if name != "hits_of_run"} for row in best(stored["rows"])
    ] == stored["best"]
    assert all(row["inside"] for row in stored["best"])
    assert (
        table({tuple(r[name] for name in table1.NAMES): r["hits_of_run"] for r in stored["rows"]})
        == stored["rows"]
    )
    assert {(r["n"], r["r_neg"]) for r in stored["rows"] if r["targets"] == "drawn"} >= set(
        PUBLISHED
    )
    assert all(r["runs"] % 32 == 0 and r["runs"] >= 96 for r in stored["rows"])
