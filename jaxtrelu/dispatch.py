"""The one place that chooses a lowering: per platform and shape, while a program is lowered.

One rule per platform is registered, so that one exported artifact serves them all.
`implementation=None` takes what is best on the platform: XLA, except for packed words on TPU, where
XLA moves about 3.5 times the bytes. A back end asked for by name is never replaced.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from jaxtrelu import _compat
from jaxtrelu._compat import Primitive
from jaxtrelu.packing import Packing

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
#: What a kernel runs on, and the dtypes it takes.
KERNEL_PLATFORM = {"mosaic_gpu": "cuda", "mosaic_tpu": "tpu"}
KERNEL_DTYPES = {
    "mosaic_gpu": ("float32", "bfloat16", "float16"),
    "mosaic_tpu": ("float32", "bfloat16"),
}


def register(
    primitive: Primitive,
    xla: Callable,
    kernel: Callable,
    implementation_of: Callable,
    static: tuple[str, ...],
    refuses: Callable = lambda name, avals: None,
) -> None:
    """Registers `xla` and ``kernel(name, *operands, **params)`` as the lowerings of a primitive.

    `implementation_of` finds the implementation that was asked for among the parameters, and
    ``refuses(name, avals)`` says why a kernel cannot compute a call, or None. Platforms that are
    not known here take `xla`. Concrete operands are computed by the compiled lowering, but by `xla`
    step by step where jit is disabled.
    """
    multiple = primitive.multiple_results
    primitive.def_impl(_evaluate(primitive, xla, implementation_of, static))
    mlir.register_lowering(primitive, mlir.lower_fun(xla, multiple_results=multiple))
    for platform in PLATFORMS:

        def rule(ctx, *operands, platform=platform, **params):
            name = _choose(implementation_of(params), platform, ctx, params, refuses)
            if name == "xla":
                function = xla
            else:

                def function(*operands, **params):
                    return kernel(name, *operands, **params)

            return mlir.lower_fun(function, multiple_results=multiple)(ctx, *operands, **params)

        mlir.register_lowering(primitive, rule, platform=platform)


def _evaluate(primitive: Primitive, xla: Callable, implementation_of, static) -> Callable:
    @functools.partial(jax.jit, static_argnames=static)
    def compiled(*operands, **params):
        return primitive.bind(*operands, **params)

    def evaluate(*operands, **params):
        if not jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return compiled(*operands, **params)
        if (asked := implementation_of(params)) not in (None, "xla"):
            raise NotImplementedError(
                f"implementation={asked!r} is a compiled kernel, and jit is disabled. "
                "Pass implementation=None."
            )
        return xla(*operands, **params)

    return evaluate


def _choose(asked: str | None, platform: str, ctx, params, refuses: Callable) -> str:
    if asked == "xla":
        return "xla"
    shape, packing = ctx.avals_in[0].shape, params["packing"]
    dtypes = [a.dtype for a in ctx.avals_in if jnp.issubdtype(a.dtype, jnp.floating)]
    if asked is None:
        wins = platform == "tpu" and params.get("outputs") != ("value",) and _fills(ctx.avals_in)
        if not wins or refuses("mosaic_tpu", ctx.avals_in):
            return "xla"
        refusal = _refusal("mosaic_tpu", platform, shape, dtypes, packing, ctx)
        return "xla" if refusal else "mosaic_tpu"
    refusal = _refusal(asked, platform, shape, dtypes, packing, ctx)
    if refusal := refusal or refuses(asked, ctx.avals_in):
        raise NotImplementedError(
            f"implementation={asked!r} cannot compute this call: {refusal}. "
            "Pass implementation=None to have one chosen."
        )
    return asked


def _fills(avals) -> bool:
    """Whether the last axis of the largest operand fills the lanes of a TPU register."""
    shapes = [a.shape for a in avals if len(a.shape) > 1]
    if not shapes or not all(isinstance(n, int) for shape in shapes for n in shape):
        return False
    return max(shapes, key=math.prod)[-1] >= 128


def _refusal(name, platform: str, shape, dtypes, packing: Packing, ctx) -> str | None:
    """Why a kernel cannot take a call, in words; None if it can."""
    if platform != KERNEL_PLATFORM[name]:
        return f"it runs on {KERNEL_PLATFORM[name]}, and this program is lowered for {platform}"
    for dtype in dtypes:
        if dtype.name not in KERNEL_DTYPES[name]:
            return f"dtype {dtype.name} is none of {', '.join(KERNEL_DTYPES[name])}"
    if not dtypes:
        return f"integers are none of {', '.join(KERNEL_DTYPES[name])}"
    if not _compat.lowers_for_one_device(ctx):
        return (
            "a kernel cannot be partitioned automatically over several devices; "
            "wrap the call in a jax.shard_map over all mesh axes"
        )
    from jaxtrelu.kernels.views import unsupported_view

    return unsupported_view(shape, packing)


def _back_end(name: str):
    if name == "mosaic_gpu":
        from jaxtrelu.kernels import gpu

        return gpu
    from jaxtrelu.kernels import tpu

    return tpu


def thresholded_kernel(name: str, x, threshold, *, spec, packing: Packing, outputs) -> list:
    """The kernel form of the forward primitive: any shape, through a two-dimensional view."""
    from jaxtrelu.kernels import views

    results = _back_end(name).forward(
        views.as_rows(x, packing),
        views.threshold_as_rows(threshold, x.shape, packing),
        spec,
        outputs,
    )
    words = views.words_shape(x.shape, packing)
    return [
        r.reshape(x.shape if o == "value" else words) for o, r in zip(outputs, results, strict=True)
    ]


def gate_kernel(
    name: str, t, words, *, packing: Packing, invert: bool, implementation
) -> jax.Array:
    """The kernel form of the gate primitive."""
    from jaxtrelu.kernels import views

    rows = views.as_rows(t, packing)
    packed = views.words_as_rows(words)
    return _back_end(name).gate(rows, packed, invert=invert).reshape(t.shape)


def _linear_back_end(name: str):
    if name == "mosaic_gpu":
        from jaxtrelu.kernels import gpu_linear

        return gpu_linear
    from jaxtrelu.kernels import tpu_linear

    return tpu_linear


def linear_kernel(name: str, x, w, b, threshold, *, spec, packing: Packing, outputs) -> list:
    """The kernel form of the fused linear layer; its operands are matrices already."""
    return _linear_back_end(name).forward(x, w, b, threshold, spec, outputs)


def linear_gradient_kernel(name: str, x, w, ct, words, *, packing, implementation) -> list:
    """The kernel form of its gradients: dx, dw and the columns' sums of the gated cotangent."""
    back_end = _linear_back_end(name)
    dw, total = back_end.weight_gradient(x, ct, words)
    return [back_end.input_gradient(ct, words, w), dw, total]


def linear_refuses(name: str, avals) -> str | None:
    """What the fused linear kernels do not take beyond the elementwise ones."""
    if name == "mosaic_gpu":
        if avals[0].dtype.name == "float32":
            return "the matrix unit would round float32 to TF32; its dtypes are bfloat16, float16"
        if len(avals) > 3 and avals[-1].dtype.name != "uint32" and avals[-1].shape[0] > 1:
            return (
                f"its threshold is one number per column, and this one has shape {avals[-1].shape}"
            )
    return None
