"""What a call means, and the one place where it is checked.

`Spec` is the static part of a call: which function it is. The functions below it stand at the
public doors: operands are checked and made canonical here, once, and all behind trusts them.
"""

import functools
import math
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._primitive.lowering import implementations
from jaxtrelu._primitive.variants import VARIANTS, Variant
from jaxtrelu._surrogates import Surrogate

#: What may be passed as ``variant=``: the public rows of the table.
VariantName = Literal["shift", "hard", "clamp"]
#: What may be passed as ``implementation=``: XLA, and the back ends that come with the library.
ImplementationName = Literal["xla", "mosaic_gpu", "mosaic_tpu"]


@dataclass(frozen=True)
class Spec:
    """Which function it is: the static part of a call. Hashable, a parameter of the primitive."""

    variant: str = "shift"
    ceiling: int | float | None = None
    fill: int | float = 0
    surrogate: Surrogate | None = None
    #: Which lowering computes it, or None: chosen by platform.
    implementation: str | None = None

    @property
    def row(self) -> Variant:
        """The row of the table that this function is an instance of."""
        return VARIANTS[self.variant]


def computation_dtype(*dtypes) -> jnp.dtype:
    """The dtype in which operands are compared and subtracted: wide enough to hold them all.

    Types without arithmetic of their own (the float8 family) are computed in float32.
    """
    wide = []
    for dtype in map(jnp.dtype, dtypes):
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2
        wide.append(jnp.dtype("float32") if narrow else dtype)
    # Promotion is stated here, so a user's strict mode has nothing to object to.
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide)


def accumulator_dtype(*dtypes) -> jnp.dtype:
    """The dtype in which sums of such operands are kept: float32 at least."""
    return computation_dtype(*dtypes, jnp.float32)


# the static arguments


def checked_spec(
    variant: str = "shift",
    ceiling=None,
    fill=0,
    surrogate: Surrogate | None = None,
    implementation: str | None = None,
) -> Spec:
    """Checks the static arguments, and puts them together."""
    names = public_variants()
    if variant not in names:
        raise ValueError(
            f"`variant` should be one of {', '.join(map(repr, names))}, but is {variant!r}."
        )
    row = VARIANTS[variant]
    if ceiling is not None:
        if not row.takes_ceiling:
            with_one = _first(lambda row: row.takes_ceiling)
            raise ValueError(
                f"`ceiling` belongs to variant={with_one!r}, min(x - threshold, ceiling), but the "
                f"variant is {variant!r}. Drop it, or pass variant={with_one!r}."
            )
        ceiling = _static_number(ceiling, "ceiling")
        if not ceiling > 0:
            raise ValueError(
                f"`ceiling` should be greater than 0, but is {ceiling!r}. "
                "Pass None for a function without a ceiling."
            )
        ceiling = None if math.isinf(ceiling) else ceiling
    fill = _static_number(fill, "fill")
    if not row.takes_fill and not (fill == 0 and math.copysign(1, fill) == 1):
        with_one = _first(lambda row: row.takes_fill)
        raise ValueError(
            f"`fill` belongs to variant={with_one!r}, but the variant is {variant!r}. "
            f"Drop it, or pass variant={with_one!r}."
        )
    if implementation is not None and implementation not in implementations():
        raise ValueError(
            f"`implementation` should be None or one of {', '.join(map(repr, implementations()))}, "
            f"but is {implementation!r}."
        )
    return Spec(variant, ceiling, fill, _checked_surrogate(surrogate, variant), implementation)


def public_variants() -> tuple[str, ...]:
    """What may be passed as ``variant=``."""
    return tuple(name for name, row in VARIANTS.items() if row.public)


def _first(has: Callable[[Variant], bool]) -> str:
    """The first public variant that has something, for messages that say what to pass."""
    return next(name for name in public_variants() if has(VARIANTS[name]))


def _checked_surrogate(surrogate, variant: str) -> Surrogate | None:
    if surrogate is None:
        return None
    if not isinstance(surrogate, Surrogate):
        raise TypeError(
            "`surrogate` should be a jaxtrelu surrogate, such as jaxtrelu.Rectangle(0.05), or "
            f"None, but is {surrogate!r} ({type(surrogate).__name__})."
        )
    if not VARIANTS[variant].estimable:
        raise ValueError(
            f"`surrogate` has nothing to estimate for variant={variant!r}, "
            f"{VARIANTS[variant].formula}: it is continuous and its threshold has a true gradient. "
            f"Drop it, or pass variant={_first(lambda row: row.jump is not None)!r}."
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


def whole_number(number, name: str, least: int = 1, hint: str = "") -> int:
    """An int from anything that Python takes for an index, `least` or more."""
    try:
        if isinstance(number, (bool, np.bool_)):
            raise TypeError
        number = operator.index(number)
    except TypeError:
        raise TypeError(
            f"`{name}` should be a whole number, but is {_described(number)}.{hint}"
        ) from None
    if number < least:
        raise ValueError(f"`{name}` should be at least {least}, but is {number}.{hint}")
    return number


def check_zeros(spec: Spec) -> None:
    """Refuses what leaves no zeros, where closed entries are to contribute nothing."""
    if not spec.row.has_zeros:
        raise ValueError(
            f"variant={spec.variant!r} has no zeros to skip: it is {spec.row.formula}. Pass "
            f"{' or '.join(repr(n) for n in public_variants() if VARIANTS[n].has_zeros)}, or use "
            "jaxtrelu.thresholded_relu between dense products."
        )
    if spec.fill != 0:
        raise ValueError(
            f"`fill` should be 0 here, but is {spec.fill!r}: closed entries contribute nothing. "
            "Use jaxtrelu.thresholded_relu between dense products."
        )


def check_skips(spec: Spec, what: str) -> None:
    """Refuses, for a product that skips closed entries, what it could not skip or compute."""
    check_zeros(spec)
    if spec.surrogate is not None and spec.surrogate.half_width is None:
        raise ValueError(
            f"`surrogate` should have bounded support here, but {spec.surrogate!r} reaches every "
            "entry, and nothing could be skipped. Pass jaxtrelu.Rectangle or jaxtrelu.Triangle, or "
            "use jaxtrelu.jump_relu between dense products."
        )
    if spec.implementation not in (None, "xla"):
        raise NotImplementedError(
            f"implementation={spec.implementation!r} cannot compute this call: it has no kernel "
            f"for {what}. Pass implementation=None."
        )


# the operands of an activation


def activation_operands(
    x, threshold, spec: Spec, *, floating: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Strongly typed x, and the threshold as an array that is 0-d or has x's rank."""
    x = real_array(x, "x")
    if floating and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`x` should be floating point here, but has dtype {x.dtype}. Pass x.astype('float32')."
        )
    threshold = _threshold_for(threshold, x.shape, x.dtype, "x")
    if jnp.issubdtype(x.dtype, jnp.integer):
        _check_integers(x, threshold, spec)
    return x, threshold


def real_array(x, name: str) -> jax.Array:
    """A real array of strong dtype from anything array-like; a TypeError for anything else."""
    wanted = f"`{name}` should be a real array (floating point or integer)"
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()
    if isinstance(x, (list, tuple)):
        try:
            x = jnp.stack([real_array(item, name) for item in x]) if x else jnp.zeros(0)
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


def _threshold_for(threshold, shape: tuple, dtype, what: str) -> jax.Array:
    """The threshold of an array of that shape and dtype, which messages call `what`."""
    threshold = _threshold_array(threshold, dtype)
    try:
        fits = np.broadcast_shapes(threshold.shape, shape) == shape
    except ValueError:
        fits = False
    except TypeError:  # symbolic dimensions
        fits = jnp.broadcast_shapes(threshold.shape, shape) == shape
    if not fits:
        raise ValueError(
            f"`threshold` should be a number or an array that broadcasts against {what} of shape "
            f"{shape}, but has shape {threshold.shape}. Pass one number, one per channel "
            f"(shape {shape[-1:]}), or one per element."
        )
    if threshold.ndim in (0, len(shape)):
        return threshold
    return threshold.reshape(*(1,) * (len(shape) - threshold.ndim), *threshold.shape)


def _threshold_array(threshold, dtype) -> jax.Array:
    """The threshold as an array; a Python number in the dtype of what it is compared with."""
    if isinstance(threshold, (float, np.floating)) and math.isnan(threshold):
        raise ValueError("`threshold` is NaN. Pass a number, such as threshold=1.0.")
    if type(threshold) in (int, float):
        return _python_threshold(threshold, dtype)
    if isinstance(threshold, jax.Array) and threshold.weak_type:  # a Python number through jit
        threshold = _weak_threshold(threshold, dtype)
    return real_array(threshold, "threshold")


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


# the operands of products


def linear_operands(x, w, b, threshold) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """x (..., d), w (d, n), b (n,) or zeros, and the threshold, 0-d or of the output's rank."""
    x, w = _matrix_operand(x, "x"), _matrix_operand(w, "w")
    if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"`x` should have shape (..., d) and `w` (d, n), but the shapes are {x.shape} and "
            f"{w.shape}."
        )
    if x.dtype != w.dtype:
        raise TypeError(
            f"`x` and `w` should have one dtype, but have {x.dtype} and {w.dtype}. "
            f"Pass w.astype({x.dtype.name!r})."
        )
    b = jnp.zeros(w.shape[1], x.dtype) if b is None else _checked_bias(b, "b", w.shape[1])
    return x, w, b, _threshold_for(threshold, (*x.shape[:-1], w.shape[1]), x.dtype, "x @ w + b")


class Block(NamedTuple):
    """The operands of a two-layer block, checked; x is a matrix, one example a row."""

    x: jax.Array
    """(B, d)."""
    w_in: tuple[jax.Array, ...]
    """The weights before the activation, each (m, d)."""
    w_out: jax.Array
    """(m, d_out)."""
    threshold: jax.Array
    """(m,), in float32 at least."""
    b_in: tuple[jax.Array | None, ...]
    """The biases before the activation, each (m,) or None."""
    b_out: jax.Array | None
    """(d_out,), or None."""
    lead: tuple
    """The leading axes of x, which the result has again."""


def block_operands(
    x, w_in: Mapping[str, Any], w_out, threshold, b_in: Mapping[str, Any], b_out
) -> Block:
    """Checks the operands of a two-layer block with feature-major weights, given by name."""
    x, w_out = _block_operand(x, "x"), _block_operand(w_out, "w_out")
    weights = {name: _block_operand(w, name) for name, w in w_in.items()}
    if x.ndim < 1:
        raise ValueError("`x` should have shape (..., d), but is a scalar.")
    (first, head), *others = weights.items()
    if head.ndim != 2 or x.shape[-1] != head.shape[1]:
        raise ValueError(
            f"`{first}` should be feature-major, of shape (m, {x.shape[-1]}) for "
            f"x of shape {x.shape}, but has {head.shape}. Pass {first}.T if it is (d, m)."
        )
    for name, w in others:
        if w.shape != head.shape:
            raise ValueError(
                f"`{name}` should have the shape of `{first}`, {head.shape}, but has {w.shape}."
            )
    features = head.shape[0]
    if w_out.ndim != 2 or w_out.shape[0] != features:
        raise ValueError(
            f"`w_out` should be feature-major, of shape ({features}, d_out) for {first} of "
            f"shape {head.shape}, but has shape {w_out.shape}. Pass w_out.T if it is (d_out, m)."
        )
    return Block(
        x.reshape(math.prod(x.shape[:-1]), x.shape[-1]),
        tuple(weights.values()),
        w_out,
        _threshold_per_feature(threshold, features),
        tuple(b if b is None else _checked_bias(b, name, features) for name, b in b_in.items()),
        None if b_out is None else _checked_bias(b_out, "b_out", w_out.shape[1]),
        x.shape[:-1],
    )


def _matrix_operand(array, name: str) -> jax.Array:
    array = real_array(array, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` should be floating point, but has dtype {array.dtype}. "
            f"Pass {name}.astype('float32')."
        )
    return array


def _block_operand(array, name: str) -> jax.Array:
    array = _matrix_operand(array, name)
    if array.dtype.itemsize < 2:
        raise TypeError(
            f"`{name}` has dtype {array.dtype}, which has no arithmetic of its own, and its entries "
            f"are not widened one by one. Pass {name}.astype('bfloat16')."
        )
    return array


def _checked_bias(b, name: str, width) -> jax.Array:
    b = _matrix_operand(b, name)
    if b.shape != (width,):
        raise ValueError(f"`{name}` should have shape ({width},), but has shape {b.shape}.")
    return b


def _threshold_per_feature(threshold, features) -> jax.Array:
    threshold = _threshold_array(threshold, jnp.float32)
    if threshold.shape not in ((), (1,), (features,)):
        raise ValueError(
            f"`threshold` should be a number or of shape ({features},), one per feature, but "
            f"has shape {threshold.shape}."
        )
    return jnp.broadcast_to(threshold.astype(accumulator_dtype(threshold.dtype)), (features,))


def entries_for(capacity: int | None, examples: int, features: int, share: float) -> int:
    """How many entries lists hold: `capacity` for each example, or a share of the features."""
    if capacity is None:
        capacity = default_capacity(features, share)
    else:
        capacity = whole_number(capacity, "capacity", hint=" Pass None for the default.")
    return max(1, examples * min(capacity, features))


def default_capacity(features: int, share: float) -> int:
    """The number of open entries of an example that lists have room for: never a mere handful."""
    return max(32, round(features * share))
