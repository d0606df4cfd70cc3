"""Mosaic TPU kernels of the fused linear layer: x @ w + b, threshold and words in one pass.

The pre-activation stays in VMEM, in float32. Backwards the gate is applied to blocks of the
cotangent on their way into the two products, and their columns are summed for the bias.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxtrelu._backends.mosaic_tpu import elementwise
from jaxtrelu._backends.views import LANES, like, pad_axis
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import words_for
from jaxtrelu._primitive.spec import Spec

CHUNKS = elementwise.COLUMNS // LANES  # of 128 columns, whose words fill one register


@dataclasses.dataclass(frozen=True)
class Config:
    """Blocks of the product's rows, columns and contracted axis: powers of two."""

    rows: int = 512
    columns: int = 1024
    depth: int = 512


def choose_config(rows: int, columns: int, depth: int) -> Config:
    """2 MB of float32 accumulator, 128 or more rows of the matrix unit per load of its weights."""
    return Config(
        rows=min(512, _power_above(rows, 16)),
        columns=min(1024, _power_above(columns, LANES)),
        depth=min(512, _power_above(depth, LANES)),
    )


def forward(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array,
    threshold: jax.Array,
    spec: Spec,
    outputs: Sequence[str],
    *,
    config: Config | None = None,
    interpret=False,
) -> list[jax.Array]:
    """value and gate of x (rows, depth) @ w (depth, columns) + b (1, columns).

    `threshold` is (1 or rows, 1 or columns). Words are uint32 (rows, ceil(columns / 32)).
    """
    (rows, depth), columns = x.shape, w.shape[1]
    full = threshold.shape[0] > 1 and threshold.shape[1] > 1
    config = config or choose_config(rows, min(columns, 512) if full else columns, depth)
    x, w = pad_axis(x, 1, config.depth), pad_axis(w, 0, config.depth)
    steps = x.shape[1] // config.depth
    chunks = config.columns // LANES
    per_register = CHUNKS // chunks

    def kernel(x_ref, w_ref, b_ref, threshold_ref, *refs):
        *out_refs, sum_ref = refs
        column, step = pl.program_id(1), pl.program_id(2)
        by_name = dict(zip(outputs, out_refs, strict=True))

        pl.when(step == 0)(lambda: _clear(sum_ref))

        sum_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32)

        @pl.when(step == steps - 1)
        def _():
            halves = elementwise.words_start(config.rows)
            first = (column & (per_register - 1)) * chunks
            for chunk in range(chunks):
                lanes = pl.ds(chunk * LANES, LANES)
                z = sum_ref[:, lanes] + b_ref[:, lanes].astype(jnp.float32)
                threshold = (
                    threshold_ref[:, lanes] if threshold_ref.shape[1] > 1 else threshold_ref[...]
                )
                if "value" in by_name:
                    by_name["value"][:, lanes] = formulas.value(z, threshold, spec).astype(x.dtype)
                if "gate" in by_name:
                    mask = formulas.gate(z, threshold, spec)
                    left = columns - column * config.columns - chunk * LANES
                    kept = left if columns % LANES else None
                    halves = elementwise.words_add(halves, mask, first + chunk, kept)
            if "gate" in by_name:
                words_ref = by_name["gate"]
                pl.when(first == 0)(lambda: _clear(words_ref))
                words_ref[...] |= elementwise.words_end(halves)

    by_row, by_column = threshold.shape[0] > 1, threshold.shape[1] > 1
    shift = per_register.bit_length() - 1
    specs = {
        "value": pl.BlockSpec((config.rows, config.columns), lambda i, j, k: (i, j)),
        "gate": pl.BlockSpec((config.rows, LANES), lambda i, j, k: (i, j >> shift)),
    }
    types = {
        "value": like(x, (rows, columns), x.dtype),
        "gate": like(x, (rows, words_for(columns)), jnp.uint32),
    }
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, config.rows), pl.cdiv(columns, config.columns), steps),
        in_specs=[
            pl.BlockSpec((config.rows, config.depth), lambda i, j, k: (i, k)),
            pl.BlockSpec((config.depth, config.columns), lambda i, j, k: (k, j)),
            pl.BlockSpec((1, config.columns), lambda i, j, k: (0, j)),
            pl.BlockSpec(
                (config.rows if by_row else 1, config.columns if by_column else 1),
                lambda i, j, k: (i if by_row else 0, j if by_column else 0),
            ),
        ],
        out_specs=[specs[o] for o in outputs],
        out_shape=[types[o] for o in outputs],
        scratch_shapes=[pltpu.VMEM((config.rows, config.columns), jnp.float32)],
        compiler_params=_params("parallel", "arbitrary", "arbitrary"),
        interpret=interpret,
        name="thresholded_linear_tpu",
    )(x, w, b, threshold)


def input_gradient(
    ct: jax.Array, words: jax.Array, w: jax.Array, *, config: Config | None = None, interpret=False
) -> jax.Array:
    """dx (rows, depth) = gate(ct, words) @ w.T, in ct's dtype."""
    rows, depth = ct.shape[0], w.shape[0]
    config = config or choose_config(rows, depth, ct.shape[1])
    ct, w = pad_axis(ct, 1, config.depth), pad_axis(w, 1, config.depth)
    steps = ct.shape[1] // config.depth
    chunks = config.depth // LANES
    per_register = CHUNKS // chunks

    def kernel(ct_ref, words_ref, w_ref, out_ref, sum_ref):
        step = pl.program_id(2)

        pl.when(step == 0)(lambda: _clear(sum_ref))

        gated = _gated(ct_ref, words_ref, (step & (per_register - 1)) * chunks, chunks)
        sum_ref[...] += lax.dot_general(
            gated, w_ref[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

        @pl.when(step == steps - 1)
        def _():
            out_ref[...] = sum_ref[...].astype(out_ref.dtype)

    shift = per_register.bit_length() - 1
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, config.rows), pl.cdiv(depth, config.columns), steps),
        in_specs=[
            pl.BlockSpec((config.rows, config.depth), lambda i, j, k: (i, k)),
            pl.BlockSpec((config.rows, LANES), lambda i, j, k: (i, k >> shift)),
            pl.BlockSpec((config.columns, config.depth), lambda i, j, k: (j, k)),
        ],
        out_specs=pl.BlockSpec((config.rows, config.columns), lambda i, j, k: (i, j)),
        out_shape=like(ct, (rows, depth), ct.dtype),
        scratch_shapes=[pltpu.VMEM((config.rows, config.columns), jnp.float32)],
        compiler_params=_params("parallel", "parallel", "arbitrary"),
        interpret=interpret,
        name="thresholded_linear_dx_tpu",
    )(ct, words, w)


def weight_gradient(
    x: jax.Array, ct: jax.Array, words: jax.Array, *, config: Config | None = None, interpret=False
) -> tuple[jax.Array, jax.Array]:
    """dw (depth, columns) = x.T @ gate(ct, words), and columns' sums (1, columns) in float32."""
    (rows, depth), columns = x.shape, ct.shape[1]
    config = config or choose_config(depth, columns, rows)
    x, ct, words = (pad_axis(a, 0, config.depth) for a in (x, ct, words))
    steps = x.shape[0] // config.depth
    chunks = config.columns // LANES
    per_register = CHUNKS // chunks

    def kernel(x_ref, ct_ref, words_ref, out_ref, total_ref, sum_ref):
        column, step = pl.program_id(0), pl.program_id(2)

        pl.when(step == 0)(lambda: _clear(sum_ref))

        pl.when((step == 0) & (pl.program_id(1) == 0))(lambda: _clear(total_ref))

        gated = _gated(ct_ref, words_ref, (column & (per_register - 1)) * chunks, chunks)

        @pl.when(pl.program_id(1) == 0)
        def _():
            total_ref[...] += jnp.sum(gated.astype(jnp.float32), axis=0, keepdims=True)

        sum_ref[...] += lax.dot_general(
            x_ref[...], gated, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

        @pl.when(step == steps - 1)
        def _():
            out_ref[...] = sum_ref[...].astype(out_ref.dtype)

    shift = per_register.bit_length() - 1
    dw, totals = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(columns, config.columns), pl.cdiv(depth, config.rows), steps),
        in_specs=[
            pl.BlockSpec((config.depth, config.rows), lambda j, i, k: (k, i)),
            pl.BlockSpec((config.depth, config.columns), lambda j, i, k: (k, j)),
            pl.BlockSpec((config.depth, LANES), lambda j, i, k: (k, j >> shift)),
        ],
        out_specs=[
            pl.BlockSpec((config.rows, config.columns), lambda j, i, k: (i, j)),
            pl.BlockSpec((1, config.columns), lambda j, i, k: (0, j)),
        ],
        out_shape=[like(ct, (depth, columns), ct.dtype), like(ct, (1, columns), jnp.float32)],
        scratch_shapes=[pltpu.VMEM((config.rows, config.columns), jnp.float32)],
        compiler_params=_params("parallel", "arbitrary", "arbitrary"),
        interpret=interpret,
        name="thresholded_linear_dw_tpu",
    )(x, ct, words)
    return dw, totals


def _clear(ref) -> None:
    ref[...] = jnp.zeros_like(ref)


def _gated(ct_ref, words_ref, first, chunks: int) -> jax.Array:
    """A block of the cotangent with closed entries 0; its words start at chunk `first`."""
    words = lax.bitcast_convert_type(words_ref[...], jnp.int32)
    parts = []
    for chunk in range(chunks):
        ct = ct_ref[:, pl.ds(chunk * LANES, LANES)]
        closed = elementwise.unpack(words, first + chunk) == 0
        parts.append(jnp.where(closed, jnp.zeros_like(ct), ct))
    return jnp.concatenate(parts, axis=1)


def _power_above(size: int, least: int) -> int:
    return max(least, 1 << (size - 1).bit_length())


def _params(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics)
