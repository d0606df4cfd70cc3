"""What the pictures share: axes where none were given, and operands as NumPy arrays."""

from typing import TYPE_CHECKING

import numpy as np

from jaxtrelu._primitive.spec import real_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes_or_new(axes: "Axes | None") -> "Axes":
    """The axes given, or those of a new figure."""
    if axes is not None:
        return axes
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def finite_numbers(values, name: str) -> np.ndarray:
    """The values in float64; an error if there are none, or NaN or infinity among them."""
    array = np.asarray(real_array(values, name)).astype(np.float64)
    if not array.size:
        raise ValueError(f"`{name}` of shape {array.shape} has no elements to draw.")
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` should be finite, and hold no NaN.")
    return array
