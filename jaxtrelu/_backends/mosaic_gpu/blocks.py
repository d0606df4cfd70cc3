"""Elementwise Mosaic GPU kernels, block by block: through shared memory, or straight from global.

From compute capability 9.0 on the blocks are copied by TMA. Before there is none, and each thread
reads and writes global memory itself.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxtrelu import _compat
from jaxtrelu._backends.mosaic_gpu import capability
from jaxtrelu._backends.views import like
from jaxtrelu._primitive.packing import WORD_BITS

LAYOUT = plgpu.Layout.WGMMA
# Four columns per thread, not two: 16-bit elements then fill whole 32-byte sectors of memory.
DIRECT = plgpu.Layout.WGMMA_UPCAST_2X
WARPGROUP_LINES = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """`words` lines of 32 elements per thread block: a multiple of 64."""

    words: int


def choose_config(words: int) -> Config:
    """16 kB of float32 per operand and block, so that a multiprocessor has several in flight."""
    return Config(128 if words % 128 == 0 else WARPGROUP_LINES)


def _transforms(dtype) -> tuple:
    """Tiled and swizzled, so that the accumulators' layout is loaded without bank conflicts."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(WORD_BITS * itemsize * 8)
    return (plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle))


def run_blocks(
    body: Callable, operands: Sequence, outputs, config: Config, name: str, direct, interpret
) -> list[jax.Array]:
    """Runs ``body(layout, loaded blocks, functions that store a block)`` once per block of words.

    An operand shorter than the first is periodic. Arrays are (words, 32) or (words,).
    """
    direct = not capability.has_tma() if direct is None else direct
    scratch = [_shared(o.shape, o.dtype, config) for o in operands]
    scratch += [_shared(shape, dtype, config) for shape, dtype in outputs]
    scratch.append(plgpu.Barrier(num_arrivals=len(operands)))

    def kernel(*refs):
        count, block = len(operands), lax.axis_index("blocks")
        gmem, scratch = refs[: count + len(outputs)], refs[count + len(outputs) :]
        sources = [
            _block(r, lax.rem(block, r.shape[0] // config.words), config) for r in gmem[:count]
        ]
        targets = [_block(r, block, config) for r in gmem[count:]]
        run = _run_direct if direct else _run_by_tma
        run(body, sources, targets, *scratch)

    kernel.__name__ = name  # under which it stands in the compiled program
    return plgpu.kernel(
        kernel,
        out_type=[like(operands[0], shape, dtype) for shape, dtype in outputs],
        grid=(len(operands[0]) // config.words,),
        grid_names=("blocks",),
        scratch_types=[] if direct else scratch,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=interpret,
    )(*operands)


def _run_by_tma(body: Callable, sources, targets, *scratch) -> None:
    *smem, barrier = scratch
    count = len(sources)
    for source, target in zip(sources, smem[:count], strict=True):
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)
    loaded = [_load(ref, LAYOUT) for ref in smem[:count]]
    body(LAYOUT, loaded, [_store(ref) for ref in smem[count:]])
    plgpu.commit_smem()
    for source, target in zip(smem[count:], targets, strict=True):
        plgpu.copy_smem_to_gmem(source, target)
    plgpu.wait_smem_to_gmem(0)


def _run_direct(body: Callable, sources, targets) -> None:
    loaded = [_load(ref, DIRECT, optimized=False) for ref in sources]
    body(DIRECT, loaded, [_store(ref) for ref in targets])


def _block(ref, index, config: Config):
    return ref.at[pl.ds(index * config.words, config.words)]


def _load(ref, layout, **options) -> jax.Array:
    return _compat.load_gpu(ref, layout if len(ref.shape) == 2 else layout.reduce(1), **options)


def _store(ref) -> Callable:
    return lambda value: ref.__setitem__(..., value)


def _shared(shape: tuple[int, ...], dtype, config: Config):
    transforms = _transforms(dtype) if len(shape) == 2 else ()
    return plgpu.SMEM((config.words, *shape[1:]), dtype, transforms=transforms)
