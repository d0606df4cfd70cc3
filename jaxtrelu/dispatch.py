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
KERNEL_PLATFORM = {"mosaic_gpu": "cuda", "mosaic_tpu": "tpu"}
#: The dtypes that kernels take, and those of them whose default on TPU is the kernel.
ELEMENTWISE_DTYPES = ("float32", "bfloat16", "float16")
LINEAR_DTYPES = {"mosaic_gpu": ("bfloat16", "float16"), "mosaic_tpu": ("float32", "bfloat16")}
DEFAULT_DTYPES = ("float32", "bfloat16")


def elementwise_refuses(name: str, avals) -> str | None:
    """What the elementwise kernels do not take, in words; None if they take it."""
    if refusal := _dtype_refusal(avals, ELEMENTWISE_DTYPES):
        return refusal
    if name != "mosaic_gpu":
        return None
    from jaxtrelu.kernels import capability

    return capability.refusal(capability.LEAST, None, f"in JAX {jax.__version__} it needs")


def linear_refuses(name: str, avals) -> str | None:
    """The same for the fused linear kernels."""
    if not all(math.prod(a.shape) for a in avals):
        return f"an operand has no elements: the shapes are {[a.shape for a in avals]}"
    if name == "mosaic_gpu":
        if avals[0].dtype.name == "float32":
            return "the matrix unit would round float32 to TF32; its dtypes are bfloat16, float16"
        if len(avals) > 3 and avals[-1].dtype.name != "uint32" and avals[-1].shape[0] > 1:
            return (
                f"its threshold is one number per column, and this one has shape {avals[-1].shape}"
            )
    # The matrix unit takes the product's operands; bias and threshold are added in float32.
    if refusal := _dtype_refusal(avals[:2], LINEAR_DTYPES[name]):
        return refusal
    if refusal := _dtype_refusal(avals[2:], ELEMENTWISE_DTYPES):
        return refusal
    if name != "mosaic_gpu":
        return None
    from jaxtrelu.kernels import capability

    return capability.refusal((9, 0), 10, "it multiplies by wgmma, which needs")


def _dtype_refusal(avals, taken: tuple[str, ...]) -> str | None:
    for aval in avals:
        if jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.name not in taken:
            return f"dtype {aval.dtype.name} is none of {', '.join(taken)}"
    if avals and not any(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
        return f"integers are none of {', '.join(taken)}"
    return None


def register(
    primitive: Primitive,
    xla: Callable,
    kernel: Callable,
    implementation_of: Callable,
    static: tuple[str, ...],
    refuses: Callable = elementwise_refuses,
    packed_operand: int = 0,
) -> None:
    """Registers `xla` and ``kernel(name, *operands, **params)`` as the lowerings of a primitive.

    `implementation_of` finds the implementation that was asked for among the parameters, and
    ``refuses(name, avals)`` says why a kernel cannot compute a call, or None. The operand of number
    `packed_operand` has the columns along which words are packed. Platforms that are not known here
    take `xla`. Concrete operands are computed by the compiled lowering, but by `xla` step by step
    where jit is disabled.
    """
    multiple = primitive.multiple_results
    primitive.def_impl(_evaluate(primitive, xla, implementation_of, static))
    mlir.register_lowering(primitive, mlir.lower_fun(xla, multiple_results=multiple))
    for platform in PLATFORMS:

        def rule(ctx, *operands, platform=platform, **params):
            packed = ctx.avals_in[packed_operand].shape
            name = _choose(implementation_of(params), platform, ctx, params, refuses, packed)
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


def _choose(asked: str | None, platform: str, ctx, params, refuses: Callable, packed: tuple) -> str:
    if asked == "xla" or (asked is None and platform != "tpu"):
        return "xla"
    name = asked or "mosaic_tpu"
    refusal = _refusal(name, platform, ctx) or refuses(name, ctx.avals_in)
    if asked is None:
        return "xla" if refusal or not _wins(ctx.avals_in, packed, **params) else name
    if refusal:
        raise NotImplementedError(
            f"implementation={asked!r} cannot compute this call: {refusal}. "
            "Pass implementation=None to have one chosen."
        )
    return name


def _wins(avals, packed: tuple, *, packing: Packing, outputs=None, **params) -> bool:
    """Whether the kernel is the default on TPU: where it packs or unpacks words along the lanes.

    The axis is to fill the lanes of a TPU register.
    """
    along_lanes = packing.axes > 0 and packing.behind == 0 and len(packed) > 1 and packed[-1] >= 128
    floating = [a for a in avals if jnp.issubdtype(a.dtype, jnp.floating)]
    wanted = all(a.dtype.name in DEFAULT_DTYPES for a in floating)
    return along_lanes and wanted and outputs != ("value",)


def _refusal(name: str, platform: str, ctx) -> str | None:
    """Why no kernel of that back end can stand in this program, in words; None if one can."""
    if platform != KERNEL_PLATFORM[name]:
        return f"it runs on {KERNEL_PLATFORM[name]}, and this program is lowered for {platform}"
    for aval in ctx.avals_in:
        if not all(isinstance(size, int) for size in aval.shape):
            return f"the shape {aval.shape} is symbolic, and a kernel's grid needs numbers"
    if not _compat.lowers_for_one_device(ctx):
        return (
            "a kernel cannot be partitioned automatically over several devices; "
            "wrap the call in a jax.shard_map over all mesh axes"
        )
    return None


def _back_end(name: str):
    if name == "mosaic_gpu":
        from jaxtrelu.kernels import gpu

        return gpu
    from jaxtrelu.kernels import tpu

    return tpu


def thresholded_kernel(name: str, x, threshold, *, spec, packing: Packing, outputs) -> list:
    """The kernel form of the forward primitive: any shape, through a two-dimensional view."""
    from jaxtrelu.kernels.views import View

    view = View(x.shape, packing)
    if view.empty:
        return [x if o == "value" else view.no_words for o in outputs]
    results = _back_end(name).forward(view.rows(x), view.threshold(threshold), spec, outputs)
    return [
        view.value(r) if o == "value" else view.words(r)
        for o, r in zip(outputs, results, strict=True)
    ]


def gate_kernel(
    name: str, t, words, *, packing: Packing, invert: bool, implementation
) -> jax.Array:
    """The kernel form of the gate primitive."""
    from jaxtrelu.kernels.views import View

    view = View(t.shape, packing)
    if view.empty:
        return t
    return view.value(_back_end(name).gate(view.rows(t), view.packed(words), invert=invert))


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
