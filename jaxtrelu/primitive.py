"""The primitive: value, gate and window of a thresholded activation, with one JVP rule.

It computes any of three outputs in one pass over x:

- ``value``: f(x), in x's dtype;
- ``gate``: one packed bit per element, set where the cotangent passes to x;
- ``window``: one packed bit per element, set where a surrogate of bounded support lets it pass.

Differentiation asks the same primitive for the words beside the value and routes tangents through
the gate primitive, so a `jax.custom_vjp`, which forbids forward mode, is not needed.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad, batching

from jaxtrelu import _compat, dispatch, variants
from jaxtrelu._compat import Primitive
from jaxtrelu.packing import Packing
from jaxtrelu.tangents import residual_names, value_tangent
from jaxtrelu.variants import Spec

OUTPUTS = ("value", "gate", "window")

#: The name under which a checkpoint policy finds the words:
#: ``jax.checkpoint_policies.save_only_these_names(jaxtrelu.RESIDUAL_NAME)``.
RESIDUAL_NAME = "jaxtrelu_gate"


# impl, lowering and reference


def _thresholded_xla(x, threshold, *, spec: Spec, packing: Packing, outputs: Sequence[str]):
    results = []
    for output in outputs:
        if output == "value":
            results.append(variants.value(x, threshold, spec))
        else:
            results.append(packing.pack(getattr(variants, output)(x, threshold, spec)))
    if len(results) > 1:
        # Tied to the value, the packing cannot be put off to the backward pass, where XLA would
        # keep x alive for it.
        results = list(lax.optimization_barrier(tuple(results)))
    return results


thresholded_p = Primitive("thresholded_relu")
thresholded_p.multiple_results = True


# abstract evaluation


@thresholded_p.def_abstract_eval
def _thresholded_abstract(x, threshold, *, spec, packing, outputs):
    like_x = x.update(weak_type=False)  # with x's sharding and the axes over which it varies
    if outputs == ("value",):
        return [like_x]
    words = jax.eval_shape(lambda x: packing.pack(x == x), like_x)
    like_words = like_x.update(shape=words.shape, dtype=words.dtype, sharding=words.sharding)
    return [like_x if output == "value" else like_words for output in outputs]


# jvp


def _thresholded_jvp(primals, tangents, *, spec, packing, outputs):
    """See `tangents` for the formulas. Keeps the words they read; words have no tangent."""
    x, threshold = primals
    dx, dt = (None if type(t) is ad.Zero else t for t in tangents)
    moved = "value" in outputs
    residuals = residual_names(spec, dx is not None, dt is not None) if moved else ()
    wanted = tuple(o for o in OUTPUTS if o in outputs or o in residuals)
    values = thresholded_p.bind(x, threshold, spec=spec, packing=packing, outputs=wanted)
    found = dict(zip(wanted, values, strict=True))
    words = {name: checkpoint_name(found[name], RESIDUAL_NAME) for name in residuals}
    dy = value_tangent(x, threshold, dx, dt, words, spec, packing) if moved else None
    zeros = {o: ad.Zero(jax.typeof(found[o]).to_tangent_aval()) for o in outputs}
    return (
        [found[o] for o in outputs],
        [dy if o == "value" and dy is not None else zeros[o] for o in outputs],
    )


ad.primitive_jvps[thresholded_p] = _thresholded_jvp


# transpose


def _thresholded_transpose(cotangents, x, threshold, **params):
    raise NotImplementedError(
        "a thresholded activation is not linear in x or in its threshold, so it has no transpose. "
        "Use jax.vjp or jax.grad, which transpose its tangent."
    )


ad.primitive_transposes[thresholded_p] = _thresholded_transpose


# batch


def _thresholded_batch(operands, dims, **params):
    x, threshold = operands
    x_dim, t_dim = dims
    size = x.shape[x_dim] if x_dim is not None else threshold.shape[t_dim]
    x = jnp.broadcast_to(x, (size, *x.shape)) if x_dim is None else jnp.moveaxis(x, x_dim, 0)
    if t_dim is not None:
        threshold = jnp.moveaxis(threshold, t_dim, 0)
        if threshold.ndim < x.ndim:  # one number per example
            threshold = threshold.reshape(size, *(1,) * (x.ndim - 1))
    elif threshold.ndim:
        threshold = threshold[None]
    values = thresholded_p.bind(x, threshold, **params)
    return values, [0] * len(values)


batching.primitive_batchers[thresholded_p] = _thresholded_batch


# lowering

dispatch.register(
    thresholded_p,
    _thresholded_xla,
    dispatch.thresholded_kernel,
    lambda params: params["spec"].implementation,
    static=("spec", "packing", "outputs"),
)


# dead code


def _thresholded_dead_code(used, eqn):
    """Drops outputs that nobody reads: under `jax.checkpoint` the first forward packs no words."""
    if not any(used):
        return [False] * len(eqn.invars), None
    outputs = tuple(o for o, u in zip(eqn.params["outputs"], used, strict=True) if u)
    outvars = [v for v, u in zip(eqn.outvars, used, strict=True) if u]
    params = dict(eqn.params, outputs=outputs)
    return [True] * len(eqn.invars), eqn.replace(params=params, outvars=outvars)


_compat.register_dead_code_rule(thresholded_p, _thresholded_dead_code)
