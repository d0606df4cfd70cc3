"""Compact residuals: a two-layer block whose hidden activation is kept as words and values.

All products are dense, as is right from a few per cent of open entries on; what is saved is memory.
Of the latent the gradient needs which entries are open and what stands there: one bit per element
and one number per open entry, instead of the pre-activation and the activation. XLA moves cheap
operations over the border of forward and backward pass and would keep the large array after all;
barriers on both sides hold the small one there.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu._primitive.packing import WORD_BITS, population, rank_in_word
from jaxtrelu._primitive.partition import (
    Share,
    distributed,
    from_columns,
    layout_of,
    like,
    to_columns,
    to_rows,
)
from jaxtrelu._primitive.rules import once
from jaxtrelu._primitive.spec import (
    ImplementationName,
    VariantName,
    block_operands,
    check_skips,
    checked_spec,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sparse._block import (
    Plan,
    biased,
    compiled_once,
    decoded,
    encoded,
    finished,
    planned,
)
from jaxtrelu.sparse._entries import groups_of, support_of
from jaxtrelu.sparse._loops import take
from jaxtrelu.sparse._mlp import GRADIENTS, OPERANDS, Operands, has_elements, operands_of

# Share of open entries that the default capacity allows for.
_SHARE = 1 / 8


def compact_mlp(
    x: Float[ArrayLike, "*batch d"],
    w_in: Float[ArrayLike, "m d"],
    w_out: Float[ArrayLike, "m d_out"],
    threshold: Float[ArrayLike, "..."] = 1.0,
    *,
    b_in: Float[ArrayLike, " m"] | None = None,
    b_out: Float[ArrayLike, " d_out"] | None = None,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
    capacity: int | None = None,
) -> Float[Array, "*batch d_out"]:
    """``act(x @ w_in.T + b_in) @ w_out + b_out`` that keeps its latent as words and values.

    Dense products; between the passes the latent takes one bit per element and one number per entry
    of the lists, instead of the pre-activation and the activation. For activations that are sparse
    but not sparse enough for `jaxtrelu.sparse_mlp` to be faster. Where more entries are open than
    the lists hold, the latent is computed again from x, by a choice made on the device.

    Convention at the threshold: open where ``x @ w_in.T + b_in > threshold``, strictly. A closed
    entry contributes nothing, as in `jaxtrelu.sparse_mlp`.

    Args:
      x: (..., d), floating point; kept for the gradient, as a dense layer does.
      w_in: (m, d), feature-major.
      w_out: (m, d_out), feature-major.
      threshold: a number or (m,), in the units of the pre-activations.
      b_in: (m,), or None.
      b_out: (d_out,), or None.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      fill: 0: closed entries contribute nothing.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``, or None.
      implementation: None or ``"xla"``; the kernels have none for this product.
      capacity: entries of an example that the lists hold, on average; a hint, not a limit.
        Default: m / 8 (at least 32). Each costs 4 bytes per example.

    Returns:
      y of shape (..., d_out) in x's dtype, summed in float32 at least.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, a variant or a fill that leaves no zeros, or a surrogate
        of unbounded support.
      NotImplementedError: the implementation asked for cannot compute this call.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu.sparse import compact_mlp
      >>> compact_mlp(jnp.array([1.0, 3.0]), jnp.eye(2), jnp.eye(2), 2.0).tolist()
      [0.0, 1.0]

    Source: sparse residuals after Gist (Jain et al., ISCA 2018), made exact.
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    check_skips(spec, "compact_mlp")
    block = block_operands(x, {"w_in": w_in}, w_out, threshold, {"b_in": b_in}, b_out)
    layout = layout_of(block.x, block.w_out)
    shape = block.x.shape[0], block.w_out.shape[0]
    # Its products are dense already, and the lists are what it is for.
    plan = planned(spec, capacity, _SHARE, shape, layout, "loops")
    operands = operands_of(block)
    y = (keeping_entries if has_elements(operands) else _dense)(plan, operands)
    return finished(y, block.b_out, block.lead, block.x.dtype)


@compiled_once
def _dense(plan: Plan, operands: Operands) -> jax.Array:
    z = biased(encoded(operands.x, operands.w_in), operands.b_in)
    return decoded(plan, z, operands.threshold, operands.w_out)


class CompactResiduals(NamedTuple):
    """What the gradient needs: operands, one bit per element, and the entries' pre-activations."""

    operands: Operands
    words: jax.Array
    z: jax.Array
    overflow: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def keeping_entries(plan: Plan, operands: Operands) -> jax.Array:
    """Returns y (B, d_out), in the accumulator's type, without b_out."""
    if plan.layout is None:
        return _dense(plan, operands)
    return _distributed_dense(plan, operands)


@compiled_once
def forward(plan: Plan, operands: Operands) -> tuple[jax.Array, CompactResiduals]:
    """Returns y, and what the gradient needs."""
    product = encoded(operands.x, operands.w_in)
    z = biased(product, operands.b_in)
    y = decoded(plan, z, operands.threshold, operands.w_out)
    support = support_of(plan, product, operands.b_in, operands.threshold)
    entries, overflow = support.visited, support.overflow
    # With the output, or finding the entries would be put off to the backward pass.
    y, words, z, overflow = lax.optimization_barrier((y, entries.groups.words, entries.z, overflow))
    return y, CompactResiduals(operands, words, z, overflow)


def _backward(plan: Plan, residuals: CompactResiduals, g: jax.Array):
    compute = _gradients if plan.layout is None else _distributed_gradients
    return (once("compact_mlp", partial(compute, plan))(residuals, g),)


@compiled_once
def _gradients(plan: Plan, residuals: CompactResiduals, g: jax.Array) -> Operands:
    # With the cotangent, or the expansion would be done in the forward pass.
    operands, *kept = residuals
    (words, entries, overflow), g = lax.optimization_barrier((kept, g))
    # XLA's CPU back end schedules after it has taken the barriers away, and would expand all layers
    # first. So the choice depends on the cotangent: no number is above infinity, and if one were,
    # the latent would only be computed again.
    overflow |= g[0, 0] > jnp.inf

    def recomputed():
        return biased(encoded(operands.x, operands.w_in), operands.b_in)

    def expanded():
        return _expand(words, entries, operands.w_in.shape[0])

    z = lax.cond(overflow, recomputed, expanded)
    pull = jax.vjp(partial(decoded, plan), z, operands.threshold, operands.w_out)[1]
    dz, threshold, w_out = pull(g)
    # Bilinear: the product itself is not needed, and XLA leaves it out.
    pull = jax.vjp(
        lambda x, w_in, b_in: biased(encoded(x, w_in), b_in),
        operands.x,
        operands.w_in,
        operands.b_in,
    )[1]
    # Together, or XLA may put the weights' gradients off and keep a dense dz of every layer.
    x, w_in, b_in = pull(dz)
    return lax.optimization_barrier(Operands(x, w_in, b_in, threshold, w_out))


def _expand(words: jax.Array, kept: jax.Array, width: int) -> jax.Array:
    """The latent (B, width) from its entries; -inf, closed and outside every window, elsewhere."""
    groups = groups_of(words)
    place = jnp.arange(width, dtype=jnp.int32)
    word = words[:, place // WORD_BITS]
    before = (groups.upto - population(words))[:, place // WORD_BITS]
    bit = place % WORD_BITS
    at = before + rank_in_word(word, jnp.broadcast_to(bit, word.shape))
    is_set = (word >> bit.astype(jnp.uint32)[None]) & jnp.uint32(1)
    value = take(kept, jnp.minimum(at, kept.shape[0] - 1))
    return jnp.where(is_set == 1, value, -jnp.inf)


# on several devices


@compiled_once
def _distributed_dense(plan: Plan, operands: Operands) -> jax.Array:
    assert plan.layout is not None

    def local(share: Share, operands: Operands):
        return _dense(plan.of(share), operands)

    return distributed(plan.layout, local, (operands,), (like(operands, OPERANDS),), "bo/m")


def _forward(plan: Plan, operands: Operands):
    compute = forward if plan.layout is None else _distributed_forward
    return compute(plan, operands)


@compiled_once
def _distributed_forward(plan: Plan, operands: Operands):
    assert plan.layout is not None

    def local(share: Share, operands: Operands):
        y, kept = forward(plan.of(share), operands)
        return y, to_columns(kept.words, share.layout), to_rows(kept.z, share.layout)

    y, *kept = distributed(
        plan.layout, local, (operands,), (like(operands, OPERANDS),), ("bo/m", "bw", "bc")
    )
    return y, (operands, *kept)


@compiled_once
def _distributed_gradients(plan: Plan, residuals, g: jax.Array) -> Operands:
    operands, words, z = residuals
    assert plan.layout is not None

    def local(share: Share, operands: Operands, words, z, g):
        own, words = plan.of(share), from_columns(words, share.layout)
        overflow = groups_of(words).total > own.size
        return _gradients(own, CompactResiduals(operands, words, z.reshape(-1), overflow), g)

    return distributed(
        plan.layout,
        local,
        (operands, words, z, g),
        (like(operands, OPERANDS), "bw", "bc", "bo"),
        like(operands, GRADIENTS),
    )


keeping_entries.defvjp(once("compact_mlp", _forward, 1), _backward)
