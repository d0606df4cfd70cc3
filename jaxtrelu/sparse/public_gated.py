"""The public door of the gated product: operands checked, flattened and given to `gated`."""

import jax
from jax.typing import ArrayLike

from jaxtrelu._door import canonical_spec
from jaxtrelu.sparse.checks import check_shapes, check_spec, floating, list_size, per_feature
from jaxtrelu.sparse.gated import FEW_ROWS, GatedOperands, gated, gated_dense
from jaxtrelu.sparse.latent import CROSSOVER, DIRECT, Plan
from jaxtrelu.sparse.loops import alike

# As `CROSSOVER`, for a few rows, in which weights are read and hardly anything else happens.
CROSSOVER_FEW_ROWS = 1 / 2


def gated_mlp(
    x: ArrayLike,
    w_gate: ArrayLike,
    w_up: ArrayLike,
    w_out: ArrayLike,
    threshold: ArrayLike,
    *,
    variant: str = "hard",
    capacity: int | None = None,
) -> jax.Array:
    """``(thresholded(x @ w_gate.T) * (x @ w_up.T)) @ w_out``, reading open rows of weights only.

    The first product is dense; of `w_up` and `w_out` only those rows are read whose gate is open:
    for one row, as in decoding, in rounds of small dense products; for batches, entry by entry. The
    result is that of the dense function to rounding: where more gates are open than `capacity`
    allows for, dense products are taken, chosen on the device.

    Convention at the threshold: open where ``x @ w_gate.T > threshold``, strictly; NaN is open.

    Args:
      x: (..., d), floating point.
      w_gate: (h, d), feature-major.
      w_up: (h, d), feature-major.
      w_out: (h, d_out), feature-major.
      threshold: a number or (h,), in the units of the gate's pre-activations.
      variant: ``"hard"`` (FATReLU) or ``"shift"`` (shifted ReLU).
      capacity: the mean number of open gates per row up to which the sparse path is taken; a hint,
        not a limit. Default: h / 2 for up to 8 rows, h / 32 for more, about where dense becomes
        faster on a CPU.

    Returns:
      y of shape (..., d_out), in x's dtype, summed in float32 at least. Differentiable with respect
      to all operands.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, or ``variant="clamp"`` (it has no zeros).

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> x, w = jnp.array([1.0, 2.0]), jnp.eye(2)
      >>> jaxtrelu.gated_mlp(x, w, 10 * w, w, 1.0).tolist()
      [0.0, 40.0]

    Source: Kurtz et al. 2020 (FATReLU); Mirzadeh et al. 2023, arXiv 2310.04564.
    """
    spec = canonical_spec(variant)
    check_spec(spec)
    x, w_gate = floating("x", x), floating("w_gate", w_gate)
    w_up, w_out = floating("w_up", w_up), floating("w_out", w_out)
    check_shapes(x, w_gate, None, w_out, None, "w_gate")
    if w_up.shape != w_gate.shape:
        raise ValueError(
            f"`w_up` should have the shape of `w_gate`, {w_gate.shape}, but has {w_up.shape}."
        )
    rows = x.reshape(-1, x.shape[-1])
    share = CROSSOVER_FEW_ROWS if rows.shape[0] <= FEW_ROWS else CROSSOVER
    size = list_size(capacity, rows.shape[0], w_gate.shape[0], share)
    threshold = per_feature(threshold, w_gate)
    operands = alike(GatedOperands(rows, w_gate, w_up, w_out, threshold))
    product = gated if rows.size and w_gate.size and w_out.size else gated_dense
    y = product(Plan(spec, size, DIRECT), operands)
    return y.astype(x.dtype).reshape(*x.shape[:-1], w_out.shape[1])
