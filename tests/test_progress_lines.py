"""Progress off a terminal: a line now and then on stderr, and none for what is done in seconds."""

import io
import sys

import pytest

from minigrpo import TrainSettings
from minigrpo.runs.train import train
from minigrpo.system import terminal

TINY = {"dim": 8, "n_layers": 1, "n_heads": 2, "group_size": 3, "prompts_per_step": 1}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is put forward: clock[0] is the time."""
    now = [1000.0]
    monkeypatch.setattr(terminal, "monotonic", lambda: now[0])
    return now


def shown_by(clock, seconds, capsys, **more):
    """What is printed while items take so many seconds each."""
    items = terminal.bar(seconds, "title", "step", **more)
    for taken in items:
        clock[0] += taken
        items.set_postfix({"reward": f"{taken:.2f}"}, refresh=False)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_what_takes_seconds_prints_nothing(clock, capsys):
    assert shown_by(clock, [0.5] * 19, capsys) == []
    assert shown_by(clock, [], capsys) == []


def test_the_first_line_comes_early_the_others_every_half_minute(clock, capsys):
    lines = shown_by(clock, [1.0] * 120, capsys)
    at = [int(line.split("step ")[1].split()[0]) for line in lines]
    assert at == [10, 40, 70, 100]
    assert lines[0] == "title: step 10 of 120, reward 1.00, 1.8 min left"


def test_slow_steps_have_a_line_each_but_for_the_last(clock, capsys):
    lines = shown_by(clock, [1800.0] * 3, capsys)
    assert lines == [
        "title: step 1 of 3, reward 1800.00, 60.0 min left",
        "title: step 2 of 3, reward 1800.00, 30.0 min left",
    ]


def test_a_resumed_run_counts_from_its_start_and_times_itself_alone(clock, capsys):
    lines = shown_by(clock, [20.0] * 3, capsys, initial=97, total=100)
    assert lines == ["title: step 98 of 100, reward 20.00, 0.7 min left"]


def test_items_without_a_length(clock, capsys):
    assert len(shown_by(clock, iter([20.0] * 4), capsys, total=4)) == 2


def test_nothing_where_it_is_not_wanted(clock, capsys):
    assert shown_by(clock, [100.0] * 3, capsys, wanted=False) == []


def test_a_title_does_not_steer_and_a_closed_stream_does_not_end_the_work(clock, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    for _ in terminal.bar([1, 2], "a\x1b[2Jb\n", "step"):
        clock[0] += 60
    assert written.getvalue().count("\n") == 1 and "\x1b" not in written.getvalue()
    monkeypatch.setattr(sys, "stderr", Closed())
    assert [clock.append(i) for i in terminal.bar([1, 2], "title", "step")] == [None, None]


def test_a_bar_on_a_terminal_is_a_bar(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Screen())
    for _ in terminal.bar(range(3), "title", "step", initial=97, total=100):
        pass
    assert "100/100" in screen.getvalue() and "left" not in screen.getvalue()


def test_training_tells_step_reward_and_time(clock, capsys):
    settings = TrainSettings(**TINY, steps=3, warm_start_steps=0, eval_every=0)
    train(settings, on_step=lambda metrics: clock.__setitem__(0, clock[0] + 45))
    err = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[0] for line in err] == [
        "lambda_grpo on treewalk: step 1 of 3",
        "lambda_grpo on treewalk: step 2 of 3",
    ]
    assert all(part in err[0] for part in ("reward ", "unique ", "1.5 min left"))
