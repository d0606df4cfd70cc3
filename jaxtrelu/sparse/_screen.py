"""Certified screening: entries proved closed from rounded operands, before any is computed.

Below a threshold nobody needs a pre-activation, only the proof that it is there. With x̂ and ŵ the
operands rounded to few bits, Cauchy and Schwarz say

    x . w <= x̂ . ŵ + |x̂| |w - ŵ| + |x - x̂| (|ŵ| + |w - ŵ|),

so that an entry whose right-hand side does not pass the threshold is closed. What is left are the
candidates: their pre-activations are summed in float32 and decided there, so that a wide bound
costs time and never a gate. All that is rounded in evaluating the right-hand side is rounded up:
docs/design/screening.md has the proof.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu import bits
from jaxtrelu._compat import row_sums
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import WORD_BITS, pack_last, words_for
from jaxtrelu._primitive.rules import varying_like
from jaxtrelu._primitive.spec import accumulator_dtype, real_array
from jaxtrelu.sparse._block import Plan, biased, compiled_once, encoded, takes_dense
from jaxtrelu.sparse._entries import (
    EntryList,
    Support,
    groups_of,
    list_entries,
    position,
    support_from,
    support_of,
)
from jaxtrelu.sparse._loops import at_most, ceil_div, repeat, take
from jaxtrelu.sparse._sums import column_slices, entry_dots

Precision = Literal["int8", "bfloat16"]

# Operands in which nothing overflows, also squared, multiplied and summed; a row with a larger
# element, and one with a NaN, proves nothing.
_LARGEST = 2.0**50
# Scales have normal reciprocals: smaller rows are rounded as if they were so large.
_SMALLEST = 2.0**-100
# More than what float32 loses in a few operations, relative to the largest number in them.
_ROUNDING = 2.0**-20
# The int32 sum of products of int8 numbers is exact up to here.
_WIDEST = 2**17
# Candidates whose bits are set per round.
_ROUND = 4096


class Screen(NamedTuple):
    """Weights (m, d) rounded for screening, with what the rounding lost: see `prepare_screen`.

    >>> import jaxtrelu
    >>> screen = jaxtrelu.sparse.prepare_screen(jnp.eye(3))
    >>> screen.weights.dtype, screen.weights.shape, screen.lost.shape
    (dtype('int8'), (3, 3), (3,))
    """

    weights: jax.Array
    """(m, d) int8 multiples of `scale`, or (d, m) bfloat16."""
    scale: jax.Array | None
    """(m,) float32; None for bfloat16."""
    lost: jax.Array
    """(m,) float32: no less than the norm of what was lost, with the rounding of sums."""
    norm: jax.Array
    """(m,) float32: no less than the norms of the rounded weights and of the loss together."""


def prepare_screen(w_in: Float[ArrayLike, "m d"], precision: Precision = "int8") -> Screen:
    """Rounds weights that do not change for the option ``screen=`` of `jaxtrelu.sparse_mlp`.

    ``ŵ = scale · round(w / scale)`` with ``scale = max |w| / 127`` of each feature, or w rounded to
    bfloat16; beside it upper bounds of ``|w - ŵ|`` and ``|ŵ| + |w - ŵ|``.

    Convention at the threshold: none here; a feature with a NaN, an infinity or an element beyond
    2^50 gets infinite bounds, so that nothing of it is ever proved closed.

    Args:
      w_in: (m, d), floating point, feature-major.
      precision: ``"int8"``, whose products are summed exactly, or ``"bfloat16"``.

    Returns:
      A `Screen`: a tree of arrays, which can be passed through `jax.jit`, saved, and sharded by
      feature. It holds for these weights: with others, the certificate is none.

    Raises:
      TypeError: `w_in` is not floating point.
      ValueError: `w_in` is no matrix or has more than 131,072 columns (for int8), or the precision
        has another name.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> x, w = jnp.array([[0.0, 3.0, 0.0]]), jnp.eye(3)
      >>> screen = jaxtrelu.sparse.prepare_screen(w)
      >>> jaxtrelu.sparse_mlp(x, w, w, 1.0, screen=screen).tolist()
      [[0.0, 2.0, 0.0]]

    Source: the bound of the VA-file (Weber, Schek, Blott 1998) with integer sums, as in FEXIPRO
    (Li et al. 2017).
    """
    if precision not in get_args(Precision):
        known = " or ".join(repr(name) for name in get_args(Precision))
        raise ValueError(f"`precision` should be {known}, but is {precision!r}.")
    w_in = real_array(w_in, "w_in")
    if not jnp.issubdtype(w_in.dtype, jnp.floating):
        raise TypeError(
            f"`w_in` should be floating point, but has dtype {w_in.dtype}. "
            "Pass w_in.astype('float32')."
        )
    if w_in.ndim != 2:
        raise ValueError(f"`w_in` should have shape (m, d), but has shape {w_in.shape}.")
    if precision == "int8" and w_in.shape[1] > _WIDEST:
        raise ValueError(
            f"`w_in` has {w_in.shape[1]} columns, beyond {_WIDEST} of which int32 sums of int8 "
            "products may overflow. Pass 'bfloat16'."
        )
    return _prepared(precision, lax.stop_gradient(w_in))


def checked_screen(screen, w_in: jax.Array) -> Screen | None:
    """The screen for these weights: the one given, or one made now; None for none."""
    if screen is None or screen is False:
        return None
    if screen is True:
        screen = "int8" if w_in.shape[1] <= _WIDEST else "bfloat16"
    if isinstance(screen, str):
        if screen not in get_args(Precision):
            known = ", ".join(repr(name) for name in get_args(Precision))
            raise ValueError(
                f"`screen` should be True, False, {known} or a Screen, but is {screen!r}."
            )
        return prepare_screen(w_in, cast(Precision, screen))
    if not isinstance(screen, Screen):
        raise TypeError(
            "`screen` should be a bool, the name of a precision or a Screen, but is "
            f"{type(screen).__name__}. Pass jaxtrelu.sparse.prepare_screen(w_in)."
        )
    shape = screen.weights.shape
    if not _is_integer(screen.weights):
        shape = (*shape[:-2], *shape[:-3:-1])
    if shape != w_in.shape:
        raise ValueError(
            f"`screen` was prepared for weights of shape {shape}, but these have {w_in.shape}. "
            "Pass jaxtrelu.sparse.prepare_screen of these weights."
        )
    return jax.tree.map(lambda leaf: varying_like(lax.stop_gradient(leaf), w_in), screen)


def dimensions_of(screen: Screen | None) -> Screen | None:
    """The dimensions of its arrays, for `distributed`."""
    if screen is None:
        return None
    if screen.scale is None:
        return Screen("dm", None, "m", "m")  # type: ignore[arg-type]
    return Screen("md", "m", "m", "m")  # type: ignore[arg-type]


# the certificate


class Rounded(NamedTuple):
    """Rows of a matrix (n, d), rounded, with upper bounds of norms."""

    values: jax.Array
    """(n, d) int8 multiples of `scale`, or bfloat16."""
    scale: jax.Array
    """(n,)."""
    norm: jax.Array
    """(n,): of the rounded rows."""
    lost: jax.Array
    """(n,): of the differences."""


def rounded(array: jax.Array, precision: str) -> Rounded:
    """Rounds rows; norms are those of rows divided by their largest element, where squares hold."""
    array, width = array.astype(jnp.float32), array.shape[1]
    top = _largest(jnp.abs(array))
    unit = top / 127 if precision == "int8" else top
    scale = jnp.clip(unit, _SMALLEST, _LARGEST)
    inverse = (1 / scale)[:, None]

    # Rounded once for the product and again in the passes over slices that sum up squares, which
    # costs less than a matrix read twice more. Where the same quotient, found in another way, falls
    # to the other side of a tie, `unseen` covers the difference.
    def parts(columns: slice) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of these columns: the rounded values, the same over the scale, and what was lost."""
        some = array[:, columns]
        if precision == "bfloat16":
            # XLA may skip a rounding that is written as two casts; this one it keeps.
            values = lax.reduce_precision(some, 8, 7)
            return values, values * inverse, (some - values) * inverse
        ratio = some * inverse
        whole = jnp.clip(jnp.round(ratio), -127, 127)
        # Of a NaN, which has no integer, only the infinite bounds matter.
        values = jnp.where(whole == whole, whole, 0)
        return values, values, ratio - values

    # `ratio` is off by two roundings of numbers up to 127, or what was flushed to zero.
    unseen = 2.0**-13 if precision == "int8" else 2.0**-20
    values = parts(slice(None))[0].astype(precision)
    upwards = 1 + (width + 32) * 2.0**-23
    norm = _norm(lambda columns: parts(columns)[1], width) * upwards
    lost = _norm(lambda columns: parts(columns)[2], width) * upwards
    lost = lost + math.sqrt(width) * unseen
    # Products of the bounds themselves are rounded as well.
    norm, lost = scale * norm * (1 + _ROUNDING), scale * lost * (1 + _ROUNDING)
    sound = (top <= _LARGEST) & jnp.isfinite(lost)
    infinite = jnp.float32(jnp.inf)
    return Rounded(
        values, scale, jnp.where(sound, norm, infinite), jnp.where(sound, lost, infinite)
    )


@compiled_once
def _prepared(precision: str, w_in: jax.Array) -> Screen:
    w, width = rounded(w_in, precision), w_in.shape[1]
    share, scale, values = _ROUNDING, w.scale, w.values
    if precision == "bfloat16":
        # Each float32 addition errs by 2^-23 of a partial sum at most, in whatever order.
        share = share + (1.5 * width + 16) * 2.0**-23
        # Stored so, XLA's CPU product of bfloat16 is about twice as fast.
        values, scale = values.T, None
    up = 1 + _ROUNDING
    return Screen(values, scale, (w.lost + share * w.norm) * up, (w.lost + w.norm) * up)


def proved_closed(x: jax.Array, screen: Screen, limit: jax.Array) -> jax.Array:
    """Where ``x . w <= limit`` is proved, (B, m): `limit` (m,) is that of `limits`."""
    precision = "int8" if _is_integer(screen.weights) else "bfloat16"
    examples = rounded(x, precision)
    if precision == "int8":
        over, dtype = (((1,), (1,)), ((), ())), jnp.int32
    else:
        over, dtype = (((1,), (0,)), ((), ())), jnp.float32
    product = lax.dot_general(examples.values, screen.weights, over, preferred_element_type=dtype)
    product = product.astype(jnp.float32)
    if screen.scale is not None:
        product = product * examples.scale[:, None] * screen.scale[None]
    bound = examples.norm[:, None] * screen.lost[None] + examples.lost[:, None] * screen.norm[None]
    # Of a NaN nothing is proved.
    return product + bound <= limit[None]


def limits(plan: Plan, threshold: jax.Array, bias: jax.Array | None) -> jax.Array:
    """What a product has to stay below to be closed and outside of the window, rounded down."""
    reach = 0.0
    if plan.spec.surrogate is not None:
        assert plan.spec.surrogate.half_width is not None
        reach = plan.spec.surrogate.half_width
    threshold = threshold.astype(jnp.float32)
    bias = jnp.zeros_like(threshold) if bias is None else bias.astype(jnp.float32)
    # With an infinite threshold or bias the difference is NaN, and proves nothing.
    slack = _ROUNDING * (jnp.abs(threshold) + jnp.abs(bias) + reach) + _SMALLEST
    return threshold - reach - bias - slack


def _is_integer(array: jax.Array) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.integer))


def _largest(array: jax.Array) -> jax.Array:
    """The largest element of each row: of slices first, since a minor-axis maximum is slow."""
    number, width = array.shape
    step = math.gcd(width, 32)
    return jnp.max(jnp.max(array.reshape(number, width // step, step), axis=1), axis=1)


def _norm(of_columns: Callable[[slice], jax.Array], width: int) -> jax.Array:
    """Norms of rows that are given by slices of columns: a fifth of a minor-axis reduction."""
    number, step = column_slices(width)
    squares = (of_columns(slice(k * step, (k + 1) * step)) ** 2 for k in range(number))
    return jnp.sqrt(row_sums(lax.optimization_barrier(sum(squares))))


# what is left of a latent


def screened_support(
    plan: Plan,
    x: jax.Array,
    weights: jax.Array,
    bias: jax.Array | None,
    threshold: jax.Array,
    screen: Screen,
    rest: Callable[[jax.Array], jax.Array],
    *,
    apart: bool = False,
) -> tuple[Support, jax.Array]:
    """The support of ``x @ weights.T + bias``, of which only candidates are computed.

    Returns it with y, by dense products: ``rest(x @ weights.T)`` where the entries are too many for
    lists, else 0. Where the candidates are, the first product is dense, as without a screen.
    """
    closed = proved_closed(x, screen, limits(plan, threshold, bias))
    words = pack_last(~closed)
    total = jnp.sum(bits.count(words), dtype=jnp.int32)

    def by_products(x):
        return rest(encoded(x, weights))

    shaped = jax.eval_shape(by_products, x)

    def nothing(like):
        return varying_like(jnp.zeros(shaped.shape, shaped.dtype), like)

    def dense(_):
        product = encoded(x, weights)
        support = support_of(plan, product, bias, threshold, apart=apart)
        return support, lax.cond(support.overflow, rest, nothing, product)

    def listed(words):
        support = _settled(plan, x, weights, bias, threshold, words, total, apart=apart)
        return support, lax.cond(support.overflow, by_products, nothing, x)

    too_many = takes_dense(plan, total, plan.candidates)
    return lax.cond(too_many, dense, listed, words)


def _settled(plan, x, weights, bias, threshold, words, total, *, apart) -> Support:
    """The support, from the pre-activations of candidates alone."""
    examples, features = x.shape[0], weights.shape[0]
    # By feature: rows of x stay in the cache, and each row of the weights is read once.
    columns = groups_of(bits.transpose(words, features))
    entries = list_entries(columns, total, plan.candidates)
    feature, row = entries
    dtype = accumulator_dtype(x.dtype, weights.dtype)
    z = entry_dots(entries, total, weights, x, dtype)
    if bias is not None:
        z = biased(z, take(bias, feature))
    at_entries = take(threshold, feature)
    across = words_for(features)
    setting = partial(_with_bits, EntryList(row, feature), total, examples, across)
    opened, inside = setting(formulas.above(z, at_entries)), None
    if plan.spec.surrogate is not None:
        inside = setting(formulas.window(z, at_entries, plan.spec))

    def z_at(row, feature):
        return take(z, position(columns, feature, row))

    return support_from(plan, opened, inside, z_at, apart=apart)


def _with_bits(entries: EntryList, total, rows: int, across: int, chosen) -> jax.Array:
    """Words (rows, across) in which the bits of chosen entries are set."""
    size = chosen.shape[0]
    length = at_most(_ROUND, size)
    padding = (0, ceil_div(size, length) * length - size)
    at = jnp.pad(entries.group * across + entries.member // WORD_BITS, padding)
    bit = jnp.uint32(1) << (entries.member % WORD_BITS).astype(jnp.uint32)
    bit = jnp.where(chosen & (jnp.arange(size, dtype=jnp.int32) < total), bit, 0)
    bit = jnp.pad(bit, padding)

    def set_some(i, words):
        place, new = (lax.dynamic_slice(a, (i * length,), (length,)) for a in (at, bit))
        return words.at[place].add(new, mode="promise_in_bounds")

    words = varying_like(jnp.zeros(rows * across, jnp.uint32), at, bit)
    return repeat(ceil_div(total, length), set_some, words).reshape(rows, across)
