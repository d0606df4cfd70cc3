"""Rematerialisation: what is computed again, and what a policy can keep by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, over_cases

import jaxtrelu
from jaxtrelu import RESIDUAL_NAME, thresholded_relu

POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
    "gates": jax.checkpoint_policies.save_only_these_names(RESIDUAL_NAME),
    "products": jax.checkpoint_policies.dots_saveable,
}


@over_cases
def test_gradient_through_checkpoint(case):
    def program(x, threshold):
        def gradient(policy):
            act = jax.checkpoint(case.function, policy=policy)
            return jax.grad(lambda x: (act(x, threshold) ** 2).sum())(x)

        return {name: gradient(policy) for name, policy in POLICIES.items()}

    gradients = yield program, case.x, case.threshold
    value, slope, _ = case.expected()
    for gradient in gradients.values():
        assert_close(gradient, 2 * value * slope, case)


def _two_layers(policy):
    def block(x, w):
        return thresholded_relu(thresholded_relu(x @ w, 0.1) @ w, 0.1)

    return lambda x, w: jax.checkpoint(block, policy=policy)(x, w).sum()


def _outputs_computed(jaxpr, found):
    """Which outputs the thresholded primitive is asked for, over all equations inside `jaxpr`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "thresholded_relu":
            found.append(equation.params["outputs"])
        for sub in _sub_jaxprs(equation.params):
            _outputs_computed(sub, found)
    return found


def _sub_jaxprs(params):
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def test_the_first_forward_packs_no_words():
    x = w = jnp.ones((32, 32))
    gradient = jax.make_jaxpr(jax.grad(_two_layers(None)))(x, w)
    found = _outputs_computed(gradient.jaxpr, [])
    assert found[:2] == [("value",), ("value",)]
    assert any("gate" in outputs for outputs in found[2:])


@pytest.mark.parametrize(("policy", "words"), [("gates", 2), ("nothing", 0)])
def test_a_policy_keeps_the_words_by_name(policy, words):
    x = w = jnp.ones((32, 32))
    _, pullback = jax.vjp(_two_layers(POLICIES[policy]), x, w)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.dtype == jnp.uint32]
    assert [leaf.nbytes for leaf in kept] == [32 * 32 // 8] * words
    assert not [leaf for leaf in jax.tree.leaves(pullback) if leaf.dtype == bool]


def test_dead_words_are_not_computed_outside_checkpoint_either():
    """grad of a forward whose words nobody reads: the primitive drops that output."""
    x = jnp.ones((32, 32))
    jaxpr = jax.make_jaxpr(lambda x: jax.linearize(lambda x: thresholded_relu(x, 0.1), x)[0])(x)
    trimmed, _ = jax.interpreters.partial_eval.dce_jaxpr(jaxpr.jaxpr, [True])
    assert _outputs_computed(trimmed, []) == [("value",)]


def test_learned_threshold_under_checkpoint():
    x = jnp.linspace(-1, 1, 40)
    surrogate = jaxtrelu.Rectangle(0.5)

    def loss(t):
        return jaxtrelu.jump_relu(x, t, surrogate=surrogate).sum()

    np.testing.assert_allclose(jax.grad(jax.checkpoint(loss))(0.3), jax.grad(loss)(0.3))
