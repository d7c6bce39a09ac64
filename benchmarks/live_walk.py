"""Does the live walk keep up with the screen?

    python -m benchmarks.live_walk          # needs Chromium or Chrome on the path

In headless Chromium at 1920 × 1080, k = 16, while the page runs at 60 steps a second: what its
script takes in a frame (the step of both policies, and the drawing), and the time between frames,
at the usual learning rate and at a small one, where the numbers on all cards go on changing.  A
screen shows 60 frames a second, one every 16.7 ms.  The browser draws on the processor here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from minigrpo.show.explorer import walk_page

MEASURE = """
<script>
const summary = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const quantile = (q) => sorted[Math.floor(q * (values.length - 1))];
  return { n: values.length, median: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99) };
};
const drawing = draw;
const measure = async (rate) => {
  $("rate").value = rate;
  $("speed").value = 4; // 60 steps a second
  reset();
  const numbers = [], script = [], frames = [];
  let start = 0;
  stepOnce = ((step) => () => {
    start = performance.now();
    step();
    numbers.push(performance.now() - start);
  })(stepping);
  draw = () => {
    drawing();
    script.push(performance.now() - start);
  };
  run();
  await new Promise((done) => {
    let last = null;
    const tick = (now) => {
      if (last !== null) frames.push(now - last);
      last = now;
      if (!running) run(); // it pauses after 250 steps
      if (frames.length < 600) requestAnimationFrame(tick);
      else done();
    };
    requestAnimationFrame(tick);
  });
  stop();
  const late = frames.filter((time) => time > 20).length;
  return { rate, numbers: summary(numbers), script: summary(script), frame: summary(frames), late };
};
const stepping = stepOnce;
(async () => {
  const runs = [await measure(10), await measure(0.5)];
  const out = { runs, k: race.settings.k, screen: [innerWidth, innerHeight] };
  fetch("/", { method: "POST", body: JSON.stringify(out) });
})();
</script></body>"""


def measure(chromium: str) -> dict:
    """The times in milliseconds, as the page reports them."""
    found, done = {}, threading.Event()
    page = walk_page().replace("</body>", MEASURE).replace("default-src 'none'", "connect-src *")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def do_POST(self) -> None:
            found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        flags += ["--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
        address = f"http://127.0.0.1:{server.server_port}/"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen([chromium, *flags, "--window-size=1920,1080", address], **quiet)
        try:
            if not done.wait(120):
                sys.exit("the browser gave no answer within two minutes")
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    return found


def main() -> None:
    """Print the times."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        sys.exit("no Chromium or Chrome on the path")
    found = measure(chromium)
    wide, high = found["screen"]
    print(f"k = {found['k']}, {wide} × {high}; milliseconds        median     95 %     99 %")
    rows = {
        "numbers": "numbers of one step",
        "script": "numbers and drawing",
        "frame": "from frame to frame",
    }
    for run in found["runs"]:
        for key, name in rows.items():
            x = run[key]
            words = f"rate {run['rate']}: {name}"
            print(f"{words:36} {x['median']:8.2f} {x['p95']:8.2f} {x['p99']:8.2f}")
        print(f"          {run['late']} of {run['frame']['n']} frames came late")


if __name__ == "__main__":
    main()
