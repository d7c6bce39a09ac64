"""The names that others rely on, who may import whom, and the style that a machine can check."""

import ast
import doctest
import importlib
import inspect
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import minigrpo as mg
from minigrpo.command.cli import main

PACKAGE = Path(mg.__file__).parent
FILES = sorted(f for f in PACKAGE.rglob("*.py") if PACKAGE / "data" not in f.parents)
GROUP = [[1, 2, 3], [1, 2], [1, 4], [5], [1, 2, 3]]


parse = cache(ast.parse)


def parsed(file):
    return parse(file.read_text(encoding="utf-8"))


def identity(file):
    return str(file.relative_to(PACKAGE))


# -- names and what they mean ----------------------------------------------------------------------


def test_the_tree():
    tree = mg.PrefixTree.from_sequences(GROUP)
    assert tree.paths.shape == (5, 3)
    for i, sequence in enumerate(GROUP):
        nodes = tree.paths[i, : len(sequence)]
        assert (tree.paths[i, len(sequence) :] == -1).all()
        assert tree.token[nodes].tolist() == sequence
        assert tree.parent[nodes].tolist() == [-1, *nodes[:-1].tolist()]
        assert tree.depth[nodes].tolist() == list(range(len(sequence)))
        shared = [
            sum(other[: t + 1] == sequence[: t + 1] for other in GROUP)
            for t in range(len(sequence))
        ]
        assert tree.count[nodes].tolist() == shared
    assert {len(x) for x in (tree.token, tree.parent, tree.depth, tree.count)} == {
        5
    }  # distinct (prefix, token): 1 12 123 14 5
    steps = {(step.members, step.start, step.end) for step in tree.steps()}
    assert steps == {
        ((0, 1, 2, 3, 4), 0, 0),
        ((0, 1, 2, 4), 0, 1),
        ((0, 1, 4), 1, 2),
        ((0, 4), 2, 3),
        ((2,), 1, 2),
        ((3,), 0, 1),
    }


def test_weights_and_step_rewards():
    weights = mg.lambda_weights(GROUP)
    assert [w.dtype for w in weights] == [np.float64] * 5
    assert [w.tolist() for w in weights] == [
        [1 / 4, 1 / 3, 1 / 2],
        [1 / 4, 1 / 3],
        [1 / 4, 1],
        [1],
        [1 / 4, 1 / 3, 1 / 2],
    ]
    tree = mg.PrefixTree.from_sequences(GROUP)
    values = mg.step_rewards(tree, np.array([1.0, 0.0, 2.0, 5.0, 4.0]))
    assert values[tree.paths[0]].tolist() == pytest.approx([7 / 4, 5 / 3, 5 / 2])
    assert values[tree.paths[3, 0]] == 5


def test_the_transformer():
    names = list(inspect.signature(mg.TransformerConfig).parameters)
    wanted = [
        "vocab_size",
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "ffn_dim",
        "max_seq_len",
        "rope_base",
        "norm_eps",
    ]
    assert names == [
        *wanted,
        "tie_embeddings",
        "head_dim",
        "n_drawable",
        "model_type",
        "rope_scaling",
    ]
    arguments = inspect.signature(mg.Transformer).parameters
    assert [(name, p.default) for name, p in arguments.items()][1:] == [
        ("seed", 0),
        ("backend", "numpy"),
        ("dtype", "float32"),
    ]
    assert next(iter(arguments)) == "config"
    model = mg.Transformer(mg.TransformerConfig(7, 16, 1, 4, 2, 24, 32, 10_000.0, 1e-5, False))
    assert isinstance(model.parameters, Mapping)
    assert model.parameters.flat.ndim == 1
    assert model.parameters.flat.size == sum(view.size for view in model.parameters.values())
    for views in (model.parameters, model.gradients):
        views.flat[:] = np.arange(views.flat.size)
        assert all(np.shares_memory(view, views.flat) for view in views.values())
        assert (
            np.concatenate([view.ravel() for view in views.values()]).tolist()
            == views.flat.tolist()
        )
    assert list(model.gradients) == list(model.parameters)


@pytest.mark.parametrize(
    "name", ["grpo", "dapo", "dr_grpo", "rloo", "reinforce", "lambda_grpo", "prm", "grpo_original"]
)
def test_the_loop_that_a_reader_finds_first(name):
    """Each part of the loop is one line, and the policy gets better."""
    from minigrpo.engine.optim import AdamW
    from minigrpo.tasks import load_task

    objective = mg.Objective.preset(name, beta=0.01)
    task, rng = load_task("treewalk", depth=3, r_neg=0.0, r_other=0.0), np.random.default_rng(0)
    model = mg.Transformer(
        mg.TransformerConfig(vocab_size=3, dim=16, n_drawable=2, n_layers=1, n_heads=2)
    )
    optimizer, first = AdamW(model.parameters), model.parameters.flat.copy()
    history = []
    for _ in range(40):
        prompts = task.prompts(rng, 2)
        rollouts = mg.sample(model, prompts, 8, rng, max_new_tokens=task.max_new_tokens)
        rewards = task.score(rollouts)
        ref = model.forward(rollouts.tree, keep=False) * 0 + np.log(0.5) * rollouts.tree.scored
        logp = model.forward(rollouts.tree)
        loss, dlogp = objective(rollouts, rewards, logp, rollouts.logp, ref)
        model.gradients.flat[:] = 0
        grads = model.backward(dlogp)
        optimizer.step(model.parameters, grads, 0.01)
        assert np.isfinite(loss)
        assert logp.shape == dlogp.shape == (rollouts.tree.n_nodes,)
        history.append(rewards.mean())
    assert grads is model.gradients
    assert (model.parameters.flat != first).any()
    assert np.mean(history[-5:]) > 2 * np.mean(history[:5])


def test_names_in_their_rooms():
    from minigrpo.engine.backend import get_backend
    from minigrpo.rewards import step_rewards
    from minigrpo.runs.evaluation import evaluate
    from minigrpo.runs.train import train
    from minigrpo.sampler import sample
    from minigrpo.tasks import Task
    from minigrpo.tree import Rollouts

    assert all(callable(f) for f in (get_backend, step_rewards, sample, evaluate, train))
    assert {"prompts", "score", "tokenizer", "max_new_tokens"} <= set(dir(Task))
    assert (mg.sample, mg.Rollouts, mg.step_rewards, mg.get_backend) == (
        sample,
        Rollouts,
        step_rewards,
        get_backend,
    )
    assert all(hasattr(mg, name) for name in mg.__all__)


def test_commands_and_flags(capsys):
    flags = {name: [] for name in ("evaluate", "sample", "tree", "equivalence", "plot", "bench")}
    flags |= {"demo": ["out"], "reproduce": ["quick", "out"]}
    flags["train"] = ["task", "objective", "steps", "seed", "out", "group-size", "learning-rate"]
    flags["train"] += ["checkpoint-every", "resume", "backend", "dtype"]
    for command, names in flags.items():
        with pytest.raises(SystemExit, match=r"^0$"):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(f" --{name} " in text for name in names), command


# -- who imports whom ------------------------------------------------------------------------------


def imports(file):
    """(imported module, whether it is imported at the top level) for every import in a file."""
    tree = parsed(file)
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{identity(file)} has a relative import"
            yield from (
                (name, id(node) in top)
                for name in {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
            )
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((a.value, False) for a in node.args if isinstance(a, ast.Constant))


def module_name(file):
    parts = ["minigrpo", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(graph):
    """A circle in a graph, or None."""
    done = set()

    def visit(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for target in sorted(graph[node]):
                if found := visit(target, [*path, node]):
                    return found
            done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node, []))), None)


# The rules of who may import whom stand here and nowhere else.  These are the rooms of the package,
# the lowest floor first.  A module may import what stands on a lower floor, and modules of its own
# room.  So the textbook's seven files know nothing of tasks, runs, figures and commands, and the
# engine knows nothing of objectives.  Imports inside functions and for type checkers count, too.
FLOORS = [
    ["tree"],
    ["engine"],
    ["system"],
    ["ops", "rewards"],
    ["transformer", "objectives"],
    ["sampler"],
    ["trainer"],
    ["models", "tasks", "verify"],
    ["runs"],
    ["logs"],
    ["show"],
    ["course", "experiments", "integrations"],
    ["command"],
    ["__main__"],
]
TEXTBOOK = ["tree", "rewards", "objectives", "ops", "transformer", "sampler", "trainer"]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports_of_all():
    """The modules of the package that each module imports."""
    modules = {module_name(file): file for file in FILES}
    public = {f"minigrpo.{name}": getattr(mg, name).__module__ for name in mg.__all__}
    graph = {}
    for name, file in modules.items():
        found = {public.get(m, m) for m, _ in imports(file)}
        assert not [m for m in found if m.endswith(".*")], f"{name} imports *"
        assert name == "minigrpo" or not imports_the_package(file), f"{name} imports minigrpo"
        graph[name] = {m for m in found if m in modules and m != "minigrpo"} - {name}
    graph["minigrpo"] = set()  # it collects names from below, and no one asks it for them
    return graph


def imports_the_package(file):
    """Whether a file has a plain `import minigrpo`, through which it could reach everything."""
    nodes = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.Import)]
    return any(alias.name == "minigrpo" for node in nodes for alias in node.names)


def broken_rules(graph):
    """The imports that the floors forbid."""
    edges = [(name, other) for name, others in graph.items() for other in others]
    rooms = [(a, b, a.split(".")[1], b.split(".")[1]) for a, b in edges]
    return sorted(
        (a, b) for a, b, of_a, of_b in rooms if of_a != of_b and FLOOR[of_b] >= FLOOR[of_a]
    )


def test_who_imports_whom():
    graph = imports_of_all()
    assert {name.split(".")[1] for name in graph if name != "minigrpo"} == set(FLOOR)
    assert broken_rules(graph) == []
    assert circle(graph) is None


@pytest.mark.parametrize(
    "edge",
    [
        *("tree trainer", "engine.plan objectives", "engine.lanes ops", "trainer runs.settings"),
        *("sampler tasks", "objectives show.drawing", "runs.train command.cli"),
        *("logs.groups show.drawing", "rewards sampler"),
    ],
)
def test_a_forbidden_import_is_found(edge):
    name, other = (f"minigrpo.{module}" for module in edge.split())
    assert (name, other) in broken_rules({name: {other}})


@pytest.mark.parametrize(
    "text",
    [
        *(
            "from minigrpo import train",
            "from minigrpo.runs import train",
            "import minigrpo.runs.train",
        ),
        *(
            "def f():\n    from minigrpo.runs.train import train",
            "import minigrpo",
            "from minigrpo import *",
        ),
        *("import importlib\nimportlib.import_module('minigrpo.runs.train')",),
    ],
)
def test_an_import_of_any_form_is_seen(text, tmp_path, monkeypatch):
    """In a copy of a few files, of which one of the textbook imports what it must not."""
    copy = tmp_path / "minigrpo"
    (copy / "runs").mkdir(parents=True)
    for name in ("__init__.py", "rewards.py", "tree.py", "runs/__init__.py", "runs/train.py"):
        shutil.copy(PACKAGE / name, copy / name)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", copy)
    monkeypatch.setattr(sys.modules[__name__], "FILES", sorted(copy.rglob("*.py")))
    assert broken_rules(imports_of_all()) == []
    with (copy / "rewards.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    with pytest.raises(AssertionError, match=r"runs|imports"):
        assert broken_rules(imports_of_all()) == []


def test_a_circle_inside_a_room_is_found():
    graph = imports_of_all() | {"minigrpo.engine.backend": {"minigrpo.engine.plan"}}
    assert broken_rules(graph) == []
    assert set(circle(graph)) >= {"minigrpo.engine.backend", "minigrpo.engine.plan"}


def room_of_a_notebook(file):
    """Whether only notebooks ask for it, which have IPython's matplotlib_inline."""
    return file == PACKAGE / "course/figures.py"


def test_what_is_imported_from_elsewhere():
    """There are four dependencies; anything else is imported only where it is used.

    PyTorch comes in only with somebody else's trainer.
    """
    for file in FILES:
        others = (
            {"torch", "trl", "transformers", "accelerate", "verl", "omegaconf"}
            if file.parent.name == "integrations"
            else set()
        )
        for name, at_top in imports(file):
            room = name.split(".")[0]
            known = {
                "minigrpo",
                "numpy",
                "matplotlib",
                "tqdm",
                "threadpoolctl",
                "__future__",
            } | others
            if room not in sys.stdlib_module_names | known:
                assert not at_top, f"{identity(file)} imports {name}"
                extras = {"cupy", "safetensors", "tokenizers", "gguf", "jinja2", "pyarrow"}
                extras |= {"matplotlib_inline"} if room_of_a_notebook(file) else set()
                assert room in extras, f"{identity(file)} imports {name}"


def test_the_core_knows_nothing_of_integrations():
    """They stand on it, and it runs without them."""
    for file in FILES:
        if file.parent.name != "integrations":
            assert not any(name.startswith("minigrpo.integrations") for name, _ in imports(file)), (
                identity(file)
            )


def test_importing_the_package_is_quick():
    code = "import sys, minigrpo, minigrpo.command.cli, minigrpo.trainer; "
    code += "print(*({'matplotlib', 'cupy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(("module", "title"), [("trl", "TRL"), ("verl", "verl")])
def test_an_integration_without_its_library_says_what_to_install(module, title, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"minigrpo.integrations.{module}", raising=False)
    wanted = rf'needs {title} \(.*\): pip install "minigrpo\[{module}\]"'
    with pytest.raises(ImportError, match=wanted):
        importlib.import_module(f"minigrpo.integrations.{module}")


# -- house rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTBOOK)
def test_a_signature_has_at_most_seven_parameters(name):
    for node in ast.walk(parsed(PACKAGE / f"{name}.py")):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            a = node.args
            names = [
                x.arg for x in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if x
            ]
            assert len(set(names) - {"self", "cls"}) <= 7, getattr(node, "name", "lambda")


def test_the_package_is_light():
    """Whoever adds says what could go."""

    def lines(files):
        return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)

    def lines_of_examples(file):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        texts = [ast.get_docstring(n) or "" for n in ast.walk(parsed(file)) if isinstance(n, kinds)]
        found = [e for text in texts for e in doctest.DocTestParser().get_examples(text)]
        return sum((example.source + example.want).count("\n") for example in found)

    # The textbook's limit is for what is read in order.  The examples that each public name has in
    # its docstring, with their output, are for looking up, and may add a few lines.
    textbook = [PACKAGE / f"{name}.py" for name in TEXTBOOK]
    examples = sum(map(lines_of_examples, textbook))
    assert lines(textbook) - examples <= 1500
    assert lines(textbook) <= 1540
    assert lines(FILES) <= 20_737


@pytest.mark.parametrize("file", FILES, ids=identity)
def test_a_file_is_a_chapter(file):
    tree = parsed(file)
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 330
    assert ast.get_docstring(tree), "it opens with what it is for"
    public = [
        n
        for n in tree.body
        if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")
    ]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


@pytest.mark.parametrize("name", mg.__all__)
def test_what_is_exported_says_what_it_is(name):
    thing = getattr(mg, name)
    assert thing.__doc__
    for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not attribute.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
        ):
            assert value.__doc__, f"{name}.{attribute}"


@pytest.mark.parametrize("file", FILES, ids=identity)
def test_nothing_is_evaluated_or_unpickled(file):
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not forbidden & {name.split(".")[0] for name, _ in imports(file)}
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system"), called
            assert called not in ("np.load", "np.save", "np.savez", "numpy.load"), (
                f"{called}: checkpoints are runs.py's"
            )
            assert all(keyword.arg not in ("shell", "allow_pickle") for keyword in node.keywords)
