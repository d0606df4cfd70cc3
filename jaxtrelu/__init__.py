"""jaxtrelu: the thresholded ReLU for JAX, a primitive with its own gradient."""

import importlib
from typing import TYPE_CHECKING, Any

import jaxtrelu._interrupts

# isort: split
import jaxtrelu._backends  # noqa: F401  (makes them known; kernels load when used)
from jaxtrelu._activation import jump_relu, shifted_relu, step, thresholded_glu, thresholded_relu
from jaxtrelu._calculus import antiderivative, derivative
from jaxtrelu._primitive.rules import RESIDUAL_NAME
from jaxtrelu._surrogates import Gaussian, Rectangle, Sigmoid, Surrogate, Triangle

if TYPE_CHECKING:
    from jaxtrelu import bits as bits
    from jaxtrelu import interop as interop
    from jaxtrelu import linen as linen
    from jaxtrelu import nnx as nnx
    from jaxtrelu import plot as plot
    from jaxtrelu import sae as sae
    from jaxtrelu import sparse as sparse
    from jaxtrelu import theory as theory
    from jaxtrelu._linear import thresholded_linear
    from jaxtrelu.sparse import (
        Activity,
        FeatureGradients,
        compact_mlp,
        entry_sum,
        gated_mlp,
        sparse_mlp,
        sparse_mlp_vjp,
    )

__version__ = "0.2.0"

__all__ = [
    "RESIDUAL_NAME",
    "Activity",
    "FeatureGradients",
    "Gaussian",
    "Rectangle",
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
    "sparse",
    "sparse_mlp",
    "sparse_mlp_vjp",
    "step",
    "theory",
    "thresholded_glu",
    "thresholded_linear",
    "thresholded_relu",
]

#: Imported when first used: modules, some of which need packages that the core does not; and names,
#: so that `import jaxtrelu` stays quick.
_MODULES = ("bits", "interop", "linen", "nnx", "plot", "sae", "sparse", "theory")
_NAMES = {
    "Activity": "sparse",
    "FeatureGradients": "sparse",
    "compact_mlp": "sparse",
    "entry_sum": "sparse",
    "gated_mlp": "sparse",
    "sparse_mlp": "sparse",
    "sparse_mlp_vjp": "sparse",
    "thresholded_linear": "_linear",
}


if not TYPE_CHECKING:  # or a type checker takes any name for one of this module

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
