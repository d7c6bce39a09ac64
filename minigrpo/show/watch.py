"""A run as a page that loads itself again while the run goes on (`minigrpo plot RUN --watch`).

The page is one file without network; its style and its few lines of script are in `watch.html`.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from minigrpo.logs.groups import read_groups
from minigrpo.runs.folder import METRICS, SAMPLES, NoStepYet, check_records, read_metrics
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.warning_signs import Watchman
from minigrpo.show.comparison import run_settings, run_title
from minigrpo.show.plots import PART, SHARES, drawn, metrics_figure
from minigrpo.show.tree_plots import draw_tree
from minigrpo.system.files import is_locked, read_records, write_output
from minigrpo.system.terminal import quoted
from minigrpo.system.text import visible

EVERY = 5  # seconds between looks at the run, and between those at the page


def watch(folder: Path, file: Path, wait: Callable[[float], object] = time.sleep) -> Iterator[str]:
    """Draw the page of a run each time it has gone on, until it has ended.   -> how far it came

    It looks every 5 seconds, or more rarely where drawing would take more than a tenth of a core.
    Raises ValueError if the folder holds no run, or one that was damaged.
    """
    seen, running = None, True
    while running:
        started, locked = time.process_time(), is_locked(folder)  # before what it guards is read
        stats = [path.stat() for name in (METRICS, SAMPLES) if (path := folder / name).exists()]
        if seen != (seen := (locked, [(s.st_size, s.st_mtime_ns) for s in stats])):
            running, state, page = _page(folder, locked)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_output(file, page.encode())
            yield state
        if running:
            wait(max(EVERY, 10 * (time.process_time() - started)))


def _page(folder: Path, locked: bool) -> tuple[bool, str, str]:
    """Whether a run goes on, how far it has come in words, and its page."""
    settings, records = run_settings(folder), []
    with suppress(NoStepYet):
        records = read_metrics(folder, before=True)
    step, steps = records[-1]["step"] if records else 0, settings["steps"]
    running = locked and step < steps
    state = f"{'Running' if running else 'Stopped' if step < steps else 'Finished'}: "
    state += f"step {step} of {steps}" if records else "no step has been finished yet"
    if state.startswith("Stopped"):
        state += f" (go on with: minigrpo train --resume {quoted(str(folder))})"
    watchman = Watchman()
    found = [sentence for record in records for sentence in watchman.look(record).values()]
    signs = [f'<p class="warning"><b>Warning:</b> {_text(x)}</p>' for x in found]
    known = {k for record in records for k, v in record.items() if isinstance(v, int | float)}
    keys = ("reward", *SHARES, "entropy", "kl", *sorted(filter(PART.fullmatch, known)))
    panels = [_image(metrics_figure(records, [key]), key) for key in keys if key in known]
    usual = asdict(TrainSettings())
    differ = [(n, v, usual.get(n, "–")) for n, v in settings.items() if v != usual.get(n)]
    rows = ["<tr>" + "".join(f"<td>{_text(x)}</td>" for x in row) + "</tr>" for row in differ]
    texts = {"title": _text(run_title(settings)), "state": _text(state), "tree": _tree(folder)}
    lists = {"warnings": signs, "panels": panels, "settings": rows}
    times = {"drawn": time.strftime("%Y-%m-%d %H:%M:%S"), "time": time.time()}
    numbers = {"step": step, "steps": steps, "reload": EVERY * running} | times
    template = Template((files("minigrpo.show") / "watch.html").read_text(encoding="utf-8"))
    parts = texts | numbers | {name: "\n".join(lines) for name, lines in lists.items()}
    return running, state, template.substitute(parts)


def _text(value: object) -> str:
    return escape(visible(str(value)))


def _image(figure: Figure, about: str) -> str:
    """A figure for the page, as an image, in which no text can be taken for HTML."""
    data = base64.b64encode(drawn(figure, "svg")).decode()
    return f'<img alt="{_text(about)}" src="data:image/svg+xml;base64,{data}">'


def _tree(folder: Path) -> str:
    """The newest sampled group whose rewards differ, or if there is none the newest."""
    check_records(folder, SAMPLES)
    records = read_records(folder / SAMPLES) if (folder / SAMPLES).exists() else []
    dicts = [r for r in records if isinstance(r, dict)]
    groups = [[*g] for _, g in groupby(dicts, lambda r: (r.get("step"), r.get("group")))]
    if not groups:
        return "<p>No completions have been written down (see --log-samples-every).</p>"
    alive = [g for g in groups if len({str(r.get("reward")) for r in g}) > 1]
    group = read_groups("\n".join(map(json.dumps, (alive or groups)[-1])))[0]
    title = f"A group of step {group.step}" + " (all groups here are dead)" * (not alive)
    figure = draw_tree(group.tree, group.rewards, group.labels, title=group.prompt)
    return f'<h2>{_text(title)}</h2>\n<div class="wide">{_image(figure, "its tree")}</div>'
