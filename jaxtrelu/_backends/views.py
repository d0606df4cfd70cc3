"""How arrays of any shape become the two-dimensional views that the kernels work on.

A view has the packed axis last: the axes that a `Packing` merges become the columns, all others the
rows. A threshold becomes a two-dimensional array whose axes are 1 or full. Where the primitive
keeps a mask and no words, as for a 0-d array, the view is of the array as it lies.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxtrelu._primitive.packing import WORD_BITS, Packing, pack_last, unpack_last, words_for

LANES = 128  # of a TPU register, and the number of words in one


@dataclasses.dataclass(frozen=True)
class View:
    """An array of that shape, with its gate packed like that, as (rows, columns)."""

    shape: tuple[int, ...]
    packing: Packing

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not math.prod(self.shape)

    def rows(self, x: jax.Array) -> jax.Array:
        """The array as (rows, columns)."""
        leading, packed = self._parts
        return self._packed_last(x).reshape(math.prod(leading), math.prod(packed))

    def threshold(self, threshold: jax.Array) -> jax.Array:
        """The threshold (0-d, or of the array's rank) as (1 or rows, 1 or columns)."""
        if threshold.ndim == 0:
            return threshold.reshape(1, 1)
        leading, packed = self._parts
        given = self._packed_last(threshold).shape
        split = len(leading)
        wanted = [
            (1,) * len(part) if math.prod(has) == 1 else part
            for has, part in ((given[:split], leading), (given[split:], packed))
        ]
        spread = jnp.broadcast_to(self._packed_last(threshold), (*wanted[0], *wanted[1]))
        return spread.reshape(math.prod(wanted[0]), math.prod(wanted[1]))

    def packed(self, words: jax.Array) -> jax.Array:
        """The gate as the primitive keeps it, as words (rows, words per row)."""
        if self.packing.axes == 0:
            return pack_last(self.rows(words))
        if not self._words_run_on:
            return pack_last(self.rows(self.packing.unpack(words, self.shape)))
        if self.packing.parts > 1:
            words = words.reshape(*words.shape[:-2], words.shape[-2] * words.shape[-1])
        return words.reshape(math.prod(words.shape[:-1]), words.shape[-1])

    def value(self, rows: jax.Array) -> jax.Array:
        """The inverse of `rows`."""
        leading, packed = self._parts
        value = rows.reshape(*leading, *packed)
        if behind := self.packing.behind:
            lead = len(self.shape) - self.packing.axes - behind
            value = jnp.moveaxis(value, range(lead, lead + behind), range(-behind, 0))
        return value.reshape(self.shape)

    def words(self, words: jax.Array) -> jax.Array:
        """The inverse of `packed`."""
        leading, packed = self._parts
        size, parts = math.prod(packed), self.packing.parts
        if self.packing.axes == 0:
            return unpack_last(words, size).reshape(self.shape)
        if not self._words_run_on:
            return self.packing.pack(self.value(unpack_last(words, size)))
        split = () if parts == 1 else (parts,)
        return words.reshape(*leading, *split, words_for(size // parts))

    @property
    def _words_run_on(self) -> bool:
        """Whether the words of the parts, one after the other, are those of the whole."""
        size = math.prod(self._parts[1])
        return self.packing.parts == 1 or size // self.packing.parts % WORD_BITS == 0

    @property
    def no_words(self) -> jax.Array:
        """The gate of an empty array."""
        return self.packing.pack(jnp.zeros(self.shape, bool))

    @property
    def _parts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of the rows and that of the columns, before they are merged."""
        if self.packing.axes == 0:
            return self.shape[:-1], self.shape[-1:]
        behind = self.packing.behind
        lead = len(self.shape) - self.packing.axes - behind
        end = len(self.shape) - behind
        return (*self.shape[:lead], *self.shape[end:]), self.shape[lead:end]

    def _packed_last(self, x: jax.Array) -> jax.Array:
        if not (behind := self.packing.behind):
            return x
        lead = x.ndim - self.packing.axes - behind
        return jnp.moveaxis(x, range(-behind, 0), range(lead, lead + behind))


def forward_in_view(forward, x, threshold, *, spec, packing: Packing, outputs) -> list:
    """A two-dimensional forward kernel for operands of any shape, as the primitive has them."""
    view = View(x.shape, packing)
    if view.empty:
        return [x if o == "value" else view.no_words for o in outputs]
    results = forward(view.rows(x), view.threshold(threshold), spec, outputs)
    return [
        view.value(r) if o == "value" else view.words(r)
        for o, r in zip(outputs, results, strict=True)
    ]


def gate_in_view(gate, t, words, *, packing: Packing, invert: bool, implementation) -> jax.Array:
    """A two-dimensional gate kernel for operands of any shape, as the primitive has them."""
    view = View(t.shape, packing)
    if view.empty:
        return t
    return view.value(gate(view.rows(t), view.packed(words), invert=invert))


def linear_forward(back_end, x, w, *operands, spec, packing: Packing, outputs) -> list:
    """The fused linear layer: its value, and its words as they are packed here."""
    view = View((x.shape[0], w.shape[1]), packing)
    results = back_end.forward(x, w, *operands, spec, outputs)
    return [r if o == "value" else view.words(r) for o, r in zip(outputs, results, strict=True)]


def linear_gradients(back_end, x, w, ct, words, *, packing, implementation) -> list:
    """The gradients of the fused linear layer: dx, dw, and the columns' sums of the cotangent."""
    words = View(ct.shape, packing).packed(words)
    dw, total = back_end.weight_gradient(x, ct, words)
    return [back_end.input_gradient(ct, words, w), dw, total]


def empty_refusal(avals) -> str | None:
    """Why a linear kernel cannot take these types, if one of them has no elements."""
    if all(math.prod(a.shape) for a in avals):
        return None
    return f"an operand has no elements: the shapes are {[a.shape for a in avals]}"


def like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """The type of a kernel's output, which varies over the same axes of a `jax.shard_map` as x."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def pad_to_words(x: jax.Array) -> jax.Array:
    """Pads the columns of a view with zeros to whole words."""
    missing = -x.shape[1] % WORD_BITS
    return jnp.pad(x, ((0, 0), (0, missing))) if missing else x


def pad_axis(x: jax.Array, axis: int, multiple: int, value=0) -> jax.Array:
    """Pads one axis at its end up to a multiple."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    padding = [(0, missing if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, padding, constant_values=value)
