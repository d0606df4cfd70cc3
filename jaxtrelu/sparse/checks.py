"""Checks of operands at the public door of the sparse products."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtrelu.variants import Spec


def list_size(capacity: int | None, rows: int, features: int, crossover: float) -> int:
    """The number of entries that lists hold: `capacity` per row, or a share of the features."""
    if capacity is None:
        capacity = max(32, round(features * crossover))
    elif isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise ValueError(
            f"`capacity` should be a whole number of entries per row, at least 1, but is "
            f"{capacity!r}. Pass None for the default."
        )
    return max(1, rows * min(capacity, features))


def check_spec(spec: Spec) -> None:
    """Refuses what leaves no zeros to skip."""
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


def floating(name: str, array: ArrayLike) -> jax.Array:
    """A floating-point array, or an error that says what to pass."""
    what = "no array"
    if array is not None:
        try:
            found = jnp.asarray(array)
        except (TypeError, ValueError):
            found = None
        if found is not None:
            if jnp.issubdtype(found.dtype, jnp.floating):
                return found
            what = f"of dtype {found.dtype}"
    raise TypeError(
        f"`{name}` should be a floating-point array, but is {what}. "
        f"Pass for example {name}.astype('float32')."
    )


def bias(name: str, array: ArrayLike | None) -> jax.Array | None:
    """A floating-point array, or None for a bias that is left out."""
    return None if array is None else floating(name, array)


def per_feature(threshold: ArrayLike, w_in: jax.Array) -> jax.Array:
    """(m,), in float32 at least."""
    threshold = jnp.asarray(threshold)
    if not jnp.issubdtype(threshold.dtype, jnp.floating):
        threshold = threshold.astype(jnp.float32)
    if threshold.shape not in ((), (1,), w_in.shape[:1]):
        raise ValueError(
            f"`threshold` should be a number or of shape {w_in.shape[:1]}, one per feature, but "
            f"has shape {threshold.shape}."
        )
    dtype = jnp.promote_types(threshold.dtype, jnp.float32)
    return jnp.broadcast_to(threshold.astype(dtype), w_in.shape[:1])


def check_shapes(x, w_in, b_in, w_out, b_out, first: str = "w_in") -> None:
    """Refuses weights that are not feature-major, in words that say so."""
    if x.ndim < 1 or w_in.ndim != 2 or x.shape[-1] != w_in.shape[1]:
        width = x.shape[-1] if x.ndim else "d"
        raise ValueError(
            f"`{first}` should be feature-major, of shape (m, {width}) for "
            f"x of shape {x.shape}, but has {w_in.shape}. Pass {first}.T if it is (d, m)."
        )
    if w_out.ndim != 2 or w_out.shape[0] != w_in.shape[0]:
        raise ValueError(
            f"`w_out` should be feature-major, of shape ({w_in.shape[0]}, d_out) for {first} of "
            f"shape {w_in.shape}, but has shape {w_out.shape}. Pass w_out.T if it is (d_out, m)."
        )
    for name, bias, width in (("b_in", b_in, w_in.shape[0]), ("b_out", b_out, w_out.shape[1])):
        if bias is not None and bias.shape != (width,):
            raise ValueError(f"`{name}` should have shape ({width},), but has {bias.shape}.")
