"""Mosaic GPU kernels: the elementwise forward pass with its words, and the gate.

Memory is seen as lines of 32 elements, one word each, whatever the shape was: a thread block takes
`Config.words` such lines, and a warpgroup holds them in the layout of the matrix unit's
accumulators, in which a sum along the lines of shifted bits makes the words.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxtrelu._backends.mosaic_gpu.blocks import (
    LAYOUT,
    WARPGROUP_LINES,
    Config,
    choose_config,
    run_blocks,
)
from jaxtrelu._backends.views import pad_to_words
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import WORD_BITS
from jaxtrelu._primitive.spec import Spec


def forward(
    x: jax.Array,
    threshold: jax.Array,
    spec: Spec,
    outputs: Sequence[str],
    *,
    config: Config | None = None,
    direct: bool | None = None,
    interpret=None,
) -> list[jax.Array]:
    """The wanted outputs of the primitive, for a view x (rows, columns).

    `threshold` is (1 or rows, 1 or columns). Words are uint32 (rows, ceil(columns / 32)). `direct`
    is without TMA; None asks the device.
    """
    rows, columns = x.shape
    flat, words = _as_words(x)
    config = config or choose_config(len(flat))
    threshold = _threshold_as_words(threshold, rows, columns, len(flat), config)
    by_word = threshold.ndim == 1

    def body(layout, loaded, stores):
        x, threshold = loaded
        if by_word:
            threshold = _along_lines(threshold, x.shape, layout)
        for output, store in zip(outputs, stores, strict=True):
            if output == "value":
                store(formulas.value(x, threshold, spec))
            else:
                mask = getattr(formulas, output)(x, threshold, spec)
                store(pack_bits(jnp.where(mask, jnp.int32(1), jnp.int32(0)), layout))

    results = run_blocks(
        body,
        (flat, threshold),
        [(flat.shape, x.dtype) if o == "value" else ((len(flat),), jnp.int32) for o in outputs],
        config,
        "thresholded_relu_gpu",
        direct,
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
    direct: bool | None = None,
    interpret=None,
) -> jax.Array:
    """t (rows, columns) where the bit is set (`invert`: clear), else 0."""
    flat, _ = _as_words(t)
    config = config or choose_config(len(flat))
    packed = lax.bitcast_convert_type(words, jnp.int32).reshape(-1)
    packed = jnp.pad(packed, (0, len(flat) - len(packed)))

    def body(layout, loaded, stores):
        t, packed = loaded
        closed = unpack(packed, t.shape, layout) == jnp.int32(1 if invert else 0)
        stores[0](jnp.where(closed, jnp.zeros_like(t), t))

    outputs, name = [(flat.shape, t.dtype)], "thresholded_gate_gpu"
    (out,) = run_blocks(body, (flat, packed), outputs, config, name, direct, interpret)
    return _from_words(out, t.shape)


# words inside a kernel


def pack_bits(bits: jax.Array, layout=LAYOUT) -> jax.Array:
    """int32 zeros and ones (lines, 32) to words (lines,)."""
    position = plgpu.broadcasted_iota(jnp.int32, bits.shape, 1, layout=layout)
    return jnp.sum(jnp.left_shift(bits, position), axis=1)


def unpack(words: jax.Array, shape: tuple[int, int], layout=LAYOUT) -> jax.Array:
    """Words (lines,) to int32 zeros and ones (lines, 32)."""
    bit = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=layout)
    spread = _along_lines(words, shape, layout)
    return jnp.bitwise_and(lax.shift_right_logical(spread, bit), jnp.int32(1))


def _along_lines(numbers: jax.Array, shape: tuple[int, int], layout) -> jax.Array:
    return plgpu.layout_cast(lax.broadcast_in_dim(numbers, shape, (0,)), layout)


# views


def _as_words(x: jax.Array) -> tuple[jax.Array, int]:
    """(rows, columns) as (lines, 32), a multiple of 64 lines, and the words per row of x."""
    padded = pad_to_words(x)
    words = padded.shape[1] // WORD_BITS
    flat = padded.reshape(-1, WORD_BITS)
    missing = -len(flat) % WARPGROUP_LINES
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
