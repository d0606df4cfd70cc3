"""jaxtrelu: the thresholded ReLU for JAX, a primitive with its own gradient."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxtrelu.calculus import antiderivative, derivative
from jaxtrelu.functions import jump_relu, shifted_relu, step, thresholded_relu
from jaxtrelu.primitive import RESIDUAL_NAME
from jaxtrelu.surrogates import Gaussian, Rectangle, Sigmoid, Surrogate, Triangle

if TYPE_CHECKING:
    from jaxtrelu import bits as bits
    from jaxtrelu import linen as linen
    from jaxtrelu import nnx as nnx
    from jaxtrelu import sae as sae
    from jaxtrelu.linear import thresholded_linear
    from jaxtrelu.sparse import (
        Activity,
        RowGradients,
        compact_mlp,
        entry_sum,
        gated_mlp,
        sparse_mlp,
        sparse_mlp_vjp,
        thresholded_glu,
    )

__version__ = "0.1.0"

__all__ = [
    "RESIDUAL_NAME",
    "Activity",
    "Gaussian",
    "Rectangle",
    "RowGradients",
    "Sigmoid",
    "Surrogate",
    "Triangle",
    "antiderivative",
    "bits",
    "compact_mlp",
    "derivative",
    "entry_sum",
    "gated_mlp",
    "jump_relu",
    "shifted_relu",
    "sparse_mlp",
    "sparse_mlp_vjp",
    "step",
    "thresholded_glu",
    "thresholded_linear",
    "thresholded_relu",
]

#: Imported when first used: the first four as modules, since some need packages that the core does
#: not; the others by name, so that `import jaxtrelu` stays quick.
_MODULES = ("bits", "linen", "nnx", "sae")
_NAMES = {
    "Activity": "sparse",
    "RowGradients": "sparse",
    "compact_mlp": "sparse",
    "entry_sum": "sparse",
    "gated_mlp": "sparse",
    "sparse_mlp": "sparse",
    "sparse_mlp_vjp": "sparse",
    "thresholded_glu": "sparse",
    "thresholded_linear": "linear",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxtrelu.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"jaxtrelu.{_NAMES[name]}"), name)
        globals()[name] = value  # found at once from now on
        return value
    raise AttributeError(f"module 'jaxtrelu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_NAMES])
