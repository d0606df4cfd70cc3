"""Back ends, and the one place that chooses among them: per platform and shape, at lowering.

A back end is one object, and `register_back_end` makes it known under its name. Every primitive has
an XLA form, which is default and reference; a back end may have a kernel for it. One rule per
platform is registered, so that one exported artifact serves them all. Unless an implementation is
asked for by name, a kernel is taken where it says that it wins; one asked for is never replaced.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from jaxtrelu import _compat
from jaxtrelu._compat import Primitive

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def _nothing_refused(avals: Sequence) -> str | None:
    return None


def _never(avals: Sequence, **params) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How a back end computes one primitive.

    Args:
      run: takes the primitive's operands and parameters, and returns its results.
      refuses: says in words why it cannot compute operands of these types; None if it can.
      wins: whether it is the default on its platform, for these types and parameters.
    """

    run: Callable
    refuses: Callable[[Sequence], str | None] = _nothing_refused
    wins: Callable[..., bool] = _never


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """A way to compute some of the primitives with kernels.

    Args:
      name: what ``implementation=`` calls it.
      platform: one of `PLATFORMS`: where its kernels run.
      dtypes: the names of the floating-point dtypes that its kernels take.
      kernels: by the name of the primitive.
    """

    name: str
    platform: str
    dtypes: tuple[str, ...]
    kernels: Mapping[str, Kernel]


#: By name, in the order in which they are tried.
BACK_ENDS: dict[str, BackEnd] = {}
#: Default and reference of every primitive, by its name, from when its module was loaded.
XLA_FORMS: dict[str, Callable] = {}


def register_back_end(back_end: BackEnd) -> None:
    """Makes a back end known; the name "xla" stands for the form that every primitive has.

    What is compiled already stays as it is.
    """
    if back_end.name == "xla" or back_end.name in BACK_ENDS:
        raise ValueError(f"there is a back end {back_end.name!r} already.")
    BACK_ENDS[back_end.name] = back_end


def implementations() -> tuple[str, ...]:
    """The lowerings that can be asked for by name."""
    return ("xla", *BACK_ENDS)


def register(
    primitive: Primitive, xla: Callable, implementation_of: Callable, static: tuple[str, ...]
) -> None:
    """Registers the lowerings of a primitive, of which `xla` is default and reference.

    `implementation_of` finds the implementation that was asked for among the parameters. Platforms
    that are not known here take `xla`. Concrete operands are computed by the compiled lowering, but
    by `xla` step by step where jit is disabled.
    """
    XLA_FORMS[primitive.name] = xla
    multiple = primitive.multiple_results
    primitive.def_impl(_evaluate(primitive, xla, implementation_of, static))
    mlir.register_lowering(primitive, mlir.lower_fun(xla, multiple_results=multiple))
    for platform in PLATFORMS:

        def rule(ctx, *operands, platform=platform, **params):
            asked = implementation_of(params)
            kernel = _chosen(asked, platform, primitive.name, ctx, params)
            function = xla if kernel is None else kernel.run
            return mlir.lower_fun(function, multiple_results=multiple)(ctx, *operands, **params)

        mlir.register_lowering(primitive, rule, platform=platform)


def _evaluate(primitive: Primitive, xla: Callable, implementation_of, static) -> Callable:
    @functools.partial(jax.jit, static_argnames=static)
    def compiled(*operands, **params):
        if not any(isinstance(operand, jax.core.Tracer) for operand in operands):
            # `jax.debug_nans` found one, and runs this again without jit to say where.
            return xla(*operands, **params)
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


def _chosen(asked: str | None, platform: str, primitive: str, ctx, params) -> Kernel | None:
    """The kernel that computes this call; None: XLA does."""
    if asked == "xla":
        return None
    if asked is None:
        for back_end in BACK_ENDS.values():
            kernel = back_end.kernels.get(primitive)
            if kernel is None or _refusal(back_end, kernel, platform, primitive, ctx):
                continue
            if kernel.wins(ctx.avals_in, **params):
                return kernel
        return None
    back_end = BACK_ENDS[asked]
    kernel = back_end.kernels.get(primitive)
    if refusal := _refusal(back_end, kernel, platform, primitive, ctx):
        raise NotImplementedError(
            f"implementation={asked!r} cannot compute this call: {refusal}. "
            "Pass implementation=None to have one chosen."
        )
    return kernel


def _refusal(
    back_end: BackEnd, kernel: Kernel | None, platform: str, primitive: str, ctx
) -> str | None:
    """Why this kernel cannot stand in this program, in words; None if it can."""
    if platform != back_end.platform:
        return f"it runs on {back_end.platform}, and this program is lowered for {platform}"
    if kernel is None:
        return f"it has no kernel for {primitive}"
    for aval in ctx.avals_in:
        if not all(isinstance(size, int) for size in aval.shape):
            return f"the shape {aval.shape} is symbolic, and a kernel's grid needs numbers"
    if not _compat.lowers_for_one_device(ctx):
        return (
            "a kernel cannot be partitioned automatically over several devices; "
            "wrap the call in a jax.shard_map over all mesh axes"
        )
    return dtype_refusal(ctx.avals_in, back_end.dtypes) or kernel.refuses(ctx.avals_in)


def dtype_refusal(avals: Sequence, dtypes: tuple[str, ...]) -> str | None:
    """Which of these types is none of the floating-point dtypes given, in words."""
    for aval in avals:
        if jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.name not in dtypes:
            return f"dtype {aval.dtype.name} is none of {', '.join(dtypes)}"
    if avals and not any(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
        return f"integers are none of {', '.join(dtypes)}"
    return None
