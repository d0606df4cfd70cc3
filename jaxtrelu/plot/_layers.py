"""Pictures of layers and of what was measured on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.scipy.special import ndtr
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu.plot._axes import axes_or_new, finite_numbers
from jaxtrelu.plot._palette import GREY, SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 512


def sparsity(
    data: Float[ArrayLike, "..."],
    *,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws the share of closed entries against the threshold: of the data, and of a normal law.

    The dashed line is what `jaxtrelu.theory.gaussian_cutoff` assumes: the normal distribution of
    the data's mean and deviation. Where the two part, that cutoff misses the wanted share.

    Args:
      data: pre-activations, of any shape.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError: `data` is not a real array.
      ValueError: no data, NaN or infinity in it, or all of it equal.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.sparsity(np.arange(5.0), axes=Figure().subplots())
      >>> float(axes.lines[0].get_ydata()[-1])  # above all of the data all is closed
      1.0

    Source: the definition.
    """
    values = np.sort(finite_numbers(data, "data"), axis=None)
    low, high = values[0], values[-1]
    if low == high:
        raise ValueError(f"all values of `data` are equal, {low:g}: there is nothing to draw.")
    threshold = np.linspace(low, high, _STEPS)
    share = np.searchsorted(values, threshold, side="right") / values.size
    normal = np.asarray(ndtr((threshold - values.mean()) / values.std()))
    axes = axes_or_new(axes)
    axes.plot(threshold, share, color=colour, label="data")
    axes.plot(threshold, normal, color=GREY, ls="--", label="normal, same mean and deviation")
    axes.set(xlabel="threshold", ylabel="share of zeros", ylim=(0, 1.02))
    axes.legend()
    return axes


def thresholds(
    values: Float[ArrayLike, "..."],
    *,
    bins: int = 40,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws a histogram of thresholds, and their median.

    Args:
      values: the thresholds of a layer's channels, of any shape.
      bins: how many bars.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError: `values` is not a real array.
      ValueError: no values, or NaN or infinity among them.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.thresholds(np.arange(9.0), bins=3, axes=Figure().subplots())
      >>> [float(bar.get_height()) for bar in axes.patches]
      [3.0, 3.0, 3.0]

    Source: the definition.
    """
    numbers = finite_numbers(values, "values").ravel()
    axes = axes_or_new(axes)
    axes.hist(numbers, bins=bins, color=colour)
    axes.axvline(float(np.median(numbers)), color=GREY, ls="--", label="median")
    axes.set(xlabel="threshold", ylabel="channels")
    axes.legend()
    return axes


def accuracy(
    sparsity: Float[ArrayLike, " n"],
    accuracy: Float[ArrayLike, " n"] | Float[ArrayLike, "runs n"],
    *,
    dense: float | None = None,
    label: str | None = None,
    colour: str = SEQUENCE[0],
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws accuracy against the share of zeros; with several runs the mean and all of the runs.

    Args:
      sparsity: the shares of zeros.
      accuracy: one for each, or a row of them for each run.
      dense: the accuracy without a threshold, drawn as a line across.
      label: for the legend.
      colour: any colour of Matplotlib's.
      axes: what to draw on; by default new ones.

    Returns:
      The axes.

    Raises:
      TypeError: an operand is not a real array.
      ValueError: shapes that do not fit, no values, or NaN or infinity among them.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> axes = plot.accuracy([0.5, 0.9], [[0.8, 0.6], [0.9, 0.8]], axes=Figure().subplots())
      >>> axes.lines[0].get_ydata().round(2).tolist()
      [0.85, 0.7]

    Source: the definition.
    """
    share, values = finite_numbers(sparsity, "sparsity"), finite_numbers(accuracy, "accuracy")
    if share.ndim != 1 or values.ndim not in (1, 2) or values.shape[-1] != share.size:
        raise ValueError(
            "`sparsity` should have shape (n,) and `accuracy` (n,) or (runs, n), but they have "
            f"{share.shape} and {values.shape}."
        )
    order = np.argsort(share)
    runs = np.atleast_2d(values)[:, order]
    axes = axes_or_new(axes)
    axes.plot(share[order], runs.mean(0), color=colour, marker="o", ms=4, label=label)
    if len(runs) > 1:
        axes.plot(share[order], runs.T, color=colour, lw=0.7, alpha=0.4)
    if dense is not None:
        axes.axhline(dense, color=GREY, ls="--", label="without a threshold")
    axes.set(xlabel="share of zeros", ylabel="accuracy")
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    return axes


def activations(
    x: Float[ArrayLike, "rows features"],
    *,
    names: Sequence[str] | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draws a layer's activations as a heat map.

    A line an example, a column a feature, and zeros blank.

    Args:
      x: the activations; what is exactly 0 stays blank, so that sparsity is seen as such.
      names: of the examples, beside their lines.
      axes: what to draw on; by default new ones.

    Returns:
      The axes, whose title says the share of zeros.

    Raises:
      TypeError: `x` is not a real array.
      ValueError: another shape than (rows, features), no elements, NaN or infinity, or another
        number of names than of rows.

    Example:
      >>> import jax, jaxtrelu
      >>> from matplotlib.figure import Figure
      >>> from jaxtrelu import plot
      >>> x = jaxtrelu.thresholded_relu(jax.random.normal(jax.random.key(0), (8, 100)))
      >>> plot.activations(x, axes=Figure().subplots()).get_title().endswith("% zeros")
      True

    Source: the definition.
    """
    values = finite_numbers(x, "x")
    if values.ndim != 2:
        raise ValueError(f"`x` should have shape (rows, features), but has {values.shape}.")
    if names is not None and len(names) != len(values):
        raise ValueError(f"`names` should be {len(values)}, one a row, but are {len(names)}.")
    axes = axes_or_new(axes)
    shown = np.ma.masked_equal(values, 0)
    # About 0, so that what is negative looks it.
    signed = bool((values < 0).any())
    reach = float(np.abs(values).max()) or 1.0
    image = axes.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "viridis",
        vmin=-reach if signed else 0,
        vmax=reach,
    )
    figure = axes.get_figure()
    assert figure is not None, "axes that are drawn on belong to a figure"
    figure.colorbar(image, ax=axes)
    if names is not None:
        axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.set(xlabel="feature", ylabel="example", title=f"{100 * np.mean(values == 0):.1f} % zeros")
    return axes
