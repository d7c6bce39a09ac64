"""`minigrpo plot RUN --watch`: the page follows the run, says how it ended, and holds no HTML but
its own.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from chromium import browse, in_browser
from test_cli import run  # noqa: F401
from test_cli_errors import one_line
from test_figures_of_runs import make_run

from minigrpo.show import watch as module
from minigrpo.show.watch import watch
from minigrpo.system.files import Lock, is_locked
from minigrpo.system.text import visible

HOSTILE = "</td></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>$steps\u202e\x1b"


def step(number, **more):
    about = {"step": number, "loss": 0.0, "reward": 0.5, "frac_reward_zero_std": 1.0}
    return json.dumps(about | more) + "\n"


def group(number, rewards, at=10, prompt="2+3="):
    """A sampled group as a run writes it down."""
    shared = {"step": at, "group": number, "prompt": prompt}
    return "".join(
        json.dumps(shared | {"completion": f"{5 + i % 2}{i}", "reward": r}) + "\n"
        for i, r in enumerate(rewards)
    )


def unborn(tmp_path, **settings):
    """A run that has not taken a step."""
    folder = make_run(tmp_path / "run", [], **{"steps": 2} | settings)
    (folder / "metrics.jsonl").unlink()
    return folder


class Parsed(HTMLParser):
    """The tags of a page, with attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# -- the run goes on -------------------------------------------------------------------------------


def test_the_page_follows_a_run_until_it_has_ended(tmp_path, monkeypatch):
    folder, file, seen = unborn(tmp_path), tmp_path / "page.html", []
    metrics, lock = folder / "metrics.jsonl", Lock(folder)
    monkeypatch.setattr(module, "_image", lambda figure, about: f"({about})")
    whole = step(2)
    changes = [
        lambda: metrics.write_text(step(1)),
        lambda: None,  # nothing is drawn anew
        lambda: metrics.write_text(step(1) + whole[:20]),  # as a run is just writing it
        lambda: metrics.write_text(step(1) + whole),
        pytest.fail,
    ]

    def wait(seconds):
        assert seconds >= 5
        seen.append((file.stat().st_ino, file.read_text(encoding="utf-8")))
        changes[len(seen) - 1]()

    waiting, first = "Running: no step has been finished yet", "Running: step 1 of 2"
    assert [*watch(folder, file, wait)] == [waiting, first, first, "Finished: step 2 of 2"]
    states = [re.search(r"<title>(.*)</title>", page)[1] for _, page in seen]
    assert states == [waiting, first, first, first]
    assert [a == b for (a, _), (b, _) in pairwise(seen)] == [False, True, False]
    assert all("seconds = 5," in page for _, page in seen)
    assert "No completions" in seen[0][1] and "(reward)" in seen[1][1]
    page = file.read_text(encoding="utf-8")
    assert "Finished: step 2 of 2" in page and "seconds = 0," in page  # it loads itself no more
    lock.release()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_was_stopped(steps, run, tmp_path):
    folder = unborn(tmp_path)
    if steps:
        (folder / "metrics.jsonl").write_text(step(1))
    Lock(folder).release()  # the file stays, as of every run that has ended
    code, out, err = run("plot", folder, "--watch")
    what = "step 1 of 2" if steps else "no step has been finished yet"
    told = f"Stopped: {what} (go on with: minigrpo train --resume {folder})"
    page = (folder / "watch.html").read_text(encoding="utf-8")
    assert (code, err) == (0, "") and out.endswith(f"\n{told}\n") and told in page
    assert "seconds = 0," in page


def test_whether_a_folder_is_being_written(tmp_path):
    assert not is_locked(tmp_path)
    lock = Lock(tmp_path)
    assert is_locked(tmp_path)
    lock.check()  # looking has changed nothing
    lock.release()
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "nothing")


def test_looks_are_rarer_where_drawing_takes_long(tmp_path, monkeypatch):
    """At most a tenth of a core is taken from the training beside it."""
    lock, clock, waits = Lock(unborn(tmp_path)), iter([0.0, 2.0, 100.0, 100.1]), []
    monkeypatch.setattr(module.time, "process_time", lambda: next(clock))

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            lock.release()
            monkeypatch.undo()

    assert len([*watch(tmp_path / "run", tmp_path / "page.html", wait)]) == 2
    assert waits == [20, 5]


# -- what the page shows ---------------------------------------------------------------------------


def test_the_newest_group_that_teaches_something(tmp_path):
    folder, samples = unborn(tmp_path), tmp_path / "run" / "samples.jsonl"
    titles = []
    for more in (
        group(0, [0, 0]),
        group(0, [0, 1], at=20),
        group(1, [1, 0], at=20, prompt="4+4="),
        group(0, [1, 1], at=30) + '{"step": 30, "gro',
    ):
        with samples.open("a", encoding="utf-8") as file:
            file.write(more)
        titles.append(module._tree(folder).partition("</h2>")[0])
    assert titles == [
        "<h2>A group of step 10 (all groups here are dead)",
        "<h2>A group of step 20",
        "<h2>A group of step 20",
        "<h2>A group of step 20",
    ]


def test_warnings_are_those_that_training_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_image", lambda figure, about: about)
    folder = unborn(tmp_path, steps=999)
    for number, dead in ((9, 1.0), (11, 1.0), (11, 0.0), (600, 1.0)):
        lines = [step(i, frac_reward_zero_std=dead) for i in range(1, number + 1)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        told = Parsed(module._page(folder, False)[2]).text
        assert told.count("Warning:") == (number > 9 and dead)
        assert ("Warning: all completions of every prompt" in told) == (number > 9 and dead)


def test_nothing_in_the_page_comes_from_elsewhere_or_from_a_user(tmp_path):
    names = {"task": f"{HOSTILE}.py:{HOSTILE}", "objective": HOSTILE, "init": HOSTILE}
    folder = unborn(tmp_path, **names, a_later_setting={HOSTILE: [HOSTILE]})
    parts = {f"rewards/{HOSTILE}/mean": 0.5, HOSTILE: 1.0, "kl": float("nan")}
    (folder / "metrics.jsonl").write_text(step(1, **parts))
    (folder / "samples.jsonl").write_text(group(0, [0, 1], prompt=HOSTILE))
    page = module._page(folder, True)[2]
    parsed = Parsed(page)
    tags = [tag for tag, _ in parsed.tags]
    assert (tags.count("script"), tags.count("img"), tags.count("style")) == (1, 5, 1)
    attributes = {
        "lang",
        "charset",
        "name",
        "http-equiv",
        "content",
        "id",
        "class",
        "max",
        "value",
        "alt",
        "src",
    }
    assert {name for _, attrs in parsed.tags for name in attrs} == attributes
    sources = [attrs["src"] for _, attrs in parsed.tags if "src" in attrs]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import|\u202e|\x1b", page)
    assert visible(HOSTILE) in parsed.text  # as it is, even where it looks like a place to fill


def test_settings_that_differ(tmp_path):
    folder = unborn(tmp_path, objective_options={"beta": 0.04}, group_size=4, dim=32)
    rows = re.findall(r"<tr>(.*?)</tr>", module._page(folder, True)[2])
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert ["group_size", "4", "16"] in cells and ["beta", "0.04", "–"] in cells
    assert not any(row and row[0] in ("dim", "task", "seed") for row in cells)


@in_browser
def test_the_page_fits_a_phone(tmp_path):
    folder = unborn(tmp_path, init="x" * 300)
    (folder / "metrics.jsonl").write_text(step(1, entropy=1.0))
    (folder / "samples.jsonl").write_text(group(0, [0, 1] * 8, prompt="y" * 300))
    page = module._page(folder, True)[2]
    assert "location.reload()" in page
    found = browse(
        tmp_path,
        page,
        """document.body.style.width = "358px"; document.body.style.margin = "0";
        const all = [...document.querySelectorAll("body *:not(.wide img)")];
        return all.filter((e) => e.getBoundingClientRect().right > 391).length;""",
    )
    assert found == 0


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--key", "kl"], "--key is of a figure"),
        (["--smooth", "5"], "--smooth is of a figure"),
        (["--label", "a"], "--label is of a figure"),
        (["--out", "page.png"], "give one RUN, and an --out FILE.html"),
    ],
)
def test_refusals(flags, message, run, tmp_path):
    folder = unborn(tmp_path)
    assert message in one_line(run("plot", folder, *flags, "--watch"))
    assert "--watch shows one run in one page" in one_line(run("plot", folder, folder, "--watch"))
    assert "holds no run" in one_line(run("plot", tmp_path / "none", "--watch"))
    (folder / "metrics.jsonl").write_text("5\n")
    assert "metrics.jsonl holds 5" in one_line(run("plot", folder, "--watch"))
    assert not list(tmp_path.rglob("*.html"))


def test_ctrl_c_leaves_the_page(run, tmp_path, monkeypatch):
    folder, file = unborn(tmp_path), tmp_path / "new" / "page.html"
    lock = Lock(folder)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "__defaults__", (interrupted,))
    code, out, err = run("plot", folder, "--watch", "--out", file)
    assert (code, err) == (130, "minigrpo plot: interrupted\n")
    assert out == f"page, for a browser: {file} (Ctrl-C ends this)\n" and file.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    lock.release()
