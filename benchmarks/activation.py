#!/usr/bin/env python
"""What the thresholded ReLU costs: time against peers and memcpy, memory of gradients, import.

suites:
  forward    f(x), one pass over fresh or (in place) donated buffers, with and without a gradient
  dense      f(x @ W + b)
  network    the gradient of 12 layers: temporary memory and time of a step
  residual   bytes that jax.vjp keeps, per element
  import     seconds that `import jaxtrelu` adds to `import jax`

ratio is the time relative to jnp.where in the same turn (in place: to a memcpy on all threads;
network: to jax.nn.relu), so below 1 is faster: 0.8 of a memcpy's time is 1.25 of its
speed. Huge pages for all or for none:
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/activation.py
"""

import functools
import statistics
import subprocess
import sys

import _peers
import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, Case, Fact, run

from jaxtrelu import thresholded_relu

THETA = 0.5
SIZES = {f"2^{k}": 1 << k for k in (16, 18, 20, 22, 24, 25)}
HARD = functools.partial(thresholded_relu, variant="hard")

# Name to f(x, θ); the first of each is written by hand, and the baseline.
JAX_PEERS = {
    "shift": {
        "jnp.where": lambda x, t: jnp.where(x > t, x - t, 0),
        "jaxtrelu": thresholded_relu,
        "jax.nn.relu(x-θ)": lambda x, t: jax.nn.relu(x - t),
    },
    "hard": {
        "jnp.where": lambda x, t: jnp.where(x > t, x, 0),
        "jaxtrelu": HARD,
    },
}


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class Donated:
    """A jitted function that gives its operand's memory to its result, fed with its own result."""

    def __init__(self, function, x):
        self.step, self.x = jax.jit(function, donate_argnums=0), jnp.array(x)

    def __call__(self):
        """The next result, into the memory of the one before."""
        self.x = self.step(self.x, jnp.float32(0))
        return self.x


def _with_gradient(act):
    def both(x, ct):
        y, vjp = jax.vjp(lambda x: act(x, THETA), x)
        return y, vjp(ct)[0]

    return jax.jit(both)


def forward(args):
    for shape, size in _chosen(args):
        x, ct = _normal(size), _normal(size, seed=1)
        jx, jct = jnp.asarray(x), jnp.asarray(ct)
        for variant, functions in JAX_PEERS.items():
            peers = {n: functools.partial(jax.jit(f), jx, THETA) for n, f in functions.items()}
            peers |= _peers.torch_peers(variant, "forward", x, ct, THETA)
            peers |= _peers.numpy_forward(variant, x, THETA)
            if variant == "hard":
                peers |= _peers.onnxruntime_forward(x, THETA)
            yield Case(shape, f"{variant}, forward", peers, "jnp.where", "jaxtrelu", 2 * x.nbytes)
            peers = {n: functools.partial(_with_gradient(f), jx, jct) for n, f in functions.items()}
            peers |= _peers.torch_peers(variant, "forward+backward", x, ct, THETA)
            yield Case(
                shape, f"{variant}, forward+backward", peers, "jnp.where", "jaxtrelu", 4 * x.nbytes
            )  # fmt: skip
        # θ = 0, unknown to the compiler: the result is a fixed point, so every turn does the same.
        peers = {n: Donated(f, x) for n, f in JAX_PEERS["shift"].items()}
        peers |= _peers.torch_peers("shift", "in place", x, ct, 0.0)
        peers |= _peers.numpy_in_place(x, 0.0) | _peers.memory_bounds(x)
        yield Case(shape, "shift, in place", peers, "memcpy", "jaxtrelu", 2 * x.nbytes)


def dense(args):
    width = 256
    for shape, size in _chosen(args):
        x, w, b = _normal(size // width, width), _normal(width, width), _normal(width, seed=2)
        operands = [jnp.asarray(a) for a in (x, w / 16, b)]
        peers = {
            n: functools.partial(jax.jit(lambda x, w, b, f=f: f(x @ w + b, THETA)), *operands)
            for n, f in JAX_PEERS["shift"].items()
        }
        peers |= _peers.torch_dense(x, w / 16, b, THETA)
        limit = f"{2 * size * width / 1e9:.3g} Gflop"
        yield Case(f"{shape} / {width}", "f(x @ W + b)", peers, "jnp.where", "jaxtrelu", limit)


DEPTH, ROWS, WIDTH = 12, 2048, 1024
NETWORKS = {
    "plain": lambda act, x, ws: functools.reduce(lambda h, w: act(h @ w), ws, x),
    "residual": lambda act, x, ws: functools.reduce(lambda h, w: h + 0.1 * act(h @ w), ws, x),
    "scan": lambda act, x, ws: jax.lax.scan(lambda h, w: (act(h @ w), None), x, ws)[0],
}


def network(args):
    acts = {
        "jax.nn.relu": jax.nn.relu,
        "jnp.where": lambda x: jnp.where(x > 0, x, 0),
        "jaxtrelu": lambda x: thresholded_relu(x, 0.0),
    }
    x = jnp.asarray(_normal(ROWS, WIDTH))
    stacked = jnp.asarray(_normal(DEPTH, WIDTH, WIDTH, seed=1) / np.sqrt(WIDTH / 2))
    shape = f"{DEPTH} × {ROWS}×{WIDTH}"
    # Both keep the input of every matrix product; the packed gate is 1/32 of that.
    least = DEPTH * (1 + 1 / 32) * x.nbytes
    for name in args.networks:
        apply = NETWORKS[name]
        weights = stacked if name == "scan" else list(stacked)
        peers, temporary = {}, {}
        for peer, act in acts.items():
            loss = functools.partial(lambda ws, x, f, a: f(a, x, ws).sum(), f=apply, a=act)
            step = jax.jit(jax.grad(loss)).lower(weights, x).compile()
            memory = step.memory_analysis()
            temporary[peer] = memory.temp_size_in_bytes
            peers[peer] = functools.partial(step, weights, x)
        for peer, size in temporary.items():
            ratio = size / temporary["jax.nn.relu"]
            yield Fact(shape, f"{name}, temporary memory", peer, size / 1e6, "MB", ratio)
        yield Fact(shape, f"{name}, temporary memory", "limit", least / 1e6, "MB")
        limit = f"{3 * DEPTH * 2 * ROWS * WIDTH**2 / 1e9:.3g} Gflop"
        yield Case(
            shape, f"{name}, gradient step", peers, "jax.nn.relu", "jaxtrelu", limit,
            tolerance=FLIPS,
        )  # fmt: skip


def residual(args):
    del args
    with jax.enable_x64(True):
        for dtype in ("float32", "bfloat16", "float64"):
            x = jnp.asarray(_normal(1024, 4096)).astype(dtype)
            for peer, act in JAX_PEERS["shift"].items():
                _, vjp = jax.vjp(jax.jit(lambda x, act=act: act(x, THETA)), x)
                kept = sum(leaf.nbytes for leaf in jax.tree.leaves(vjp)) / x.size
                yield Fact("1024×4096", f"jax.vjp, {dtype}", peer, kept, "bytes per element")


def import_time(args):
    del args
    code = """
import time, jax
start = time.perf_counter(); import jaxtrelu
print(time.perf_counter() - start)"""
    command = [sys.executable, "-c", code]
    output = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(7)
    ]
    milliseconds = [1e3 * float(text.split()[-1]) for text in output]
    yield Fact("", "after import jax", "jaxtrelu", statistics.median(milliseconds), "ms")


SUITES = {
    "forward": forward,
    "dense": dense,
    "network": network,
    "residual": residual,
    "import": import_time,
}


def _chosen(args):
    return ((name, SIZES[name]) for name in args.shapes)


def _arguments(parser):
    parser.add_argument(
        "--shapes", nargs="+", choices=SIZES, default=list(SIZES), help="numbers of elements"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        help="ways to stack layers",
    )


if __name__ == "__main__":
    sys.exit(run(__doc__, SUITES, _arguments))
