#!/usr/bin/env python
"""What sparsity gives, against the share of open entries: memory kept, and time of a step.

suites:
  memory   residual blocks h + act(h @ W1) @ W2: growth of the compiled gradient's temporary memory
           per layer and hidden element, between two depths, by the compiler's own account;
           compact_mlp with a capacity of 1.25 times what is open
  time     the gradient of a reconstruction loss of act(x @ W1) @ W2 with respect to both weights;
           sparse_mlp with its default capacity, beyond which it takes dense products

For the documentation:
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/sparsity.py \
      --json docs/figures/sparsity.json
"""

import functools
import math
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, Case, Fact, run

import jaxtrelu

SHARES = (0.004, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


def threshold_at(share):
    """The standard normal's quantile above which this share lies."""
    return statistics.NormalDist().inv_cdf(1 - share)


def memory(args):
    few, many = args.depths
    pair = (jax.ShapeDtypeStruct((args.hidden, args.hidden // 4), jnp.float32),) * 2
    x = jax.ShapeDtypeStruct((args.rows, args.hidden // 4), jnp.float32)
    for share in SHARES:
        threshold, capacity = threshold_at(share), math.ceil(1.25 * share * args.hidden)

        def relu(h, w_in, w_out, t=threshold):
            return jax.nn.relu(h @ w_in.T - t) @ w_out

        def words(h, w_in, w_out, t=threshold):
            return jaxtrelu.thresholded_relu(h @ w_in.T, t) @ w_out

        def compact(h, w_in, w_out, t=threshold, capacity=capacity):
            return jaxtrelu.compact_mlp(h, w_in, w_out, t, capacity=capacity)

        for name, layer in (
            ("jax.nn.relu", relu), ("thresholded_relu", words), ("compact_mlp", compact),
        ):  # fmt: skip
            if name != "compact_mlp" and share not in (SHARES[0], SHARES[-1]):
                continue  # the threshold is only a number there, and the program the same
            sizes = [_temporary(layer, [pair] * depth, x) for depth in (few, many)]
            per_element = (sizes[1] - sizes[0]) / ((many - few) * args.rows * args.hidden)
            shape = f"{100 * share:g}% of {args.hidden} open, {few} to {many} layers"
            yield Fact(shape, "growth", name, per_element, "bytes per hidden element")


def _temporary(layer, weights, x):
    def loss(weights, x):
        for w_in, w_out in weights:
            h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
            x = x + layer(h, w_in, w_out)
        return jnp.mean(x * x)

    compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def time(args):
    rng = np.random.default_rng(0)
    w_in, w_out = rng.standard_normal((2, args.features, args.width), np.float32)
    weights = jnp.asarray(w_in / args.width**0.5), jnp.asarray(w_out / args.features**0.5)
    x = jnp.asarray(rng.standard_normal((args.rows, args.width), np.float32))
    for share in SHARES:
        threshold = threshold_at(share)

        def dense(weights, x, t=threshold):
            return jax.nn.relu(x @ weights[0].T - t) @ weights[1]

        def sparse(weights, x, t=threshold):
            return jaxtrelu.sparse_mlp(x, *weights, t)

        peers = {
            name: functools.partial(_gradient(function), weights, x)
            for name, function in (("dense", dense), ("sparse_mlp", sparse))
        }
        shape = f"{100 * share:g}% of {args.features} open, {args.rows} x {args.width}"
        yield Case(shape, "gradient", peers, "dense", "dense", tolerance=FLIPS)


def _gradient(function):
    return jax.jit(jax.grad(lambda weights, x: jnp.mean((function(weights, x) - x) ** 2)))


def add_arguments(parser):
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--features", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs=2, default=[12, 24])


if __name__ == "__main__":
    sys.exit(run(__doc__, {"memory": memory, "time": time}, add_arguments))
