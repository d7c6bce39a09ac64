"""The live walk's page in headless Chromium: its numbers are those of Python's tabular policy for
the same random numbers; link, keys, slow motion, runs from seed to seed, presets, screens.
"""

import json
import re

import numpy as np
from chromium import browse, browse_frames, in_browser

import minigrpo as mg
from minigrpo.engine.optim import SGD
from minigrpo.experiments.many_policies import Tabular, moves_to, n_moves
from minigrpo.experiments.many_walks import (
    draw,
    loss_gradient,
    path_logp,
    run_walks,
    target_logits,
)
from minigrpo.show.explorer import walk_page
from minigrpo.tasks.treewalk import TreeWalk

DEPTH, MASK = 4, 0xFFFFFFFF


def uniform_numbers(seed, n):
    """mulberry32: n numbers in [0, 1)."""
    out, state = [], seed
    for _ in range(n):
        state = (state + 0x6D2B79F5) & MASK
        x = ((state ^ (state >> 15)) * (state | 1)) & MASK
        x = ((x + (((x ^ (x >> 7)) * (x | 61)) & MASK)) & MASK) ^ x
        out.append(((x ^ (x >> 14)) & MASK) / 2**32)
    return np.array(out)


class Gradient:
    def __init__(self, flat):
        self.flat = flat


def run(s, steps):
    """The race by the package: what the page keeps of each policy, after each step."""
    target, k = s["target"], s["k"]
    letters = "".join("LR"[int(bit)] for bit in f"{target:04b}")
    task = TreeWalk(depth=DEPTH, n=s["n"], r_neg=s["rNeg"], target=letters)
    by_leaf = task.path_rewards()
    numbers = uniform_numbers(s["seed"], steps * k * DEPTH).reshape(steps, 1, k, DEPTH)
    start = None if s["start"] == 1 / 16 else s["start"]
    runners = []
    for alpha in (0.0, s["alpha"]):
        policy, out = Tabular(1, DEPTH, target_logits(np.array([target]), start)), []
        curve = [np.exp(path_logp(policy.logp()))[0, target]]
        for step in range(steps):
            logp = policy.logp()
            leaves = draw(logp, numbers[step])
            rewards = by_leaf[leaves]
            gradient = loss_gradient(f"alpha={alpha}", leaves, rewards)
            SGD(policy).step(policy, Gradient(policy.gradients(gradient)), s["rate"])
            curve.append(np.exp(path_logp(policy.logp()))[0, target])
            tree = mg.PrefixTree.from_sequences(list(task.paths()[leaves[0]]))
            at = dict(zip(moves_to(leaves[0]).ravel(), tree.paths.ravel(), strict=True))
            known = {
                "count": tree.count,
                "value": mg.step_rewards(tree, rewards[0]),
                "advantage": mg.step_advantages(tree, rewards[0]),
            }
            group = {name: np.zeros(n_moves(DEPTH)) for name in known}
            for move, node in at.items():
                for name, values in known.items():
                    group[name][move] = values[node]
            group["push"] = -gradient[0] * k * DEPTH
            out.append({"leaves": leaves[0].tolist(), **group, "logits": policy.flat.copy()})
        runners.append({"steps": out, "curve": curve, "p": np.exp(policy.logp())[0]})
    return runners


def settings_to_compare():
    rng = np.random.default_rng(0)
    chosen = [
        {
            "target": int(rng.integers(16)),
            "n": int(rng.integers(1, 4)),
            "rNeg": float(rng.choice([-1.5, -1, -0.5, 0.25])),
            "k": int(rng.integers(2, 33)),
            "rate": float(10 ** rng.uniform(-1, 1.6)),
            "alpha": float(rng.choice([0.25, 0.5, 1, 1, 1.5, 2])),
            "seed": int(rng.integers(2**32)),
            "start": float(rng.choice([1 / 16, 1 / 16, 1 / 4, 1 / 64, 1 / 256])),
        }
        for _ in range(50)
    ]
    usual = chosen[0] | {"rNeg": -1.0, "start": 1 / 16, "seed": 2**32 - 1}
    edges = [{"k": 2}, {"alpha": 0.0}, {"rate": 1000.0}, {"target": 0}, {"target": 15}, {"seed": 0}]
    return chosen + [usual | edge for edge in edges]


@in_browser
def test_the_same_numbers_as_python(tmp_path):
    """50 random settings and some at the edge, ten steps each, to 1e-9."""
    chosen, steps = settings_to_compare(), 10
    script = f"""
        return {json.dumps(chosen)}.map((settings) => {{
          const race = new Race(settings), kept = [[], []];
          for (let i = 0; i < {steps}; i++) {{
            race.advance();
            race.runners.forEach((runner, j) => {{
              const arrays = {{ logits: Array.from(runner.logits) }};
              for (const name of ["count", "value", "advantage", "push"])
                arrays[name] = Array.from(runner.group[name]);
              kept[j].push({{ leaves: runner.group.leaves, ...arrays }});
            }});
          }}
          const all = (r, j) => ({{ steps: kept[j], curve: r.curve, p: Array.from(r.p) }});
          return race.runners.map(all);
        }});"""
    found = browse(tmp_path, walk_page(), script)
    dead = distinct = 0
    for settings, race in zip(chosen, found, strict=True):
        for ours, theirs in zip(run(settings, steps), race, strict=True):
            for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
                assert mine["leaves"] == other["leaves"], settings
                for name in ("count", "value", "advantage", "push", "logits"):
                    scale = max(1, np.abs(mine[name]).max())
                    assert np.abs(mine[name] - other[name]).max() < 1e-9 * scale, (name, settings)
                dead += not mine["push"].any()
            for name in ("curve", "p"):
                assert np.isfinite(theirs[name]).all()
                assert np.abs(np.array(ours[name]) - theirs[name]).max() < 1e-9, (name, settings)
        distinct += race[0]["curve"] != race[1]["curve"]
    assert dead > 20  # groups without a push are among them
    assert len(chosen) > distinct >= 50  # with α = 0 both policies are the same


HANDS = """
    const press = (key, to = document.body) =>
      to.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    const change = (id, value) => {
      $(id).value = value;
      $(id).dispatchEvent(new Event("change", {bubbles: true}));
    };
    const shown = (what) => {
      const seen = trees[0].moves.filter(({ words }) => words.count);
      return seen.length && seen.every(({ words }) => words[what]);
    };
    const hidden = (what) => !shown(what);
"""


@in_browser
def test_link_keys_and_slow_motion(tmp_path):
    script = """
        const out = {first: [race.step, location.hash.includes("step=0")]};
        press("ArrowRight"); press("ArrowRight");
        out.steps = [race.step, location.hash];
        press("ArrowRight", $("k")); press(" ", $("rate")); press("r", $("seed"));
        out.typing = [race.step, running];
        press(" ", $("slow")); press("ArrowRight", $("speed")); press(" ", $("step"));
        out.theirs = [race.step, running]; // the browser's own
        press(" ", $("speed")); press(" ", $("speed"));
        press("ArrowRight", $("slow")); press("r", $("loop"));
        press("ArrowRight"); press("ArrowRight");
        out.ours = [race.step, running];
        const use = (id, event) => {
          $(id).focus();
          $(id).dispatchEvent(event);
          $(id).dispatchEvent(new Event("change", { bubbles: true }));
          return document.activeElement.id;
        };
        const click = new Event("pointerdown", { bubbles: true });
        out.focus = ["slow", "speed", "target", "k"].map((id) => use(id, click));
        out.focus.push(use("speed", new KeyboardEvent("keydown", { key: "Home", bubbles: true })));
        press("ArrowRight"); press("ArrowRight");
        const curve = [...race.runners[1].curve];
        press("R");
        out.reset = race.step;
        history.replaceState(null, "", out.steps[1]);
        open();
        out.again = [race.step, race.runners[1].curve.every((x, i) => x === curve[i])];
        $("slow").checked = true;
        out.stages = [];
        for (let i = 0; i < 5; i++) {
          press("ArrowRight");
          out.stages.push([stage, race.step, hidden("value"), hidden("push")]);
        }
        $("slow").checked = false;
        press("ArrowRight");
        out.after = [stage, race.step];
        press(" ");
        out.run = [running, $("run").textContent, $("said").textContent];
        press(" ");
        out.pause = [running, $("run").textContent];
        change("k", "1");
        const marked = $("k").getAttribute("aria-invalid");
        out.problem = [$("problem").textContent, race.settings.k, marked];
        press("ArrowRight"); press(" "); runMany(2);
        out.refused = [race.step, running, earlier.length];
        change("k", "8"); change("target", "5"); change("alpha", "0.5");
        out.changed = [race.settings.k, race.settings.target, race.step, $("name1").textContent,
          location.hash, $("problem").textContent, $("task").textContent];
        change("preset", "4");
        out.preset = [race.settings.start, race.settings.rate, race.settings.target];
        history.replaceState(null, "", "#step=5000");
        open();
        press("ArrowRight");
        out.far = [race.step, location.hash.includes("step=5000&")];
        open();
        out.far.push($("problem").textContent, race.step);
        const long = "x".repeat(5000);
        history.replaceState(null, "", `#${long}=1`);
        open();
        out.long = [$("problem").textContent.length, document.documentElement.scrollWidth];
        out.long.push(innerWidth);
        const links = "k=0 target=LRX step=1e9 seed=1.5 boo=1 start=1 n=4 rate= alpha=x".split(" ");
        out.links = links.map((words) => {
          history.replaceState(null, "", "#" + words);
          open();
          return [$("problem").textContent, race.settings.k];
        });
        return out;"""
    out = browse(tmp_path, walk_page(), HANDS + script)
    assert out["first"] == [0, True]
    assert out["steps"][0] == 2
    assert "target=RRRR" in out["steps"][1]
    assert "step=2" in out["steps"][1]
    assert out["typing"] == out["theirs"] == out["ours"] == [2, False]
    assert out["focus"] == ["", "", "", "k", "speed"]
    assert out["far"] == [5001, True, "", 5000]
    problem, wide, screen = out["long"]
    assert problem < 130
    assert wide <= screen
    assert out["reset"] == 0
    assert out["again"] == [2, True]
    assert out["stages"] == [
        ["sampled", 2, True, True],
        ["values", 2, False, True],
        ["pushes", 2, False, False],
        ["updated", 3, False, False],
        ["sampled", 3, True, True],
    ]
    assert out["after"] == ["updated", 4]
    assert out["run"] == [True, "Pause", ""]
    assert out["pause"] == [False, "Run"]
    assert out["problem"] == ["k must be a whole number from 2 to 64.", 16, "true"]
    assert out["refused"] == [4, False, 0]
    k, target, step, name, address, problem, task = out["changed"]
    assert (k, target, step, problem) == (8, 5, 0, "")
    assert name.startswith("|λ|^−0.5: target 6.3 %")
    assert "alpha=0.5" in address
    assert task == "LRLR earns 1, other walks that begin with L earn −1.00, all others 0.7."
    assert out["preset"] == [0.25, 0.3, 5]
    for problem, k in out["links"]:
        assert re.match(r"The link says \w+ = .*, which this page does not know: ", problem)
        assert k == 16


@in_browser
def test_how_many_seeds_find_it(tmp_path):
    """What counts as found is what Python's runs find."""
    script = """
        const out = [];
        for (let seed = 0; seed < 12; seed++) {
          const one = new Race({ ...race.settings, seed });
          for (let i = 0; i < 40; i++) one.advance();
          out.push(one.runners.map((runner) => outcome(runner, one.settings) === "found"));
        }
        return out;"""
    found = browse(tmp_path, walk_page(), script)
    k, steps, n_seeds = 16, 40, 12
    numbers = [uniform_numbers(seed, steps * k * DEPTH) for seed in range(n_seeds)]
    by_step = np.array(numbers).reshape(n_seeds, steps, k, DEPTH).swapaxes(0, 1)
    by_leaf, ours = TreeWalk(depth=DEPTH, n=1, r_neg=-1.0, target="RRRR").path_rewards(), []
    for arm in ("grpo", "lambda_grpo"):
        policy = Tabular(n_seeds, DEPTH, target_logits(np.full(n_seeds, 15), None))
        for uniform in by_step:
            leaves = draw(policy.logp(), uniform)
            gradient = loss_gradient(arm, leaves, by_leaf[leaves])
            SGD(policy).step(policy, Gradient(policy.gradients(gradient)), 10.0)
        ours.append(np.exp(path_logp(policy.logp()))[:, 15] > 0.5)
    assert found == np.transpose(ours).tolist()
    assert len({tuple(each) for each in ours}) > 1


@in_browser
def test_runs_end_and_the_next_seed_begins(tmp_path):
    """A run pauses after 250 steps; on the wall it goes from seed to seed and keeps count."""
    script = """
        const until = (done) => {
          for (let i = 0; running && !done() && i < 5000; i++) frame(last + 100);
        };
        const out = {};
        $("speed").value = 5;
        run();
        until(() => false);
        out.end = [race.step, running, $("run").textContent, location.hash.includes("step=250")];
        const curve = [...race.runners[1].curve];
        run(); frame(last + 100);
        out.on = [race.step > 250, running];
        run();
        $("loop").checked = true;
        press("r"); press(" ");
        until(() => earlier.length === 2);
        out.wall = [race.settings.seed, $("seed").value, race.step, running, $("said").textContent];
        out.kept = earlier[0].curves[1].every((p, i) => p === curve[i]);
        out.tally = [$("tally").textContent, earlier.map((run) => run.found)];
        press(" ");
        out.pause = $("said").textContent;
        out.link = location.hash;
        change("rNeg", "-0.5");
        out.fresh = [earlier.length, $("tally").textContent, running];
        runMany(2); runMany(2);
        out.many = [earlier.map((run) => run.seed), race.step, race.settings.seed];
        for (let seed = 2; seed < 40; seed++) {
          const one = new Race({ ...race.settings, seed });
          one.advance();
          record(one);
        }
        out.long = [earlier.length, earlier.filter((run) => run.curves[0].length > 1).length];
        press("R");
        out.again = [earlier.length, counting];
        history.replaceState(null, "", "#speed=60&loop=1&slow=1&run=1&seed=7");
        open();
        const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
        out.itself = [running !== calm, $("loop").checked, $("slow").checked, $("speed").value];
        out.seed = race.settings.seed;
        press(" "); press("r"); press(" "); press(" ");
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key: " ", repeat: true}));
        out.held = running;
        history.replaceState(null, "", "#speed=7");
        open();
        out.problem = $("problem").textContent;
        out.percents = [0, 1e-9, 0.03, 0.5, 0.992, 0.996, 1 - 1e-9, 1].map(percent);
        out.presets = PRESETS.map((preset) => ({ ...presetSettings(preset), ahead: preset.ahead }));
        return out;"""
    out = browse(tmp_path, walk_page(), HANDS + script)
    assert out["end"] == [250, False, "Run", True]
    assert out["on"] == [True, True]
    assert out["wall"] == [2, "2", 0, True, ""]
    assert out["kept"]
    tally, found = out["tally"]
    first, second = np.sum(found, axis=0)
    pattern = rf"2 seeds: GRPO found it in {first}, mean p \d.\d\d; λ-GRPO found it in {second}, .*"
    assert re.fullmatch(pattern, tally)
    assert out["pause"].startswith("Step 0: GRPO is searching")
    assert "loop=1" in out["link"]
    assert "speed=300" in out["link"]
    assert out["fresh"] == [0, "", False]
    assert out["many"] == [[0, 1], 0, 2]
    assert out["long"] == [40, 24]
    assert out["again"] == [0, 0]
    assert out["itself"] == [True, True, True, "4"]
    assert out["seed"] == 7
    assert not out["held"]
    assert "speed = 7" in out["problem"]
    small = ["0 %", "<0.1 %", "3.0 %", "50 %"]
    assert out["percents"] == [*small, "99.2 %", "99.6 %", "99.9 %", "100 %"]
    check_presets(out["presets"])


def check_presets(presets):
    """What their names say holds in 64 runs of Python's policies, by the last 50 steps."""
    seen = set()
    for s in presets:
        arms = ["grpo", f"alpha={s['alpha']}"]
        start = None if s["start"] == 1 / 16 else s["start"]
        walk = {"policy": "tabular", "runs": 64, "start": start}
        both = [run_walks(a, s["n"], s["rNeg"], "sgd", s["rate"], **walk) for a in arms]
        grpo, other = (np.array(hits)[:, -5:].mean() / (10 * s["k"]) for hits in both)
        if "ahead" in s:
            ahead = other - grpo if s["ahead"] == "λ-GRPO" else grpo - other
            assert ahead > 0.15, (s, grpo, other)
        else:
            assert abs(grpo - other) < 0.05, (s, grpo, other)
        seen.add((s.get("ahead"), bool(grpo > 0.5)))
    assert {("GRPO", True), ("λ-GRPO", False), (None, True), (None, False)} <= seen


@in_browser
def test_it_fits_the_screen(tmp_path):
    """On a wall no scrolling and no text under 18 px; on a phone nothing wider than the screen;
    no number runs into another one.
    """
    measure = """
        // What is put on the canvases: texts, by the ink they leave, and cards.
        const drawnNow = () => {
          const every = CanvasRenderingContext2D.prototype, { fillText, roundRect } = every;
          const drawn = new Map();
          const on = ({ canvas }) => {
            const box = { left: 0, right: canvas.width / devicePixelRatio,
              top: 0, bottom: canvas.height / devicePixelRatio };
            if (!drawn.has(canvas)) drawn.set(canvas, { ...box, texts: [], cards: [] });
            return drawn.get(canvas);
          };
          every.fillText = function (text, x, y) {
            const ink = this.measureText(text), size = parseFloat(this.font.match(/[0-9.]+(?=px)/));
            on(this).texts.push({ text, size, left: x - ink.actualBoundingBoxLeft,
              right: x + ink.actualBoundingBoxRight, top: y - ink.actualBoundingBoxAscent,
              bottom: y + ink.actualBoundingBoxDescent });
          };
          every.roundRect = function (left, top, wide, tall) {
            on(this).cards.push({ left, top, right: left + wide, bottom: top + tall });
          };
          layOut();
          Object.assign(every, { fillText, roundRect });
          const [first, second, curve] = ["tree0", "tree1", "curve"].map((id) => drawn.get($(id)));
          curve.texts.push(...drawn.get(plot.ground.canvas).texts);
          return [first, second, curve];
        };
        begin({ ...race.settings, k: 64, rate: 3, alpha: 1 / 3 }, 3);
        const hidden = "details:not([open]) > :not(summary), option, style, script";
        const says = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        const all = [...document.body.querySelectorAll("*")];
        const texts = all.filter((e) => says(e) && !e.closest(hidden));
        const sizes = texts.map((e) => parseFloat(getComputedStyle(e).fontSize));
        const targets = document.querySelectorAll("button, select, input[type=number], summary");
        const low = [...targets].filter((e) => e.getBoundingClientRect().height < 31.9);
        const clashes = [], counts = [], wide = [], root = document.documentElement;
        const rare = { ...race.settings, k: 2, rate: 1000, alpha: 2, start: 1 / 256, target: 0 };
        for (const steps of [0, 2, 100, rare]) {
          if (steps === rare) begin(rare, 3);
          for (let i = 0; i < steps; i++) race.advance();
          for (const drawn of drawnNow()) {
            wide.push(root.scrollWidth);
            counts.push([drawn.texts.length, drawn.cards.length]);
            sizes.push(...drawn.texts.map((text) => text.size));
            const within = (x, box) => x.left >= box.left && x.right <= box.right
              && x.top >= box.top && x.bottom <= box.bottom;
            const meet = (x, y) => x.left < y.right && y.left < x.right
              && x.top + 1 < y.bottom && y.top + 1 < x.bottom; // ink is rounded to pixels
            drawn.texts.forEach((x, i) => {
              const cards = drawn.cards.filter((card) => meet(x, card)), all = [...cards, drawn];
              const others = drawn.texts.filter((y, j) => j < i && meet(x, y));
              if (cards.length > 1 || others.length || !all.every((box) => within(x, box)))
                clashes.push([x.text, ...others.map((y) => y.text)]);
            });
          }
        }
        return [Math.max(...wide), root.scrollHeight, Math.min(...sizes), low.map((e) => e.id),
          clashes, counts];"""
    inner = walk_page().replace(
        "</body>", f"<script>window.found = (() => {{ {measure} }})()</script></body>"
    )
    framed = """
        const sizes = [[1920, 1080], [390, 844], [1280, 720], [1920, 940], [320, 640], [1501, 900],
          [1210, 800], [1024, 768], [961, 700]];
        return sizes.map(([width, height]) => {
          const frame = document.body.appendChild(document.createElement("iframe"));
          Object.assign(frame, {width, height, style: "border: 0"});
          frame.contentDocument.write(PAGE);
          return [width, height, ...frame.contentWindow.found];
        });""".replace("PAGE", json.dumps(inner).replace("<", "\\u003c"))
    for width, height, wide, tall, font, low, clashes, counts in browse(
        tmp_path, "<!doctype html><body></body>", framed
    ):
        assert wide <= width
        assert tall <= height or width < 1500, (width, tall)
        assert font >= (18 if height == 1080 else 12 if width > 320 else 9), (width, height)
        assert low == []
        assert clashes == [], (width, height, clashes)
        for texts, cards in (counts[i] for i in (0, 1, 3, 4, 6, 7, 9, 10)):  # of the trees
            assert cards == 30
            assert texts >= 2 * cards + 16


@in_browser
def test_what_is_drawn_step_by_step_is_what_is_drawn_at_once(tmp_path):
    """Only what changes is drawn anew: nothing of an earlier step stays behind, whatever the pixels
    of the screen; no link lies over a card, and no edge of a canvas is left black.
    """
    script = """
        const ids = ["tree0", "tree1", "curve"];
        const pixels = () => ids.map((id) => {
          const { width, height } = $(id);
          return $(id).getContext("2d").getImageData(0, 0, width, height);
        });
        const differ = (one, other) => {
          if (one.data.length !== other.data.length) return Infinity;
          let n = 0;
          for (let i = 0; i < one.data.length; i++) n += Math.abs(one.data[i] - other.data[i]) > 32;
          return n;
        };
        const coloured = ({ data, width }, name, left, top, wide, tall) => {
          const rgb = colours[name].slice(1).match(/../g).map((hex) => parseInt(hex, 16));
          const pixel = (x) => Math.round(x * devicePixelRatio);
          let n = 0;
          for (let y = pixel(top); y < pixel(top + tall); y++)
            for (let x = pixel(left); x < pixel(left + wide); x++)
              n += rgb.every((part, i) => data[4 * (y * width + x) + i] === part);
          return n;
        };
        const out = [], over = [], corners = [];
        const compare = () => {
          const steps = pixels();
          layOut();
          out.push(pixels().map((now, i) => differ(steps[i], now)));
          for (const i of [0, 1])
            for (const { left, top, wide, tall } of trees[i].moves)
              over.push(coloured(steps[i], "band", left + 2, top + 2, wide - 4, tall - 4));
          for (const { data, width, height } of steps)
            for (const at of [width - 1, width * (height - 1), width * height - 1])
              corners.push([...data.slice(4 * at, 4 * at + 3)].join());
        };
        const moved = [];
        for (const devicePixelRatio of [1, 1.25]) {
          Object.defineProperty(window, "devicePixelRatio",
            { value: devicePixelRatio, configurable: true });
          begin(race.settings);
          const fresh = pixels();
          const changes = [{ rate: 3, k: 33 }, { rate: 1, target: 6 }, { rate: 30, alpha: 0.5 }];
          for (const settings of changes) {
            begin({ ...race.settings, ...settings });
            const steps = devicePixelRatio === 1 ? 60 : 20; // past an end of the axis
            for (let i = 0; i < steps; i++) { stepOnce(); draw(); }
            compare();
            $("slow").checked = true;
            for (let i = 0; i < 3; i++) { stepOnce(); draw(); }
            compare();
            $("slow").checked = false;
            nextSeed();
            for (let i = 0; i < 12; i++) { stepOnce(); draw(); }
            compare();
          }
          moved.push(...pixels().map((now, i) => differ(fresh[i], now)));
        }
        return [out, moved, over, [...new Set(corners)]];"""
    sizes = [[390, 844], [1293, 731]]
    for found, moved, over, corners in browse_frames(tmp_path, walk_page(), sizes, script):
        assert len(found) == 18
        assert np.max(found) == 0, found
        assert min(moved) > 100
        assert max(over) == 0
        assert corners == ["255,255,255"]


@in_browser
def test_a_wall_that_runs_for_weeks(tmp_path):
    """The tally is not counted anew in every frame; another screen's pixels; a hidden frame."""
    script = """
        for (const seed of [0, 1]) {
          const one = new Race({ ...race.settings, seed });
          one.advance();
          record(one);
        }
        draw();
        const out = { tally: $("tally").textContent.slice(0, 8) };
        const { filter } = Array.prototype;
        Array.prototype.filter = function (...all) {
          if (this === earlier) out.counted = true;
          return filter.apply(this, all);
        };
        stepOnce(); draw();
        Array.prototype.filter = filter;
        begin(race.settings);
        out.fresh = $("tally").textContent;
        stepOnce(); draw();
        out.labels = ["curve", "tree0"].map((id) => $(id).getAttribute("aria-label").slice(0, 48));
        $("speed").value = 0;
        $("speed").dispatchEvent(new Event("input"));
        out.speed = $("speed").getAttribute("aria-valuetext");
        let changed;
        window.matchMedia = (query) => ({
          matches: false, addEventListener: (name, then) => (changed = [query, then]) });
        watchScreen();
        const before = $("tree0").width;
        Object.defineProperty(window, "devicePixelRatio", { value: 2 });
        changed[1]();
        out.screen = [$("tree0").width / before > 1.9, changed[0]];
        return out;"""
    assert browse(tmp_path, walk_page(), script) == {
        "tally": "2 seeds:",
        "fresh": "",
        "labels": [
            "Probability of the target after 1 step: GRPO 2.0",
            "The tree of GRPO: target 2.0 %",
        ],
        "speed": "1 step a second",
        "screen": [True, "(resolution: 2dppx)"],
    }
    sizes = [[0, 0], [20, 20]]
    for said in browse_frames(tmp_path, walk_page(), sizes, "return $('said').textContent"):
        assert said == "Step 0: GRPO is searching, λ-GRPO is searching."


def test_the_page_asks_for_nothing_from_elsewhere():
    page = walk_page()
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["']|url\(|@import|fetch\(|https?://""", page)
    assert not re.search(r"/\* [A-Z]+ \*/", page)  # all places are filled


def test_the_command_writes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from minigrpo.command.cli import main

    assert main(["walk"]) == 0
    assert (tmp_path / "walk.html").read_text(encoding="utf-8") == walk_page()
    assert main(["walk", "--out", "gone/w.html"]) == 2
    assert main(["walk", "--out", "walk.png"]) == 2
