"""The explorer before a class, in headless Chromium: the projector's view, revealing, folding and
zoom, keys, links, the SVG file, and one update.
"""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from chromium import browse, browse_frames, in_browser, page_of
from helpers import random_group
from test_explorer_page import HANDS, NASTY

from minigrpo.show.explorer import MAX_TOKENS, PRESETS, explorer_page

STAGES = ["tree", "|λ|", "R̂", "Â", "push", "take a step"]
SMALL = {"completions": ["xy", "xz", "y"], "rewards": [1, 0, 0]}
SEEN = """
    const seen = (element) => element.checkVisibility({checkVisibilityCSS: true});
    const texts_of = (root) => {
      const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
      const nodes = [];
      while (walker.nextNode()) nodes.push(walker.currentNode);
      const skipped = "script, style, option, .unseen"; // a closed list shows its <select>
      return nodes.filter((n) =>
        n.data.trim() && !n.parentElement.closest(skipped) && seen(n.parentElement));
    };
    const size_of = (element) => parseFloat(getComputedStyle(element).fontSize);
"""


def large_group(rng, k, length):
    """k completions of words that branch again and again."""
    group = [[str(x) for x in rng.integers(5, size=length)]]
    while len(group) < k:
        parent, cut = group[rng.integers(len(group))], int(rng.integers(length))
        group.append([*parent[:cut], *(str(x) for x in rng.integers(5, size=length - cut))])
    return {
        "completions": [" ".join(c) for c in group],
        "rewards": rng.random(k).round(2).tolist(),
    }


# -- screens ---------------------------------------------------------------------------------------


@in_browser
def test_the_projectors_view_fills_the_screen_with_large_text(tmp_path):
    """All that is seen has 24 px at 1920 × 1080, nothing is cut off, and the editor is away."""
    large = {"name": "large", "note": "", "unit": "words"}  # its tree is larger than the screen
    large |= large_group(np.random.default_rng(0), 24, 30)
    measure = (
        SEEN
        + """
        const group = GROUP;
        restore("mode=projector");
        const out = [];
        const look = (name) => {
          const nodes = texts_of(document.body);
          const boxes = [...document.querySelectorAll("select, input, textarea")].filter(seen);
          const elements = [...nodes.map((n) => n.parentElement), ...boxes];
          const words_in = document.getElementById(name === "pointed" ? "pointed" : "seen");
          const [tree, words] = [document.getElementById("tree"), words_in].map((e) =>
            e.getBoundingClientRect());
          const steps = [...document.querySelectorAll("#tree .step:not(.prompt)")];
          out.push({
            name, stage: view.reveal, scale: view.scale,
            smallest: Math.min(...elements.map(size_of)),
            page: [document.documentElement.scrollWidth, document.documentElement.scrollHeight],
            body: [document.body.scrollWidth, document.body.scrollHeight],
            spills: steps.filter((s) => s.scrollHeight > s.clientHeight + 1).length,
            tree: [tree.width, tree.height, tree.right, tree.bottom],
            words: [words.left, words.top, words.right, words.bottom],
            away: ["group", "choices", "note"].some((id) => seen(document.getElementById(id))),
            fits: document.getElementById("tree").scrollWidth <= tree.width + 1,
          });
        };
        choices.push(group);
        for (let c = 0; c < choices.length; c += 1) {
          choose(c);
          for (let stage = 0; stage < STAGES.length; stage += 1) {
            reveal(stage);
            look(choices[c].name);
          }
          point(current.steps.at(-1));
          look("pointed");
        }
        return out;"""
    ).replace("GROUP", json.dumps(large))
    [all_of_it] = browse_frames(tmp_path, explorer_page(), [[1920, 1080]], measure)
    assert len(all_of_it) == (len(PRESETS) + 1) * (len(STAGES) + 1)
    for at in all_of_it:
        assert at["smallest"] >= 24, at
        assert at["page"] == at["body"] == [1920, 1080], at
        assert at["spills"] == 0, at
        assert not at["away"]
        width, height, right, bottom = at["tree"]
        left, top, words_right, words_bottom = at["words"]
        assert left >= right - 1 or top >= bottom - 1  # beside the tree or below it
        assert max(bottom, words_bottom) > 1050 and words_right > 1890  # down to the corner
        assert at["scale"] >= 1 and width * height > 0.4 * 1920 * 1080
        assert at["fits"] or at["name"] in ("large", "pointed"), at


@in_browser
def test_wide_sums_and_high_boxes_are_seen(tmp_path):
    """Sums along a long completion have many digits, and none is cut off at the right; the facts of
    a box higher than the screen stay on the screen.
    """
    ways = ["a b c = d. e f = 51. g h + 51 = i.", "a b c = d. e f = 41. g h + 41 = j.", "k = i"]
    long = {"completions": ways, "rewards": [100, 0, 100], "prompt": "long"}
    rng = np.random.default_rng(2)
    many = [" ".join(rng.choice(list("abc"), 6)) for _ in range(200)]
    high = {"completions": many, "rewards": rng.random(200).round(2).tolist()}
    script = """
        const out = [];
        for (const [c, mode] of [[0, ""], [0, "mode=projector"], [1, "mode=projector"]]) {
          restore(mode);
          choose(c);
          const tree = $("tree"), {top, bottom, right} = tree.getBoundingClientRect();
          tree.scrollTop = c * 3000;
          const cut = [...tree.querySelectorAll(".outcome")].filter((o) =>
            o.scrollWidth > o.clientWidth ||
            (!c && innerWidth > 1000 && o.getBoundingClientRect().right > right));
          const within = (e, whole) => {
            const box = e.getBoundingClientRect();
            return whole ? box.top >= top - 1 && box.bottom <= bottom + 1
              : box.top < bottom - 90 && box.bottom > top + 90;
          };
          const boxes = [...tree.querySelectorAll(".step:not(.prompt)")];
          const away = boxes.filter((s) => within(s, false) && s.clientHeight > 200
            && !within(s.querySelector(".facts"), true));
          const high = boxes.filter((s) => s.clientHeight > bottom - top).length;
          out.push([cut.length, away.length, high, view.scale]);
        }
        return out;"""
    sizes = [[390, 844], [1920, 1080]]
    phone, hall = browse_frames(tmp_path, page_of(long, high, unit="words"), sizes, script)
    assert [cut for cut, *_ in phone + hall] == [0] * 6
    _, projected, tall = hall
    assert projected[1] == tall[1] == 0 and tall[2] > 3
    assert projected[3] >= 1


@in_browser
def test_on_a_phone_and_on_a_laptop(tmp_path):
    """Every target has 32 px, the tree is above the fold, the tools fit, and in every stage."""
    measure = (
        HANDS
        + SEEN
        + """
        const out = {stages: []};
        for (const [mode, id] of [["", "exploration"], ["mode=projector&", "paper"]]) {
          restore(`${mode}preset=${id}`);
          for (let stage = 0; stage < STAGES.length; stage += 1) {
            reveal(stage);
            const targets = $$("button, select, input, textarea, summary, .step").filter(seen);
            const small = targets.filter((t) => {
              const {width, height} = t.getBoundingClientRect();
              return (Math.min(width, height) < 32 && !t.matches(".prompt")) || width < 20;
            });
            const wide = document.documentElement.scrollWidth;
            out.stages.push([wide, targets.length, small.map((t) => t.outerHTML.slice(0, 80))]);
          }
        }
        restore("preset=exploration");
        out.top = $("tree").getBoundingClientRect().top;
        $("skip").click();
        out.focus = document.activeElement.getAttribute("role");
        const all = $$("a, button, select, input, textarea, summary, [tabindex]").filter((e) =>
          e.tabIndex >= 0 && !e.disabled && seen(e));
        out.first = all[0].id;
        out.tabs = all.findIndex((e) => e.closest("#tree"));
        out.columns = getComputedStyle(document.querySelector("main")).gridTemplateColumns;
        return out;"""
    )
    sizes = [[360, 740], [390, 844], [1280, 800], [1920, 1080]]
    for (width, height), found in zip(
        sizes, browse_frames(tmp_path, explorer_page(), sizes, measure), strict=True
    ):
        for wide, n_targets, small in found["stages"]:
            assert wide <= width and n_targets > 10
            assert small == [], (width, small)
        assert found["top"] < 0.55 * height, width
        assert found["first"] == "skip"
        assert found["focus"] == "treeitem"
        assert found["tabs"] < (20 if width < 1000 else 30)


# -- revealing, folding, zoom, keys ----------------------------------------------------------------


@in_browser
def test_reveal_fold_and_zoom_by_keyboard_alone(tmp_path):
    script = (
        HANDS
        + SEEN
        + """
        const seen_in = (id) => texts_of($(id)).map((n) => n.data).join(" ");
        const state_of = () => ({
          stage: view.reveal, tree: seen_in("tree"), words: $("statement").textContent,
          label: $$("#tree .branch")[1].getAttribute("aria-label"), heads: seen_in("editor"),
          colours: $$("#tree .up, #tree .down").length, bars: $$("#tree .bar").filter(seen).length,
          note: seen($("note")),
          pressed: $$("#stages [aria-pressed=true]").map((b) => b.textContent),
        });
        const out = {back: [], next: []};
        document.body.focus();
        const key = (name) => send(document.body, new KeyboardEvent("keydown",
          {key: name, bubbles: true, cancelable: true}));
        for (let n = 0; n < 6; n += 1) { key("b"); out.back.push(state_of()); }
        out.dead = [$("back").disabled, $("next").disabled];
        for (let n = 0; n < 6; n += 1) { key("nN"[n % 2]); out.next.push(state_of()); }
        key("b");
        $("stages").children[2].click();
        out.clicked = view.reveal;
        $("next").click();
        $("back").click();
        $("back").click();
        out.buttons = view.reveal;
        reveal(4);

        // While a text is typed, letters are letters.
        texts()[0].focus();
        press("n");
        press("p");
        out.typing = [view.reveal, view.projector];

        // A group that was chosen with the mouse does not hold the keys, one chosen by key does.
        const choose_by = (event) => {
          $("pick").style.display = "block";
          $("pick").focus();
          send($("pick"), event);
          send($("pick"), new Event("change", {bubbles: true}));
          return document.activeElement.id;
        };
        out.list = [choose_by(new Event("pointerdown", {bubbles: true})),
          choose_by(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}))];
        choose(0);

        // The presenter's keys, in the projector's view only.
        $("pick").blur();
        key("PageUp");
        out.page = view.reveal;
        key("p");
        key("PageUp");
        key("ArrowLeft");
        out.hall = [view.projector, view.reveal];
        key("PageDown");
        key("ArrowRight");
        key("Escape");
        out.left = [view.projector, view.reveal];

        // Zoom.
        key("+"); key("+");
        out.larger = [view.scale, $("scale").textContent];
        key("-");
        out.smaller = view.scale;
        key("f");
        out.fit = [view.zoom, $("whole").getAttribute("aria-pressed")];
        key("0");
        out.usual = view.zoom;
        for (let n = 0; n < 40; n += 1) key("-");
        out.least = view.scale;
        for (let n = 0; n < 40; n += 1) key("+");
        out.most = view.scale;
        key("0");

        // Folding: Enter on a step, and the focus stays there.
        out.skip = [$("skip").getBoundingClientRect().bottom];
        $("skip").focus();
        out.skip.push($("skip").getBoundingClientRect().top);
        $("skip").click();
        press("ArrowRight");
        out.before = [boxes(), document.activeElement.getAttribute("aria-expanded")];
        press("Enter");
        out.folded = [boxes(), document.activeElement.getAttribute("aria-expanded"),
          $$("#tree .fold").map((f) => f.textContent), $("details").textContent.includes("share"),
          seen_in("key").includes("folded")];
        press("ArrowRight");
        out.stays = document.activeElement.dataset.step;
        press("ArrowDown");
        out.sibling = $$("#tree .here > .step .tokens").map((t) => t.textContent);
        press("ArrowUp");
        out.link = linkOf();
        press(" ");
        out.unfolded = boxes();
        press("ArrowLeft");
        press("Enter");
        out.all = boxes();
        press("Enter");
        out.none = boxes();
        const box = $$("#tree .step")[1];
        box.dispatchEvent(new MouseEvent("dblclick", {bubbles: true}));
        out.pointer = boxes();
        $$("#tree .fold")[0].click();
        $("fold").click();
        out.button = boxes();
        return out;"""
    )
    out = browse(tmp_path, page_of(SMALL), script)
    assert [s["stage"] for s in out["back"]] == [3, 2, 1, 0, 0, 0]
    assert [s["stage"] for s in out["next"]] == [1, 2, 3, 4, 5, 5]
    assert out["dead"] == [True, False]
    tree, count, value, advantage = out["back"][3], *out["next"][:3]
    push, step = out["next"][3:5]
    for stage, at in enumerate([tree, count, value, advantage, push, step]):
        assert at["pressed"] == [STAGES[stage]]
        assert ("×2" in at["tree"]) == (stage >= 1)
        assert ("R̂" in at["tree"] or "mean r" in at["tree"]) == (stage >= 2)
        assert ("Â" in at["tree"] or " a " in f" {at['tree']} ") == (2 < stage < 5)
        assert ("Σ" in at["tree"]) == (stage == 4)
        assert ("p 0.667" in at["tree"]) == (stage == 5)
        assert (at["colours"] > 0) == (stage >= 3)
        assert (at["bars"] > 0) == (stage >= 4)
        assert ("+0.58" in at["heads"] or "+1.15" in at["heads"]) == (stage >= 3)
        assert ("|λ| =" in at["label"]) == (stage >= 1)
        assert ("R̂ =" in at["label"]) == (1 < stage < 5)
        assert ("Â =" in at["label"]) == (2 < stage < 5)
        assert ("pushes the" in at["words"] or "best completion" in at["words"]) == (stage >= 4)
        assert at["note"] == (stage >= 4)
    assert "How many completions share" in tree["words"]
    assert out["clicked"] == 2 and out["buttons"] == 1
    assert out["typing"] == [4, False]
    assert out["list"] == ["", "pick"]
    assert out["page"] == 4  # the page scrolls
    assert out["hall"] == [True, 2]
    assert out["left"] == [False, 4]
    scale, shown = out["larger"]
    assert scale > out["smaller"] and shown == f"{round(100 * scale)} %"
    assert out["fit"] == ["fit", "true"] and out["usual"] == 0
    assert (out["least"], out["most"]) == (0.1, 4)
    assert out["skip"][0] < 0 < out["skip"][1]
    whole = ["x×2", "y×1", "z×1", "y×1"]
    assert out["before"] == [whole, "true"]
    assert out["folded"] == [["x×2", "y×1"], "false", ["2 foldedy0 and y1"], True, True]
    assert out["stays"] == "1" and out["sibling"] == ["y×1"]
    assert out["link"] == "fold=0.1"
    assert out["unfolded"] == whole
    assert out["all"] == ["x×2", "y×1"] and out["none"] == whole
    assert out["pointer"] == ["x×2", "y×1"] and out["button"] == whole


@in_browser
def test_large_groups(tmp_path):
    """64 completions, 4000 tokens: all bars of a folded tree have one scale and fit their boxes;
    what is long is shortened in its box and whole in its card, and too many tokens are refused.
    """
    rng = np.random.default_rng(3)
    groups = [large_group(rng, 64, 62), {"completions": ["a b " * 1000, "a"], "rewards": [1, 0]}]
    groups += [{"completions": ["x" * 3000, "x" * 900 + "y"], "rewards": [1, 0]}]
    script = (
        HANDS
        + """
        const measure = () => {
          const steps = $$("#tree .step:not(.prompt)");
          const step = (s) => current.steps[s.parentElement.dataset.step];
          const bars = (name) => steps.flatMap((s) => {
            const bar = s.querySelector(`.bar.${name}`);
            const {advantage, count} = step(s);
            const size = Math.abs(advantage) * (name === "grpo" ? count : 1);
            const height = bar.getBoundingClientRect().height;
            return height > 8 ? [height / size] : [];
          });
          const scales = [...bars("grpo"), ...bars("lambda")];
          const high = steps.filter((s) => {
            const bar = s.querySelector(".bar.grpo").getBoundingClientRect();
            const box = s.getBoundingClientRect();
            return bar.height && (bar.top < box.top - 1 || bar.bottom > box.bottom + 1);
          });
          const letters = steps.map((s) => s.querySelector(".tokens").textContent.length);
          return [Math.min(...scales) / Math.max(...scales), high.length, Math.max(...letters),
            steps.length];
        };
        const out = [];
        for (const c of [0, 1, 2]) {
          choose(c);
          zoom(2);
          out.push(measure());
          point(current.steps[1]);
          out.push($("details").textContent.length);
        }
        choose(0);
        zoom(2);
        for (const step of current.steps.filter((s) => s.level === 3).slice(0, 8)) fold(step);
        out.push(measure());
        $("skip").click();
        press("Enter");
        out.push(measure());
        choose(1);
        const kept = $("tree").textContent;
        type(texts()[1], "a " + "b".repeat(9));
        type(texts()[0], "a b ".repeat(2100));
        out.push($("problem").textContent);
        out.push(texts()[0].getBoundingClientRect().height > 60);
        return out;"""
    )
    page = page_of(*groups[:2], unit="words")
    third = page_of(groups[2], unit="characters")
    first = json.loads(re.search(r'type="application/json">(.*?)</script>', third, re.DOTALL)[1])[0]
    script = f"choices[2] = {json.dumps(first)};" + script
    found = browse(tmp_path, page, script)
    measured = [found[0], found[2], found[4], found[6], found[7]]
    for even, high, letters, _ in measured:
        assert even > 0.9  # borders and rounding to pixels
        assert high == 0
        assert letters < 110
    assert measured[3][3] < measured[0][3] == measured[4][3]
    assert found[5] > 1000  # the whole text
    assert found[8] == f"4203 words are too many for the explorer, which takes up to {MAX_TOKENS}."
    assert found[9] is True


# -- links -----------------------------------------------------------------------------------------

WORDS = "group=%7B%22unit%22:%22words%22,%22completions%22:"
DAMAGED = {  # link: the part that is named
    "group=%7B%22unit%22%3A%22words%22%2C%22comp": "group",
    "group=%E0%A4%A": "group",
    "group=null": "group",
    "group=[]": "group",
    WORDS.replace("words", "lines") + "[%22a%22,%22b%22],%22rewards%22:[1,0]%7D": "group",
    WORDS + "[%22a%22],%22rewards%22:[1]%7D": "group",
    WORDS + "[%22a%22,%22b%22],%22rewards%22:[1]%7D": "group",
    WORDS + "[1,%22b%22],%22rewards%22:[1,0]%7D": "group",
    WORDS + "[%22a%22,%22b%22],%22rewards%22:[1,1e999]%7D": "group",
    WORDS + "[%22a%22,%22b%22],%22rewards%22:[1,null]%7D": "group",
    "mode=cinema": "mode",
    "reveal=6": "reveal",
    "reveal=-1": "reveal",
    "reveal=": "reveal",
    "zoom=0": "zoom",
    "zoom=NaN": "zoom",
    "zoom=1e9": "zoom",
    "rate=-1": "rate",
    "rate=x": "rate",
    "fold=0": "fold",
    "preset=nothing": "preset",
    "constructor=1": "constructor",
    "__proto__=1": "__proto__",
    "mode=projector&revea": "revea",
    "tree": "tree",
    "mode=projector&reveal=2&preset=pap": "preset",
    "<img src=x onerror=window.pwned=1>": "<img␣src",
}


@in_browser
def test_a_link_restores_what_was_seen(tmp_path, request):
    """Texts of any kind, and every part of the view; a damaged link gives one sentence.

    12 random groups meet all units and views; pytest --long tests/test_explorer_lecture.py has 40.
    """
    rng = np.random.default_rng(5)
    strange = [
        *NASTY,
        "\r\n\r",
        "&=#%41+ ~!*'()",
        "\ud800 lone",
        "é e\u0301 中文 😀\u200d👩",
        "\x7f\x01",
    ]
    groups = [{"unit": "characters", "completions": strange, "rewards": [-0.1] * len(strange)}]
    for n in range(40 if request.config.getoption("--long") else 12):
        k = int(rng.integers(2, 9))
        texts = ["".join(strange[t % len(strange)] for t in s) for s in random_group(rng, k, 4, 40)]
        rewards = (rng.standard_normal(k) * 10.0 ** rng.integers(-9, 9)).tolist()
        unit = ("characters", "words", "tokens")[n % 3]
        groups.append({"unit": unit, "completions": texts, "rewards": rewards})
    script = (
        HANDS
        + """
        const out = {same: [], links: [], damaged: []};
        window.setTimeout = (f) => f(); // the address is changed at once
        const groups = GROUPS;
        groups.forEach((group, g) => {
          const seen = {projector: g % 2 === 0, reveal: g % 6, zoom: [0, "fit", 1.25][g % 3],
            rate: [0.3, 2, 0.05][g % 3]};
          state = structuredClone(group);
          Object.assign(view, seen, {chosen: -1, folded: new Set()});
          drawEditor();
          update();
          const first = current.steps.find((s) => s.parent && canFold(s));
          if (first && g % 4 === 0) fold(first);
          const [folds, link] = [[...view.folded], linkOf()];
          const address = location.hash.slice(1);
          restore("");
          const fresh = linkOf();
          restore(address);
          const now = {projector: view.projector, reveal: view.reveal, zoom: view.zoom,
            rate: view.rate};
          out.links.push(link);
          out.same.push([fresh === "", link === address, link === linkOf(),
            JSON.stringify(state) === JSON.stringify(group),
            JSON.stringify(now) === JSON.stringify(seen),
            String([...view.folded]) === String(folds), $("damage").textContent]);
        });
        restore("preset=exploitation");
        out.preset = [linkOf(), $$("#choices [aria-pressed=true]").map((b) => b.textContent)];
        type(rewards()[0], "0.5");
        restore(linkOf().replace("0.5", "1"));
        out.found = [linkOf(), $$("#choices [aria-pressed=true]").map((b) => b.textContent)];
        for (const link of LINKS) {
          restore("mode=projector&reveal=1&preset=paper");
          restore(link);
          out.damaged.push([$("damage").textContent, linkOf(), state.completions[0]]);
        }
        restore("");
        out.solved = $("damage").textContent;
        out.pwned = window.pwned ?? null;
        return out;"""
    )
    for name, value in (("GROUPS", groups), ("LINKS", list(DAMAGED))):
        script = script.replace(name, json.dumps(value).replace("<", "\\u003c"))
    out = browse(tmp_path, explorer_page(), script)
    assert out["same"] == [[True] * 6 + [""]] * len(groups)
    assert all(re.fullmatch(r"[\w.,=&%-]*", link, re.ASCII) for link in out["links"])
    assert out["preset"] == ["preset=exploitation", ["Exploitation"]] == out["found"]
    for (text, link, completion), part in zip(out["damaged"], DAMAGED.values(), strict=True):
        assert text == (
            f"The link is damaged: its part “{part}” cannot be read, "
            "so this is the page as it opens without a link."
        )
        assert (link, completion) == ("", PRESETS[0]["completions"][0])
    assert out["solved"] == "" and out["pwned"] is None


@in_browser
@pytest.mark.parametrize("link", ["mode=projector&reveal=2&zoom=1.5&preset=paper", "reveal=9"])
def test_a_link_that_the_page_is_opened_with(tmp_path, link):
    script = "return [linkOf(), $('damage').textContent, document.documentElement.className];"
    found = browse(tmp_path, explorer_page(), script, link)
    if "preset" in link:
        assert found == [link, "", "projector"]
    else:
        assert found[0] == found[2] == "" and "its part “reveal” cannot be read" in found[1]


# -- the SVG file ----------------------------------------------------------------------------------


@in_browser
def test_the_svg_file(tmp_path):
    """A file of its own with all texts of the tree, in light colours; the page is as it was."""
    script = (
        HANDS
        + SEEN
        + """
        let blob;
        URL.createObjectURL = (b) => ((blob = b), "#");
        const out = [];
        for (const link of ["", "reveal=5&preset=paper", "mode=projector&zoom=2&preset=exploration",
                            "reveal=1&preset=prefix", "fold=0.1&preset=exploitation", "own"]) {
          restore(link === "own" ? "" : link);
          if (link === "own") choose(0);
          const before = [linkOf(), view.scale, document.documentElement.className];
          $("download").click();
          const after = [linkOf(), view.scale, document.documentElement.className];
          const text = treeAsSvg();
          const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
          const shown = texts_of($("tree")).map((n) => n.data.replace(/[ \\n]+/g, " ").trim());
          out.push({text, type: blob.type, size: blob.size, shown,
            same: JSON.stringify(before) === JSON.stringify(after),
            wrong: parsed.querySelectorAll("parsererror").length});
        }
        return out;"""
    )
    page = page_of({"prompt": NASTY[0], "completions": NASTY, "rewards": [1, 0, 0, 0, 0]})
    for at in browse(tmp_path, page, script):
        assert at["wrong"] == 0 and at["same"] and at["type"] == "image/svg+xml"
        assert at["size"] == len(at["text"].encode())
        assert not re.search(r"url\(|href|<script|<style|<foreignObject|class=|&nbsp;", at["text"])
        root = ElementTree.fromstring(at["text"])
        name = "{http://www.w3.org/2000/svg}"
        assert root.tag == name + "svg"
        width, height = float(root.get("width")), float(root.get("height"))
        assert root.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
        texts = root.findall(name + "text")
        written = [t.text for t in texts]
        assert sorted(at["shown"]) == sorted(
            w.strip() for w in written[len(written) - len(at["shown"]) :]
        )
        assert root.find(name + "title").text == written[0]
        back = root.find(name + "rect")
        assert (back.get("fill"), back.get("width")) == ("#ffffff", root.get("width"))
        for shape in root.iter(name + "rect"):
            x, y, w, h = (float(shape.get(key, 0)) for key in ("x", "y", "width", "height"))
            assert x >= 0 and y >= 0 and x + w <= width + 0.5 and y + h <= height + 0.5
            colour = shape.get("fill")
            assert colour == "none" or re.fullmatch("#[0-9a-f]{6}", colour)
        for text in texts:
            assert sum(bytes.fromhex(text.get("fill")[1:])) < 3 * 128  # dark on light
            assert float(text.get("font-size")) >= 10
