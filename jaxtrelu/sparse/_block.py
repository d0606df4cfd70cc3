"""What the two-layer products share: the static part of a call, and the dense pieces of a block.

The dense pieces are what is computed where few entries are closed, so they keep the promise of the
sparse ones: **a factor that is exactly 0 contributes nothing**, also beside a NaN or an infinity.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxtrelu._primitive.partition import Layout, Share, columns_for
from jaxtrelu._primitive.rules import thresholded, varying_like
from jaxtrelu._primitive.spec import Spec, accumulator_dtype, computation_dtype, entries_for

#: What may be passed as ``products=``.
Products = Literal["dense", "loops", "gathers"]

# Share of entries for which lists are made; beyond it dense products are taken. On a CPU those are
# faster from 1/10 on for rows of 768 numbers, from 1/48 on for rows of 144 (docs/design/sparse.md).
CROSSOVER = 1 / 32
# So many rows are multiplied one at a time, as vectors: as a matrix XLA's CPU back end takes up to
# four times as long for them, and from four rows on less (docs/design/sparse.md).
_VECTORS = (1, 2)
# Rows of a factor with a NaN or an infinity in it that are cleaned of it at a time.
_CLEANED = 256
# Elements of a latent that a device can count, in 32 bits.
_COUNTED = 2**32
# Entries per feature summed in the first pass over a weight gradient.
DIRECT = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a call."""

    spec: Spec
    size: int
    """Entries that the lists hold."""
    direct: int = DIRECT
    """Entries per feature that a weight gradient sums in its first pass."""
    candidates: int = 0
    """Entries that the lists of a screen hold."""
    products: Products | None = None
    """How products are taken, or None: as the platform does it best."""
    layout: Layout | None = None
    """How the call is laid out over devices; None: it is computed as it is."""

    def of(self, share: Share) -> "Plan":
        """The plan of what one device computes: its lists are its share of the columns."""
        _check_size(share.layout.examples, share.layout.features, 1)
        size, candidates = (-(-n // share.number) for n in (self.size, self.candidates))
        return dataclasses.replace(self, size=size, candidates=candidates, layout=None)

    @property
    def window_is_silent(self) -> bool:
        """Whether closed entries inside the window matter to the threshold's gradient alone."""
        surrogate = self.spec.surrogate
        return (
            surrogate is not None and self.spec.traits.jump is not None and not surrogate.to_input
        )


def _check_size(examples, features, devices: int) -> None:
    """Raises where the elements of a latent cannot be counted on one of so many devices."""
    if not all(isinstance(size, int) for size in (examples, features)):
        return
    if (number := examples * features) >= devices * _COUNTED:
        needed = number // _COUNTED + 1
        raise ValueError(
            f"the latent of {examples:,} examples and {features:,} features has {number:,} "
            f"elements, and a device can count {_COUNTED:,}. Shard x over its examples or the "
            f"weights over their features, over {needed} devices at least, or pass fewer examples "
            "at a time."
        )


def planned(
    spec: Spec,
    capacity: int | None,
    share: float,
    shape: tuple[int, int],
    layout: Layout | None,
    products: Products | None,
) -> Plan:
    """The plan of a call for (B, m): its lists hold `capacity`, or a share of the entries."""
    examples, features = shape
    _check_size(examples, features, 1 if layout is None else layout.devices)
    if layout is None:
        size = entries_for(capacity, examples, features, share)
    else:
        size = examples * columns_for(layout, entries_for(capacity, 1, features, share))
    candidates = max(size, entries_for(None, examples, features, CROSSOVER))
    return Plan(spec, size, candidates=candidates, products=products, layout=layout)


# Runs once per shape outside of `jit` as well, where loops and conditionals would be compiled at
# every call; inside, nothing is left of it.
compiled_once = partial(jax.jit, static_argnums=0, inline=True)


def checked_products(products, known: tuple[str, ...], what: str) -> Products | None:
    """The argument ``products=``, of which `what` has those that are known."""
    if products is None or products in known:
        return products
    names = ", ".join(map(repr, known))
    if products in get_args(Products):
        raise NotImplementedError(
            f"products={products!r} cannot compute this call: {what} takes {names}. "
            "Pass products=None."
        )
    raise ValueError(f"`products` should be None or one of {names}, but is {products!r}.")


def takes_dense(plan: Plan, number: jax.Array, most: int) -> jax.Array:
    """Whether dense products are taken: for more entries than lists hold, on request, by platform.

    The platform's choice is made at lowering, so that one exported program serves all platforms. A
    constant there: the compiler drops what is not taken.
    """
    if plan.products is None:
        whatever = lax.platform_dependent(
            cpu=lambda: jnp.array(False), default=lambda: jnp.array(True)
        )
    else:
        whatever = jnp.array(plan.products == "dense")
    return (number > most) | whatever


# dense products


def encoded(x: jax.Array, weights: jax.Array) -> jax.Array:
    """``x @ weights.T``, in float32 at least: what is near a threshold is decided unrounded."""
    dtype = computation_dtype(x.dtype, weights.dtype)
    return _encoded(x.astype(dtype), weights.astype(dtype), accumulator_dtype(dtype))


def biased(product: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The pre-activations, from the product and as much of the bias as belongs to it."""
    if bias is None:
        return product
    bias = bias.astype(product.dtype)
    return product + (bias[None] if product.ndim > bias.ndim else bias)


def activated(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The activation, differentiable: z (B, m) with threshold (m,), or both of one shape."""
    return thresholded(z, _beside(threshold, z), plan.spec)


def gates(plan: Plan, z: jax.Array, threshold: jax.Array) -> jax.Array:
    """The gate as a number, with the surrogate's gradient, of z's shape and dtype."""
    step = Spec("step", surrogate=plan.spec.surrogate, implementation=plan.spec.implementation)
    return thresholded(z, _beside(threshold, z), step)


def projected(a: jax.Array, w_out: jax.Array) -> jax.Array:
    """``a @ w_out``, a dense product of activations in w_out's dtype; the result is in a's."""
    dtype = accumulator_dtype(a.dtype, w_out.dtype)
    return _projected(a.astype(w_out.dtype), w_out, dtype).astype(a.dtype)


def decoded(plan: Plan, z: jax.Array, threshold: jax.Array, w_out: jax.Array) -> jax.Array:
    """``act(z) @ w_out``, a dense product, in z's dtype."""
    return projected(activated(plan, z, threshold), w_out)


def finished(y: jax.Array, b_out: jax.Array | None, lead: tuple, dtype) -> jax.Array:
    """The result of a block in its public shape and dtype, with the last bias."""
    return biased(y, b_out).astype(dtype).reshape(*lead, y.shape[-1])


@jax.custom_vjp
def passed(a: jax.Array, up: jax.Array) -> jax.Array:
    """``a * up``, what a gated unit lets through: 0 where a is, whatever `up` holds there.

    Its gradient to a is unmasked: at a closed gate inside a surrogate's window it is the estimate.
    """
    return jnp.where(a != 0, a * up, 0)


passed.defvjp(
    lambda a, up: (passed(a, up), (a, up)),
    lambda factors, g: (g * factors[1], jnp.where(factors[0] != 0, g * factors[0], 0)),
)


def _beside(threshold: jax.Array, z: jax.Array) -> jax.Array:
    return threshold[None] if threshold.ndim < z.ndim else threshold


class Operands(NamedTuple):
    """x (B, d), w_in (m, d), b_in (m,) or None, threshold (m,), w_out (m, d_out)."""

    x: jax.Array
    w_in: jax.Array
    b_in: jax.Array | None
    threshold: jax.Array
    w_out: jax.Array


def dense_forward(plan: Plan, operands: Operands) -> tuple[jax.Array, jax.Array]:
    """Returns y and l0 of the two-layer product, dense: reference, and for what is not sparse."""
    z = biased(encoded(operands.x, operands.w_in), operands.b_in)
    l0 = jnp.sum(gates(plan, z, operands.threshold), axis=-1)
    return decoded(plan, z, operands.threshold, operands.w_out), l0


# dense products of a matrix with zeros, and their gradients


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _encoded(x: jax.Array, weights: jax.Array, dtype) -> jax.Array:
    return _dot(x, weights, (1, 1), dtype)


def _encoded_gradients(dtype, factors, g):
    x, weights = factors
    to_x = product_of_nonzeros(g, weights, dtype).astype(x.dtype)
    return to_x, product_of_nonzeros(g, x, dtype, 0).astype(weights.dtype)


_encoded.defvjp(lambda x, weights, dtype: (_encoded(x, weights, dtype), (x, weights)),
                _encoded_gradients)  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _projected(a: jax.Array, w_out: jax.Array, dtype) -> jax.Array:
    return product_of_nonzeros(a, w_out, dtype)


def _projected_gradients(dtype, factors, g):
    a, w_out = factors
    to_a = _dot(g, w_out, (1, 1), dtype).astype(a.dtype)
    return to_a, product_of_nonzeros(a, g, dtype, 0).astype(w_out.dtype)


_projected.defvjp(lambda a, w_out, dtype: (_projected(a, w_out, dtype), (a, w_out)),
                  _projected_gradients)  # fmt: skip


def product_of_nonzeros(a: jax.Array, b: jax.Array, dtype, over: int = 1) -> jax.Array:
    """``a @ b`` summed in `dtype`, over what is not exactly 0 in `a`: (n, k) by (k, d) to (n, d).

    The plain product, unless `b` holds a NaN or an infinity. One would be in every row of the plain
    product, even beside a 0, so that the first row tells; no other number is looked at. (Also in a
    row that is so by right; then the way round costs time and changes nothing.) `over` is the axis
    of `a` that is summed over; 0 is ``a.T @ b``, without a transpose to be written out.
    """
    if not (a.size and b.size):
        return _dot(a, b, (over, 0), dtype)
    return _guarded(jnp.dtype(dtype), over)(a, b)


@cache
def _guarded(dtype, over: int, batches: tuple[tuple[bool, ...], ...] = ()) -> Callable:
    """`product_of_nonzeros` under so many `vmap`, of each of which it is told what is mapped.

    A conditional on one number for all of a batch: under a plain `vmap` both of its sides would be
    computed. (As a loop of no or one trip it would not stay where it is: XLA moves what does not
    change from turn to turn out of a loop, and that is all of it.)
    """
    product = partial(_dot, over=(over, 0), dtype=dtype)
    around = partial(_around_zeros, dtype=dtype, over=over)
    for mapped in batches:
        axes = tuple(0 if is_mapped else None for is_mapped in mapped)
        product, around = (jax.vmap(function, axes) for function in (product, around))

    @custom_vmap
    def guarded(a, b):
        y = product(a, b)
        spoilt = ~jnp.all(jnp.isfinite(y[(slice(None),) * len(batches) + (0,)]))
        return lax.cond(spoilt, lambda a, b, _: around(a, b), lambda a, b, y: y, a, b, y)

    @guarded.def_vmap
    def _(size, mapped, a, b):
        return _guarded(dtype, over, (*batches, tuple(mapped)))(a, b), True

    return guarded


def _around_zeros(a: jax.Array, b: jax.Array, dtype, over: int) -> jax.Array:
    """The same by select: where `b` has a NaN or an infinity beside a 0, terms are added singly.

    In blocks of rows: a copy of `b` as a whole would belong to the memory of every program with
    such a product in it, and be asked of the system at each call, taken or not.
    """
    rows = b.shape[0]
    length = min(_CLEANED, rows) if isinstance(rows, int) else rows
    blocks = -(-rows // length) if isinstance(rows, int) else 1
    places = jnp.arange(length, dtype=jnp.int32)

    def add_block(k, y):
        # The last block begins earlier where rows are left over; those it has seen are left out.
        first = jnp.minimum(k * length, rows - length)
        factors = lax.dynamic_slice_in_dim(a, first, length, axis=over)
        terms = lax.dynamic_slice_in_dim(b, first, length)
        unseen = first + places >= k * length
        bad = ~jnp.all(jnp.isfinite(terms), axis=1) & jnp.any(factors == 0, axis=1 - over) & unseen
        # Of both factors: an infinite one beside a 0 would be NaN.
        plain = unseen & ~bad
        kept = jnp.where(jnp.expand_dims(plain, 1 - over), factors, 0)
        y = y + _dot(kept, jnp.where(plain[:, None], terms, 0), (over, 0), dtype)

        def add(state):
            y, left = state
            place = jnp.argmax(left).astype(jnp.int32)
            # From `a` itself: kept beside what is multiplied, the factors would be a second array.
            factor = lax.dynamic_index_in_dim(a, first + place, axis=over, keepdims=False)
            factor = factor.astype(dtype)[:, None]
            term = factor * lax.dynamic_index_in_dim(terms, place, axis=0).astype(dtype)
            return y + jnp.where(factor != 0, term, 0), left & (places != place)

        return lax.while_loop(lambda state: jnp.any(state[1]), add, (y, bad))[0]

    start = varying_like(jnp.zeros((a.shape[1 - over], b.shape[1]), dtype), a, b)
    return lax.fori_loop(0, blocks, add_block, start)


def _dot(a: jax.Array, b: jax.Array, over: tuple[int, int], dtype) -> jax.Array:
    """The product over one axis of each; the factors may differ in dtype."""
    (i, j), batch = over, ((), ())
    if over == (1, 1) and a.shape[0] in _VECTORS:
        rows = [_dot(b, row, (1, 0), dtype) for row in a]
        return jnp.stack(rows)
    return lax.dot_general(a, b, (((i,), (j,)), batch), preferred_element_type=dtype)
