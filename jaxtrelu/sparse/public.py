"""The public door of the two-layer product: operands checked, flattened and given to `fused`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu._door import canonical_spec
from jaxtrelu.sparse.activity import Activity
from jaxtrelu.sparse.checks import bias, check_shapes, check_spec, floating, list_size, per_feature
from jaxtrelu.sparse.latent import CROSSOVER, DIRECT, Plan
from jaxtrelu.sparse.loops import alike
from jaxtrelu.sparse.mlp import Operands, forward, fused, nothing
from jaxtrelu.sparse.rows import RowGradients, row_gradients
from jaxtrelu.surrogates import Surrogate
from jaxtrelu.variants import Spec


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
    plan, operands, b_out = _prepared(spec, capacity, x, w_in, b_in, threshold, w_out, b_out)
    result = (fused if _has_elements(operands) else nothing)(plan, operands)
    return _finished(result, jnp.shape(x), operands, b_out)


def sparse_mlp_vjp(
    x: ArrayLike,
    w_in: ArrayLike,
    b_in: ArrayLike | None,
    threshold: ArrayLike,
    w_out: ArrayLike,
    b_out: ArrayLike | None = None,
    *,
    rows: int | None = None,
    variant: str = "hard",
    ceiling: float | None = None,
    surrogate: Surrogate | None = None,
    capacity: int | None = None,
) -> tuple[tuple[jax.Array, Activity], Callable[..., RowGradients]]:
    """`sparse_mlp` and its pullback, with weight gradients as the rows that were touched.

    For optimisers that update touched rows only: with a small batch and many features a dense
    gradient is mostly zeros, and writing them most of the step. As `jax.vjp`, but not itself
    differentiable. Works under `jit`.

    Convention at the threshold: as `sparse_mlp`. With a surrogate, features inside its window count
    as touched.

    Args:
      x: (..., d), floating point.
      w_in: (m, d), feature-major.
      b_in: (m,), or None.
      threshold: a number or (m,), in the units of the pre-activations.
      w_out: (m, d_out), feature-major.
      b_out: (d_out,), or None.
      rows: R, the length of the lists of rows. Default: as many as the entries' lists hold, at most
        m, which is enough unless the dense path is taken.
      variant: ``"hard"`` or ``"shift"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``: JumpReLU.
      capacity: as in `sparse_mlp`.

    Returns:
      ``((y, activity), pullback)``. ``pullback(g, values=None, l0=None)`` takes cotangents of y
      and, where there are penalties, of the record's `values` and `l0`; it returns `RowGradients`.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: as `sparse_mlp`, or `rows` is not a whole number of at least 1.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> w = jnp.eye(3)
      >>> (y, _), pullback = jaxtrelu.sparse_mlp_vjp(jnp.array([[0.0, 2.0, 0.0]]), w, None, 1.0, w)
      >>> gradients = pullback(y)
      >>> w.at[gradients.rows].add(-0.25 * gradients.w_out, mode="drop")[1].tolist()
      [0.0, 0.0, 0.0]

    Source: as `sparse_mlp`.
    """
    spec = canonical_spec(variant, ceiling, 0, surrogate)
    plan, operands, b_out = _prepared(spec, capacity, x, w_in, b_in, threshold, w_out, b_out)
    features, width = operands.w_out.shape
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(
            f"`rows` should be a whole number of rows, at least 1, but is {rows!r}. "
            "Pass None for the default."
        )
    if not _has_elements(operands):
        raise ValueError(
            "`x` and the weights should have elements here, but have shapes "
            f"{jnp.shape(x)}, {operands.w_in.shape} and {operands.w_out.shape}. Use sparse_mlp."
        )
    size = min(features, plan.size if rows is None else rows)
    result, residuals = forward(plan, operands)
    y, activity = _finished(result, jnp.shape(x), operands, b_out)

    def pullback(g, values=None, l0=None):
        g = jnp.asarray(g).astype(result[0].dtype).reshape(-1, width)
        values = jnp.zeros_like(activity.values) if values is None else jnp.asarray(values)
        l0 = jnp.zeros(activity.l0.size) if l0 is None else jnp.ravel(l0)
        given = (g, values.astype(activity.values.dtype), l0.astype(activity.l0.dtype))
        sums, touched, complete = row_gradients(plan, residuals, given, size)
        return RowGradients(
            sums.x.reshape(jnp.shape(x)),
            touched,
            sums.w_in,
            sums.b_in,
            sums.threshold,
            sums.w_out,
            None if b_out is None else jnp.sum(g, axis=0).astype(b_out.dtype),
            complete,
        )

    return (y, activity), pullback


def _prepared(spec: Spec, capacity, x, w_in, b_in, threshold, w_out, b_out):
    """Checks the operands; returns the plan, the operands with x as a matrix, and b_out."""
    check_spec(spec)
    x, w_in, w_out = floating("x", x), floating("w_in", w_in), floating("w_out", w_out)
    b_in, b_out = bias("b_in", b_in), bias("b_out", b_out)
    threshold = per_feature(threshold, w_in)
    check_shapes(x, w_in, b_in, w_out, b_out)
    rows = x.reshape(-1, x.shape[-1])
    plan = Plan(spec, list_size(capacity, rows.shape[0], w_in.shape[0], CROSSOVER), DIRECT)
    return plan, alike(Operands(rows, w_in, b_in, threshold, w_out)), b_out


def _has_elements(operands: Operands) -> bool:
    return all(o.size for o in (operands.x, operands.w_in, operands.w_out))


def _finished(result, shape: tuple, operands: Operands, b_out) -> tuple[jax.Array, Activity]:
    """y and the record in the shapes and the dtype that go with x of that shape."""
    (y, activity), lead = result, shape[:-1]
    if b_out is not None:
        y = y + b_out.astype(y.dtype)
    activity = activity._replace(counts=activity.counts.reshape(lead), l0=activity.l0.reshape(lead))
    return y.astype(operands.x.dtype).reshape(*lead, operands.w_out.shape[1]), activity
