"""One valid call of every public function of arrays: the table that tests of the contract run over.

A name is given with its module where that is not the front door. Operands are the arrays, as NumPy
arrays so that each mode makes its own of them; options are all else.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxtrelu
from jaxtrelu import Rectangle, bits, sparse

_RNG = np.random.default_rng(0)


def _normal(*shape):
    return _RNG.normal(size=shape).astype(np.float32)


def _plainly(function, *operands, **options):
    return function(*operands, **options)


def _and_pulled_back(function, *operands, **options):
    y, pullback = function(*operands, **options)
    return y, tuple(pullback(y))


@dataclasses.dataclass(frozen=True)
class Call:
    function: Callable
    operands: tuple
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: Makes the call, where operands are not simply the first arguments.
    how: Callable = _plainly
    differentiable: bool = True

    def __call__(self, *operands, function=None):
        """The result: of these operands, or those of the table; of this function, or the public."""
        return self.how(function or self.function, *(operands or self.operands), **self.options)

    @property
    def floating(self) -> tuple[int, ...]:
        """The numbers of the operands that are floating point."""
        kinds = [np.asarray(o).dtype.kind for o in self.operands]
        return tuple(i for i, kind in enumerate(kinds) if kind == "f")


X, Z, THETA = _normal(3, 5), _normal(3, 7), np.linspace(-0.5, 0.5, 7, dtype=np.float32)
WORDS = np.array([[5, 1], [0, 7]], np.uint32)
W_IN, W_UP, W_OUT = _normal(7, 5), _normal(7, 5), _normal(7, 4)
BIASES = {"b_in": _normal(7), "b_out": _normal(4)}
JUMP = {"surrogate": Rectangle(1.0)}
RECORD = sparse.Activity(
    features=np.array([0, 2, 7], np.int32),
    rows=np.array([0, 1, 3], np.int32),
    values=np.array([1.0, 2.0, 0.0], np.float32),
    counts=np.array([1, 1, 0], np.int32),
    l0=np.array([1.0, 1.0, 0.0], np.float32),
    fired=np.array([1, 0, 1, 0, 0, 0, 0], np.int32),
    overflow=np.array(False),
)


def _record(dtype):
    record = jax.tree.map(jnp.asarray, RECORD)
    return record._replace(values=record.values.astype(dtype), l0=record.l0.astype(dtype))


CALLS = {
    "thresholded_relu": Call(jaxtrelu.thresholded_relu, (Z, THETA)),
    "shifted_relu": Call(jaxtrelu.shifted_relu, (Z, THETA), {"ceiling": 1.0}),
    "jump_relu": Call(jaxtrelu.jump_relu, (Z, THETA), JUMP),
    "step": Call(jaxtrelu.step, (Z, THETA), JUMP),
    "thresholded_glu": Call(jaxtrelu.thresholded_glu, (Z, Z[::-1], THETA), {"variant": "hard"}),
    "derivative": Call(jaxtrelu.derivative, (Z, THETA), {"ceiling": 1.0}),
    "antiderivative": Call(jaxtrelu.antiderivative, (Z, THETA), {"variant": "clamp"}),
    "thresholded_linear": Call(
        jaxtrelu.thresholded_linear, (X, W_IN.T, THETA), {"b": BIASES["b_in"]}
    ),
    "sparse_mlp": Call(jaxtrelu.sparse_mlp, (X, W_IN, W_OUT, THETA), BIASES),
    "sparse_mlp_vjp": Call(
        jaxtrelu.sparse_mlp_vjp,
        (X, W_IN, W_OUT, THETA),
        BIASES,
        how=_and_pulled_back,
        differentiable=False,
    ),
    "compact_mlp": Call(jaxtrelu.compact_mlp, (X, W_IN, W_OUT, THETA), {**BIASES, **JUMP}),
    "gated_mlp": Call(
        jaxtrelu.gated_mlp, (X, W_IN, W_UP, W_OUT, THETA), {"b_gate": BIASES["b_in"]}
    ),
    "entry_sum": Call(
        jaxtrelu.entry_sum,
        (np.arange(7, dtype=np.float32),),
        how=lambda f, norms: f(
            lambda values, norm: jnp.abs(values) * norm,
            _record(norms.dtype),
            lambda: jnp.asarray(Z, norms.dtype),
            norms,
        ),
    ),
    "bits.pack": Call(bits.pack, (Z > 0,)),
    "bits.unpack": Call(bits.unpack, (WORDS,), {"width": 40}),
    "bits.count": Call(bits.count, (WORDS,)),
    "bits.transpose": Call(bits.transpose, (WORDS,), {"width": 40}),
    "bits.rank": Call(bits.rank, (WORDS, np.array([[0, 3], [32, 64]], np.int32))),
    "bits.select": Call(bits.select, (WORDS, np.array([[0, 3], [2, 1]], np.int32))),
    "bits.compact": Call(
        bits.compact,
        (WORDS, _normal(2, 64)),
        {"size": 3},
        how=lambda f, words, values, size: f(words, size, values),
    ),
    "bits.expand": Call(
        bits.expand, (np.array([[0, 2, 64]], np.int32), _normal(1, 3)), {"width": 5}
    ),
}
