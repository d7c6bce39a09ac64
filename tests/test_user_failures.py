"""What fails in a user's file is reported there: one line with file, line and function, exit code
2, whatever was raised.
"""

# ruff: noqa: F811 (a fixture that is imported and an argument have the same name)

import json
import re
import sys

import numpy as np
import pytest
from test_cli import run  # noqa: F401
from test_cli_errors import one_line

from minigrpo.course.grading import Answer, WrongAnswer
from minigrpo.runs.checkpoint import checkpoints
from minigrpo.runs.folder import read_metrics
from minigrpo.runs.settings import TrainSettings
from minigrpo.runs.stored_settings import read_settings, task_by_file
from minigrpo.runs.train import train
from minigrpo.system.user_code import explain, run_file, shown
from minigrpo.tasks import CharTokenizer, Tokenised, load_task, optional

TASK = """\
import sys
import numpy as np
from minigrpo.tasks import CharTokenizer, score_texts

class T:
    tokenizer = CharTokenizer("ab")
    max_new_tokens = 2
    defaults = {"dim": 8, "steps": 3, "group_size": 4, "eval_prompts": 2, "prompts_per_step": 2}

    def prompts(self, rng, n, split="train"):
        return [self.tokenizer.encode("ab")] * n

    def score(self, rollouts):
        return score_texts(rollouts, self.tokenizer, self.one)

    def one(self, prompt, completion):
        return len(completion)
"""
LINES = TASK.splitlines()
PROMPTS, SCORE, ONE = LINES[10], LINES[13], LINES[16]


@pytest.fixture
def fails(run, tmp_path, monkeypatch):
    """Train on the task with a line of it replaced, or something added.   -> the one line of the
    error
    """
    monkeypatch.chdir(tmp_path)

    def call(old="", new="", added="", command="train --task mine.py:T", code=2):
        assert old in TASK
        (tmp_path / "mine.py").write_text(TASK.replace(old, new) + added)
        got = run(*command.split())
        assert got[0] == code, got
        return one_line(got) if code == 2 else got[2]

    return call


RAISED = {
    "1 / 0": "ZeroDivisionError: division by zero (line 17 of mine.py, in one: 1 / 0)",
    "{}['x']": "KeyError: 'x' (line 17 of mine.py, in one: {}['x'])",
    "None + 1": (
        "TypeError: unsupported operand type(s) for +: 'NoneType' and "
        "'int' (line 17 of mine.py, in one: None + 1)"
    ),
    "raise ValueError('bad\\n\\x1b[31m  line')": (
        "ValueError: bad [31m line (line 17 of mine.py, in one: raise ValueError('bad"
    ),
    "raise RuntimeError('x' * 5000)": "RuntimeError: xxxxxxxx",
    "next(iter([]))": "StopIteration (line 17 of mine.py, in one: next(iter([])))",
    "assert prompt == 'b'": "AssertionError (line 17 of mine.py, in one: assert prompt == 'b')",
    "sys.exit(0)": "SystemExit: 0 (line 17 of mine.py, in one: sys.exit(0))",
    "sys.exit()": "SystemExit (line 17 of mine.py, in one: sys.exit())",
    "raise GeneratorExit": "GeneratorExit (line 17",
    "raise BaseException('odd')": "BaseException: odd (line 17",
    "raise FloatingPointError('f')": "FloatingPointError: f (line 17",
    "open('absent.csv')": (
        "FileNotFoundError: [Errno 2] No such file or directory: 'absent.csv' (line 17"
    ),
    "self.one(prompt, completion)": "RecursionError: maximum recursion depth exceeded",
    "return self.nothing": "AttributeError: 'T' object has no attribute 'nothing' (line 17",
    "raise ExceptionGroup('g', [ValueError(1)])": "ExceptionGroup: g (1 sub-exception) (line 17",
    "__import__('ast').literal_eval('1 +')": (
        "SyntaxError: invalid syntax (<unknown>, line 1) (line 17 of mine.py, in one:"
    ),
    "np.zeros(3)[7]": "IndexError: index 7 is out of bounds",
    (
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})"
    ): "Odd (line 17 of mine.py, in one: raise type(",
}


@pytest.mark.parametrize("line", RAISED)
def test_whatever_a_reward_raises(line, fails):
    err = fails(ONE, f"        {line}")
    assert f"minigrpo train: your code failed: {RAISED[line]}" in err
    assert re.search(r"\), at completion '[ab]*' to prompt 'ab'\n$", err)


TEXT_TASK = """
import json
class T:
    max_new_tokens, stop = 4, "+"
    def texts(self, rng, n, split="train"): return ["ab " * 400] * n
    def reward(self, prompt, completion):
        return json.loads("{" + prompt)
"""


def test_a_reward_of_text_names_prompt_and_completion_shortly(fails, tmp_path, run):
    pytest.importorskip("tokenizers", reason="language models need the extra lm")
    from test_prompts import Tokenised, byte_level

    (tmp_path / "text.py").write_text(TEXT_TASK)
    task = load_task(f"{tmp_path}/text.py:T", byte_level("</s>"))
    assert isinstance(task, Tokenised)
    prompts = task.prompts(np.random.default_rng(0), 2)
    with pytest.raises(json.JSONDecodeError) as raised:
        task.score(
            type("Rollouts", (), {"prompts": prompts, "completions": [[np.array([40, 41])]] * 2})
        )
    told = explain(raised.value, str(tmp_path / "text.py"))
    assert re.match(
        r"JSONDecodeError: Expecting .* \(line 7 of text.py, in reward: return json.loads", told
    )
    (note,) = raised.value.__notes__
    assert note.startswith("at completion 'IJ' to prompt 'ab ab") and len(note) < 200


PLACES = {
    "prompts": (
        PROMPTS,
        "        return 1 / 0",
        "your code failed: Zero",
        "line 11 of mine.py, in prompts",
    ),
    "a generator, half-way": (
        PROMPTS,
        "        yield [0]; {}[1]",
        "your code failed: KeyError: 1",
        "line 11",
    ),
    "score": (
        SCORE,
        "        raise OSError('disk')",
        "your code failed: OSError: disk",
        "line 14 of mine.py",
    ),
    "a generator of rewards": (
        SCORE,
        "        yield 1; sys.exit()",
        "your code failed: SystemExit",
        "line 14",
    ),
    "a property": (
        "    max_new_tokens = 2",
        "    @property\n    def max_new_tokens(self): return self.nothing",
        "your code failed: AttributeError: 'T' object has no attribute 'nothing'",
        "line 8 of mine.py, in max_new_tokens",
    ),
    "defaults": (
        "    defaults = {",
        "    defaults = property(lambda self: 1 / 0)\n    d = {",
        "your code failed: ZeroDivisionError",
        "line 8 of",
    ),
    "the tokenizer": (
        'CharTokenizer("ab")',
        "property(lambda self: {}[0])",
        "your code failed: Key",
        "line 6",
    ),
    "arguments": (
        "rollouts):",
        "):",
        (
            "score of task 'mine.py:T' cannot be called with 1 "
            "arguments: TypeError: too many positional"
        ),
        "(line 13 of mine.py)",
    ),
    "an alphabet": (
        'encode("ab")',
        'encode("x")',
        "ValueError: character 'x' is not in the alphabet 'ab'",
        "line 11 of mine.py",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_place_is_named(place, fails):
    old, new, *expected = PLACES[place]
    err = fails(old, new)
    assert all(words in err for words in expected), err


def test_other_methods_and_other_commands(fails, run):
    err = fails(added="    def is_correct(self, rewards): return rewards.wrong\n")
    assert "your code failed: AttributeError" in err and "line 18 of mine.py, in is_correct" in err
    failing = "    def demonstrations(self, rng, n): assert n < 0\n"
    err = fails(added=failing, command="train --task mine.py:T --warm-start-steps 1")
    assert "your code failed: AssertionError (line 18 of mine.py, in demonstrations: def" in err
    assert "line 14 of mine.py, in score" in fails(
        SCORE, "        sys.exit(0)", command="equivalence --task mine.py:T"
    )
    own = "class Own:\n    eos, vocab_size, encode = None, 2, lambda self, text: np.array([0])\n"
    own += "    def decode(self, ids): return ids.text\n"
    (old, new), added = ('CharTokenizer("ab")', "None"), f"{own}T.tokenizer = Own()\n"
    assert (
        "failed: AttributeError: 'numpy.ndarray' object has no attribute "
        "'text' (line 20 of mine.py, in decode"
    ) in fails(old, new, added)
    fails(command="train --task mine.py:T --steps 1 --out run", code=0)
    (checkpoint := checkpoints("run")[-1]).exists()
    for command in (f"evaluate {checkpoint}", "sample run", "equivalence run"):
        assert "line 14 of mine.py, in score: 1 / 0" in fails(
            SCORE, "        1 / 0", command=command
        )


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        ("MemoryError('host')", "host"),
        ("RuntimeError('CUDA_ERROR_OUT_OF_MEMORY')", "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_want_of_memory_is_still_told_as_such(raised, reason, fails):
    err = fails(ONE, f"        raise {raised}", code=1)
    assert err.startswith(f"minigrpo train: out of memory ({reason}): start again with")


def test_ctrl_c_is_no_failure(fails):
    assert "interrupted" in fails(PROMPTS, "        raise KeyboardInterrupt", code=130)


def test_nothing_written_is_lost(fails, run):
    counts = "        self.n = getattr(self, 'n', 0) + 1\n        assert self.n < 6, 'the sixth'\n"
    err = fails(
        SCORE,
        counts + SCORE,
        command="train --task mine.py:T --steps 9 --checkpoint-every 2 --out run",
    )
    assert "AssertionError: the sixth (line 15 of mine.py, in score" in err
    assert [m["step"] for m in read_metrics("run")] == [1, 2, 3, 4, 5]
    fails(command="train --resume run", code=0)
    assert [m["step"] for m in read_metrics("run")] == list(range(1, 10))


# -- the file and its class ------------------------------------------------------------------------

FILES = {
    "raise KeyError('a')": (
        "cannot be imported: KeyError: 'a' (line 1 of bad.py, in <module>: raise KeyError('a'))"
    ),
    "print('hello')\nimport sys\nsys.exit(0)": (
        "cannot be imported: SystemExit: 0 (line 3 of bad.py, in <module>: sys.exit(0))"
    ),
    "x = 1\nclass T(:": (
        "cannot be imported: SyntaxError: invalid syntax (line 2 of bad.py: class T(:)"
    ),
    "class T:\npass": "cannot be imported: IndentationError: expected an indented block",
    "import beside": (
        "cannot be imported: ZeroDivisionError: division by zero (line 2 of beside.py, in f: 1 / 0)"
    ),
    "T = 3": "has no class 'T': it has none",
    "class U: pass": "has no class 'T': it has U",
    "def T(): 1 / 0": (
        "cannot be made: ZeroDivisionError: division by zero (line "
        "1 of bad.py, in T: def T(): 1 / 0)"
    ),
    "class T:\n    def __init__(self):\n        exit()": (
        "cannot be made: SystemExit: None (line 3 of bad.py, in __init__: exit())"
    ),
    (
        "import abc\nclass T(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ..."
    ): "cannot be made: TypeError: Can't instantiate abstract class T",
    "from typing import Protocol\nclass T(Protocol): ...": (
        "cannot be made: TypeError: Protocols cannot be instantiated (line 2 of"
    ),
    (
        "from minigrpo.tasks.treewalk import TreeWalk\nclass T(TreeWalk):\n    "
        "def __init__(self): super().__init__(depth=99)"
    ): (
        "cannot be made: ValueError: depth is 99: it must be a whole number "
        "from 2 to 12 (line 3 of bad.py, in __init__"
    ),
    "class T: pass": (
        "has no attribute 'tokenizer': a task needs tokenizer, max_new_tokens, prompts and score"
    ),
    "class T: texts = 1": (
        "has no attribute 'max_new_tokens': a text task needs "
        "max_new_tokens, stop, texts and reward"
    ),
    "class T: texts = max_new_tokens = 1; stop = 'a'; reward = print": (
        "texts of task 'bad.py:T' cannot be called with 3 arguments: "
        "TypeError: 1 is not a callable object"
    ),
    (
        "class T: texts = reward = print; max_new_tokens = 1; stop = ''"
    ): "stop is '': it must be a text that is not empty",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_or_class_that_does_not_work(text, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text + "\n")
    (tmp_path / "beside.py").write_text("def f():\n    1 / 0\nf()\n")
    assert FILES[text] in one_line(run("train", "--task", "bad.py:T"))


def test_the_last_place_of_the_users_own_is_named(tmp_path):
    """Not the installed package that raised, nor this package, though they may lie below the user's
    folder.
    """
    call = "def call(f):\n    return f()\n"
    for folder, name in (("parts", "inner.py"), ("venv/lib/site-packages", "package.py")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(call)
    (tmp_path / "mine.py").write_text(f"import parts.inner as inner\n{call}")
    mine = run_file(tmp_path / "mine.py", "mine")
    space = {}
    exec(compile(call, str(tmp_path / "venv/lib/site-packages/package.py"), "exec"), space)
    package, inner = space["call"], mine.inner.call
    for chain, place in (
        (lambda: mine.call(lambda: package(lambda: 1 / 0)), "line 3 of mine.py, in call"),
        (
            lambda: mine.call(lambda: inner(lambda: package(lambda: 1 / 0))),
            "line 2 of inner.py, in call",
        ),
        (lambda: mine.call(lambda: CharTokenizer("")), "line 3 of mine.py, in call"),
    ):
        with pytest.raises(Exception) as raised:
            chain()
        assert place in explain(raised.value, str(tmp_path / "mine.py"))


# -- what comes back -------------------------------------------------------------------------------

B = "len(rollouts.truncated)"
GOOD = {
    SCORE: [
        f"return (1.0 for _ in range({B}))",
        f"return (True,) * {B}",
        f"return [np.float32(1)] * {B}",
        f"return np.ones({B}, int)",
    ],
    ONE: [
        "return True",
        "return np.float32(0.5)",
        "return np.array(2.0)",
        "from fractions import Fraction; return Fraction(1, 3)",
    ],
    PROMPTS: [
        "return (np.array([0, i % 2]) for i in range(n))",
        "return ((0, 1),) * n",
        "return np.ones((n, 2), np.uint8)",
    ],
}
BAD = {
    SCORE: {
        f"return ['1'] * {B}": "need as many rewards, not ['1', '1'",
        f"return [1j] * {B}": "need as many rewards, not [1j, 1j",
        f"return np.ones({B}) * 1j": "need as many rewards, not array([0.+1.j",
        "return {0: 1.0}": "need as many rewards, not {0: 1.0}",
        "return {1.0}": "need as many rewards, not {1.0}",
        "return 'abc'": "need as many rewards, not 'abc'",
        "return [1, [2]]": "need as many rewards, not [1, [2]]",
        f"return [10**400] * {B}": "need as many rewards",
        "return None": "need as many",
        "return 1.0": "need as many rewards, not an array of shape ()",
        f"return np.ones(({B}, 1))": "need as many rewards, not an array of shape (8, 1)",
        f"return [1.0] * ({B} + 1)": "need as many rewards, not an array of shape (9,)",
        "while True: yield 1.0": "need as many rewards, not an array of shape (9,)",
    },
    ONE: {
        f"return {value}": f"is {text}: return a finite number (line 14 of mine.py, in score"
        for value, text in [(same, same) for same in ("1j", "'1'", "None", "[1]", "{}", "b'1'")]
                         + [("np.ones(1)", "array([1.])"), ("np.nan", "nan"),
                            ("np.complex64(1)", "np.complex64(1+0j)")]
    },
    PROMPTS: {
        "return []": "prompts of the task gave 0 things, []: it must return a list of 64",
        "return [[0]] * (n + 1)": "prompts of the task gave more than 64 things, [[0], [0]",
        "while True: yield [0]": "prompts of the task gave more than 64 things",
        "return None": "prompts of the task gave None: it must return a list of 64",
        "return 'ab'": "prompts of the task gave 'ab': it must",
        "return dict.fromkeys(range(n), [0])": "prompts of the task gave {0: [0], ",
        "return {(0,)}": "prompts of the task gave {(0,)}",
        "return np.array(3)": "prompts of the task gave 0 things, array(3)",
        "return np.zeros(n, int)": "prompt 0 must be a one-dimensional list of integers",
        "return ['a'] * n": "prompt 0 must be a one-dimensional list of integers",
        "return [[0.0]] * n": "not float64 of 1 dimensions",
        "return [[True]] * n": "not bool of 1 dimensions",
        "return [[0, [1]]] * n": "inhomogeneous",
        "return [[-1]] * n": "prompt 0 holds a token id outside [0, 2**31): -1",
        "return [[99]] * n": "token id 99 is outside the model's vocabulary of 3",
        "return [[]] * n": "every prompt needs at least one token",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"), [(old, new) for old, lines in GOOD.items() for new in lines]
)
def test_what_is_clear_is_taken(old, new, fails):
    fails(old, f"        {new}", command="train --task mine.py:T --steps 1", code=0)


@pytest.mark.parametrize(
    ("old", "new"), [(old, new) for old, lines in BAD.items() for new in lines]
)
def test_what_is_not_clear_is_told(old, new, fails):
    assert BAD[old][new] in fails(old, f"        {new}", command="train --task mine.py:T --steps 1")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("rewards > 0", None),
        ("[1] * len(rewards)", None),
        ("(r > 0 for r in rewards)", None),
        ("True", "8 completions need as many truth values of is_correct, not an array of shape ()"),
        ("None", "need as many truth values of is_correct"),
        ("rewards / 9", "return a truth value for each"),
        ("(rewards > 0)[:, None]", "not an array of shape (8, 1)"),
        ("rewards[1:] > 0", "not an array of shape (7,)"),
    ],
)
def test_what_is_correct(body, message, fails):
    added = f"    def is_correct(self, rewards): return {body}\n"
    err = fails(added=added, command="train --task mine.py:T --steps 1", code=2 if message else 0)
    assert message is None or message in err


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("[1]", "defaults of task 'mine.py:T' is no dict of settings"),
        ("{'task_options': [1]}", "defaults of task 'mine.py:T' is no dict of settings"),
        ("{'dim': '8'}", "dim is '8': it must be int"),
        ("{'steps': None}", "steps is None: it must be int"),
        ("{'learning_rate': [1]}", "learning_rate is [1]: it must be float"),
        ("{'eval_prompts': 2.5}", "eval_prompts is 2.5: it must be int"),
        ("{'stepz': 2}", "there is no setting stepz"),
    ],
)
def test_defaults_are_settings(defaults, message, fails):
    assert message in fails("    defaults = {", f"    defaults = {defaults}\n    d = {{")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vocab_size='3'", "vocab_size of task 'mine.py:T' is '3'"),
        ("vocab_size=0", "vocab_size of task 'mine.py:T' is 0"),
        ("eos='x'", "eos of task 'mine.py:T' is 'x': it must be a whole number from 0 to 2"),
        ("eos=3", "eos of task 'mine.py:T' is 3: it must be a whole number from 0 to 2"),
    ],
)
def test_a_tokenizer_of_ones_own_is_checked(part, message, fails):
    own = "from types import SimpleNamespace as N\n"
    own += f"T.tokenizer = N(**dict(vocab_size=3, eos=None, encode=1, decode=1) | dict({part}))\n"
    assert message in fails(added=own)


def test_a_loaded_task_is_still_the_users_object(tmp_path):
    (tmp_path / "mine.py").write_text(
        TASK + "    def __getattr__(self, name): raise AttributeError(name)\n"
    )
    task = load_task(f"{tmp_path}/mine.py:T")
    task.max_new_tokens = 7
    assert (
        task.max_new_tokens == 7
        and task.one("", "abc") == 3
        and not hasattr(task, "demonstrations")
    )
    assert shown("a\nb\x1b" * 99).isprintable() and len(shown("a" * 999)) < 100


# -- from another folder ---------------------------------------------------------------------------


def test_a_run_finds_its_task_from_another_folder(run, tmp_path, monkeypatch):
    (tmp_path / "here/tasks").mkdir(parents=True)
    (tmp_path / "elsewhere/tasks").mkdir(parents=True)
    (tmp_path / "here/tasks/mine.py").write_text("from beside import *\n")
    (tmp_path / "here/tasks/beside.py").write_text(TASK)
    (tmp_path / "elsewhere/tasks/mine.py").write_text(
        "raise ValueError('another task of that name')\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    for name in ("../run", "../again"):
        assert (
            run("train", "--task", "tasks/mine.py:T", "--checkpoint-every", 1, "--out", name)[0]
            == 0
        )
    assert (
        read_settings("../run") == read_settings("../again")
        and read_settings("../run")["task"] == "tasks/mine.py:T"
    )
    TrainSettings.from_stored(task_by_file(read_settings("../run")))
    for folder in ("elsewhere", "."):
        monkeypatch.chdir(tmp_path / folder)
        checkpoints(tmp_path / "run")[-1].unlink()
        for command in ("train --resume", "evaluate", "sample", "equivalence"):
            code, _, err = run(*command.split(), tmp_path / "run")
            assert code == 0, err
    (tmp_path / "here").rename(tmp_path / "moved")
    err = one_line(run("evaluate", tmp_path / "run"))
    assert (
        f"there is no task file '{tmp_path}/here/tasks/mine.py': check the path (a relative one"
        in err
    )
    monkeypatch.chdir(tmp_path / "moved")
    assert run("evaluate", "../run")[0] == 0


# -- exercises -------------------------------------------------------------------------------------


def test_exercises_fail_in_the_students_place(tmp_path):
    file = tmp_path / "ch01.py"
    file.write_text(
        "import functools\n@functools.lru_cache\ndef answer(x):\n   "
        " import beside\n    return beside.f(x)\n"
    )
    (tmp_path / "beside.py").write_text("def f(x):\n    raise BaseException('two\\n  lines')\n")
    with pytest.raises(
        WrongAnswer,
        match=r"got BaseException: two lines \(line 2 of beside.py, in f: raise BaseException",
    ):
        Answer(run_file(file, "ch01").answer).ask("", 1)
    with pytest.raises(KeyboardInterrupt):
        Answer(lambda: (_ for _ in ()).throw(KeyboardInterrupt)).ask("")


def test_what_fails_without_the_users_file_is_not_the_users(fails, run, monkeypatch):
    """This package's own bug is a traceback; where a user's task was loaded, which may have led to
    it, a line with the place.
    """
    from minigrpo.runs import evaluation

    fails(command="train --task mine.py:T --steps 1 --out run", code=0)
    assert run("train", "--steps", "1", "--dim", "8", "--out", "plain")[0] == 0
    space = {}
    exec(
        compile("def broken(*_, **__): raise KeyError('ours')", evaluation.__file__, "exec"), space
    )
    monkeypatch.setattr(evaluation, "evaluate", space["broken"])
    err = run("evaluate", "run", "--prompts", "2")[2]
    assert "your code failed: KeyError: 'ours' (line 1 of evaluation.py, in broken" in err
    with pytest.raises(KeyError, match="ours"):
        run("evaluate", "plain")


# -- code of the user's that stands elsewhere, and what is no lack of a part -----------------------

LIBRARY = """\
import sys

class Base:
    def score(self, rollouts):
        {line}

class Words:
    eos, vocab_size = None, 3
    def encode(self, text): return np.zeros(len(text), int)
    def decode(self, ids): raise LookupError("no word")

def later():
    yield 1.0
    sys.exit(0)

def endless(it):
    while True:
        yield next(it)
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A module on the search path, in another folder than the task's."""
    monkeypatch.syspath_prepend(tmp_path / "lib")
    (tmp_path / "lib").mkdir()

    def write(line="pass"):
        (tmp_path / "lib/mylib.py").write_text(LIBRARY.replace("{line}", line))

    yield write
    sys.modules.pop("mylib", None)


IN_A_LIBRARY = {
    "sys.exit(0)": "your code failed: SystemExit: 0 (line 5 of mylib.py, in score: sys.exit(0))",
    "{}['x']": "your code failed: KeyError: 'x' (line 5 of mylib.py, in score: {}['x'])",
    "raise ValueError('v')": "your code failed: ValueError: v (line 5 of mylib.py",
    "raise GeneratorExit": "your code failed: GeneratorExit (line 5 of mylib.py",
    "return self.nothing": (
        "your code failed: AttributeError: 'T' object has no "
        "attribute 'nothing' (line 5 of mylib.py"
    ),
    "import json; json.loads('')": "your code failed: JSONDecodeError: Expecting value",
}


@pytest.mark.parametrize("line", IN_A_LIBRARY)
def test_a_method_from_a_library_fails_in_its_place(line, fails, library):
    library(line)
    without = TASK[TASK.index("    def score") :]
    err = fails(without, "", "class T(__import__('mylib').Base, T): pass\nT.one = print\n")
    assert f"minigrpo train: {IN_A_LIBRARY[line]}" in err
    err = fails(added="import mylib\nT = mylib.Words\n")
    assert "has no attribute 'tokenizer'" in err
    err = fails(added="import mylib\nT.prompts = staticmethod(mylib.endless)\n")
    assert (
        "cannot be called with 3 arguments: TypeError: too many "
        "positional arguments (line 16 of mylib.py)"
    ) in err


ELSEWHERE = {
    "T.score = staticmethod(json.loads)": (
        "your code failed: TypeError: the JSON object must be str, bytes or"
    ),
    "T.score = staticmethod(operator.itemgetter(0))": (
        "your code failed: TypeError: 'Rollouts' object is not subscriptable (line "
    ),
    "T.is_correct = staticmethod(json.loads)": (
        "your code failed: TypeError: the JSON object must be str, bytes"
    ),
    "T.score = staticmethod(lambda r: mylib.later())": (
        "your code failed: SystemExit: 0 (line 14 of mylib.py, in later"
    ),
    "T.score = staticmethod(lambda r: map(sys.exit, [3]))": "your code failed: SystemExit: 3",
    (
        "T.prompts = staticmethod(lambda rng, n, split='': mylib.endless(iter([])))"
    ): "StopIteration (line 18 of mylib.py, in endless",
    "T.stop = staticmethod(json.loads)": (
        "your code failed: TypeError: the JSON object must be str, bytes or"
    ),
    "T.tokenizer = mylib.Words()": "your code failed: LookupError: no word (line 14 of mine.py, in "
    "score: return score_texts",
    "T.stop = property(operator.attrgetter('nothing'))": (
        "failed: AttributeError: 'T' object has no attribute 'nothing' (line "
    ),
}


@pytest.mark.parametrize("added", ELSEWHERE)
def test_a_part_from_elsewhere_fails_in_its_place(added, fails, library):
    library()
    err = fails(
        'encode("ab")',
        "encode('ab') * 0",
        f"import json, mylib, operator\nmylib.np = np\n{added}\n",
    )
    assert ELSEWHERE[added] in err


def test_what_this_package_says_itself_passes_as_it_is(fails, run):
    fails(command="train --task mine.py:T --steps 1 --out run", code=0)
    said = one_line(run("sample", "run", "--prompt", "xyz"))
    assert said.startswith("minigrpo sample: character 'x' is not in the alphabet 'ab'")


def test_the_library_raises_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text(TASK.replace(ONE, "        {}['x']"))
    with pytest.raises(KeyError, match="'x'"):
        train(TrainSettings.for_task(f"{tmp_path}/mine.py:T"), progress=False)


DECODE = "class C(CharTokenizer):\n    def decode(self, ids): next(iter([]))\nclass T:"
STOPS = {
    "a generator of prompts": (
        PROMPTS,
        "        return (next(iter([])) for _ in range(n))",
        "line 11 of mine.py, in <genexpr>",
    ),
    "half-way": (
        PROMPTS,
        "        it = iter([[0]]); return (next(it) for _ in range(n))",
        "line 11 of mine.py, in <genexpr>",
    ),
    "a generator of rewards": (
        SCORE,
        "        yield next(iter([]))",
        "line 14 of mine.py, in score: yield next(iter([]))",
    ),
    "decode": ("class T:", DECODE, "line 6 of mine.py, in decode"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_a_stop_iteration_is_told_in_its_place(case, fails):
    old, new, place = STOPS[case]
    err = fails(old, new, "T.tokenizer = C('ab')\n" if new == DECODE else "")
    assert (
        f"minigrpo train: your code failed: RuntimeError: generator raised StopIteration ({place}"
        in err
    )


@pytest.mark.parametrize("part", ["defaults", "demonstrations", "is_correct", "stop", "texts"])
@pytest.mark.parametrize("body", ["self.nothing", "exec('raise AttributeError')"])
def test_a_property_that_fails_is_not_a_part_that_lacks(part, body, fails):
    added = f"    {part} = property(lambda self: {body})\n"
    err = fails(
        "    defaults =", "    d =", added, "train --task mine.py:T --steps 1 --eval-every 1"
    )
    assert "your code failed: AttributeError" in err and "line 18 of mine.py, in <lambda>" in err


@pytest.mark.parametrize("part", ["defaults", "demonstrations", "is_correct"])
def test_a_property_of_a_task_of_text(part):
    class Base:
        texts, reward, max_new_tokens, stop = print, print, 1, None

    task = Tokenised(type("T", (Base,), {part: property(lambda self: self.nothing)})(), None)
    assert optional(Tokenised(Base(), None), part) is None
    with pytest.raises(AttributeError, match="nothing"):
        optional(task, part)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (
            "{'task': 'treewalk'}",
            "defaults of task 'mine.py:T' is no dict of settings, without a task,",
        ),
        (
            "{'task': 'mine.py:T', 'steps': 1}",
            "defaults of task 'mine.py:T' is no dict of settings, without a task",
        ),
        ("{3: 4}", "there is no setting 3: leave it out"),
        ("{None: 4, 'x': 1}", "there is no setting None, x"),
        ("{'objective_options': {3: 4}}", "objective_options is {3: 4}: it must be dict[str, Any]"),
        ("{'task_options': {3: 4}}", "task_options is {3: 4}: it must be dict[str, Any]"),
    ],
)
def test_defaults_that_are_no_settings_of_this_task(defaults, message, fails):
    assert message in fails("    defaults = {", f"    defaults = {defaults}\n    d = {{")


def test_a_folder_whose_name_begins_as_the_packages_does_is_not_the_package():
    import traceback

    from minigrpo.system.user_code import INSTALLED, _is_foreign

    inside, beside = (
        traceback.FrameSummary(f"{INSTALLED[0][:-1]}{end}", 1, "f")
        for end in ("/x.py", "_tasks/x.py")
    )
    assert not _is_foreign(inside)
    assert _is_foreign(beside)
