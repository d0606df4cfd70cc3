"""The gate primitive: ``gate(t, words) = t where the bit is set, else 0``.

Linear in ``t`` and its own transpose, so that one JVP rule written through it gives forward mode,
reverse mode and every mixture of them, and reverse mode keeps nothing but the words.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from jaxtrelu import dispatch
from jaxtrelu._compat import Primitive
from jaxtrelu.packing import Packing


def gate(
    t: jax.Array,
    words: jax.Array,
    packing: Packing,
    *,
    invert: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """`t` where the bit in `words` is set (`invert`: clear), exactly 0 elsewhere, even for NaN."""
    return gate_p.bind(t, words, packing=packing, invert=invert, implementation=implementation)


def _gate_xla(
    t: jax.Array, words: jax.Array, *, packing: Packing, invert: bool, implementation: str | None
) -> jax.Array:
    # Tied to the cotangent, the unpacking cannot move before the cotangent exists: into the forward
    # pass, where XLA would keep the mask alive instead of the words.
    t, words = lax.optimization_barrier((t, words))
    mask = packing.unpack(words, t.shape)
    zero = jnp.zeros((), t.dtype)
    return jnp.where(mask, zero, t) if invert else jnp.where(mask, t, zero)


gate_p = Primitive("thresholded_gate")


@gate_p.def_abstract_eval
def _gate_abstract(t, words, **params):
    return t.update(weak_type=False)


# d gate(t, words) = gate(dt, words); the words are integers and have no tangent.
ad.defjvp(gate_p, lambda dt, t, words, **params: gate_p.bind(dt, words, **params), None)


def _gate_transpose(cotangent, t, words, **params):
    # The matrix is diagonal, so it is its own transpose.
    if type(cotangent) is ad.Zero:
        return [ad.Zero(t.aval), None]
    return [gate_p.bind(cotangent, words, **params), None]


ad.primitive_transposes[gate_p] = _gate_transpose


def _gate_batch(operands, dims, **params):
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)
    t, words = (
        jnp.broadcast_to(o, (size, *o.shape)) if d is None else jnp.moveaxis(o, d, 0)
        for o, d in zip(operands, dims, strict=True)
    )
    return gate_p.bind(t, words, **params), 0


batching.primitive_batchers[gate_p] = _gate_batch


dispatch.register(
    gate_p,
    _gate_xla,
    dispatch.gate_kernel,
    lambda params: params["implementation"],
    static=("packing", "invert", "implementation"),
)
