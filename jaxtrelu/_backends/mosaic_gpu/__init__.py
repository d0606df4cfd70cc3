"""The back end "experimental_mosaic_gpu": Pallas kernels for NVIDIA GPUs, through Mosaic GPU.

Never the default: no figure of a kernel against XLA on such a GPU has been measured yet.
"""

import functools

import jax

from jaxtrelu._backends import views
from jaxtrelu._primitive.lowering import BackEnd, Kernel, dtype_refusal

_MATRIX_DTYPES = ("bfloat16", "float16")


def _elementwise():
    from jaxtrelu._backends.mosaic_gpu import elementwise

    return elementwise


def _linear():
    from jaxtrelu._backends.mosaic_gpu import linear

    return linear


def _elementwise_refuses(avals) -> str | None:
    from jaxtrelu._backends.mosaic_gpu import capability

    return capability.refusal(capability.LEAST, None, f"in JAX {jax.__version__} it needs")


def _linear_refuses(avals) -> str | None:
    from jaxtrelu._backends.mosaic_gpu import capability

    if refusal := views.empty_refusal(avals):
        return refusal
    if avals[0].dtype.name == "float32":
        return "the matrix unit would round float32 to TF32; its dtypes are bfloat16, float16"
    if len(avals) > 3 and avals[-1].dtype.name != "uint32" and avals[-1].shape[0] > 1:
        return f"its threshold is one number per column, and this one has shape {avals[-1].shape}"
    # The matrix unit takes the product's operands; bias and threshold are added in float32.
    if refusal := dtype_refusal(avals[:2], _MATRIX_DTYPES):
        return refusal
    return capability.refusal((9, 0), 10, "it multiplies by wgmma, which needs")


def _forward(*operands, **params):
    return views.forward_in_view(_elementwise().forward, *operands, **params)


def _gate(*operands, **params):
    return views.gate_in_view(_elementwise().gate, *operands, **params)


def _linear_forward(*operands, **params):
    return views.linear_forward(_linear(), *operands, **params)


def _linear_gradients(*operands, **params):
    return views.linear_gradients(_linear(), *operands, **params)


_elementwise_kernel = functools.partial(Kernel, refuses=_elementwise_refuses)
_linear_kernel = functools.partial(Kernel, refuses=_linear_refuses)

MOSAIC_GPU = BackEnd(
    name="experimental_mosaic_gpu",
    platform="cuda",
    dtypes=("float32", "bfloat16", "float16"),
    kernels={
        "thresholded_relu": _elementwise_kernel(_forward),
        "thresholded_gate": _elementwise_kernel(_gate),
        "thresholded_linear": _linear_kernel(_linear_forward),
        "thresholded_linear_gradient": _linear_kernel(_linear_gradients),
    },
)
