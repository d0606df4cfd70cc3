"""Rules for Taylor-mode differentiation, `jax.experimental.jet`."""

import functools

import jax.numpy as jnp

from jaxtrelu import _compat
from jaxtrelu.gate import gate_p
from jaxtrelu.primitive import OUTPUTS, thresholded_p
from jaxtrelu.tangents import residual_names, value_tangent


@functools.cache
def register_rules() -> None:
    """Registers the rules, once."""
    from jax.experimental import jet

    rules: dict = jet.jet_rules
    rules[thresholded_p] = _thresholded_jet
    rules[gate_p] = _gate_jet
    # JAX has no rule for `checkpoint_name`, which the words pass through; it is the identity.
    name_p = _compat.checkpoint_name_primitive()
    rules.setdefault(
        name_p, lambda primals, series, **params: (name_p.bind(*primals, **params), series[0])
    )


def _thresholded_jet(primals, series, *, spec, packing, outputs):
    """The function is linear on both sides of the threshold: every order goes through the gate."""
    if spec.surrogate is not None:
        raise NotImplementedError(
            "jet of a thresholded activation with a surrogate is not defined: the surrogate is a "
            "rule for first derivatives, not the derivative of a function. Pass surrogate=None, or "
            "nest jax.jvp."
        )
    x, threshold = primals
    names = residual_names(spec, True, True)
    wanted = tuple(o for o in OUTPUTS if o in outputs or o in names)
    values = thresholded_p.bind(x, threshold, spec=spec, packing=packing, outputs=wanted)
    found = dict(zip(wanted, values, strict=True))

    def term(dx, dt):
        tangent = value_tangent(x, threshold, dx, dt, found, spec, packing)
        return jnp.zeros_like(x) if tangent is None else tangent

    terms = [term(dx, dt) for dx, dt in zip(*series, strict=True)]
    return [found[o] for o in outputs], [
        terms if o == "value" else [jnp.zeros_like(found[o])] * len(terms) for o in outputs
    ]


def _gate_jet(primals, series, **params):
    t, words = primals
    return gate_p.bind(t, words, **params), [gate_p.bind(s, words, **params) for s in series[0]]
