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

from jaxtrelu import dispatch
from jaxtrelu.gate import gate_p
from jaxtrelu.linear import linear_gradient_p, linear_p
from jaxtrelu.primitive import thresholded_p

IMPLEMENTATIONS = ("xla", "mosaic_tpu", "mosaic_gpu")


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
    """A back end's functions of arrays, interpreted; `config` for those that are given one."""

    def __init__(self, module: str, interpret, config=None):
        self.module = importlib.import_module(f"jaxtrelu.kernels.{module}")
        self.options = {"interpret": interpret}
        if config is not None:
            self.options["config"] = self.module.Config(**config)

    def __getattr__(self, function):
        return functools.partial(getattr(self.module, function), **self.options)


def on_this_machine(name, monkeypatch, linear_config=None):
    """Lets ``implementation=name`` run here, step by step, with the kernels interpreted.

    The door, the rules of the primitives, the views and the padding are as in use. Only what a
    lowering rule does is left out, since interpretation has effects that the primitives have not.
    """
    if name == "xla":
        return
    interpret, short = interpreter(name), name.removeprefix("mosaic_")
    elementwise = Interpreted(short, interpret)
    linear = Interpreted(f"{short}_linear", interpret, linear_config)
    monkeypatch.setattr(dispatch, "_back_end", lambda _: elementwise)
    monkeypatch.setattr(dispatch, "_linear_back_end", lambda _: linear)
    for primitive, kernel in (
        (thresholded_p, dispatch.thresholded_kernel),
        (gate_p, dispatch.gate_kernel),
        (linear_p, dispatch.linear_kernel),
        (linear_gradient_p, dispatch.linear_gradient_kernel),
    ):
        monkeypatch.setattr(primitive, "impl", functools.partial(kernel, name))
