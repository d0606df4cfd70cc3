"""One way to make, call and differentiate a layer, for tests that say the same of both Flaxes."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxtrelu

KEY = jax.random.key(0)


class Nnx:
    """A layer of `jaxtrelu.nnx`; per-channel arguments are given as for Linen, by `axis`."""

    def __init__(self, kind, x, *args, **arguments):
        self.make = functools.partial(getattr(jaxtrelu.nnx, kind), *args)
        if kind == "CompactMLP":
            self.make = functools.partial(getattr(jaxtrelu.nnx, kind), x.shape[-1], *args)
            arguments["rngs"] = nnx.Rngs(0)
        elif kind == "ThresholdedReLU":
            axis = arguments.get("axis")
            if axis is not None:
                sizes = tuple(x.shape[a] for a in np.atleast_1d(axis))
                arguments["features"] = sizes if np.ndim(axis) else sizes[0]
            if callable(arguments.get("threshold", args[0] if args else None)):
                arguments["rngs"] = nnx.Rngs(0)
        self.layer = self.make(**arguments)

    def __call__(self, x):
        return self.layer(x)

    @property
    def params(self):
        return {path[0]: leaf[...] for path, leaf in flat(nnx.state(self.layer, nnx.Param))}

    @property
    def fixed(self):
        rest = nnx.state(self.layer, nnx.Not(nnx.Param))
        return {path[0]: leaf[...] for path, leaf in flat(rest)}

    @property
    def threshold_value(self):
        return self.layer.threshold_value

    def l0(self, x):
        return self.layer.l0(x)

    def gradients(self, loss, jit=False):
        gradient = nnx.jit(nnx.grad(loss)) if jit else nnx.grad(loss)
        found = gradient(self.layer)
        return {path[0]: leaf[...] for path, leaf in flat(found)}

    def take_state_of(self, other):
        nnx.update(self.layer, nnx.state(other.layer))

    def shift_threshold(self, step):
        self.layer.threshold[...] = self.layer.threshold[...] + step


class Linen:
    """A layer of `jaxtrelu.linen` with the variables that `init` gave."""

    def __init__(self, kind, x, *args, **arguments):
        self.layer = getattr(jaxtrelu.linen, kind)(*args, **arguments)
        self.variables = self.layer.init(KEY, x)

    def __call__(self, x):
        return self.layer.apply(self.variables, x)

    @property
    def params(self):
        return nn.meta.unbox(self.variables.get("params", {}))

    @property
    def fixed(self):
        assert set(self.variables) <= {"params", "thresholds"}  # nothing is sown
        return self.variables.get("thresholds", {})

    @property
    def threshold_value(self):
        return self.layer.apply(self.variables, method="threshold_value")

    def l0(self, x):
        return self.layer.apply(self.variables, x, method="l0")

    def gradients(self, loss, jit=False):
        def of(params):
            return loss(self.layer.bind({**self.variables, "params": params}))

        gradient = jax.jit(jax.grad(of)) if jit else jax.grad(of)
        return gradient(self.variables["params"])

    def take_state_of(self, other):
        self.variables = other.variables

    def shift_threshold(self, step):
        moved = self.variables["params"]["threshold"] + step
        self.variables = {**self.variables, "params": {**self.params, "threshold": moved}}


def flat(state):
    return nnx.to_flat_state(state)


both = pytest.mark.parametrize("flax", [Nnx, Linen], ids=["nnx", "linen"])
