"""The tangent of a thresholded activation, as linear operations on packed words.

With the gate g (1 where open), the surrogate's density D and the height J of the jump at the
threshold (`variants.Variant.jump`), dx the tangent of x and dt that of the threshold:

- shift:        g (dx - dt)
- clamp:        g dx + (1 - g) dt
- hard, step:   g dx (step: nothing), and with a surrogate - J D dt, with `to_input` also + J D dx
- shift with a surrogate: S (dx - dt), S the smoothed gate, the integral of D
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxtrelu import variants
from jaxtrelu.gate import gate
from jaxtrelu.packing import Packing
from jaxtrelu.variants import Spec, computation_dtype


def residual_names(spec: Spec, has_dx: bool, has_dt: bool) -> tuple[str, ...]:
    """Which packed outputs the tangent reads: what reverse mode keeps."""
    row, surrogate = spec.row, spec.surrogate
    bounded = surrogate is not None and surrogate.half_width is not None
    if surrogate is not None and row.jump is None:
        return ("window",) if bounded and (has_dx or has_dt) else ()
    names = []
    if (has_dx and row.input_slope) or (has_dt and any(row.threshold_slope)):
        names.append("gate")
    if surrogate is not None and bounded and (has_dt or (has_dx and surrogate.to_input)):
        names.append("window")
    return tuple(names)


def value_tangent(
    x: jax.Array,
    threshold: jax.Array,
    dx: jax.Array | None,
    dt: jax.Array | None,
    words: dict[str, jax.Array],
    spec: Spec,
    packing: Packing,
) -> jax.Array | None:
    """The tangent of the value, in x's dtype; None where it is identically zero.

    Tangents that are None are zero. The result is linear in both, so JAX can transpose it.
    """
    row, surrogate = spec.row, spec.surrogate
    _gate = functools.partial(gate, packing=packing, implementation=spec.implementation)
    # In one sum before the gate: two gates on the same words would unpack them twice.
    pushed = _sum(_signed(dx, row.input_slope, x), _signed(dt, row.threshold_slope[0], x))
    if surrogate is not None and row.jump is None:
        total = _estimated(pushed, x, threshold, words, spec, packing)
    else:
        total = None if pushed is None else _gate(pushed, words["gate"])
        beside = _signed(dt, row.threshold_slope[1], x)
        if beside is not None:
            total = _sum(total, _gate(beside, words["gate"], invert=True))
        if surrogate is not None:
            jumped = _jumped(x, threshold, dx, dt, spec)
            total = _sum(total, _estimated(jumped, x, threshold, words, spec, packing))
    return None if total is None else total.astype(x.dtype)


def _jumped(x, threshold, dx, dt, spec: Spec) -> jax.Array | None:
    """J (dx - dt), with the density in it where that is a constant; dx only with `to_input`."""
    surrogate, jump = spec.surrogate, spec.row.jump
    assert surrogate is not None and jump is not None
    height = jump(threshold, spec)
    if surrogate.flat:
        height = height / surrogate.bandwidth
    from_threshold = None if dt is None else spread(-height * dt, x)
    if dx is None or not surrogate.to_input:
        return from_threshold
    return _sum(_scaled(dx, height, x), from_threshold)


def _scaled(tangent: jax.Array, small: jax.Array, x: jax.Array) -> jax.Array:
    """``tangent * small``, for a tangent of x's shape.

    Written as a product over batch dimensions alone, which XLA turns into a multiplication with a
    broadcast: broadcast before the multiplication, the factor would be kept at full size.
    """
    tangent = spread(tangent, x)
    kept = tuple(d for d in range(small.ndim) if small.shape[d] == x.shape[d])
    explicit = any(axis is not None for axis in jax.typeof(x).sharding.spec)
    if explicit or len(kept) == x.ndim:
        return tangent * spread(small, x)
    small = lax.reshape(small.astype(tangent.dtype), tuple(x.shape[d] for d in kept))
    batch = (kept, tuple(range(len(kept))))
    product = lax.dot_general(tangent, small, (((), ()), batch), precision=lax.Precision.HIGHEST)
    # The batch dimensions come out first.
    free = tuple(d for d in range(x.ndim) if d not in kept)
    return lax.transpose(product, [(*kept, *free).index(d) for d in range(x.ndim)])


def _estimated(pushed, x, threshold, words, spec: Spec, packing: Packing) -> jax.Array | None:
    """`pushed` times the density or smoothed gate, exactly 0 outside a bounded window."""
    assert spec.surrogate is not None
    if pushed is None:
        return None
    if spec.row.jump is None or not spec.surrogate.flat:
        pushed = pushed * spread(variants.smoothed(x, threshold, spec), x)
    if "window" not in words:
        return pushed
    return gate(pushed, words["window"], packing, implementation=spec.implementation)


def spread(small: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts a 0-d array, or one of x's rank, to x's shape, in the dtype of x's tangents.

    The transpose sums a cotangent back to the shape of `small`, in float32 at least.
    """
    arithmetic = computation_dtype(x.dtype)
    if small.shape == x.shape:
        return small.astype(arithmetic)
    accumulate = computation_dtype(x.dtype, small.dtype, jnp.float32)
    kept = tuple(d for d in range(small.ndim) if small.shape[d] == x.shape[d])
    small = lax.reshape(small.astype(accumulate), tuple(x.shape[d] for d in kept))
    sharding = jax.typeof(x).sharding
    explicit = any(axis is not None for axis in sharding.spec)
    wide = lax.broadcast_in_dim(small, x.shape, kept, out_sharding=sharding if explicit else None)
    return wide.astype(arithmetic)


def _signed(tangent: jax.Array | None, slope: int, x: jax.Array) -> jax.Array | None:
    """``slope * tangent`` with x's shape, for a slope of -1, 0 or 1."""
    if tangent is None or slope == 0:
        return None
    return spread(tangent, x) if slope == 1 else -spread(tangent, x)


def _sum(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b
