"""Check a built book: its links, and every page in a real browser.

    python tutorials/book/check.py book

Files: each link and each place on a page that is linked exists; nothing is loaded from elsewhere;
every picture has a text instead.  Browser (Chromium, headless): no error on the console, no request
that fails or leaves the book, every formula drawn, no Markdown left as text, no page wider than a
phone of 390 points even if all that is folded is open, and a search that works without a server.
One line per fault; exit code 1 if there is one, 0 if there is none.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

LOADING = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
}
NARROW = 390  # points: the width of a phone
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
FLAGS += ["--no-first-run", "--disable-background-networking"]
# What the browser runs.
HARNESS = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The links, loads, places and pictures of a page."""

    def __init__(self, text: str) -> None:
        """text: the HTML."""
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.bare: list[str] = []  # pictures without a text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        for name in {"href", "src"} & values.keys():
            loads = (tag, name) in LOADING and values.get("rel") not in (
                "canonical",
                "next",
                "prev",
            )
            (self.loads if loads else self.links).append(values[name])
        if tag == "img" and not values.get("alt", "").strip():
            self.bare.append(values.get("src", "")[:60])


def faults_in_files(book: Path) -> list[str]:
    """What is wrong with the links, loads and pictures of a book's pages."""
    files = sorted(book.rglob("*.html"))
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    found = []
    for file, page in pages.items():
        name = file.relative_to(book).as_posix()
        found += [f"{name}: a picture without a text instead: {src}" for src in page.bare]
        for target in page.links + page.loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    found.append(f"{name}: loads {target} from elsewhere")
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file() or book not in there.parents:
                found.append(f"{name}: there is no {target}")
            elif parts.fragment and there in pages:
                places = pages[there].places
                if unquote(parts.fragment) not in places and there.name not in LIVE:
                    found.append(f"{name}: there is no place {target}")
    return found


LIVE = {"explorer.html", "walk.html"}  # what stands after # is their state


def find_chromium() -> str | None:
    """A Chromium or Chrome on the path that starts: some systems have a stub of that name."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    for path in filter(None, map(shutil.which, names)):
        if not subprocess.run([path, "--version"], capture_output=True).returncode:
            return path
    return None


def on_the_console(log: str) -> list[str]:
    """What pages wrote on the console, from Chromium's log."""
    return [f"console: {line}" for line in re.findall(r":CONSOLE[^\]]*\] (.*)", log)]


def faults_in_search(book: Path, chromium: str, words: str = "process reward") -> list[str]:
    """What is wrong with a book's search where its pages are opened as files, without a server."""
    with tempfile.TemporaryDirectory() as profile:
        address = f"{(book / 'search.html').as_uri()}?q={quote(words)}"
        flags = [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom"]
        command = [chromium, *FLAGS, *flags, address]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    found = [f"search: {line}" for line in on_the_console(done.stderr)]
    if not re.search(r'<ul[^>]*class="search"[^>]*><li', done.stdout):
        found.append(f"search: finds nothing for {words!r} without a server")
    return found


def faults_in_browser(book: Path, chromium: str, say: Callable[[str], None] = print) -> list[str]:
    """What is wrong with a book's pages in Chromium, which sees them as a server gives them."""
    found, done, asked = [], threading.Event(), {}
    pages = [f"/{file.relative_to(book).as_posix()}" for file in sorted(book.rglob("*.html"))]
    harness = HARNESS.replace("= PAGES", f"= {json.dumps(pages)}").replace("WIDTH", str(NARROW))

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/harness":
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(harness.encode())
            else:
                super().do_GET()

        def do_POST(self) -> None:
            asked.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_error(self, format: str, *args: object) -> None:
            if "favicon" not in self.path:
                found.append(f"{self.path} is asked for: {format % args}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(book))) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        address = f"http://127.0.0.1:{server.server_port}/harness"
        with open(Path(profile) / "errors", "w+", encoding="utf-8", errors="replace") as errors:
            browser = subprocess.Popen([chromium, *flags, address], stderr=errors, stdout=errors)
            try:
                if not done.wait(timeout=600):
                    found.append("the browser gave no answer within ten minutes")
            finally:
                browser.terminate()
                browser.wait()
                server.shutdown()
            errors.seek(0)
            console = on_the_console(errors.read())
    say(f"{asked.get('pages', 0)} pages looked at in a browser")
    return found + asked.get("faults", []) + console


def main() -> int:
    """The command.   -> exit code"""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python tutorials/book/check.py BOOK (the folder that build.py wrote)")
    book = Path(sys.argv[1]).resolve()
    found = faults_in_files(book)
    if chromium := find_chromium():
        found += faults_in_browser(book, chromium) + faults_in_search(book, chromium)
    else:
        print("no Chromium or Chrome on the path: pages were not looked at in a browser")
    print("\n".join(found) or "no faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
