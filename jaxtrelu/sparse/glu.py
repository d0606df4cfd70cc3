"""The elementwise gated unit."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu.functions import thresholded_relu


def thresholded_glu(
    gate: ArrayLike, up: ArrayLike, threshold: ArrayLike, *, variant: str = "hard"
) -> jax.Array:
    """``thresholded_relu(gate, threshold) * up``, elementwise: FATReLU's gated unit.

    Convention at the threshold: the gate is closed at ``gate == threshold``, and the derivative 0.
    A product, as the field defines it: where the gate is closed the value is ``0 * up``, which is
    NaN beside a NaN or infinite `up`.

    Args:
      gate: array of any shape, floating point.
      up: array of the same shape and dtype.
      threshold: a number or an array that broadcasts against `gate` to its shape, in its units.
      variant: ``"hard"`` (FATReLU) or ``"shift"``.

    Returns:
      An array of the shape and dtype of `gate`.

    Raises:
      TypeError: an operand is not a real array.
      ValueError: the shapes or dtypes of `gate` and `up` differ, or ``variant="clamp"``, which has
        no zeros.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> gate, up = jnp.array([0.5, 1.0, 2.0]), jnp.array([3.0, 3.0, 3.0])
      >>> jaxtrelu.thresholded_glu(gate, up, 1.0).tolist()
      [0.0, 0.0, 6.0]

    Source: vLLM's ``fatrelu_and_mul``; Kurtz et al. 2020 (FATReLU).
    """
    if variant == "clamp":
        raise ValueError(
            "variant='clamp' is max(gate, threshold), which closes nothing. Pass 'hard' or 'shift'."
        )
    value = thresholded_relu(gate, threshold, variant=variant)
    up = jnp.asarray(up)
    if up.shape != value.shape or up.dtype != value.dtype:
        raise ValueError(
            f"`up` should have the shape and dtype of `gate`, {value.shape} and {value.dtype}, but "
            f"has {up.shape} and {up.dtype}."
        )
    return value * up
