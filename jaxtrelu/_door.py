"""The public door: operands are checked and made canonical once; all behind it trusts them."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu.surrogates import Surrogate
from jaxtrelu.variants import IMPLEMENTATIONS, VARIANTS, Spec, computation_dtype

PUBLIC_VARIANTS = tuple(name for name in VARIANTS if name != "step")


def canonical(x, threshold, spec: Spec, *, floating: bool = False) -> tuple[jax.Array, jax.Array]:
    """Strongly typed x, and the threshold as an array that is 0-d or has x's rank."""
    x = _as_array(x, "x")
    if floating and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`x` should be floating point here, but has dtype {x.dtype}. Pass x.astype('float32')."
        )
    threshold = _threshold(threshold, x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        _check_integers(x, threshold, spec)
    return x, threshold


def canonical_linear(x, w, b) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The operands of a linear layer: x (..., d), w (d, n) and b (n,), zeros for None."""
    x, w = _as_array(x, "x"), _as_array(w, "w")
    if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"`x` should have shape (..., d) and `w` (d, n), but the shapes are {x.shape} and "
            f"{w.shape}."
        )
    b = jnp.zeros(w.shape[1], x.dtype) if b is None else _as_array(b, "b")
    if b.shape != w.shape[1:]:
        raise ValueError(
            f"`b` should have shape {w.shape[1:]}, one number per column of w, but has shape "
            f"{b.shape}."
        )
    for name, operand in (("x", x), ("w", w), ("b", b)):
        if not jnp.issubdtype(operand.dtype, jnp.floating):
            raise TypeError(f"`{name}` should be floating point, but has dtype {operand.dtype}.")
    if x.dtype != w.dtype:
        raise TypeError(
            f"`x` and `w` should have one dtype, but have {x.dtype} and {w.dtype}. "
            f"Pass w.astype({x.dtype.name!r})."
        )
    return x, w, b


def canonical_spec(
    variant: str = "shift",
    ceiling=None,
    fill=0,
    surrogate: Surrogate | None = None,
    implementation: str | None = None,
) -> Spec:
    """Checks the static arguments, and puts them together."""
    if variant not in PUBLIC_VARIANTS:
        raise ValueError(
            f"`variant` should be one of {', '.join(map(repr, PUBLIC_VARIANTS))}, "
            f"but is {variant!r}."
        )
    if ceiling is not None:
        if variant != "shift":
            raise ValueError(
                "`ceiling` belongs to variant='shift', min(x - threshold, ceiling), but the "
                f"variant is {variant!r}. Drop it, or pass variant='shift'."
            )
        ceiling = _static_number(ceiling, "ceiling")
        if not ceiling > 0:
            raise ValueError(
                f"`ceiling` should be greater than 0, but is {ceiling!r}. "
                "Pass None for a function without a ceiling."
            )
    fill = _static_number(fill, "fill")
    if variant != "hard" and not (fill == 0 and math.copysign(1, fill) == 1):
        raise ValueError(
            f"`fill` belongs to variant='hard', but the variant is {variant!r}. "
            "Drop it, or pass variant='hard'."
        )
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` should be None or one of {', '.join(map(repr, IMPLEMENTATIONS))}, "
            f"but is {implementation!r}."
        )
    return Spec(variant, ceiling, fill, _surrogate(surrogate, variant), implementation)


def _surrogate(surrogate, variant: str) -> Surrogate | None:
    if surrogate is None:
        return None
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            "`surrogate` should be a jaxtrelu surrogate, such as jaxtrelu.Rectangle(0.05), or "
            f"None, but is {surrogate!r} ({type(surrogate).__name__})."
        )
    if variant == "clamp":
        raise ValueError(
            "`surrogate` has nothing to estimate for variant='clamp': max(x, threshold) is "
            "continuous and its threshold has a true gradient. Drop it, or pass variant='hard'."
        )
    return surrogate


def _static_number(number, name: str) -> int | float:
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, numbers.Real):
        raise TypeError(
            f"`{name}` should be a Python number, but is {_described(number)}. It is part of the "
            f"compiled program, not an operand of it: pass a number, such as {name}=1.0."
        )
    number = int(number) if isinstance(number, numbers.Integral) else float(number)
    if math.isnan(number):
        raise ValueError(f"`{name}` is NaN. Pass a number, such as {name}=1.0.")
    return number


def _as_array(x, name: str) -> jax.Array:
    """A real array of strong dtype from anything array-like; a TypeError for anything else."""
    wanted = f"`{name}` should be a real array (floating point or integer)"
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()
    if isinstance(x, (list, tuple)):
        try:
            x = jnp.stack([_as_array(item, name) for item in x]) if x else jnp.zeros(0)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{wanted}, but is a {type(x).__name__} that does not form one: {error} "
                "Pass a jax.Array or a NumPy array."
            ) from None
    numeric = isinstance(x, (jax.Array, np.ndarray, np.generic, bool, int, float))
    dtype = jnp.result_type(x) if numeric and not _is_odd(x) else None
    if dtype is None or not any(jnp.issubdtype(dtype, t) for t in (jnp.floating, jnp.integer)):
        raise TypeError(f"{wanted}, but is {_described(x)}. Pass for example x.astype('float32').")
    return jnp.asarray(x, dtype)


def _is_odd(x) -> bool:
    """NumPy arrays of objects, text or dates, for which JAX has no dtype."""
    return isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind not in "biufcV"


def _threshold(threshold, x: jax.Array) -> jax.Array:
    if isinstance(threshold, (float, np.floating)) and math.isnan(threshold):
        raise ValueError("`threshold` is NaN. Pass a number, such as threshold=1.0.")
    if type(threshold) in (int, float):
        return _python_threshold(threshold, x.dtype)
    if isinstance(threshold, jax.Array) and threshold.weak_type:  # a Python number through jit
        threshold = _weak_threshold(threshold, x.dtype)
    threshold = _as_array(threshold, "threshold")
    try:
        fits = np.broadcast_shapes(threshold.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    except TypeError:  # symbolic dimensions
        fits = jnp.broadcast_shapes(threshold.shape, x.shape) == x.shape
    if not fits:
        raise ValueError(
            f"`threshold` should be a number or an array that broadcasts against x of shape "
            f"{x.shape}, but has shape {threshold.shape}. Pass one number, one per channel "
            f"(shape {x.shape[-1:]}), or one per element."
        )
    if threshold.ndim in (0, x.ndim):
        return threshold
    return threshold.reshape(*(1,) * (x.ndim - threshold.ndim), *threshold.shape)


def _python_threshold(threshold: int | float, dtype) -> jax.Array:
    """A Python number is taken in x's dtype, as JAX does with every Python number."""
    if jnp.issubdtype(dtype, jnp.integer):
        if isinstance(threshold, float) and not threshold.is_integer():
            raise TypeError(
                f"`threshold` should be an integer for x of dtype {dtype}, but is {threshold!r}. "
                "Pass an integer, or x.astype('float32')."
            )
        limits = jnp.iinfo(dtype)
        if not limits.min <= threshold <= limits.max:
            raise ValueError(
                f"`threshold` = {threshold!r} does not fit in x's dtype {dtype}, which holds "
                f"{limits.min} to {limits.max}. Cast x to a wider dtype first."
            )
        threshold = int(threshold)
    return jnp.asarray(threshold, dtype)


def _weak_threshold(threshold: jax.Array, dtype) -> jax.Array:
    """What was a Python number outside of jit is taken in x's dtype here, too."""
    fractional = jnp.issubdtype(threshold.dtype, jnp.floating)
    if fractional and jnp.issubdtype(dtype, jnp.integer):
        return threshold
    return threshold.astype(dtype)


def _check_integers(x: jax.Array, threshold: jax.Array, spec: Spec) -> None:
    if not jnp.issubdtype(threshold.dtype, jnp.integer):
        raise TypeError(
            f"`threshold` should be an integer for x of dtype {x.dtype}, but has dtype "
            f"{threshold.dtype}. Pass threshold.astype({x.dtype.name!r}), or x.astype('float32')."
        )
    common = jnp.iinfo(computation_dtype(x.dtype, threshold.dtype))
    exact = all(
        common.min <= jnp.iinfo(a.dtype).min and jnp.iinfo(a.dtype).max <= common.max
        for a in (x, threshold)
    )
    if not exact:
        raise TypeError(
            f"`threshold` of dtype {threshold.dtype} and x of dtype {x.dtype} have no common "
            f"integer dtype. Pass threshold.astype({x.dtype.name!r})."
        )
    for name in ("ceiling", "fill"):
        number = getattr(spec, name)
        if isinstance(number, float) and not number.is_integer():
            raise TypeError(
                f"`{name}` should be an integer for x of dtype {x.dtype}, but is {number!r}."
            )
        limits = jnp.iinfo(x.dtype)
        if number is not None and not limits.min <= number <= limits.max:
            raise ValueError(f"`{name}` = {number!r} does not fit in x's dtype {x.dtype}.")


def _described(x) -> str:
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"an array of dtype {x.dtype} and shape {x.shape}"
    return f"{x!r} ({type(x).__name__})"
