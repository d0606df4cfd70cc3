"""Models from elsewhere, whose thresholds then learn, and models for elsewhere.

    network = interop.from_onnx("model.onnx", surrogate=Rectangle(0.1))
    gradient = jax.grad(loss)(network, x)          # of weights and thresholds
    interop.to_onnx(network, "learned.onnx")

`from_onnx`, `from_keras` and `from_torch` take over weights and thresholds, `from_flax` and
`activation` bring what is made here; all return a `Network`, and `to_onnx` writes one. Each needs
the library that it is named after, and nothing else.
"""

from jaxtrelu.interop._flax import from_flax
from jaxtrelu.interop._keras import from_keras
from jaxtrelu.interop._network import Network, activation
from jaxtrelu.interop._onnx import from_onnx, to_onnx
from jaxtrelu.interop._torch import from_torch

__all__ = [
    "Network",
    "activation",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_onnx",
]
