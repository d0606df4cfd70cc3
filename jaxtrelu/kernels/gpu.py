"""Mosaic GPU kernels: the elementwise forward pass with its words, and the gate.

Memory is seen as rows of 32 elements, one word each, whatever the shape was: a thread block copies
`Config.words` such rows to shared memory by TMA, and a warpgroup holds them in the layout of the
matrix unit's accumulators, in which a sum along the rows of shifted bits makes the words.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxtrelu import _compat, variants
from jaxtrelu.kernels.views import like, pad_to_words
from jaxtrelu.packing import WORD_BITS
from jaxtrelu.variants import Spec

LAYOUT = plgpu.Layout.WGMMA
ROW = LAYOUT.reduce(1)
WARPGROUP_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """`words` rows of 32 elements per thread block: a multiple of 64."""

    words: int


def choose_config(words: int) -> Config:
    """16 kB of float32 per operand and block, so that a multiprocessor has several in flight."""
    return Config(128 if words % 128 == 0 else WARPGROUP_ROWS)


def forward(
    x: jax.Array,
    threshold: jax.Array,
    spec: Spec,
    outputs: Sequence[str],
    *,
    config: Config | None = None,
    interpret=None,
) -> list[jax.Array]:
    """The wanted outputs of the primitive, for a view x (rows, columns).

    `threshold` is (1 or rows, 1 or columns). Words are uint32 (rows, ceil(columns / 32)).
    """
    rows, columns = x.shape
    flat, words = _as_words(x)
    config = config or choose_config(len(flat))
    threshold = _threshold_as_words(threshold, rows, columns, len(flat), config)
    by_word = threshold.ndim == 1

    def body(loaded, stores):
        x, threshold = loaded
        if by_word:
            threshold = lax.broadcast_in_dim(threshold, x.shape, (0,))
        for output, store in zip(outputs, stores, strict=True):
            if output == "value":
                store(variants.value(x, threshold, spec))
            else:
                store(_pack(getattr(variants, output)(x, threshold, spec)))

    results = _call(
        body,
        (flat, threshold),
        [(flat.shape, x.dtype) if o == "value" else ((len(flat),), jnp.int32) for o in outputs],
        config,
        "thresholded_relu_gpu",
        interpret,
    )
    return [
        _from_words(r, x.shape)
        if o == "value"
        else _trim(
            lax.bitcast_convert_type(r[: rows * words], jnp.uint32).reshape(rows, words), columns
        )
        for o, r in zip(outputs, results, strict=True)
    ]


def gate(
    t: jax.Array,
    words: jax.Array,
    *,
    invert: bool = False,
    config: Config | None = None,
    interpret=None,
) -> jax.Array:
    """t (rows, columns) where the bit is set (`invert`: clear), else 0."""
    flat, _ = _as_words(t)
    config = config or choose_config(len(flat))
    packed = lax.bitcast_convert_type(words, jnp.int32).reshape(-1)
    packed = jnp.pad(packed, (0, len(flat) - len(packed)))

    def body(loaded, stores):
        t, packed = loaded
        closed = unpack(packed, t.shape) == jnp.int32(1 if invert else 0)
        stores[0](jnp.where(closed, jnp.zeros_like(t), t))

    (out,) = _call(
        body, (flat, packed), [(flat.shape, t.dtype)], config, "thresholded_gate_gpu", interpret
    )
    return _from_words(out, t.shape)


# words inside a kernel


def _pack(mask: jax.Array) -> jax.Array:
    return pack_bits(jnp.where(mask, jnp.int32(1), jnp.int32(0)))


def pack_bits(bits: jax.Array) -> jax.Array:
    """int32 zeros and ones (rows, 32) to words (rows,)."""
    position = plgpu.broadcasted_iota(jnp.int32, bits.shape, 1, layout=LAYOUT)
    return jnp.sum(jnp.left_shift(bits, position), axis=1)


def unpack(words: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Words (rows,) to int32 zeros and ones (rows, 32)."""
    bit = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=LAYOUT)
    spread = lax.broadcast_in_dim(words, shape, (0,))
    return jnp.bitwise_and(lax.shift_right_logical(spread, bit), jnp.int32(1))


# views


def _as_words(x: jax.Array) -> tuple[jax.Array, int]:
    """(rows, columns) as (rows of 32, 32), a multiple of 64 of them, and the words per row of x."""
    padded = pad_to_words(x)
    words = padded.shape[1] // WORD_BITS
    flat = padded.reshape(-1, WORD_BITS)
    missing = -len(flat) % WARPGROUP_ROWS
    return (jnp.pad(flat, ((0, missing), (0, 0))) if missing else flat), words


def _from_words(flat: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    rows, columns = shape
    words = -(-columns // WORD_BITS)
    return flat[: rows * words].reshape(rows, words * WORD_BITS)[:, :columns]


def _trim(words: jax.Array, columns: int) -> jax.Array:
    """Clears the bits past the end, which the padding may have set."""
    if not (tail := columns % WORD_BITS):
        return words
    last = words[:, -1] & jnp.uint32(2**tail - 1)
    return words.at[:, -1].set(last)


def _threshold_as_words(
    threshold, rows: int, columns: int, total: int, config: Config
) -> jax.Array:
    """One number per word, or 32; as short as a period of whole blocks allows.

    A scalar becomes one block of words, a number per row becomes one per word; a number per column
    is repeated until the period is a multiple of the block, which needs at most 64 repetitions.
    """
    words = -(-columns // WORD_BITS)
    if threshold.shape[1] == 1:
        if threshold.shape[0] == 1:
            return jnp.broadcast_to(threshold.reshape(1), (config.words,))
        return jnp.pad(jnp.repeat(threshold[:, 0], words), (0, total - rows * words), mode="edge")
    tiled = pad_to_words(threshold)
    if threshold.shape[0] == 1:
        period = math.lcm(words, config.words)
        if total % period == 0:
            return jnp.tile(tiled.reshape(words, WORD_BITS), (period // words, 1))
        tiled = jnp.broadcast_to(tiled, (rows, tiled.shape[1]))
    flat = tiled.reshape(-1, WORD_BITS)
    return jnp.pad(flat, ((0, total - len(flat)), (0, 0)))


# the call


def _transforms(dtype) -> tuple:
    """Tiled and swizzled, so that the accumulators' layout is loaded without bank conflicts."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(WORD_BITS * itemsize * 8)
    return (plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle))


def _call(
    body: Callable, operands: Sequence[jax.Array], outputs, config: Config, name: str, interpret
) -> list[jax.Array]:
    """Runs ``body(loaded blocks, functions that store a block)`` once per block of words.

    An operand shorter than the first is periodic. Arrays are (words, 32) or (words,).
    """
    blocks = len(operands[0]) // config.words
    scratch = [_shared(o.shape, o.dtype, config) for o in operands]
    scratch += [_shared(shape, dtype, config) for shape, dtype in outputs]

    def kernel(*refs):
        gmem, smem = refs[: len(scratch)], refs[len(scratch) : -1]
        barrier, block = refs[-1], lax.axis_index("blocks")
        inputs = len(operands)
        for source, target in zip(gmem[:inputs], smem[:inputs], strict=True):
            start = lax.rem(block, source.shape[0] // config.words) * config.words
            plgpu.copy_gmem_to_smem(source.at[pl.ds(start, config.words)], target, barrier)
        plgpu.barrier_wait(barrier)
        loaded = [
            _compat.load_gpu(ref, LAYOUT if len(ref.shape) == 2 else ROW) for ref in smem[:inputs]
        ]
        body(loaded, [lambda value, ref=ref: ref.__setitem__(..., value) for ref in smem[inputs:]])
        plgpu.commit_smem()
        for source, target in zip(smem[inputs:], gmem[inputs:], strict=True):
            plgpu.copy_smem_to_gmem(source, target.at[pl.ds(block * config.words, config.words)])
        plgpu.wait_smem_to_gmem(0)

    kernel.__name__ = name  # under which it stands in the compiled program
    return plgpu.kernel(
        kernel,
        out_type=[like(operands[0], shape, dtype) for shape, dtype in outputs],
        grid=(blocks,),
        grid_names=("blocks",),
        scratch_types=[*scratch, plgpu.Barrier(num_arrivals=len(operands))],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=interpret,
    )(*operands)


def _shared(shape: tuple[int, ...], dtype, config: Config):
    transforms = _transforms(dtype) if len(shape) == 2 else ()
    return plgpu.SMEM((config.words, *shape[1:]), dtype, transforms=transforms)
