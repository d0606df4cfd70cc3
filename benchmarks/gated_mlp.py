#!/usr/bin/env python
"""The gated product (FATReLU) against dense ones, at several sparsities, for one and more rows.

ratio is the time relative to dense JAX in the same turn, so below 1 is faster; "gate only" is the
first product alone, which stays dense.
"""

import functools
import statistics
import sys

import _peers
import jax
import jax.numpy as jnp
import numpy as np
from _harness import Case, run

from jaxtrelu import gated_mlp


def dense(x, w_gate, w_up, w_out, threshold):
    gate = x @ w_gate.T
    return (jnp.where(gate > threshold, gate, 0) * (x @ w_up.T)) @ w_out


def fatrelu_mlp(*operands):
    return gated_mlp(*operands, variant="hard")


def torch_forward(x, w_gate, w_up, w_out, threshold):
    torch = _peers.optional("torch")
    if torch is None:
        return {}
    torch.set_num_threads(_peers.THREADS)
    x, w_gate, w_up, w_out = (torch.from_numpy(np.array(a)) for a in (x, w_gate, w_up, w_out))

    def forward():
        with torch.inference_mode():
            gate = torch.nn.functional.threshold(x @ w_gate.T, float(threshold), 0)
            return (gate * (x @ w_up.T)) @ w_out

    return {"PyTorch": forward}


def gated(args):
    rng = np.random.default_rng(0)
    d, h = args.width, args.hidden
    w_gate, w_up, w_out = (
        jnp.asarray(w / d**0.5) for w in rng.standard_normal((3, h, d), np.float32)
    )
    encode = jax.jit(lambda x, w: x @ w.T)
    for rows in args.rows:
        x = jnp.asarray(rng.standard_normal((rows, d), np.float32))
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * d**0.5
        for sparsity in args.sparsity:
            theta = jnp.float32(statistics.NormalDist().inv_cdf(sparsity))
            operands = (x, w_gate, w_up, w_out, theta)
            peers = {
                "dense JAX": functools.partial(jax.jit(dense), *operands),
                "jaxtrelu": functools.partial(jax.jit(fatrelu_mlp), *operands),
                "gate only": functools.partial(encode, x, w_gate),
            }
            # "gate only" is a part of the work, so its result is not compared.
            compared = {k: v for k, v in peers.items() if k != "gate only"}
            difference = float(jnp.max(jnp.abs(compared["jaxtrelu"]() - compared["dense JAX"]())))
            moved = 4 * d * h * (1 + 2 * min(1, rows * (1 - sparsity)))
            yield Case(
                f"{rows} x {d} x {h}, {sparsity:.0%}", "forward",
                peers | torch_forward(*operands), "dense JAX", "dense JAX",
                f"{moved / 1e6:.3g} MB, diff {difference:.1g}", compare=False,
            )  # fmt: skip


def add_arguments(parser):
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 64])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])


if __name__ == "__main__":
    sys.exit(run(__doc__, {"gated": gated}, add_arguments))
