"""Python files that a user brings, such as a task or answers to exercises: always run from their source.

Python's own import would read and write bytecode beside the file, and bytecode is stale where a file is saved again within the
same second.  The file may import its neighbours, as a script may.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

_last_on_path: list[str] = []  # the folder of the file that was run last


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Without a look at bytecode, which the base class would take where it is as old as the file."""
        return self.source_to_code(self.get_data(self.path), self.path)


def run_file(path: Path, name: str) -> ModuleType:
    """Run a Python file as the module `name`.   -> the module.   Raises whatever the file raises, SyntaxError if it is no Python.

    Its folder comes first on the search path while it runs, and last afterwards, for imports inside its functions, until another
    file is run.  Neighbours of an earlier run are imported anew.
    """
    path = Path(path).resolve()
    folder = str(path.parent)
    for neighbour in [n for n, m in list(sys.modules.items()) if getattr(m, "__minigrpo_neighbour__", False)]:
        del sys.modules[neighbour]
    spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    module = module_from_spec(spec)
    known, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.modules[name] = module  # dataclasses look their module up by name
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(folder)
        while _last_on_path:
            left = _last_on_path.pop()
            if left in sys.path:
                sys.path.remove(left)
        if folder not in sys.path:
            sys.path.append(folder)
            _last_on_path.append(folder)
        for new in set(sys.modules) - known - {name}:
            top = new.partition(".")[0]
            if top not in known and _stands_in(sys.modules.get(top), path.parent):
                sys.modules[new].__minigrpo_neighbour__ = True
    return module


def _stands_in(module: ModuleType | None, folder: Path) -> bool:
    file = Path(getattr(module, "__file__", None) or "/")
    return folder in (file.parent, file.parent.parent if file.name == "__init__.py" else None)
