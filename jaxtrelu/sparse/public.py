"""The public door of the sparse products: operands checked, flattened and given to `fused`."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu._door import canonical_spec
from jaxtrelu.sparse.activity import Activity
from jaxtrelu.sparse.latent import Plan
from jaxtrelu.sparse.loops import varying_like
from jaxtrelu.sparse.mlp import Operands, fused, nothing
from jaxtrelu.surrogates import Surrogate

# Share of open entries from which on dense products are faster, on a CPU (see the benchmark).
CROSSOVER = 1 / 32
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
    _check_spec(spec)
    arrays = {"x": x, "w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    x, w_in, b_in, w_out, b_out = (_floating(name, array) for name, array in arrays.items())
    threshold = _threshold(threshold, w_in)
    _check_shapes(x, w_in, b_in, w_out, b_out)
    lead, features = x.shape[:-1], w_in.shape[0]
    rows = x.reshape(-1, x.shape[-1])
    plan = Plan(spec, _list_size(capacity, rows.shape[0], features), _DIRECT)
    operands = Operands(rows, w_in, b_in, threshold, w_out)
    leaves = jax.tree.leaves(operands)
    operands = jax.tree.map(lambda leaf: varying_like(leaf, *leaves), operands)
    if rows.size and w_in.size and w_out.size:
        y, activity = fused(plan, operands)
    else:
        y, activity = nothing(plan, operands)
    if b_out is not None:
        y = y + b_out.astype(y.dtype)
    activity = activity._replace(
        counts=activity.counts.reshape(lead), l0=activity.l0.reshape(lead)
    )
    return y.astype(x.dtype).reshape(*lead, w_out.shape[1]), activity


def _list_size(capacity: int | None, rows: int, features: int) -> int:
    if capacity is None:
        capacity = max(32, round(features * CROSSOVER))
    elif isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise ValueError(
            f"`capacity` should be a whole number of entries per row, at least 1, but is "
            f"{capacity!r}. Pass None for the default."
        )
    return max(1, rows * min(capacity, features))


def _check_spec(spec) -> None:
    if spec.variant == "clamp":
        raise ValueError(
            "variant='clamp' is max(x, threshold), which has no zeros to skip. Pass 'hard' or "
            "'shift', or use jaxtrelu.thresholded_relu between dense products."
        )
    if spec.surrogate is not None and spec.surrogate.half_width is None:
        raise ValueError(
            f"`surrogate` should have bounded support here, but {spec.surrogate!r} reaches every "
            "entry, and nothing could be skipped. Pass jaxtrelu.Rectangle or jaxtrelu.Triangle, or "
            "use jaxtrelu.jump_relu between dense products."
        )


def _floating(name: str, array) -> jax.Array | None:
    if array is None and name.startswith("b_"):
        return None
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError):
        array = None
    if array is None or not jnp.issubdtype(array.dtype, jnp.floating):
        what = "no array" if array is None else f"of dtype {array.dtype}"
        raise TypeError(
            f"`{name}` should be a floating-point array, but is {what}. "
            f"Pass for example {name}.astype('float32')."
        )
    return array


def _threshold(threshold, w_in: jax.Array) -> jax.Array:
    """(m,), in float32 at least."""
    threshold = jnp.asarray(threshold)
    if not jnp.issubdtype(threshold.dtype, jnp.floating):
        threshold = threshold.astype(jnp.float32)
    if threshold.shape not in ((), (1,), w_in.shape[:1]):
        raise ValueError(
            f"`threshold` should be a number or of shape {w_in.shape[:1]}, one per feature, but has "
            f"shape {threshold.shape}."
        )
    dtype = jnp.promote_types(threshold.dtype, jnp.float32)
    return jnp.broadcast_to(threshold.astype(dtype), w_in.shape[:1])


def _check_shapes(x, w_in, b_in, w_out, b_out) -> None:
    if x.ndim < 1 or w_in.ndim != 2 or x.shape[-1] != w_in.shape[1]:
        raise ValueError(
            f"`w_in` should be feature-major, of shape (m, {x.shape[-1] if x.ndim else 'd'}) for x "
            f"of shape {x.shape}, but has shape {w_in.shape}. Pass w_in.T if it is (d, m)."
        )
    if w_out.ndim != 2 or w_out.shape[0] != w_in.shape[0]:
        raise ValueError(
            f"`w_out` should be feature-major, of shape ({w_in.shape[0]}, d_out) for w_in of shape "
            f"{w_in.shape}, but has shape {w_out.shape}. Pass w_out.T if it is (d_out, m)."
        )
    for name, bias, width in (("b_in", b_in, w_in.shape[0]), ("b_out", b_out, w_out.shape[1])):
        if bias is not None and bias.shape != (width,):
            raise ValueError(f"`{name}` should have shape ({width},), but has {bias.shape}.")
