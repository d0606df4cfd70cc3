"""What a call means, and the one place where it is checked.

`Spec` is the static part of a call: which function it is. The functions below it stand at the
public doors: operands are checked and made canonical here, once, and all behind trusts them.
"""

import functools
import math
import numbers
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxtrelu._primitive.lowering import implementations
from jaxtrelu._primitive.variants import VARIANTS, Variant
from jaxtrelu._surrogates import Surrogate

#: What may be passed as ``variant=``: the selectable rows of the table.
VariantName = Literal["shift", "hard", "clamp"]
#: What may be passed as ``implementation=``: XLA, and the back ends that come with the library.
ImplementationName = Literal["xla", "experimental_mosaic_gpu", "mosaic_tpu"]


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
    def traits(self) -> Variant:
        """What the table says of the function's variant."""
        return VARIANTS[self.variant]


def computation_dtype(*dtypes) -> jnp.dtype:
    """The dtype in which operands are compared and subtracted: wide enough to hold them all.

    Types without arithmetic of their own (the float8 family) are computed in float32.
    """
    arithmetic = []
    for dtype in map(jnp.dtype, dtypes):
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2
        arithmetic.append(jnp.dtype("float32") if narrow else dtype)
    # Promotion is stated here, so a user's strict mode has nothing to object to.
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, arithmetic)


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
    names = selectable_variants()
    if variant not in names:
        raise ValueError(
            f"`variant` should be one of {', '.join(map(repr, names))}, but is {variant!r}."
        )
    traits = VARIANTS[variant]
    if ceiling is not None:
        if not traits.takes_ceiling:
            with_one = _first(lambda traits: traits.takes_ceiling)
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
    if not traits.takes_fill and not (fill == 0 and math.copysign(1, fill) == 1):
        with_one = _first(lambda traits: traits.takes_fill)
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


def selectable_variants() -> tuple[str, ...]:
    """What may be passed as ``variant=``."""
    return tuple(name for name, traits in VARIANTS.items() if traits.selectable)


def _first(has: Callable[[Variant], bool]) -> str:
    """The first variant to be passed that has something, for messages that say what to pass."""
    return next(name for name in selectable_variants() if has(VARIANTS[name]))


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
            f"Drop it, or pass variant={_first(lambda traits: traits.jump is not None)!r}."
        )
    return surrogate


def _static_number(number, name: str) -> int | float:
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, numbers.Real):
        raise TypeError(
            f"`{name}` should be a Python number, but is {_described(number)}. It is part of the "
            f"compiled program, not an operand of it: pass a number, such as {name}=1.0."
        )
    if isinstance(number, numbers.Integral) and abs(int(number)) < 1 << 64:
        return int(number)  # a dtype of integers may hold it exactly
    try:
        number = float(number)
    except OverflowError:
        raise ValueError(f"`{name}` is larger than any dtype holds. Pass a smaller one.") from None
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
    if not spec.traits.has_zeros:
        with_zeros = [name for name in selectable_variants() if VARIANTS[name].has_zeros]
        raise ValueError(
            f"variant={spec.variant!r} has no zeros to skip: it is {spec.traits.formula}. Pass "
            f"{' or '.join(map(repr, with_zeros))}, or write the same with "
            "jaxtrelu.thresholded_relu."
        )
    if spec.fill != 0:
        raise ValueError(
            f"`fill` should be 0 here, but is {spec.fill!r}: closed entries contribute nothing. "
            "Write the same with jaxtrelu.thresholded_relu."
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
    x, threshold, spec: Spec, *, floating: bool = False, name: str = "x"
) -> tuple[jax.Array, jax.Array]:
    """Strongly typed x, called `name`, and the threshold as an array, 0-d or of x's rank."""
    x = real_array(x, name)
    if (floating or spec.surrogate) and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` should be floating point {'here' if floating else 'with a surrogate'}, but "
            f"has dtype {x.dtype}. Pass {name}.astype('float32')."
        )
    threshold = _threshold_for(threshold, x.shape, x.dtype, name)
    if jnp.issubdtype(x.dtype, jnp.integer):
        _check_integers(x, threshold)
        if spec.ceiling is not None:  # in floating point one out of range is never reached
            _check_held(spec.ceiling, "ceiling", x.dtype, name)
    check_fill(spec, x.dtype, name)
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
        advice = f"{name}.astype('float32')" if hasattr(x, "astype") else "a float32 array"
        raise TypeError(f"{wanted}, but is {_described(x)}. Pass for example {advice}.")
    try:
        return jnp.asarray(x, dtype)
    except OverflowError:
        raise ValueError(
            f"`{name}` = {x!r:.40} does not fit in {dtype}, which JAX takes a Python integer in. "
            "Pass a floating-point number."
        ) from None


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
    threshold = real_array(threshold, "threshold")
    if jnp.issubdtype(threshold.dtype, jnp.integer) and jnp.issubdtype(dtype, jnp.floating):
        # JAX would take 259 in bfloat16, where it is 260.
        threshold = threshold.astype(accumulator_dtype(dtype))
    return threshold


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
                f"`threshold` = {threshold!r:.40} does not fit in x's dtype {dtype}, which holds "
                f"{limits.min} to {limits.max}. Cast x to a wider dtype first."
            )
        threshold = int(threshold)
    elif not _fits(threshold, dtype):
        raise ValueError(_does_not_fit(threshold, "threshold", "in which it is compared", dtype))
    return jnp.asarray(threshold, dtype)


def ceiling_in(spec: Spec, dtype) -> int | float | None:
    """The ceiling, if there is one that a dtype holds: above its largest number none is reached."""
    if spec.ceiling is None or jnp.issubdtype(dtype, jnp.integer):
        return spec.ceiling
    return float(spec.ceiling) if _fits(spec.ceiling, dtype) else None


def check_fill(spec: Spec, dtype, of: str = "x") -> None:
    """Refuses a fill that would be another number in the dtype of `of`, which is the result's."""
    if spec.fill:  # any dtype holds 0
        _check_held(spec.fill, "fill", dtype, of)


def _check_held(number: int | float, name: str, dtype, of: str) -> None:
    """Refuses a static number that a dtype does not hold."""
    if not jnp.issubdtype(dtype, jnp.integer):
        if not _fits(number, dtype):
            raise ValueError(_does_not_fit(number, name, f"of {of}", dtype, of))
        return
    if isinstance(number, float) and not number.is_integer():
        raise TypeError(
            f"`{name}` should be an integer for {of} of dtype {dtype}, but is {number!r}."
        )
    limits = jnp.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        raise ValueError(f"`{name}` = {number!r} does not fit in {of}'s dtype {dtype}.")


def _fits(number: int | float, dtype) -> bool:
    """Whether a Python number is in a floating dtype what it was: an infinity, or finite."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            held = float(np.array(float(number)).astype(dtype))
    except OverflowError:  # an integer beyond float64
        return False
    return math.isfinite(held) or held == number


def _does_not_fit(number: int | float, name: str, which: str, dtype, what: str = "x") -> str:
    """What is said of a number that is too large for a floating dtype."""
    otherwise = ", or pass an infinity" if _fits(math.inf, dtype) else ""
    return (
        f"`{name}` = {number!r:.40} does not fit in the dtype {which}, {jnp.dtype(dtype).name}, "
        f"whose largest number is {float(jnp.finfo(dtype).max):g}. Cast {what} to a wider dtype "
        f"first{otherwise}."
    )


def _weak_threshold(threshold: jax.Array, dtype) -> jax.Array:
    """What was a Python number outside of jit is taken in x's dtype here, too."""
    fractional = jnp.issubdtype(threshold.dtype, jnp.floating)
    if fractional and jnp.issubdtype(dtype, jnp.integer):
        return threshold
    return threshold.astype(dtype)


def _check_integers(x: jax.Array, threshold: jax.Array) -> None:
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


def _described(x) -> str:
    if isinstance(x, (jax.Array, np.ndarray)):
        return f"an array of dtype {x.dtype} and shape {x.shape}"
    return f"{x!r} ({type(x).__name__})"


# the operands of products


def linear_operands(
    x, w, b, threshold, spec: Spec
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """x (..., d), w (d, n), b (n,) or zeros, and the threshold, 0-d or of the output's rank."""
    x, w = _matrix_operand(x, "x"), _matrix_operand(w, "w")
    if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[0]:
        turned = " Pass w.T if `w` is (n, d)." if w.ndim == 2 else ""
        raise ValueError(
            f"`x` should have shape (..., d) and `w` (d, n), but the shapes are {x.shape} and "
            f"{w.shape}.{turned}"
        )
    if x.dtype != w.dtype:
        raise TypeError(
            f"`x` and `w` should have one dtype, but have {x.dtype} and {w.dtype}. "
            f"Pass w.astype({x.dtype.name!r})."
        )
    b = jnp.zeros(w.shape[1], x.dtype) if b is None else _checked_bias(b, "b", w.shape[1])
    check_fill(spec, x.dtype)
    shape = (*x.shape[:-1], w.shape[1])
    return x, w, b, _threshold_for(threshold, shape, accumulator_dtype(x.dtype), "x @ w + b")


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
            turned = f" Pass {name}.T if it is (d, m)." if w.ndim == 2 else ""
            raise ValueError(
                f"`{name}` should have the shape of `{first}`, {head.shape}, but has {w.shape}."
                f"{turned}"
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
        _threshold_per_feature(threshold, features, accumulator_dtype(x.dtype, head.dtype)),
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
            f"`{name}` has dtype {array.dtype}, which has no arithmetic of its own. "
            f"Pass {name}.astype('bfloat16')."
        )
    return array


def _checked_bias(b, name: str, width) -> jax.Array:
    b = _matrix_operand(b, name)
    if b.shape != (width,):
        raise ValueError(f"`{name}` should have shape ({width},), but has shape {b.shape}.")
    return b


def _threshold_per_feature(threshold, features, dtype) -> jax.Array:
    """The thresholds, (m,); a Python number in the dtype of the pre-activations."""
    threshold = _threshold_array(threshold, dtype)
    if threshold.shape not in ((), (1,), (features,)):
        raise ValueError(
            f"`threshold` should be a number or of shape ({features},), one per feature, but "
            f"has shape {threshold.shape}."
        )
    return jnp.broadcast_to(
        threshold.astype(accumulator_dtype(threshold.dtype, dtype)), (features,)
    )


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


# the arguments of layers

Initializer = Callable[..., Any]
#: A number, an array (or nested sequence) with one entry per channel, or an initialiser.
ThresholdLike = ArrayLike | Sequence[Any] | Initializer
Axes = int | Sequence[int]
#: How a JumpReLU's threshold follows from what is stored.
Parametrisation = Literal["raw", "softplus"]

_WANTED = (
    "`threshold` of a layer should be a number, an array with one entry per channel, or an "
    "initialiser (key, shape, dtype) -> array"
)


def checked_layer(
    threshold: ThresholdLike,
    *,
    learned: bool,
    variant: str,
    ceiling: float | None,
    fill: float,
    surrogate: Surrogate | None,
    implementation: str | None,
    param_dtype: DTypeLike,
) -> Spec:
    """Refuses at construction what could not work later, and returns which function it is."""
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    value = _known(threshold)
    _check_stored_dtype(value, learned, param_dtype)
    if learned:
        _check_learns(threshold, value, spec)
    return spec


def checked_block_layer(
    threshold: ThresholdLike,
    *,
    features: int,
    learned: bool,
    variant: str,
    ceiling: float | None,
    fill: float,
    surrogate: Surrogate | None,
    implementation: str | None,
    capacity: int | None,
    threshold_dtype: DTypeLike,
) -> tuple[Spec, tuple]:
    """As `checked_layer`, for a block that skips zeros; also its threshold's shape, () for one."""
    spec = checked_layer(
        threshold,
        learned=learned,
        variant=variant,
        ceiling=ceiling,
        fill=fill,
        surrogate=surrogate,
        implementation=implementation,
        param_dtype=threshold_dtype,
    )
    check_skips(spec, "CompactMLP")
    entries_for(capacity, 1, features, 1)
    one_for_all = not callable(threshold) and np.shape(threshold) == ()  # type: ignore[arg-type]
    shape = threshold_shape(threshold, features)
    return spec, () if one_for_all and not learned else shape


def _known(threshold: ThresholdLike) -> np.ndarray | None:
    """The threshold's value, a real array without NaN; None where an initialiser will say."""
    if callable(threshold) or isinstance(threshold, jax.core.Tracer):
        return None
    try:
        value = np.asarray(threshold)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{_WANTED}, but is {threshold!r}, which forms no array: {error}") from None
    if not (value.dtype.kind in "iuf" or jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"{_WANTED}, but is {threshold!r} ({type(threshold).__name__}).")
    value = value.astype(np.float64)
    if np.isnan(value).any():
        raise ValueError(f"`threshold` is NaN or contains NaN: {threshold!r}. Pass numbers.")
    return value


def _check_stored_dtype(value: np.ndarray | None, learned: bool, dtype: DTypeLike) -> None:
    dtype = jnp.dtype(dtype)
    floating = jnp.issubdtype(dtype, jnp.floating)
    if learned and not (floating and dtype.itemsize >= 4):
        raise ValueError(
            "`param_dtype` of a learned threshold should be float32 (or float64), but is "
            f"{dtype.name}: small steps would be lost to rounding. Keep param_dtype=jnp.float32; "
            "`dtype` alone sets the dtype of the activations."
        )
    if floating:
        return
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"`param_dtype` should be floating point or integer, but is {dtype.name}.")
    limits = jnp.iinfo(dtype)
    if value is not None and not (
        (value % 1 == 0).all() and (limits.min <= value).all() and (value <= limits.max).all()
    ):
        raise ValueError(
            f"`threshold` = {value.tolist()!r} does not fit in param_dtype={dtype.name}. Pass "
            "integers within its range, or param_dtype=jnp.float32."
        )


def _check_learns(threshold: ThresholdLike, value: np.ndarray | None, spec: Spec) -> None:
    if not any(spec.traits.threshold_slope) and spec.surrogate is None:
        raise ValueError(
            f"a learned threshold with variant={spec.variant!r} would not learn: the derivative of "
            "the value with respect to the threshold is 0 almost everywhere. Pass a surrogate, "
            "such as surrogate=jaxtrelu.Rectangle(0.1) with a bandwidth in the units of x; or use "
            "variant='shift', whose threshold has a true gradient; or learned=False."
        )
    if value is None:
        return
    if not np.isfinite(value).all():
        raise ValueError(
            f"a learned threshold should be finite, but is {threshold!r}: no step would move it."
        )
    check_leaves_fill(value, spec)


def check_leaves_fill(value, spec: Spec) -> None:
    """Refuses a learned threshold where its surrogate's gradient is 0, and remains so."""
    if any(spec.traits.threshold_slope) or isinstance(value, jax.core.Tracer):
        return
    if np.any(np.asarray(value) == spec.fill):
        raise ValueError(
            f"a learned threshold with variant={spec.variant!r} would not leave {spec.fill!r}: its "
            "surrogate gradient is proportional to the height of the jump, threshold - fill, which "
            f"is 0 there. Start it elsewhere, such as threshold={spec.fill + 0.1!r}."
        )


def checked_start(value, shape: tuple, dtype: DTypeLike) -> Any:
    """What an initialiser returned, as an array of the shape and dtype that it was asked for."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, int, float)):
        return value  # Flax's metadata around an array
    if jnp.shape(value) != shape:
        raise ValueError(
            f"the initialiser of `threshold` was asked for shape {shape}, but returned shape "
            f"{jnp.shape(value)}."
        )
    return jnp.asarray(value, dtype)


def checked_jump_layer(
    threshold: ArrayLike | Sequence[float],
    *,
    features: int,
    surrogate: Surrogate,
    implementation: str | None,
    parametrisation: str,
    axis: int,
    param_dtype: DTypeLike,
) -> Spec:
    """As `checked_layer`, for a JumpReLU with one learned threshold per feature."""
    if surrogate is None:
        raise TypeError(
            "`surrogate` is None, and without one a JumpReLU's thresholds do not learn. Pass for "
            "example jaxtrelu.Rectangle(0.05)."
        )
    spec = checked_spec("hard", surrogate=surrogate, implementation=implementation)
    if parametrisation not in get_args(Parametrisation):
        raise ValueError(
            f"`parametrisation` should be 'raw' or 'softplus', but is {parametrisation!r}."
        )
    whole_number(features, "features")
    whole_number(axis, "axis", least=-sys.maxsize)
    if callable(threshold):
        raise TypeError(
            "`threshold` of a JumpReLU should be a number or an array with one entry per feature, "
            f"but is {threshold!r}."
        )
    value = _known(threshold)
    threshold_shape(threshold, features)
    _check_stored_dtype(value, True, param_dtype)
    if value is None:
        return spec
    if not np.isfinite(value).all() or (value < 0).any():
        raise ValueError(
            f"`threshold` should be finite and at least 0, but is {threshold!r}: below zero the "
            "gate would let negative pre-activations through."
        )
    if parametrisation == "softplus" and (value <= 0).any():
        raise ValueError(
            "`threshold` should be greater than 0 under parametrisation='softplus', but is "
            f"{threshold!r}. Pass a positive number, or parametrisation='raw'."
        )
    return spec


def threshold_shape(threshold: ThresholdLike, features: int | Sequence[int] | None) -> tuple:
    """The shape of a stored threshold: () for one number, else one entry per channel."""
    given = () if callable(threshold) else np.shape(threshold)  # type: ignore[arg-type]
    if features is None:
        return given
    shape = _integers(features, "features")
    if min(shape, default=1) < 1:
        raise ValueError(f"`features` should be at least 1, but is {features!r}.")
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
    if not shape:
        raise ValueError(
            f"`axis` is {axis!r}, but the layer has one threshold for all of x. Pass "
            "`features`, the number of channels there, for one threshold per channel."
        )
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


def aligned_threshold(threshold, x_shape: tuple, axes: tuple[int, ...]) -> jax.Array:
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
