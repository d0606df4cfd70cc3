"""The activations that commands compare and draw, how figures look, and how they become files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtrelu.plot._palette import COLOURS, FAINT, GREY, SEQUENCE

__all__ = ["COLOURS", "FAINT", "GREY", "PEERS", "SEQUENCE", "VARIANTS", "applied", "to_bytes"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEERS = ("relu", "leaky_relu", "prelu", "gelu", "elu")
VARIANTS = ("shift", "hard", "clamp")  # of thresholded ReLU

_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    # The same data give the same bytes.
    "svg.hashsalt": "jaxtrelu",
}
_METADATA: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


@contextmanager
def applied() -> Iterator[None]:
    """Figures made inside look like the others, and no setting leaks out."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def to_bytes(figure: "Figure", kind: str, dpi: float | None = None) -> bytes:
    """The figure as the content of a file of this kind: png, svg or pdf."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=_METADATA[kind], facecolor="white", dpi=dpi)
    return stream.getvalue()
