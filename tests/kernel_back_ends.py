"""The implementations of the kernels' functions, as the tests run them: one table for all of them.

Interpretation looks for races, and for reads of what was never written, which plain interpretation
does not: that memory is NaN. A race is raised where JAX can, else printed, and tests look for that.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from jaxtrelu import variants
from jaxtrelu.packing import pack_last, unpack_last


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """`forward(x, threshold, spec, outputs)` and `gate(t, words, invert=)` on matrices."""

    forward: Callable
    gate: Callable


def _xla_forward(x, threshold, spec, outputs):
    return [
        variants.value(x, threshold, spec)
        if o == "value"
        else pack_last(getattr(variants, o)(x, threshold, spec))
        for o in outputs
    ]


def _xla_gate(t, words, invert=False):
    return jnp.where(unpack_last(words, t.shape[1]) != invert, t, jnp.zeros_like(t))


def interpreter(name):
    options = {"detect_races": True, "uninitialized_memory": "nan"}
    if name == "mosaic_tpu":
        from jax.experimental.pallas import tpu as pltpu

        params = pltpu.InterpretParams
    else:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        if not hasattr(plgpu, "InterpretGPUParams"):
            pytest.skip(f"JAX {jax.__version__} has no public interpreter for Mosaic GPU")
        params = plgpu.InterpretGPUParams
    if "on_race" in inspect.signature(params).parameters:
        options["on_race"] = "raise"
    return params(**options)


def back_end(name) -> BackEnd:
    if name == "xla":
        return BackEnd(_xla_forward, _xla_gate)
    module = importlib.import_module(f"jaxtrelu.kernels.{name.removeprefix('mosaic_')}")
    interpret = interpreter(name)

    def bound(function):
        return lambda *operands, **options: function(*operands, interpret=interpret, **options)

    return BackEnd(bound(module.forward), bound(module.gate))
