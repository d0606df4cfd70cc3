"""The implementations of the kernels' functions, as the tests run them: one table for all of them.

Interpretation looks for races, and for reads of what was never written, which plain interpretation
does not: that memory is NaN. A race is raised where JAX can, else printed, and tests look for that.
"""

import functools
import importlib
import inspect

import jax
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from jaxtrelu._linear import linear_gradient_p, linear_p
from jaxtrelu._primitive.lowering import BACK_ENDS
from jaxtrelu._primitive.rules import gate_p, thresholded_p

#: The last is how "experimental_mosaic_gpu" runs before compute capability 9.0, without TMA.
IMPLEMENTATIONS = ("xla", "mosaic_tpu", "experimental_mosaic_gpu", "experimental_mosaic_gpu direct")


def interpreter(name):
    if name == "mosaic_tpu":
        params = pltpu.InterpretParams
    elif hasattr(plgpu, "InterpretGPUParams"):
        params = plgpu.InterpretGPUParams
    else:
        pytest.skip(
            f"JAX {jax.__version__} has no public interpreter for Mosaic GPU: its values are "
            "tested at the new end of the versions only"
        )
    options = {"detect_races": True, "uninitialized_memory": "nan"}
    if "on_race" in inspect.signature(params).parameters:
        options["on_race"] = "raise"
    return params(**options)


class Interpreted:
    """A back end's functions of arrays, interpreted, with further options of theirs."""

    def __init__(self, module: str, **options):
        self.module = importlib.import_module(module)
        self.options = options

    def __getattr__(self, function):
        return functools.partial(getattr(self.module, function), **self.options)


def on_this_machine(implementation, monkeypatch, linear_config=None) -> str:
    """Lets an implementation run here, step by step, with kernels interpreted; returns its name.

    The door, the rules of the primitives, the views and the padding are as in use. Only what a
    lowering rule does is left out, since interpretation has effects that the primitives have not.
    """
    name, _, direct = implementation.partition(" ")
    if name == "xla":
        return name
    options = {"interpret": interpreter(name)}
    room = f"jaxtrelu._backends.{name.removeprefix('experimental_')}"
    linear = Interpreted(f"{room}.linear", **options)
    if linear_config is not None:
        linear.options["config"] = linear.module.Config(**linear_config)
    if name == "experimental_mosaic_gpu":
        options["direct"] = bool(direct)
    elementwise = Interpreted(f"{room}.elementwise", **options)
    monkeypatch.setattr(f"{room}._elementwise", lambda: elementwise)
    monkeypatch.setattr(f"{room}._linear", lambda: linear)
    for primitive in (thresholded_p, gate_p, linear_p, linear_gradient_p):
        monkeypatch.setattr(primitive, "impl", BACK_ENDS[name].kernels[primitive.name].run)
    return name
