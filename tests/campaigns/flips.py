"""Every bit of settings.json flipped, one at a time."""

from pathlib import Path

from .damages import flip, prepare, trial

__all__ = ["WHAT", "case", "cases", "prepare"]
WHAT = "each bit of `settings.json`; then evaluate, resume"


def cases() -> int:
    """How many bits there are."""
    return 8 * len(Path("walk-stopped/settings.json").read_bytes())


def case(bit: int) -> dict:
    """One bit is another: evaluate and resume."""

    def hurt(folder: Path) -> tuple[Path, str]:
        file = folder / "settings.json"
        file.write_bytes(flip(file.read_bytes(), bit))
        return file, f"bit {bit}"

    return trial("walk-stopped", hurt, ("evaluate",))
