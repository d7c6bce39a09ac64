"""Write the vectors: right numbers by the package, wrong numbers by making/mistakes.py.

python vectors/make.py           # writes grpo.json and llama.json beside this file
python vectors/make.py FOLDER    # writes them there
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from making.grpo import grpo
from making.llama import llama


def text_of(value: Any, depth: int = 0) -> str:
    """JSON with one line for each list of numbers."""
    pad = " " * (depth + 1)
    if isinstance(value, dict) and value:
        inner = [f"{pad}{json.dumps(k)}: {text_of(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner) + "\n" + pad[1:] + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        inner = [pad + text_of(v, depth + 1) for v in value]
        return "[\n" + ",\n".join(inner) + "\n" + pad[1:] + "]"
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def main(folder: Path) -> None:
    """Make both files and say how large they are."""
    for name, content in {"grpo": grpo(), "llama": llama()}.items():
        path = folder / f"{name}.json"
        path.write_text(text_of(content) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
