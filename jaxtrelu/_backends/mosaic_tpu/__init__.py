"""The back end "mosaic_tpu": Pallas kernels for TPUs, through Mosaic.

The default where words are packed or unpacked along the lanes, for which XLA moves about 3.5 times
the bytes by the compiler's own estimate.
"""

import functools

import jax.numpy as jnp

from jaxtrelu._backends import views
from jaxtrelu._primitive.lowering import BackEnd, Kernel, dtype_refusal
from jaxtrelu._primitive.packing import Packing

_MATRIX_DTYPES = ("float32", "bfloat16")
_DEFAULT_DTYPES = ("float32", "bfloat16")


def _elementwise():
    from jaxtrelu._backends.mosaic_tpu import elementwise

    return elementwise


def _linear():
    from jaxtrelu._backends.mosaic_tpu import linear

    return linear


def _linear_refuses(avals) -> str | None:
    # The matrix unit takes the product's operands; bias and threshold are added in float32.
    return views.empty_refusal(avals) or dtype_refusal(avals[:2], _MATRIX_DTYPES)


def _wins(avals, *, packed_operand: int, packing: Packing, outputs=None, **params) -> bool:
    """Where words are packed or unpacked along the lanes, over an axis that fills a register's."""
    packed = avals[packed_operand].shape
    along_lanes = packing.axes > 0 and packing.behind == 0 and len(packed) > 1
    floating = [a for a in avals if jnp.issubdtype(a.dtype, jnp.floating)]
    wanted = all(a.dtype.name in _DEFAULT_DTYPES for a in floating)
    return along_lanes and packed[-1] >= views.LANES and wanted and outputs != ("value",)


def _forward(*operands, **params):
    return views.forward_in_view(_elementwise().forward, *operands, **params)


def _gate(*operands, **params):
    return views.gate_in_view(_elementwise().gate, *operands, **params)


def _linear_forward(*operands, **params):
    return views.linear_forward(_linear(), *operands, **params)


def _linear_gradients(*operands, **params):
    return views.linear_gradients(_linear(), *operands, **params)


_elementwise_wins = functools.partial(_wins, packed_operand=0)
_linear_wins = functools.partial(_wins, packed_operand=1)

MOSAIC_TPU = BackEnd(
    name="mosaic_tpu",
    platform="tpu",
    dtypes=("float32", "bfloat16", "float16"),
    kernels={
        "thresholded_relu": Kernel(_forward, wins=_elementwise_wins),
        "thresholded_gate": Kernel(_gate, wins=_elementwise_wins),
        "thresholded_linear": Kernel(_linear_forward, _linear_refuses, _linear_wins),
        "thresholded_linear_gradient": Kernel(_linear_gradients, _linear_refuses, _linear_wins),
    },
)
