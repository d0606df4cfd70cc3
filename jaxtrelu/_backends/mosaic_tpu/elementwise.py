"""Mosaic TPU kernels: the elementwise forward pass with its words, and the gate.

A word holds 32 consecutive lanes. XLA packs those through a relayout that reads and writes about
3.5 times the bytes of the operation itself. Here the matrix unit does it: 128 gates times a
constant matrix of powers of two give the lower and the upper halves of four words, exactly, since a
sum of 16 distinct powers of two needs no more than 16 bits. Unpacking takes each lane's word by a
gather within a register. Both hide behind the memory traffic.

In these kernels there is no integer division: lowering it asks for the device at hand, and so fails
on a machine without a TPU.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxtrelu._backends.mosaic_tpu import half
from jaxtrelu._backends.views import LANES, like
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.packing import WORD_BITS, words_for
from jaxtrelu._primitive.spec import Spec

COLUMNS = LANES * WORD_BITS  # one register of words


@dataclasses.dataclass(frozen=True)
class Config:
    """The block of the view that one step of the grid works on."""

    rows: int
    columns: int


def choose_config(rows: int, columns: int) -> Config:
    """64 rows, so that float32 blocks of x, y and a full threshold fit twice into 16 MB of VMEM."""
    return Config(
        rows=min(64, _round_up(rows, 16)),
        columns=min(COLUMNS, _round_up(columns, LANES)),
    )


def forward(
    x: jax.Array,
    threshold: jax.Array,
    spec: Spec,
    outputs: Sequence[str],
    *,
    config: Config | None = None,
    interpret=False,
) -> list[jax.Array]:
    """The wanted outputs of the primitive, for a view x (rows, columns).

    `threshold` is (1 or rows, 1 or columns). Words are uint32 (rows, ceil(columns / 32)).
    """
    rows, columns = x.shape
    config = config or choose_config(rows, columns)

    def kernel(x_ref, threshold_ref, *out_refs):
        last = columns - pl.program_id(1) * config.columns
        words = {o: words_start(config.rows) for o in outputs if o != "value"}
        for chunk in range(config.columns // LANES):
            lanes = pl.ds(chunk * LANES, LANES)
            x = _wide(x_ref[:, lanes])
            theta = threshold_ref[:, lanes] if threshold_ref.shape[1] > 1 else threshold_ref[...]
            theta = _wide(theta)
            for output, ref in zip(outputs, out_refs, strict=True):
                if output == "value":
                    ref[:, lanes] = _narrow(formulas.value(x, theta, spec), ref.dtype)
                    continue
                mask = getattr(formulas, output)(x, theta, spec)
                kept = last - chunk * LANES if columns % config.columns else None
                words[output] = words_add(words[output], mask, chunk, kept)
        for output, ref in zip(outputs, out_refs, strict=True):
            if output != "value":
                ref[...] = words_end(words[output])

    stored = half.bits_of(x)
    value = like(x, x.shape, stored.dtype)
    packed = like(x, (rows, words_for(columns)), jnp.uint32)
    results = pl.pallas_call(
        kernel,
        grid=_grid(x.shape, config),
        in_specs=[_block(config), _threshold_block(threshold.shape, config)],
        out_specs=[_block(config) if o == "value" else _words_block(config) for o in outputs],
        out_shape=[value if o == "value" else packed for o in outputs],
        compiler_params=_parallel(),
        interpret=interpret,
        name="thresholded_relu_tpu",
    )(stored, half.bits_of(threshold))
    return [
        half.from_bits(r, x.dtype) if o == "value" else r
        for o, r in zip(outputs, results, strict=True)
    ]


def gate(
    t: jax.Array,
    words: jax.Array,
    *,
    invert: bool = False,
    config: Config | None = None,
    interpret=False,
) -> jax.Array:
    """t (rows, columns) where the bit is set (`invert`: clear), else 0."""
    config = config or choose_config(*t.shape)
    stored = half.bits_of(t)

    def kernel(t_ref, words_ref, out_ref):
        words = lax.bitcast_convert_type(words_ref[...], jnp.int32)
        for chunk in range(config.columns // LANES):
            lanes = pl.ds(chunk * LANES, LANES)
            t = t_ref[:, lanes]
            if t.dtype == jnp.int16:  # bits of float16; a mask of 32-bit lanes selects among those
                t = t.astype(jnp.int32)
            closed = jnp.int32(1 if invert else 0)
            kept = jnp.where(unpack(words, chunk) == closed, jnp.zeros_like(t), t)
            out_ref[:, lanes] = kept.astype(out_ref.dtype)

    gated = pl.pallas_call(
        kernel,
        grid=_grid(t.shape, config),
        in_specs=[_block(config), _words_block(config)],
        out_specs=_block(config),
        out_shape=like(t, t.shape, stored.dtype),
        compiler_params=_parallel(),
        interpret=interpret,
        name="thresholded_gate_tpu",
    )(stored, words)
    return half.from_bits(gated, t.dtype)


def _wide(block: jax.Array) -> jax.Array:
    """A block in float32; one of int16 holds the bits of float16.

    That changes no comparison and no rounded difference of 16-bit operands; libtpu 0.0.42 cannot
    move the mask of a 16-bit comparison to another layout.
    """
    return half.decode(block) if block.dtype == jnp.int16 else block.astype(jnp.float32)


def _narrow(value: jax.Array, dtype) -> jax.Array:
    """The inverse of `_wide`, rounded."""
    return half.encode(value) if dtype == jnp.int16 else value.astype(dtype)


# words inside a kernel


def _lane(rows: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)


def unpack(words: jax.Array, chunk) -> jax.Array:
    """The bits, 0 or 1, of 128 lanes from a register row of int32 words (rows, 128)."""
    lane = _lane(words.shape[0])
    mine = jnp.take_along_axis(words, (lane >> 5) + chunk * 4, axis=1, mode="promise_in_bounds")
    return (mine >> (lane & 31)) & 1


def words_start(rows: int) -> jax.Array:
    """Lower halves of 128 words beside their upper halves, as exact floats."""
    return jnp.zeros((rows, 2 * LANES), jnp.float32)


def words_add(halves: jax.Array, mask: jax.Array, chunk, kept=None) -> jax.Array:
    """Puts the four words of 128 gates where they belong: at lanes 4 chunk to 4 chunk + 3.

    Bits from lane `kept` on are past the end, and zero.
    """
    gates = jnp.where(mask, 1.0, 0.0)
    if kept is not None:
        gates = jnp.where(_lane(gates.shape[0]) < kept, gates, 0.0)
    found = jnp.dot(gates.astype(jnp.bfloat16), _powers(), preferred_element_type=jnp.float32)
    lane = lax.broadcasted_iota(jnp.int32, halves.shape, 1)
    return jnp.where((lane & (LANES - 1)) >> 2 == chunk, found, halves)


def words_end(halves: jax.Array) -> jax.Array:
    """The halves put together, as uint32 (rows, 128)."""
    lower, upper = (h.astype(jnp.int32) for h in (halves[:, :LANES], halves[:, LANES:]))
    return lax.bitcast_convert_type(lower | (upper << 16), jnp.uint32)


def _powers() -> jax.Array:
    """(128, 256): in column c the powers of two of word c mod 4, lower then upper half."""
    shape = (LANES, 2 * LANES)
    lane, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    mine = (lane >> 5 == (column & 3)) & ((lane >> 4) & 1 == column >> 7)
    return jnp.where(mine, (1 << (lane & 15)).astype(jnp.float32), 0.0).astype(jnp.bfloat16)


# blocks


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _grid(shape: tuple[int, ...], config: Config) -> tuple[int, int]:
    return pl.cdiv(shape[0], config.rows), pl.cdiv(shape[1], config.columns)


def _block(config: Config) -> pl.BlockSpec:
    return pl.BlockSpec((config.rows, config.columns), lambda i, j: (i, j))


def _words_block(config: Config) -> pl.BlockSpec:
    """Always a whole register of words: beyond the edge it is padding."""
    return pl.BlockSpec((config.rows, LANES), lambda i, j: (i, j))


def _threshold_block(shape: tuple[int, ...], config: Config) -> pl.BlockSpec:
    by_row, by_column = shape[0] > 1, shape[1] > 1
    block = (config.rows if by_row else 1, config.columns if by_column else 1)
    return pl.BlockSpec(block, lambda i, j: (i if by_row else 0, j if by_column else 0))


def _parallel() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
