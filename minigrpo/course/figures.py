"""How the chapters draw."""

import matplotlib.pyplot as plt

from minigrpo.show.drawing import STYLE
from minigrpo.show.plots import METADATA


def notebook_style(kind: str = "svg") -> None:
    """Draw this notebook's figures in the package's style, sharp on a projector.

    kind: "svg", or "retina", which is smaller where a figure has thousands of marks.
    """
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.rcParams.update(STYLE | {"text.parse_math": True, "figure.dpi": 85})
    set_matplotlib_formats(kind, metadata=METADATA["svg" if kind == "svg" else "png"])
