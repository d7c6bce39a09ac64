"""What pyproject.toml cannot say: files from outside the package that go into the wheel, and the
README as an index shows it.

The exercises and the measured tables stay where readers of the repository look for them. A wheel
carries copies of them in `minigrpo/data`, and `minigrpo/system/files.py` finds either.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SHIPPED = ["results/*.json", "benchmarks/results.json", "tutorials/exercises/*.py"]


def shipped_files() -> list[str]:
    """The files that a wheel carries besides the package, as paths in the repository."""
    found = [
        path.relative_to(ROOT).as_posix()
        for pattern in SHIPPED
        for path in sorted(ROOT.glob(pattern))
    ]
    assert len(found) > len(SHIPPED), (
        "run this from the whole repository or from the whole source distribution"
    )
    return found


def index_page(readme: str) -> str:
    """The README without its pictures, their captions and relative links."""
    readme = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n+(\*(?:[^\n]+\n)+\n)?", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[((?:\\.|[^\[\]\\])*)\]\((?!https?://|#)[^)\s]*\)", r"\1", readme)


def main() -> None:
    """Called by the build backend."""
    from setuptools import setup
    from setuptools.command.build_py import build_py

    class BuildWithShipped(build_py):
        def run(self) -> None:
            """Copy the package, and the files; an editable installation reads the originals."""
            super().run()
            for name in [] if self.editable_mode else shipped_files():
                target = Path(self.build_lib, "minigrpo/data", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(ROOT / name), str(target))

    setup(
        cmdclass={"build_py": BuildWithShipped},
        long_description=index_page((ROOT / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )


if __name__ == "__main__":
    main()
