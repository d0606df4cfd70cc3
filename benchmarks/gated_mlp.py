#!/usr/bin/env python
"""The gated product (FATReLU) against dense ones, at several sparsities, for one and more rows.

ratio is the time relative to the dense form that is best for that number of rows, in the same turn,
so below 1 is faster; "gate only" is the first product alone, which stays dense, in that form too.

max diff is the largest absolute difference from that form, of the rows and weights that are timed;
a result that is another one ends the benchmark.

Warm: the same weights in every call, of which a large cache keeps some. Cold: the weights of
`--layers` layers in turn, as in a model, so that each call reads its own from memory.
"""

import functools
import itertools
import statistics
import sys

import _peers
import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, Case, quietly, run

from jaxtrelu import gated_mlp


def _as_matrix(x, w):
    return x @ w.T


def _as_vectors(x, w):
    return jnp.stack([w @ row for row in x])


def _weights_first(x, w):
    return w @ x.T


def _dense(product, x, w_gate, w_up, w_out, threshold):
    gate = product(x, w_gate)
    hidden = jnp.where(gate > threshold, gate, 0) * product(x, w_up)
    if product is _as_vectors:
        return jnp.stack([row @ w_out for row in hidden])
    units_first = product is _weights_first
    return jnp.einsum("hb,ho->bo" if units_first else "bh,ho->bo", hidden, w_out)


def fatrelu_mlp(*operands):
    return gated_mlp(*operands, variant="hard")


def _torch_forward(torch, units_first, x, w_gate, w_up, w_out, threshold):
    def product(w):
        return w @ x.T if units_first else x @ w.T

    with torch.inference_mode():
        gate = torch.nn.functional.threshold(product(w_gate), float(threshold), 0)
        hidden = gate * product(w_up)
        return (hidden.T if units_first else hidden) @ w_out


def _torch(operands):
    torch = _peers.optional("torch")
    if torch is None:
        return {}
    torch.set_num_threads(_peers.THREADS)
    operands = [[torch.from_numpy(np.array(part)) for part in of_layer] for of_layer in operands]
    forms = {"PyTorch": False, "PyTorch, weights first": True}
    return {
        name: _in_turn(functools.partial(_torch_forward, torch, units_first), operands)
        for name, units_first in forms.items()
    }


def _in_turn(function, operands):
    """Calls it with the operands of the next layer each time."""
    layers = itertools.cycle(operands)
    return lambda: function(*next(layers))


def gated(args):
    rng = np.random.default_rng(0)
    d, h = args.width, args.hidden
    weights = [
        [
            jnp.asarray(rng.standard_normal((h, d), np.float32) / np.float32(d**0.5))
            for _ in range(3)
        ]
        for _ in range(args.layers)
    ]
    products = {
        "dense JAX": _as_matrix,
        "dense JAX, vectors": _as_vectors,
        "dense JAX, weights first": _weights_first,
    }
    dense = {name: jax.jit(functools.partial(_dense, f)) for name, f in products.items()}
    gate = {name: jax.jit(f) for name, f in products.items()}
    ours = jax.jit(fatrelu_mlp)
    for rows in args.rows:
        x = jnp.asarray(rng.standard_normal((rows, d), np.float32))
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * d**0.5
        few = rows <= 8
        forms = dense if few else {"dense JAX": dense["dense JAX"]}
        # The best of the three on the machines tried, on both ends of the versions.
        baseline = "dense JAX, weights first" if few else "dense JAX"
        baseline = "dense JAX, vectors" if rows == 1 else baseline
        for sparsity, state in itertools.product(args.sparsity, ("cold", "warm")):
            theta = jnp.float32(statistics.NormalDist().inv_cdf(sparsity))
            layers = [(x, *layer, theta) for layer in weights[: None if state == "cold" else 1]]
            peers = {name: _in_turn(function, layers) for name, function in forms.items()}
            peers["jaxtrelu"] = _in_turn(ours, layers)
            peers["gate only"] = quietly(_in_turn(gate[baseline], [layer[:2] for layer in layers]))
            moved = 4 * d * h * (1 + 2 * min(1, rows * (1 - sparsity)))
            if not args.no_torch:
                peers |= _torch(layers)
            yield Case(
                f"{rows} x {d} x {h}, {sparsity:.0%}", f"forward, {state}", peers, baseline,
                baseline, f"{moved / 1e6:.3g} MB", tolerance=FLIPS,
            )  # fmt: skip


def add_arguments(parser):
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 64])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument(
        "--layers", type=int, default=6, help="whose weights together are larger than any cache"
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")


if __name__ == "__main__":
    sys.exit(run(__doc__, {"gated": gated}, add_arguments))
