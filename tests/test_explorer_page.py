"""The explorer's page in headless Chromium: what it says, editing, keys and pointer, strange texts,
narrow screens.
"""

import json

import numpy as np
import pytest
from chromium import browse, in_browser, page_of

import minigrpo as mg
from minigrpo.logs.groups import read_groups
from minigrpo.show.explorer import PRESETS, explorer_page

SENTENCES = {
    "A sum in steps": ["The same text: y0 and y2.", "no other way at a fork is pushed up harder"],
    "Exploration": [
        "y0 is the best completion, yet its “R” is pushed down: "
        "the 4 that share it did worse than the group.",
        "GRPO pushes it 4 times as hard as λ-GRPO: −2.62 against −0.65. "
        "The last token of y0 gets +0.98 from both.",
        "Σ along y0: −1.85 under GRPO, +0.22 under λ-GRPO.",
    ],
    "The paper’s example": [
        "y2 is the best completion, yet its “J” is pushed down: "
        "the 3 that share it did worse than the group.",
        "GRPO pushes it 3 times as hard as λ-GRPO: −0.66 against −0.22. "
        "The last token of y2 gets +1.55 from both.",
        "Σ along y2: −0.44 under GRPO, +0.89 under λ-GRPO.",
    ],
    "Exploitation": [
        "at a fork 2 took its “R” (R̂ 0.55) and 4 the other way, “L” (R̂ 0.70).",
        "GRPO pushes the other way up 3.0 times as hard, λ-GRPO 1.5 times as hard.",
    ],
    "Duplicates": ["The same text: y0, y1 and y2. Even its last token is shared."],
    "Prefix of another": ["Ending inside the tree, where others go on: y0 and y1."],
    "All different": ["the group is flat, every |λ| is 1, and GRPO and λ-GRPO are the same."],
    "All equal": ["All rewards are equal: every advantage is exactly 0"],
    "Equal rewards": ["All rewards are equal: every advantage is exactly 0"],
}


@in_browser
def test_what_is_said_of_the_presets(tmp_path):
    script = "return choices.map((c, i) => { choose(i); "
    script += "return [c.name, document.getElementById('statement').textContent]; });"
    said = {
        name: text.replace("\u2060", "") for name, text in browse(tmp_path, explorer_page(), script)
    }
    assert list(said) == list(SENTENCES) == [p["name"] for p in PRESETS]
    for name, sentences in SENTENCES.items():
        for sentence in sentences:
            assert sentence in said[name]
        assert ("yet its" in said[name]) == (name in ("Exploration", "The paper’s example"))
        assert ("at a fork 2" in said[name]) == (name == "Exploitation")


FINE = "is pushed down, and no other way at a fork is pushed up harder."
TIES = [  # completions, rewards, what must be said, what must not
    # y0 has nothing against it, while y4, as good, is pushed down: what one looks at is not both.
    (
        ["A", "B", "Cy", "Cz", "Cx"],
        [1, 0, -1, -1, 1],
        [
            "y0 and y4 are the best completions, equally good.",
            "The “C” of y4 is pushed down: the 3",
            "The last token of y4 gets",
            f"No token of y0 {FINE}",
            "Σ along y0: +",
            "Σ along y4: ",
        ],
        ["y0 is the best", "No token of y4"],
    ),
    # The same with the other first, and three that are best: one is down, two are beside a rival.
    (
        ["Cx", "Cy", "Cz", "A", "LR", "LL", "LL", "LM"],
        [1, -1, -1, 1, 1, 0.9, 0.9, -1],
        [
            "y0, y3 and y4 are the best completions, equally good.",
            "The “C” of y0 is pushed down",
            "No token of y4 is pushed down. But at a fork 1 took the “R”",
            "Beside y3, too, GRPO pushes another way at a fork up harder.",
        ],
        [FINE],
    ),
    # All but one are tied, for better or for worse.
    (
        ["aa", "ab", "ba", "bb", "c"],
        [1, 1, 1, 1, 0],
        ["y0 to y3 are the best completions: no token of them is pushed down", "Σ along y0:"],
        ["equally good"],
    ),
    (
        ["aa", "ab", "ac", "b", "b", "c", "d"],
        [1, 1, 0, 1, 1, 1, 1],
        [
            "y0, y1 and y3 to y6 are the best completions, equally good.",
            "y0 and y1 is pushed down",
            "No token of y5 is pushed down. But at a fork 1 took",
            "the way to y3 and y4, as good.",
            "Beside y6, too,",
            f"No token of y3 and y4 {FINE}",
            "Σ along these 5 texts: −1.13 to ",
        ],
        ["Σ along y0:"],
    ),
    # The best rewards are negative; what is tied among the worse does not matter.
    (
        ["xa", "xb", "xc", "y", "z"],
        [-1, -9, -9, -1, -3],
        ["y0 and y3 are the best completions, equally good.", "The “x” of y0 is pushed down"],
        ["y4 and", "y1 and y2 are the best"],
    ),
    # Copies are one text; with another text as good they are still one finding.
    (
        ["ab", "ab", "ac"],
        [1, 1, 0],
        ["y0 and y1 are the best completions: no token of them", "Σ along y0 and y1: "],
        ["equally good"],
    ),
    (
        ["ab", "ac", "ab", "ad", "e", "f"],
        [1, -2, 1, -2, 1, 0],
        [
            "y0, y2 and y4 are the best completions, equally good.",
            "“a” of y0 and y2 is pushed down",
            f"No token of y4 {FINE}",
        ],
        [],
    ),
    # One of them is empty, all of them are.
    (
        ["", "ab", "ac"],
        [1, 1, 0],
        [
            "y0 and y1 are the best completions, equally good.",
            "y0 is empty: no token can be pushed",
            "Σ along y1",
        ],
        ["Σ along y0"],
    ),
    (
        ["", "", "ab", "ac"],
        [1, 1, 0, 0],
        ["y0 and y1 are the best completions, and empty: no token can be pushed towards them."],
        ["Σ along"],
    ),
    # Rewards that differ by a rounding are tied; a difference that moves a policy is not.
    (
        ["A", "Cx", "Cy", "Cz"],
        [0.3, 0.1 + 0.2, -1, -1],
        ["y0 and y1 are the best completions, equally good.", "The “C” of y1 is pushed down"],
        [],
    ),
    (  # a way that is not pushed at all has no ratio
        ["xa", "xb", "y", "z"],
        [1, 0, 0.9, 0.1],
        [
            "no token of it is pushed down. But at a fork 2 took its “x”",
            "Both objectives push the other way up, and this one not at all.",
        ],
        ["times as hard"],
    ),
    # GRPO pushes no other way up harder, λ-GRPO does; the same beside a second text that is best.
    (
        ["Aab", "Aac", "Aad", "C", "x", "x", "y", "z"],
        [1, 0.6, 0.6, 0.9, 0, 0, 0, 0],
        [
            "y0 is the best completion, and no token of it is pushed down. But at a fork 3 took "
            "its “A” (R̂ 0.73) and 1 the other way, “C” (R̂ 0.90).",
            "GRPO does not push the other way up harder, +1.18 against +2.38; "
            "λ-GRPO does, +1.18 against +0.79.",
        ],
        [FINE, "times as hard"],
    ),
    (
        ["Aa", "Ab", "Ba", "Bb", "C", "x", "x", "x"],
        [1, 0.6, 1, 0.6, 0.9, 0, 0, 0],
        [
            "y0 and y2 are the best completions, equally good.",
            "No token of y0 is pushed down. But at a fork 2 took the “A” (R̂ 0.80) and 1 the other",
            "Beside y2, too, λ-GRPO alone pushes another way at a fork up harder.",
        ],
        [FINE, "undefined"],
    ),
    # Rewards that differ by thousandths are not all 0.00.
    (
        ["xa", "xb", "y", "z"],
        [0.001, 0, 0.0009, 0.0001],
        ["2 took its “x” (R̂ 0.00050) and 1 the other way, “y” (R̂ 0.00090)"],
        ["0.00)"],
    ),
    (["ab", "ac"], [0.3, 0.1 + 0.2], ["All rewards are equal but for rounding"], ["best"]),
    (["A", "Cx", "Cy", "Cz"], [1, 1.001, -1, -1], ["y1 is the best completion, yet its “C”"], []),
    (["A", "Cx", "Cy"], [1e16, 1e16 + 4, 1e16 - 8], ["y1 is the best completion"], ["equally"]),
]


@in_browser
def test_all_that_are_best_are_looked_at(tmp_path):
    """Several completions may be best: each is named, and what is said says for whom it holds."""
    page = page_of(*({"completions": c, "rewards": r} for c, r, _, _ in TIES), unit="characters")
    script = "return choices.map((c, i) => { choose(i); return $('statement').textContent; });"
    said = [text.replace("\u2060", "") for text in browse(tmp_path, page, script)]
    for text, (completions, _, present, absent) in zip(said, TIES, strict=False):
        for sentence in present:
            assert sentence in text, (completions, text)
        for sentence in absent:
            assert sentence not in text, (completions, text)


# -- editing, keys, pointer ------------------------------------------------------------------------

HANDS = """
    const $$ = (what) => [...document.querySelectorAll(what)];
    const send = (to, event) => to.dispatchEvent(event);
    const type = (input, value) => {
      input.value = value;
      send(input, new Event("input", {bubbles: true}));
    };
    const press = (key) =>
      send(document.activeElement, new KeyboardEvent("keydown", {key, bubbles: true}));
    const boxes = () =>
      $$("#tree .step:not(.prompt)").map((s) => s.querySelector(".tokens").textContent);
    const texts = () => $$("#rows .text"), rewards = () => $$("#rows input[type=number]");
"""


@in_browser
def test_an_edit_is_seen_at_once(tmp_path):
    script = """
        const out = {before: boxes()};
        type(texts()[2], "xc");
        out.typed = boxes();
        type(rewards()[2], "2.5");
        out.a = $$("#rows output").map((o) => o.textContent);
        out.pressed = $$("#choices [aria-pressed=true]").length;
        out.shown = $("tree").textContent;
        type(rewards()[2], "");
        out.problem = $("problem").textContent;
        out.kept = $("tree").textContent === out.shown;
        type(rewards()[2], "-1");
        out.solved = $("problem").textContent;
        $("add").click();
        type(texts()[3], "xcd");
        out.added = boxes();
        out.focus = document.activeElement === texts()[3];
        const enter = (shiftKey) => send(document.activeElement,
          new KeyboardEvent("keydown", {key: "Enter", shiftKey, bubbles: true, cancelable: true}));
        texts()[2].focus();
        out.enter = [enter(true), enter(false), document.activeElement === texts()[3]];
        out.last = [enter(false), document.activeElement.id];
        $$("#rows button")[0].click();
        $$("#rows button")[0].click();
        out.removed = boxes();
        out.locked = $$("#rows button").every((b) => b.disabled);
        out.json = $("json").textContent;
        type(texts()[0], "x c\\nd␍");
        $("unit").value = "words";
        $("unit").dispatchEvent(new Event("change"));
        out.words = [boxes(), state.completions[0]];
        document.querySelector("#choices button").click();
        out.again = [boxes(), texts().map((t) => t.value)];
        return out;"""
    out = browse(
        tmp_path, page_of({"completions": ["ab", "ac", "b"], "rewards": [1, 0, 0]}), HANDS + script
    )
    assert out["before"] == ["a×2", "b×1", "c×1", "b×1"]
    assert out["typed"] == ["a×2", "b×1", "c×1", "xc×1"]
    assert out["a"] == [
        f"{x:+.2f}".replace("-", "−") for x in mg.advantages([1, 0, 2.5], np.zeros(3, dtype=int))
    ]
    assert out["pressed"] == 0
    assert (out["problem"], out["solved"]) == ("y2 has no reward: give it a number.", "")
    assert out["kept"]
    assert out["added"] == ["a×2", "b×1", "c×1", "xc×2", "d×1"]
    assert out["focus"]
    assert out["enter"] == [True, False, True]  # Shift and Enter makes a line end, as it does
    assert out["last"] == [False, "add"]
    assert out["removed"] == ["xc×2", "d×1"]
    assert out["locked"]
    assert read_groups(out["json"])[0].texts == ["xc", "xcd"]
    assert out["words"] == [["xc↵d␍×1", "xcd×1"], "x c\nd\r"]
    assert out["again"] == [out["before"], ["ab", "ac", "b"]]


@in_browser
def test_keys_and_pointer_highlight_the_members(tmp_path):
    script = """
        const seen = () => {
          const here = $$("#tree .here > .step .tokens").map((t) => t.textContent);
          const rows = $$("#rows .row.on b").map((b) => b.textContent);
          const ends = $$("#tree .end.on b").map((b) => b.textContent);
          const display = getComputedStyle($("pointed")).display;
          return [here, rows, ends, $("details").textContent, display];
        };
        const out = {stops: $$("#tree [tabindex='0']").length};
        document.querySelector("#tree [tabindex='0']").focus();
        const keys = ["Home", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "Escape"];
        for (const name of keys) { press(name); out[name] = seen(); }
        const box = $$("#tree .step")[2];
        box.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        out.over = seen();
        $("tree").dispatchEvent(new PointerEvent("pointerleave"));
        out.away = seen();
        box.click();
        const label = document.activeElement.getAttribute("aria-label");
        out.click = [seen(), label, $$("#tree [tabindex='0']").length];
        return out;"""
    out = browse(
        tmp_path, page_of({"completions": ["ab", "ac", "b"], "rewards": [1, 0, 0]}), HANDS + script
    )
    assert out["stops"] == 1
    assert out["Home"][1:3] == [["y0", "y1", "y2"]] * 2
    assert out["Home"][3].startswith("The prompt. mean r = 0.33")
    ab = [["b×1"], ["y0"], ["y0"]]
    assert out["ArrowRight"][:3] == ab
    assert out["ArrowDown"][:3] == [["c×1"], ["y1"], ["y1"]]
    assert out["ArrowLeft"][:3] == [["a×2"], ["y0", "y1"], ["y0", "y1"]]
    said = out["ArrowLeft"][3].replace("\u2060", "")
    assert "y0 and y1 share “a”: |λ| = 2." in said
    assert "R̂ = (1.00 + 0.00) / 2 = 0.50." in said
    assert "Â = (0.50 − 0.33) / 0.58 = +0.29: better than the group." in said
    assert "Push on the token: GRPO 2 × +0.29 = +0.58, λ-GRPO +0.29." in said
    assert out["over"][:3] == ab
    for nowhere in (out["Escape"], out["away"]):
        assert nowhere == [[], [], [], "", "none"]
    assert out["click"][0][:3] == ab
    assert "y0 alone has “b”" in out["click"][1]
    assert out["click"][2] == 1


# -- strange texts, strange screens ----------------------------------------------------------------

NASTY = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=2>",
    "\" onfocus='window.pwned=3' autofocus x=\"",
    "<!--<script>/* STYLE *//* SCRIPT *//* GROUPS */ $& $1 \\u003c &lt;b&gt;",
    "a\nb\r\tc\u2028\u202e\x00 </pre>",
]


@in_browser
@pytest.mark.parametrize("unit", ["words", "characters"])
def test_texts_are_only_texts(tmp_path, unit):
    page = page_of(
        {"prompt": NASTY[0], "completions": NASTY, "rewards": [1, 0, 0, 0, 0]}, unit=unit
    )
    assert page.count("<script") == explorer_page().count("<script") == page.count("</script")
    script = """
        const name = $$("#choices button")[0].textContent;
        const out = {values: texts().map((t) => t.value), states: state.completions, name};
        for (const input of texts()) type(input, input.value);
        $$("#tree .branch").forEach((b) => b.focus());
        out.tokens = $$("#tree .token").map((t) => t.textContent).join("");
        out.kept = state.completions;
        const foreign = "img, iframe, [onerror], [onfocus], [autofocus], script:not(#groups)";
        out.foreign = $$(foreign).length;
        out.pwned = window.pwned ?? null;
        return out;"""
    out = browse(tmp_path, page, HANDS + script)
    assert out["states"] == out["kept"] == NASTY
    assert out["values"][:4] == NASTY[:4]
    assert out["values"][4] == NASTY[4].replace("\r", "␍")
    assert out["foreign"] == 2  # the page's own script, and this one
    assert out["pwned"] is None
    assert NASTY[1].replace(" ", "" if unit == "words" else "␣").removeprefix("<") in out["tokens"]
    assert out["name"].startswith("</script><scr")


@in_browser
def test_what_joins_letters_is_no_sign_that_cannot_be_printed(tmp_path):
    """In emoji and in Persian or Hindi words; elsewhere, where it could hide, it is shown."""
    joined = ["👩\u200d🔬", "می\u200cخواهم", "क\u094d\u200dष", "👩🏽\u200d🔬", "👨\u200d👩\u200d👧"]
    hidden = ["a\u200db", "\u200d", "👩\u200d", "1\u200c2", "م\u200bم", "م\u202eم"]
    script = f"state.unit = 'words'; return {json.dumps(joined + hidden)}.map(printed);"
    found = browse(tmp_path, explorer_page(), script)
    assert found[: len(joined)] == joined
    assert ["�" in text for text in found[len(joined) :]] == [True] * len(hidden)


@in_browser
def test_it_fits_the_screen(tmp_path):
    """Nothing but the tree itself may be wider than the screen, and no box smaller than what is in
    it.
    """
    measure = """
        return choices.map((c, i) => {
          choose(i);
          const steps = [...document.querySelectorAll("#tree .step:not(.prompt)")];
          const spills = steps.filter((s) =>
            s.scrollHeight > s.clientHeight + 1 || s.scrollWidth > s.clientWidth + 1);
          const count = (s) => current.steps[s.parentElement.dataset.step].count;
          const rows = steps.map((s) => (s.offsetHeight + 4) / count(s)); // margins: 4
          const grid = getComputedStyle(document.querySelector("main")).gridTemplateColumns;
          const range = Math.max(...rows) - Math.min(...rows);
          const width = document.documentElement.scrollWidth;
          return [width, spills.length, range, grid.split(" ").length];
        });"""
    inner = explorer_page().replace(
        "</body>", f"<script>window.found = (() => {{ {measure} }})()</script></body>"
    )
    framed = """
        return [360, 390, 1280, 1920].map((width) => {
          const frame = document.body.appendChild(document.createElement("iframe"));
          Object.assign(frame, {width, height: 844});
          frame.contentDocument.write(PAGE);
          return [width, frame.contentWindow.found];
        });""".replace("PAGE", json.dumps(inner).replace("<", "\\u003c"))
    for width, choices in browse(tmp_path, "<!doctype html><body></body>", framed):
        assert len(choices) == len(PRESETS)
        for scroll_width, spills, uneven, columns in choices:
            assert scroll_width <= width
            assert spills == 0
            assert uneven < 1.5  # pixels: a box is |λ| rows high
            assert columns == (1 if width < 400 else 2)
