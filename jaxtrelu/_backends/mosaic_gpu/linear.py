"""Mosaic GPU kernels of the fused linear layer: x @ w + b, threshold, words in one pass (Hopper).

Forward, the threshold is applied to the float32 accumulators in registers. Backwards, each
warpgroup gates its part of the cotangent in shared memory before multiplying.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxtrelu import _compat
from jaxtrelu._backends.mosaic_gpu import elementwise
from jaxtrelu._backends.mosaic_gpu.blocks import LAYOUT
from jaxtrelu._backends.mosaic_gpu.tiles import (
    PART,
    WARPGROUPS,
    Config,
    choose_config,
    product,
    shared,
    store_tile,
)
from jaxtrelu._backends.views import like, pad_axis
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import WORD_BITS, unpack_last, words_for
from jaxtrelu._primitive.spec import Spec


def forward(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array,
    threshold: jax.Array,
    spec: Spec,
    outputs: Sequence[str],
    *,
    config: Config | None = None,
    interpret=None,
) -> list[jax.Array]:
    """value and gate of x (rows, depth) @ w (depth, columns) + b (1, columns).

    `threshold` is (1, 1 or columns). Words are uint32 (rows, ceil(columns / 32)).
    """
    rows, columns = x.shape[0], w.shape[1]
    config = config or choose_config(rows, columns)
    span = WARPGROUPS * config.columns
    x = pad_axis(pad_axis(x, 0, config.rows), 1, config.depth)
    w = pad_axis(pad_axis(w, 0, config.depth), 1, span)
    b = pad_axis(b.astype(jnp.float32), 1, span)[0]
    threshold = jnp.broadcast_to(threshold.astype(jnp.float32), (1, columns))
    # Padded columns are closed: their bits are past the end, and zero.
    threshold = pad_axis(threshold, 1, span, jnp.inf)[0]

    def epilogue(acc, corner, gmem, smem):
        (i, j, wg), (b_gmem, threshold_gmem, *targets) = corner, gmem
        row, column = i * config.rows, j * span + wg * config.columns
        slots = dict(zip(outputs, smem, strict=True))
        for m in range(config.rows // PART):
            for n in range(config.columns // PART):
                part = (slice(m * PART, (m + 1) * PART), slice(n * PART, (n + 1) * PART))
                here = pl.ds(column + n * PART, PART)
                bias, theta = (
                    lax.broadcast_in_dim(_load_row(ref.at[here]), (PART, PART), (1,))
                    for ref in (b_gmem, threshold_gmem)
                )
                z = acc[part] + bias
                if "value" in slots:
                    slots["value"][part] = formulas.value(z, theta, spec).astype(x.dtype)
                if "gate" in slots:
                    mask = formulas.gate(z, theta, spec)
                    bits = jnp.where(mask, jnp.int32(1), jnp.int32(0))
                    for half in range(PART // WORD_BITS):
                        lanes = slice(half * WORD_BITS, (half + 1) * WORD_BITS)
                        word = n * (PART // WORD_BITS) + half
                        slots["gate"][word, part[0]] = elementwise.pack_bits(bits[:, lanes])
        plgpu.commit_smem()
        for output, target in zip(outputs, targets, strict=True):
            across = pl.ds(row, config.rows)
            if output == "value":
                place = target.at[across, pl.ds(column, config.columns)]
            else:  # words first, so that a warpgroup's are contiguous
                count = config.columns // WORD_BITS
                place = target.at[pl.ds((column // WORD_BITS), count), across]
            plgpu.copy_smem_to_gmem(slots[output], place)

    words = (w.shape[1] // WORD_BITS, x.shape[0])
    results = product(
        [(x, (config.rows, config.depth), "ik"), (w, (config.depth, span), "kj")],
        (b, threshold),
        lambda wg, acc, _, a, b: plgpu.wgmma(
            acc, a, b.at[:, pl.ds(wg * config.columns, config.columns)]
        ),
        epilogue,
        (x.shape[0] // config.rows, w.shape[1] // span, x.shape[1] // config.depth),
        [
            like(x, (x.shape[0], w.shape[1]), x.dtype)
            if o == "value"
            else like(x, words, jnp.int32)
            for o in outputs
        ],
        [
            shared((config.rows, config.columns), x.dtype)
            if o == "value"
            else plgpu.SMEM((WARPGROUPS, config.columns // WORD_BITS, config.rows), jnp.int32)
            for o in outputs
        ],
        config,
        "thresholded_linear_gpu",
        interpret,
    )
    return [
        r[:rows, :columns]
        if o == "value"
        else lax.bitcast_convert_type(r.T[:rows, : words_for(columns)], jnp.uint32)
        for o, r in zip(outputs, results, strict=True)
    ]


def input_gradient(
    ct: jax.Array,
    words: jax.Array,
    w: jax.Array,
    *,
    config: Config | None = None,
    interpret=None,
) -> jax.Array:
    """dx (rows, depth) = gate(ct, words) @ w.T, in ct's dtype."""
    rows, depth = ct.shape[0], w.shape[0]
    config = config or choose_config(rows, depth, stages=2)
    span = WARPGROUPS * config.columns
    ct, packed = _pad_gated(ct, words, config.rows, config.depth)
    w = pad_axis(pad_axis(w.T, 0, config.depth), 1, span)

    def multiply(wg, acc, scratch, ct, words, w):
        gated = scratch.at[wg]
        _gate_tile(ct, words, gated)
        plgpu.wgmma(acc, gated, w.at[:, pl.ds(wg * config.columns, config.columns)])

    (dx,) = product(
        [
            (ct, (config.rows, config.depth), "ik"),
            (packed, (config.depth // WORD_BITS, config.rows), "ki"),
            (w, (config.depth, span), "kj"),
        ],
        (),
        multiply,
        store_tile(config),
        (ct.shape[0] // config.rows, w.shape[1] // span, ct.shape[1] // config.depth),
        [like(ct, (ct.shape[0], w.shape[1]), ct.dtype)],
        [shared((config.rows, config.columns), ct.dtype)],
        config,
        "thresholded_linear_dx_gpu",
        interpret,
        gated=(config.rows, config.depth),
    )
    return dx[:rows, :depth]


def weight_gradient(
    x: jax.Array,
    ct: jax.Array,
    words: jax.Array,
    *,
    config: Config | None = None,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """dw (depth, columns) = x.T @ gate(ct, words) in ct's dtype, and the columns' sums in float32.

    The sums are left to XLA, which fuses them with the unpacking into one pass over ct.
    """
    depth, columns = x.shape[1], ct.shape[1]
    config = config or choose_config(depth, columns, stages=2)
    span = WARPGROUPS * config.columns
    mask = unpack_last(words, columns)
    total = jnp.sum(jnp.where(mask, ct, jnp.zeros_like(ct)), 0, keepdims=True, dtype=jnp.float32)
    ct, packed = _pad_gated(ct, words, config.depth, span)
    x = pad_axis(pad_axis(x.T, 0, config.rows), 1, config.depth)

    def multiply(wg, acc, scratch, x, ct, words):
        gated, count = scratch.at[wg], config.columns // WORD_BITS
        mine = pl.ds(wg * config.columns, config.columns)
        _gate_tile(ct.at[:, mine], words.at[pl.ds(wg * count, count)], gated)
        plgpu.wgmma(acc, x, gated)

    (dw,) = product(
        [
            (x, (config.rows, config.depth), "ik"),
            (ct, (config.depth, span), "kj"),
            (packed, (span // WORD_BITS, config.depth), "jk"),
        ],
        (),
        multiply,
        store_tile(config),
        (x.shape[0] // config.rows, ct.shape[1] // span, x.shape[1] // config.depth),
        [like(ct, (x.shape[0], ct.shape[1]), ct.dtype)],
        [shared((config.rows, config.columns), ct.dtype)],
        config,
        "thresholded_linear_dw_gpu",
        interpret,
        gated=(config.depth, config.columns),
    )
    return dw[:depth, :columns], total


def _load_row(ref) -> jax.Array:
    """Numbers per column, from global memory, as the accumulators hold columns."""
    return _compat.load_gpu(ref, LAYOUT.reduce(0), optimized=False)


def _pad_gated(ct, words, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """Whole tiles of the cotangent, and of its words as int32 (words, rows)."""
    ct = pad_axis(pad_axis(ct, 0, rows), 1, columns)
    packed = lax.bitcast_convert_type(words, jnp.int32).T
    return ct, pad_axis(pad_axis(packed, 1, rows), 0, columns // WORD_BITS)


def _gate_tile(ct_smem, words_smem, gated_smem) -> None:
    """Copies a tile with closed entries 0, 32 columns (one word per row) at a time."""
    rows, columns = gated_smem.shape
    for word in range(columns // WORD_BITS):
        lanes = pl.ds(word * WORD_BITS, WORD_BITS)
        ct = _compat.load_gpu(ct_smem.at[:, lanes], LAYOUT)
        packed = _compat.load_gpu(words_smem.at[word], LAYOUT.reduce(1))
        closed = elementwise.unpack(packed, (rows, WORD_BITS)) == jnp.int32(0)
        gated_smem[:, lanes] = jnp.where(closed, jnp.zeros_like(ct), ct)
    plgpu.commit_smem()
