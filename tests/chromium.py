"""A page in headless Chromium: what tests of the explorer share."""

import html
import json
import re
import shutil
import subprocess

import pytest

from minigrpo.logs.groups import read_groups
from minigrpo.show.explorer import explorer_page


def find_chromium():
    """The path of a Chromium or Chrome that starts, or None (some distributions install a stub in
    its name).
    """
    for path in filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
    ):
        if not subprocess.run([path, "--version"], capture_output=True).returncode:
            return path
    return None


CHROMIUM = find_chromium()
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on the path: the explorer's page cannot run"
)


def browse(folder, page, script, link=""):
    """Run a script, the body of a function, at the end of a page; files go into the folder.

    link: what stands behind the # of the page's address.  Returns what the script returns.
    """
    report = "document.body.innerHTML = '<pre id=out></pre>'; "
    report += "document.body.firstChild.textContent = JSON.stringify(out)"
    attempt = f"""
        let out, problem = null; // errors in the page's own listeners are problems too
        addEventListener("error", (event) => (problem = event.message));
        try {{ out = {{value: (() => {{ {script} }})()}} }} catch (e) {{ problem = e.stack }}
        if (problem) out = {{error: problem}};
        {report}"""
    file = folder / "page.html"
    assert page.count("</body>") == 1
    file.write_text(page.replace("</body>", f"<script>{attempt}</script></body>"), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, file.as_uri() + (f"#{link}" if link else "")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-300:] + done.stderr[-300:]
    outcome = json.loads(html.unescape(found[1]))
    assert "error" not in outcome, outcome["error"]
    return outcome["value"]


def browse_frames(folder, page, sizes, script):
    """The same in frames of several sizes (width, height) of one browser: what each returns."""
    # Errors of the page in a frame are not seen here, but then what it returns is missing.
    inner = page.replace(
        "</body>", f"<script>window.found = (() => {{ {script} }})()</script></body>"
    )
    framed = """
        return SIZES.map(([width, height]) => {
          const frame = document.body.appendChild(document.createElement("iframe"));
          Object.assign(frame, {width, height});
          frame.style.border = 0;
          frame.contentDocument.write(PAGE);
          return frame.contentWindow.found;
        });""".replace("SIZES", json.dumps(sizes)).replace(
        "PAGE", json.dumps(inner).replace("<", "\\u003c")
    )
    return browse(folder, "<!doctype html><body></body>", framed)


def page_of(*objects, unit="auto"):
    """The explorer of groups as JSON has them."""
    return explorer_page(*read_groups(json.dumps(list(objects)), unit=unit))
