"""Check the built slides: every slide, in a real browser, and the handout.

    python tutorials/slides/check.py slides

Files: nothing is loaded from elsewhere; 30 to 40 slides a lecture, each with notes; as many pages
in a PDF as slides, and one for the handout.  Browser (Chromium, headless): nothing stands beyond
its slide of 1920 x 1080 or overlaps what follows, no text is smaller than 18 pixels, those in
figures and formulas included, every formula is drawn, and there is no error on the console.  One
line per fault; exit code 1 if there is one.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from build import DECKS, HANDOUT, find_chromium

SMALLEST = 18  # pixels of a text on a slide of 1920 x 1080
# What the browser runs.
LOOK = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


def faults_in_text(name: str, page: str) -> list[str]:
    """What is wrong with a page's HTML: loads from elsewhere; of a deck also slides and notes."""
    found = []
    for address in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page):
        if re.match(r"[a-z]+:|//", address) and not address.startswith("data:"):
            found.append(f"{name} loads {address} from elsewhere")
    if name in DECKS:
        sections = page.split("<section")[1:]
        if not 30 <= len(sections) <= 40:
            found.append(f"{name} has {len(sections)} slides, not 30 to 40")
        bare = [n for n, section in enumerate(sections, 1) if 'class="notes"' not in section]
        found += [f"{name}: slide {n} has no notes" for n in bare]
    return found


def faults_in_pdf(name: str, pdf: Path, pages: int) -> list[str]:
    """Whether a PDF has as many pages as it should."""
    counted = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    return [] if counted == pages else [f"{name}.pdf has {counted} pages, not {pages}"]


def faults_in_browser(folder: Path, name: str, chromium: str) -> list[str]:
    """What Chromium finds on the slides of a deck."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "slides"
        shutil.copytree(folder, copy)
        page = (copy / f"{name}.html").read_text(encoding="utf-8")
        look = LOOK.replace("SMALLEST", str(SMALLEST))
        (copy / "look.html").write_text(page.replace("</body>", f"{look}</body>"), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--no-first-run"]
        flags += [f"--user-data-dir={temporary}/profile", "--enable-logging=stderr"]
        flags += ["--window-size=1920,1080", "--virtual-time-budget=120000"]
        command = [chromium, *flags, (copy / "look.html").as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=300)
    text, errors = done.stdout.decode(), done.stderr.decode(errors="replace")
    report = re.search(r'<pre id="report">(.*?)</pre>', text, re.DOTALL)
    if report is None:
        return [f"{name}: the browser gave no answer: {errors[-300:]}"]
    found = [f"{name}, {fault}" for fault in json.loads(html.unescape(report[1]))]
    console = re.findall(r":CONSOLE[^\]]*\] (.*)", errors)
    return found + [f"{name}, console: {line}" for line in console]


def main() -> int:
    """The command.   -> exit code"""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.html").is_file():
        sys.exit("usage: python tutorials/slides/check.py SLIDES (the folder that build.py wrote)")
    folder, chromium, found = Path(sys.argv[1]).resolve(), find_chromium(), []
    found += faults_in_text("index", (folder / "index.html").read_text(encoding="utf-8"))
    for name in (*DECKS, HANDOUT):
        page = (folder / f"{name}.html").read_text(encoding="utf-8")
        found += faults_in_text(name, page)
        pdf, pages = folder / f"{name}.pdf", page.count("<section") or 1
        if pdf.exists():
            found += faults_in_pdf(name, pdf, pages)
        if chromium and name in DECKS:
            found += faults_in_browser(folder, name, chromium)
    if not chromium:
        print("no Chromium or Chrome on the path: slides were not looked at in a browser")
    print("\n".join(found) or "no faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
