"""Every branch on a JAX version, each with the version at which it can go."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec

# `jax.extend`, where these two have their names, imports Pallas (JAX 0.10 to 0.12): more than half
# of the time that `import jaxtrelu` would add. Both can be had from what is loaded already.
if TYPE_CHECKING:
    from jax.extend.core import Primitive as Primitive
else:
    Primitive = type(jax.lax.neg_p)


def checkpoint_name_primitive() -> Primitive:
    """The primitive behind `jax.ad_checkpoint.checkpoint_name`."""
    number = jax.ShapeDtypeStruct((), "float32")
    (equation,) = jax.make_jaxpr(lambda x: checkpoint_name(x, "name"))(number).eqns
    return equation.primitive


def register_dead_code_rule(primitive, rule: Callable) -> None:
    """Registers ``rule(used_outputs, eqn) -> (used_inputs, eqn or None)``.

    JAX 0.12 also passes which inputs are live; the first signature can go when 0.10 and 0.11 do.
    """
    partial_eval.dce_rules[primitive] = lambda used, *live_and_eqn: rule(used, live_and_eqn[-1])


def row_sums(array: jax.Array) -> jax.Array:
    """Sums over the last axis of a matrix of a few dozen columns, by what is fast on a CPU.

    JAX 0.10's reduction over the last axis takes ten times a product with ones, JAX 0.12's half of
    one; the first form can go when 0.10 and 0.11 do.
    """
    if jax.__version_info__ < (0, 11):
        ones = jax.numpy.ones(array.shape[1], array.dtype)
        return jax.lax.dot(array, ones, precision=jax.lax.Precision.HIGHEST)
    return jax.numpy.sum(array, axis=1)


def varying_axes(x) -> frozenset:
    """The mesh axes over which x varies inside a `shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def like_type(aval, shaped):
    """The type `aval`, with the shape, dtype and sharding that `jax.eval_shape` found."""
    sharding = shaped.sharding
    if all(axis is None for axis in aval.sharding.spec):
        # In a partially manual `shard_map` what it found names no mesh (JAX 0.10 to 0.12).
        sharding = aval.sharding.update(spec=PartitionSpec(*[None] * len(shaped.shape)))
    return aval.update(shape=shaped.shape, dtype=shaped.dtype, weak_type=False, sharding=sharding)


def load_gpu(ref, layout, *, optimized: bool = True) -> jax.Array:
    """Loads a block of memory into registers of that layout, in a Mosaic GPU kernel.

    `optimized` refuses what would not be vectorised; from global memory nothing would be.
    JAX 0.12 dropped the index argument; the first form can go when 0.10 and 0.11 do.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if "idx" in inspect.signature(plgpu.load).parameters:
        return plgpu.load(ref, (), layout=layout, optimized=optimized)
    return plgpu.load(ref, layout=layout, optimized=optimized)  # type: ignore[call-arg]


def lowers_for_one_device(ctx) -> bool:
    """Whether the partitioner leaves what is being lowered alone: one device, or all axes manual.

    The context of a lowering rule has no public name in JAX 0.10 to 0.12, so it is asked by what it
    has; where that changes the answer is no, and the kernel is not chosen.
    """
    axes = ctx.module_context.axis_context
    if hasattr(axes, "num_devices"):
        return axes.num_devices == 1
    manual: frozenset = getattr(axes, "manual_axes", frozenset())
    return hasattr(axes, "mesh") and set(manual) == set(axes.mesh.axis_names)
