"""Checks of the operands of the theory's functions, at their public doors."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxtrelu._primitive.spec import real_array


def floating(**operands) -> list[Array]:
    """The operands as arrays of one floating-point dtype, float32 at least, and one shape."""
    arrays = [real_array(value, name) for name, value in operands.items()]
    # A Python number takes the dtype of the others, as everywhere in JAX.
    given = [
        array
        for value, array in zip(operands.values(), arrays, strict=True)
        if type(value) not in (int, float)  # as np.float64 is by inheritance
    ]
    double = any(array.dtype == jnp.float64 for array in given or arrays)
    dtype = jnp.float64 if double else jnp.float32
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        named = ", ".join(f"`{n}` {a.shape}" for n, a in zip(operands, arrays, strict=True))
        raise ValueError(f"the shapes of {named} should broadcast, but do not.") from None
    return [jnp.broadcast_to(a.astype(dtype), shape) for a in arrays]


def known(function: str, **operands) -> None:
    """Refuses traced operands, whose values a function has to look at."""
    for name, value in operands.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"`{name}` is inside of a transformation (jax.jit, jax.vmap, jax.grad, …), and "
                f"{function} has to see its values. Call it outside and pass the threshold in, or "
                "use gaussian_cutoff there."
            )


def positive(**operands) -> None:
    """Refuses what is not finite and greater than 0, where it can be seen (under jit it cannot)."""
    for name, array in operands.items():
        _refuse_where(
            array,
            lambda v: ~((v > 0) & np.isfinite(v)),
            f"`{name}` should be finite and greater than 0",
        )


def finite(**operands) -> None:
    """Refuses NaN and infinity, where they can be seen."""
    for name, array in operands.items():
        _refuse_where(array, lambda v: ~np.isfinite(v), f"`{name}` should be finite")


def within(low: float, high: float, **operands) -> None:
    """Refuses what is not between `low` and `high`, both left out, where it can be seen."""
    for name, array in operands.items():
        _refuse_where(
            array,
            lambda v: ~((v > low) & (v < high)),
            f"`{name}` should be greater than {low:g} and less than {high:g}",
        )


def between(low: float, high: float, **operands) -> None:
    """Refuses what is not finite and from `low` to `high`, both allowed, where it can be seen."""
    limits = f"at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
    for name, array in operands.items():
        _refuse_where(
            array,
            lambda v: ~((v >= low) & (v <= high) & np.isfinite(v)),
            f"`{name}` should be {limits}",
        )


def axes_of(axis, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The axes as numbers from 0 on; an error if there is no such axis, or it has no elements."""
    axes = tuple(np.atleast_1d(axis).tolist())
    for one in axes:
        if not -len(shape) <= one < len(shape):
            raise ValueError(
                f"`axis` should name axes of `{name}`, but axis {one} is none of shape {shape}."
            )
        if not shape[one]:
            raise ValueError(f"`{name}` of shape {shape} has no elements along axis {one}.")
    return tuple(one % len(shape) for one in axes)


def _refuse_where(array, bad, wanted: str) -> None:
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array, np.float64)
    if (found := bad(values)).any():
        raise ValueError(f"{wanted}, but is {float(values[found].flat[0])!r}.")
