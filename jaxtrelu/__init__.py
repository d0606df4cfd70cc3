"""jaxtrelu: the thresholded ReLU for JAX, a primitive with its own gradient."""

import importlib
from typing import Any

from jaxtrelu.functions import (
    antiderivative,
    derivative,
    jump_relu,
    shifted_relu,
    step,
    thresholded_relu,
)
from jaxtrelu.linear import thresholded_linear
from jaxtrelu.primitive import RESIDUAL_NAME
from jaxtrelu.surrogates import Gaussian, Rectangle, Sigmoid, Surrogate, Triangle

__version__ = "0.1.0"

__all__ = [
    "RESIDUAL_NAME",
    "Gaussian",
    "Rectangle",
    "Sigmoid",
    "Surrogate",
    "Triangle",
    "antiderivative",
    "derivative",
    "jump_relu",
    "shifted_relu",
    "step",
    "thresholded_linear",
    "thresholded_relu",
]

#: Imported when first used: they need packages that the core does not.
_LAZY = ("linen", "nnx", "sae")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"jaxtrelu.{name}")
    raise AttributeError(f"module 'jaxtrelu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
