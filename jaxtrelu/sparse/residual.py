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
from jax import lax
from jax.typing import ArrayLike

from jaxtrelu._door import canonical_spec
from jaxtrelu.bits.words import population, rank_in_word
from jaxtrelu.packing import WORD_BITS
from jaxtrelu.sparse.checks import bias, check_shapes, check_spec, floating, list_size, per_feature
from jaxtrelu.sparse.entries import groups_of
from jaxtrelu.sparse.latent import Plan, biased, encode, find
from jaxtrelu.sparse.loops import alike, take
from jaxtrelu.sparse.mlp import Operands, decode
from jaxtrelu.surrogates import Surrogate

# Share of open entries that the default capacity allows for.
_SHARE = 1 / 8


class CompactResiduals(NamedTuple):
    """What the gradient needs: operands, one bit per element, and the entries' pre-activations."""

    operands: Operands
    words: jax.Array
    z: jax.Array
    wide: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def compact(plan: Plan, operands: Operands) -> jax.Array:
    """Returns y (B, d_out), in the accumulator's type, without b_out."""
    z = biased(encode(operands.x, operands.w_in), operands.b_in)
    return decode(plan, z, operands.threshold, operands.w_out)


def _forward(plan: Plan, operands: Operands):
    product = encode(operands.x, operands.w_in)
    z = biased(product, operands.b_in)
    y = decode(plan, z, operands.threshold, operands.w_out)
    _, entries, _, wide = find(plan, product, operands.b_in, operands.threshold)
    # With the output, or finding the entries would be put off to the backward pass.
    y, words, z, wide = lax.optimization_barrier((y, entries.groups.words, entries.z, wide))
    return y, CompactResiduals(operands, words, z, wide)


def _backward(plan: Plan, residuals: CompactResiduals, g: jax.Array):
    # With the cotangent, or the expansion would be done in the forward pass.
    operands, *kept = residuals
    (words, entries, wide), g = lax.optimization_barrier((kept, g))
    # XLA's CPU back end schedules after it has taken the barriers away, and would expand all layers
    # first. So the choice depends on the cotangent: no number is above infinity, and if one were,
    # the latent would only be computed again.
    wide |= g[0, 0] > jnp.inf

    def recomputed():
        return biased(encode(operands.x, operands.w_in), operands.b_in)

    def expanded():
        return _expand(words, entries, operands.w_in.shape[0])

    z = lax.cond(wide, recomputed, expanded)
    pull = jax.vjp(partial(decode, plan), z, operands.threshold, operands.w_out)[1]
    dz, threshold, w_out = pull(g)
    # Bilinear: the product itself is not needed, and XLA leaves it out.
    pull = jax.vjp(lambda *of: biased(encode(*of[:2]), of[2]), *operands[:3])[1]
    # Together, or XLA may put the weights' gradients off and keep a dense dz of every layer.
    x, w_in, b_in = pull(dz)
    return (lax.optimization_barrier(Operands(x, w_in, b_in, threshold, w_out)),)


def _expand(words: jax.Array, kept: jax.Array, width: int) -> jax.Array:
    """The latent (B, width) from its entries; -inf, closed and outside every window, elsewhere."""
    groups = groups_of(words)
    place = jnp.arange(width, dtype=jnp.int32)
    word = words[:, place // WORD_BITS]
    before = (groups.upto - population(words))[:, place // WORD_BITS]
    bit = place % WORD_BITS
    at = before + rank_in_word(word, jnp.broadcast_to(bit, word.shape))
    there = (word >> bit.astype(jnp.uint32)) & jnp.uint32(1)
    value = take(kept, jnp.minimum(at, kept.shape[0] - 1))
    return jnp.where(there == 1, value, -jnp.inf)


compact.defvjp(_forward, _backward)


def compact_mlp(
    x: ArrayLike,
    w_in: ArrayLike,
    b_in: ArrayLike | None,
    threshold: ArrayLike,
    w_out: ArrayLike,
    b_out: ArrayLike | None = None,
    *,
    variant: str = "shift",
    ceiling: float | None = None,
    surrogate: Surrogate | None = None,
    capacity: int | None = None,
) -> jax.Array:
    """``act(x @ w_in.T + b_in) @ w_out + b_out`` that keeps its latent as words and values.

    Dense products; between the passes the latent takes one bit per element and one number per entry
    of the lists, instead of the pre-activation and the activation. For activations that are sparse
    but not sparse enough for `jaxtrelu.sparse_mlp` to be faster. Where more entries are open than
    the lists hold, the latent is computed again from x, by a choice made on the device.

    Convention at the threshold: open where ``x @ w_in.T + b_in > threshold``, strictly.

    Args:
      x: (..., d), floating point; kept for the gradient, as a dense layer does.
      w_in: (m, d), feature-major.
      b_in: (m,), or None.
      threshold: a number or (m,), in the units of the pre-activations.
      w_out: (m, d_out), feature-major.
      b_out: (d_out,), or None.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``, or None.
      capacity: entries per row that the lists hold, on average over the rows; a hint, not a limit.
        Default: m / 8. Each costs 4 bytes per row.

    Returns:
      y of shape (..., d_out) in x's dtype, summed in float32 at least.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, ``variant="clamp"`` (it has no zeros), or a surrogate of
        unbounded support.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu.sparse import compact_mlp
      >>> compact_mlp(jnp.array([1.0, 3.0]), jnp.eye(2), None, 2.0, jnp.eye(2)).tolist()
      [0.0, 1.0]

    Source: sparse residuals after Gist (Jain et al., ISCA 2018), made exact.
    """
    spec = canonical_spec(variant, ceiling, 0, surrogate)
    check_spec(spec)
    x, w_in, w_out = floating("x", x), floating("w_in", w_in), floating("w_out", w_out)
    b_in, b_out = bias("b_in", b_in), bias("b_out", b_out)
    check_shapes(x, w_in, b_in, w_out, b_out)
    rows = x.reshape(-1, x.shape[-1])
    plan = Plan(spec, list_size(capacity, rows.shape[0], w_in.shape[0], _SHARE), 0)
    operands = alike(Operands(rows, w_in, b_in, per_feature(threshold, w_in), w_out))
    if rows.size and w_in.size and w_out.size:
        y = compact(plan, operands)
    else:
        z = biased(encode(rows, w_in), b_in)
        y = decode(plan, z, operands.threshold, w_out)
    if b_out is not None:
        y = y + b_out.astype(y.dtype)
    return y.astype(x.dtype).reshape(*x.shape[:-1], w_out.shape[1])
