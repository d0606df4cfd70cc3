"""The public door of the sparse products: operands checked, flattened and given to `fused`."""

import jax
from jax.typing import ArrayLike

from jaxtrelu._door import canonical_spec
from jaxtrelu.sparse.activity import Activity
from jaxtrelu.sparse.checks import bias, check_shapes, check_spec, floating, list_size, per_feature
from jaxtrelu.sparse.gated import FEW_ROWS, GatedOperands, gated, gated_dense
from jaxtrelu.sparse.latent import Plan
from jaxtrelu.sparse.loops import alike
from jaxtrelu.sparse.mlp import Operands, fused, nothing
from jaxtrelu.surrogates import Surrogate

# Share of open entries from which on dense products are faster, on a CPU (see the benchmark).
CROSSOVER = 1 / 32
# The same for the gated product of a few rows, in which weights are read and hardly anything else.
CROSSOVER_FEW_ROWS = 1 / 2
# Entries per feature summed in the first pass over a weight gradient.
_DIRECT = 4


def sparse_mlp(
    x: ArrayLike,
    w_in: ArrayLike,
    b_in: ArrayLike | None,
    threshold: ArrayLike,
    w_out: ArrayLike,
    b_out: ArrayLike | None = None,
    *,
    variant: str = "hard",
    ceiling: float | None = None,
    surrogate: Surrogate | None = None,
    capacity: int | None = None,
) -> tuple[jax.Array, Activity]:
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, in which only the first product is dense.

    The second product, the latent's gradient and both weight gradients visit open entries only (for
    a threshold that learns: open or inside the surrogate's window). The result is that of the dense
    function to rounding, always: where more entries are open than `capacity` allows for, dense
    products are taken, chosen on the device.

    Convention at the threshold: open where ``x > threshold``, strictly; NaN is open. A closed entry
    contributes nothing, also beside a weight that is NaN or infinite.

    Args:
      x: (..., d), floating point.
      w_in: (m, d), feature-major.
      b_in: (m,), or None.
      threshold: a number or (m,), in the units of the pre-activations.
      w_out: (m, d_out), feature-major.
      b_out: (d_out,), or None.
      variant: ``"hard"`` or ``"shift"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``: JumpReLU.
      capacity: the mean number of entries per row up to which the sparse path is taken; a hint, not
        a limit. Single rows may hold any number. Default: m / 32 (at least 32), about where dense
        becomes faster on a CPU. Lists of ``capacity`` entries per row are part of the record, so a
        smaller number that still suffices saves memory.

    Returns:
      ``(y, activity)``: y of shape (..., d_out) in x's dtype, summed in float32 at least; and the
      `Activity`, on which penalties can be built.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, ``variant="clamp"`` (it has no zeros), or a surrogate of
        unbounded support.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> key = jax.random.key(0)
      >>> x, w = jax.random.normal(key, (4, 8)), jax.random.normal(key, (64, 8))
      >>> y, activity = jaxtrelu.sparse_mlp(x, w, None, 5.0, w)
      >>> dense = jaxtrelu.thresholded_relu(x @ w.T, 5.0, variant="hard") @ w
      >>> bool(jnp.allclose(y, dense, atol=1e-4)), activity.l0.shape
      (True, (4,))

    Source: exact sparse products for JumpReLU (arXiv 2407.14435) and for thresholded feed-forward
    layers (arXiv 2310.04564).
    """
    spec = canonical_spec(variant, ceiling, 0, surrogate)
    check_spec(spec)
    x, w_in, w_out = floating("x", x), floating("w_in", w_in), floating("w_out", w_out)
    b_in, b_out = bias("b_in", b_in), bias("b_out", b_out)
    threshold = per_feature(threshold, w_in)
    check_shapes(x, w_in, b_in, w_out, b_out)
    lead, features = x.shape[:-1], w_in.shape[0]
    rows = x.reshape(-1, x.shape[-1])
    plan = Plan(spec, list_size(capacity, rows.shape[0], features, CROSSOVER), _DIRECT)
    operands = Operands(rows, w_in, b_in, threshold, w_out)
    operands = alike(operands)
    if rows.size and w_in.size and w_out.size:
        y, activity = fused(plan, operands)
    else:
        y, activity = nothing(plan, operands)
    if b_out is not None:
        y = y + b_out.astype(y.dtype)
    activity = activity._replace(counts=activity.counts.reshape(lead), l0=activity.l0.reshape(lead))
    return y.astype(x.dtype).reshape(*lead, w_out.shape[1]), activity


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
    y = product(Plan(spec, size, _DIRECT), operands)
    return y.astype(x.dtype).reshape(*x.shape[:-1], w_out.shape[1])
