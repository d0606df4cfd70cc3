"""A tiled matrix product on Hopper: what the fused linear kernels have in common.

One warpgroup feeds tiles to shared memory by TMA, two multiply them with wgmma, each the half of
the thread block's tile.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxtrelu._primitive.packing import WORD_BITS

WARPGROUPS = 2
PART = 64  # rows and columns that an epilogue takes at a time


@dataclasses.dataclass(frozen=True)
class Config:
    """The tile of one warpgroup (two side by side make a block's), and the pipeline's stages."""

    rows: int = 128
    columns: int = 128
    depth: int = 64
    stages: int = 3


def choose_config(rows: int, columns: int, *, stages: int = 3) -> Config:
    """Two 128 x 128 tiles per block; smaller ones where a product has too few of them for a GPU.

    Three stages fill shared memory forward; backward two, beside the gated tiles.
    """
    if rows * columns < 128 * 2 * 128 * 132:
        return Config(rows=64, columns=64, depth=64, stages=4)
    return Config(stages=stages)


def store_tile(config: Config):
    """The epilogue that rounds the accumulators and writes them."""

    def epilogue(acc, corner, gmem, smem):
        i, j, wg = corner
        column = (j * WARPGROUPS + wg) * config.columns
        smem[0][...] = acc.astype(gmem[0].dtype)
        plgpu.commit_smem()
        place = gmem[0].at[pl.ds(i * config.rows, config.rows), pl.ds(column, config.columns)]
        plgpu.copy_smem_to_gmem(smem[0], place)

    return epilogue


def shared(shape: tuple[int, int], dtype):
    """One tile per warpgroup, tiled and swizzled for wgmma and TMA."""
    return plgpu.SMEM((WARPGROUPS, *shape), dtype, transforms=_transforms(shape, dtype))


def _transforms(shape: tuple[int, ...], dtype, width: int = 64) -> tuple:
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(min(shape[-1], width) * itemsize * 8)
    return (plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle))


def product(
    tiled,
    whole,
    multiply,
    epilogue,
    grid,
    out_types,
    scratch,
    config: Config,
    name: str,
    interpret,
    gated: tuple[int, int] | None = None,
) -> list[jax.Array]:
    """A matrix product by tiles: ``multiply(warpgroup, accumulator, gated, tiles...)`` per step.

    `tiled` are (array, block, axes), the axes named by i, j (of the product) and k (contracted);
    `whole` arrays stay in global memory for the epilogue, as do the outputs. The grid is (i, j, k).
    `gated` is the shape of a tile that each warpgroup gates for itself: tiles then have 32 columns,
    so that a word's columns are whole tiles.
    """
    width, dtype, outputs = WORD_BITS if gated else 64, tiled[0][0].dtype, len(scratch)
    if gated:
        transforms = _transforms(gated, dtype, width)
        scratch = [*scratch, plgpu.SMEM((WARPGROUPS, *gated), dtype, transforms=transforms)]
    specs = []
    for array, block, axes in tiled:
        swizzled = _transforms(block, array.dtype, width) if array.dtype != jnp.int32 else ()
        specs.append((block, axes, swizzled))

    def kernel(*refs):
        count = len(tiled)
        sources, others = refs[:count], refs[count : len(refs) - len(scratch)]
        smem = refs[len(refs) - len(scratch) :]
        place = {"i": lax.axis_index("i"), "j": lax.axis_index("j")}
        wg = lax.axis_index("wg")

        def index_map(axes):
            return lambda k: tuple(k if a == "k" else place[a] for a in axes)

        def body(_, *tiles_and_acc):
            *tiles, acc = tiles_and_acc
            multiply(wg, acc, smem[outputs] if gated else None, *tiles)
            plgpu.wgmma_wait(0)
            return acc

        def compute(run):
            def scope(acc):
                run(acc)
                epilogue(
                    acc[...],
                    (place["i"], place["j"], wg),
                    others,
                    [s.at[wg] for s in smem[:outputs]],
                )
                plgpu.wait_smem_to_gmem(0)

            pl.run_scoped(scope, acc=plgpu.ACC((config.rows, config.columns), jnp.float32))

        plgpu.emit_pipeline_warp_specialized(
            body,
            grid=(grid[2],),
            memory_registers=40,
            in_specs=[
                plgpu.BlockSpec(block, index_map(axes), transforms=swizzled)
                for block, axes, swizzled in specs
            ],
            wg_axis="wg",
            num_compute_wgs=WARPGROUPS,
            max_concurrent_steps=min(config.stages, grid[2]),
            compute_context=compute,
        )(*sources)

    kernel.__name__ = name
    return plgpu.kernel(
        kernel,
        out_type=out_types,
        grid=grid[:2],
        grid_names=("i", "j"),
        num_threads=WARPGROUPS + 1,
        thread_name="wg",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=interpret,
    )(*(array for array, _, _ in tiled), *whole)
