"""What the Flax layers share, without Flax: which threshold a layer has, and how it is applied.

A layer's threshold is given as a number, as an array with one entry per channel, or as an
initialiser ``(key, shape, dtype) -> array``. Thresholds that are stored keep their own dtype,
float32 unless asked otherwise, whatever the dtype of the activations: a bfloat16 threshold near 1
cannot make steps below 1/256, and stops learning.
"""

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._primitive.spec import Spec, checked_spec
from jaxtrelu._surrogates import Surrogate

Initializer = Callable[..., Any]
#: A number, an array (or nested sequence) with one entry per channel, or an initialiser.
ThresholdLike = ArrayLike | Sequence[Any] | Initializer
Axes = int | Sequence[int]


def check_layer(
    threshold: ThresholdLike,
    *,
    learned: bool,
    variant: str,
    ceiling: float | None,
    fill: float,
    surrogate: Surrogate | None,
    param_dtype: DTypeLike,
) -> Spec:
    """Refuses at construction what could not work later, and returns which function it is."""
    spec = checked_spec(variant, ceiling, fill, surrogate)
    _check_value(threshold)
    if not learned:
        return spec
    if not _holds_float32(param_dtype):
        raise ValueError(
            f"`param_dtype` of a learned threshold should be float32 (or float64), but is "
            f"{jnp.dtype(param_dtype).name}: small steps would be lost to rounding. Keep "
            "param_dtype=jnp.float32; `dtype` alone sets the dtype of the activations."
        )
    if spec.variant == "hard":
        _check_hard_learns(threshold, spec)
    return spec


def _check_value(threshold: ThresholdLike) -> None:
    if callable(threshold) or isinstance(threshold, jax.core.Tracer):
        return
    try:
        value = np.asarray(threshold)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{_WANTED}, but is {threshold!r}, which forms no array: {error}") from None
    real = value.dtype.kind in "iuf" or jnp.issubdtype(value.dtype, jnp.floating)
    if not real:
        raise TypeError(f"{_WANTED}, but is {threshold!r} ({type(threshold).__name__}).")
    if np.isnan(value.astype(np.float64)).any():
        raise ValueError(f"`threshold` is NaN or contains NaN: {threshold!r}. Pass numbers.")


_WANTED = (
    "`threshold` of a layer should be a number, an array with one entry per channel, or an "
    "initialiser (key, shape, dtype) -> array"
)


def _holds_float32(dtype: DTypeLike) -> bool:
    dtype = jnp.dtype(dtype)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4


def _check_hard_learns(threshold: ThresholdLike, spec: Spec) -> None:
    if spec.surrogate is None:
        raise ValueError(
            "a learned threshold with variant='hard' would not learn: the derivative of the value "
            "with respect to the threshold is 0 almost everywhere. Pass a surrogate, such as "
            "surrogate=jaxtrelu.Rectangle(0.1) with a bandwidth in the units of x; or use "
            "variant='shift' or 'clamp', whose thresholds have a true gradient; or learned=False."
        )
    if callable(threshold) or isinstance(threshold, jax.core.Tracer):
        return
    if np.any(np.asarray(threshold) == spec.fill):
        raise ValueError(
            f"a learned threshold with variant='hard' would not leave {spec.fill!r}: its surrogate "
            "gradient is proportional to the height of the jump, threshold - fill, which is 0 "
            f"there. Start it elsewhere, such as threshold={spec.fill + 0.1!r}."
        )


def static_number(threshold: ThresholdLike) -> int | float | None:
    """The threshold as a Python number, if it is one: then nothing needs to be stored."""
    if isinstance(threshold, numbers.Integral):
        return int(threshold)
    return float(threshold) if isinstance(threshold, numbers.Real) else None


def threshold_shape(threshold: ThresholdLike, features: int | Sequence[int] | None) -> tuple:
    """The shape of a stored threshold: () for one number, else one entry per channel."""
    given = () if callable(threshold) else jnp.shape(_as_operand(threshold))
    if features is None:
        return given
    shape = _integers(features, "features")
    if given not in ((), shape):
        raise ValueError(
            f"`threshold` should be a number or have the shape of the channels, {shape}, but has "
            f"shape {given}."
        )
    return shape


def channel_axes(axis: Axes | None, shape: tuple) -> tuple[int, ...]:
    """The axes of x that those of a threshold of this shape stand for: the last ones for None."""
    if axis is None:
        return tuple(range(-len(shape), 0))
    axes = _integers(axis, "axis")
    if len(axes) != len(shape):
        raise ValueError(
            f"`axis` should name one axis of x for each axis of the threshold, but is {axis!r} for "
            f"a threshold of shape {shape}."
        )
    return axes


def channel_shape(axis: Axes | None, x_shape: tuple) -> tuple:
    """The sizes of those axes of x: the shape of a threshold per channel; () for None."""
    if axis is None:
        return ()
    axes = _integers(axis, "axis")
    return tuple(x_shape[i] for i in _positions(axes, x_shape))


def initialise(threshold: ThresholdLike, key: Any, shape: tuple, dtype: DTypeLike) -> Any:
    """The stored threshold's first value."""
    if callable(threshold):
        return threshold(key, shape, dtype)
    return jnp.broadcast_to(jnp.asarray(_as_operand(threshold), dtype), shape)


def apply(
    x: ArrayLike, threshold: Any, spec: Spec, *, axis: Axes | None, dtype: DTypeLike | None
) -> jax.Array:
    """The activation of `x` cast to `dtype`; the threshold keeps its own precision."""
    if dtype is not None:
        x = jnp.asarray(x, dtype)
    if jnp.ndim(threshold):
        threshold = _aligned(threshold, jnp.shape(x), channel_axes(axis, threshold.shape))
    return thresholded_relu(
        x,
        threshold,
        variant=spec.variant,  # type: ignore[arg-type]
        ceiling=spec.ceiling,
        fill=spec.fill,
        surrogate=spec.surrogate,
    )


def _aligned(threshold: jax.Array, x_shape: tuple, axes: tuple[int, ...]) -> jax.Array:
    """The threshold with x's number of dimensions, of size 1 except along `axes`."""
    positions = _positions(axes, x_shape)
    sizes = tuple(x_shape[i] for i in positions)
    if sizes != threshold.shape:
        raise ValueError(
            f"the threshold has shape {threshold.shape}, one entry per channel along axis "
            f"{_bare(axes)} of x, but x of shape {x_shape} has {_bare(sizes)} there."
        )
    shape = [x_shape[i] if i in positions else 1 for i in range(len(x_shape))]
    return jnp.transpose(threshold, np.argsort(positions).tolist()).reshape(shape)


def _positions(axes: tuple[int, ...], x_shape: tuple) -> tuple[int, ...]:
    rank = len(x_shape)
    if not all(-rank <= axis < rank for axis in axes):
        raise ValueError(f"`axis` is {_bare(axes)}, which x of shape {x_shape} does not have.")
    positions = tuple(axis % rank for axis in axes)
    if len(set(positions)) != len(positions):
        raise ValueError(f"`axis` is {axes!r}, which names an axis of x of shape {x_shape} twice.")
    return positions


def _integers(values: Any, name: str) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in np.atleast_1d(np.asarray(values)))
    except TypeError:
        raise TypeError(f"`{name}` should be an integer or several, but is {values!r}.") from None


def _bare(values: tuple) -> Any:
    return values[0] if len(values) == 1 else values


def _as_operand(threshold: Any) -> Any:
    return np.asarray(threshold) if isinstance(threshold, (list, tuple)) else threshold


def flax_is_missing(error: ImportError, module: str) -> ImportError:
    """What to raise where `module` was imported without Flax."""
    if (error.name or "").split(".")[0] != "flax":
        return error
    return ImportError(
        f"{module} needs Flax, which is not installed. Install it with "
        "`pip install 'jaxtrelu[flax]'`.",
        name=error.name,
    )
