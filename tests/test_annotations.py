"""Annotations that name axes hold, and notice what does not fit: layers, theory, autoencoders.

Those of the operations, which have a table of calls: test_public.py.
"""

import functools
import inspect
import re

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from test_public import FUNCTIONS

from jaxtrelu import Rectangle, linen, sae
from jaxtrelu import nnx as layers

B, D, M = 3, 4, 7
SURROGATE = Rectangle(0.1)
RECIPE = sae.gemma_scope()


def ones(*shape):
    return jax.device_put(np.ones(shape, np.float32))  # without a program for each shape


def checked(function):
    return jaxtyping.jaxtyped(function, typechecker=beartype.beartype)


WEIGHTS = sae.initial_weights(jax.random.key(0), M, np.eye(D, dtype=np.float32), RECIPE)
MASKS = np.eye(B, M) > 0, np.eye(B, 2) > 0

# A valid call, and the same with an operand of another shape: the arguments, by number.
CALLS = {
    "theory.variance_map": ((ones(2, 1), ones(5)), {"weight_variance": ones(5)}, {1: ones(4, 5)}),
    "theory.gradient_gain": ((ones(2, 1), ones(5)), {"weight_variance": ones(5)}, {1: ones(4, 5)}),
    "theory.correlation_map": (
        (ones(2, 1) / 2, ones(5)), {"weight_variance": ones(5)}, {1: ones(4, 5)},
    ),
    "theory.smoothed": ((ones(2, 1), ones(5)), {"std": 1.0}, {1: ones(4, 5)}),
    "theory.gain": ((ones(5),), {"variance": ones(2, 1)}, {0: jnp.ones(5, jnp.int32)}),
    "theory.moments": ((ones(5),), {"std": ones(2, 1)}, {0: jnp.ones(5, jnp.int32)}),
    "theory.information": ((ones(5),), {}, {0: jnp.ones(5, jnp.int32)}),
    "theory.critical_init": ((ones(5) / 2,), {}, {0: jnp.ones(5, jnp.int32)}),
    "theory.rate_at": ((ones(5) / 4,), {}, {0: jnp.ones(5, jnp.int32)}),
    "theory.linear_probe": (
        (ones(B, M), jnp.arange(B), ones(D, M), jnp.arange(D)), {}, {2: ones(D, M + 1)},
    ),
    "theory.threshold_for_error": (
        (np.random.default_rng(0).normal(size=(9, M)).astype(np.float32), ones(M, D), 0.1),
        {}, {1: ones(M + 1, D)},
    ),
    "sae.initial_weights": (
        (jax.random.key(0), M, np.eye(D, dtype=np.float32), RECIPE), {}, {2: ones(D)},
    ),
    "sae.pre_activations": ((WEIGHTS, ones(B, D)), {}, {1: jnp.ones((B, D), jnp.int32)}),
    "sae.reconstruct": ((WEIGHTS, ones(B, M)), {}, {1: jnp.ones((B, M), jnp.int32)}),
    "sae.l0_penalty": ((ones(B, M), ones(M), SURROGATE), {}, {0: jnp.ones((B, M), jnp.int32)}),
    "sae.tanh_penalty": ((ones(B, M), ones(M, D)), {}, {1: ones(1, D)}),
    "sae.pre_activation_penalty": ((ones(B, M), ones(M), ones(M, D)), {}, {1: ones(1)}),
    "sae.loss": ((WEIGHTS, ones(B, D), 0.1, RECIPE), {}, {1: ones(1, B, D)}),
    "sae.diagnostics": ((ones(B, M), ones(M), 0.0, SURROGATE), {}, {1: ones(1)}),
    "sae.revived": (
        (WEIGHTS, jnp.ones(M, bool), ones(B, D), ones(B, D), jax.random.key(0), RECIPE),
        {}, {1: ones(M), 3: ones(B)},
    ),
    "sae.unit_rows": ((ones(M, D),), {}, {0: ones(2, M, D)}),
    "sae.project_out": ((ones(M, D), ones(M, D)), {}, {1: ones(1, D)}),
    "sae.planted_scores": (
        (np.ones((M, D), np.float32), MASKS[0], np.eye(2, D, dtype=np.float32), MASKS[1]),
        {}, {1: MASKS[1], 2: np.ones((2, 1), np.float32)},
    ),
}  # fmt: skip
REDUCTIONS = {"theory.gaussian_cutoff", "theory.quantile_threshold"}  # along axes of the caller's


@pytest.mark.parametrize("name", CALLS)
def test_of_functions(name):
    operands, options, wrong = CALLS[name]
    function = FUNCTIONS[f"jaxtrelu.{name}"]
    checked(function)(*operands, **options)
    for place, other in wrong.items():
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(function)(*(other if i == place else o for i, o in enumerate(operands)),
                              **options)  # fmt: skip


LAYERS = {
    "ThresholdedReLU": (layers.ThresholdedReLU(), linen.ThresholdedReLU(), ones(B, M)),
    "JumpReLU": (
        layers.JumpReLU(M, surrogate=SURROGATE), linen.JumpReLU(M, surrogate=SURROGATE), ones(B, M),
    ),
    "CompactMLP": (layers.CompactMLP(D, M, rngs=nnx.Rngs(0)), linen.CompactMLP(M), ones(B, D)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_of_layers(name):
    here, there, x = LAYERS[name]
    variables = there.init(jax.random.key(0), x)

    def applied(call):
        return there.apply(variables, x, method=call)

    for call, how in ((type(here).__call__, functools.partial), (type(there).__call__, None)):

        def wrong(*args, call=call):
            return call(*args)[..., None]

        wrong.__annotations__, wrong.__signature__ = call.__annotations__, inspect.signature(call)
        good, bad = checked(call), checked(functools.wraps(call)(wrong))
        for function, holds in ((good, True), (bad, False)):
            run = functools.partial(function, here, x) if how else functools.partial(
                applied, function)  # fmt: skip
            if holds:
                jax.eval_shape(run)
            elif name != "CompactMLP":  # whose d_out is in no operand: any number does
                with pytest.raises(jaxtyping.TypeCheckError):
                    jax.eval_shape(run)


def unnamed(annotation) -> bool:
    """Whether an array stands there without its axes."""
    text = re.sub(
        r"\w+\[[^\[\]]*(Array|ndarray)[^\[\]]*, *['\"][^'\"]*['\"]\]", "", str(annotation)
    )
    return bool(re.search(r"\b(Array|ArrayLike|ndarray)\b", text))


def test_an_array_without_axes_is_noticed():
    assert unnamed(jax.Array) and unnamed(jax.Array | float)
    assert not unnamed(jaxtyping.Float[jax.Array, "m d"] | None)


#: Called elsewhere, for the axes are of the caller's choice or the call trains.
ELSEWHERE = {
    "theory.gaussian_cutoff",
    "theory.quantile_threshold",
    "sae.train_step",
    "sae.synthetic_scores",
}


def test_every_function_of_arrays_names_their_axes_and_is_called():
    """Random keys, and the arrays of functions that are handed over, have names enough."""
    arrays = {
        name.removeprefix("jaxtrelu."): inspect.signature(value)
        for name, value in FUNCTIONS.items()
        if re.search(r"\bArray\b|ArrayLike", str(inspect.signature(value)))
    }
    assert len(arrays) > 30
    bare = [
        f"{name}({parameter.name})"
        for name, signature in arrays.items()
        for parameter in signature.parameters.values()
        if parameter.name != "key"
        and "Callable" not in str(parameter.annotation)
        and unnamed(parameter.annotation)
    ]
    bare += [name for name, signature in arrays.items() if unnamed(signature.return_annotation)]
    assert not bare
    here = [
        name
        for name, signature in arrays.items()
        if name.startswith(("theory.", "sae."))
        and any(is_array(p.annotation) for p in signature.parameters.values())
    ]
    assert not set(here) - set(CALLS) - ELSEWHERE


def is_array(annotation) -> bool:
    """Whether an operand is an array, and no function of arrays."""
    return "Callable" not in str(annotation) and "Array" in str(annotation)
