"""What `gpu.py` checks and times."""

import dataclasses
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxtrelu
from jaxtrelu.packing import pack_last, unpack_last
from jaxtrelu.variants import Spec

THETA = 0.5
HARD = Spec("hard")


@dataclasses.dataclass
class Case:
    """Peers are functions of no arguments; `work` is what has to be done: bytes, or operations."""

    name: str
    peers: dict[str, Callable]
    baseline: str
    work: float
    unit: str  # of work per second


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


# correctness


def check(interpret) -> list[str]:
    """Every kernel against float64 NumPy, on ragged shapes, into memory that was full of NaN."""
    from jaxtrelu.kernels import gpu, gpu_linear

    rng, failures = np.random.default_rng(0), []

    def compare(name, got, expected, tolerance):
        difference = float(np.max(np.abs(np.asarray(got, np.float64) - expected)))
        if not difference <= tolerance:
            failures.append(f"{name}: differs by {difference:.3g}, more than {tolerance:.3g}")

    for shape, dtype in (((33, 200), "float32"), ((5, 4160), "bfloat16"), ((7, 64), "float16")):
        poison(4 * 2**20)
        x = jnp.asarray(rng.integers(-16, 17, shape) / 8, dtype)
        y, words = gpu.forward(
            x, jnp.full((1, 1), THETA), HARD, ("value", "gate"), interpret=interpret
        )
        wide = np.asarray(x, np.float64)
        compare(f"forward {dtype}", y, np.where(wide > THETA, wide, 0), 0)
        compare(f"words {dtype}", unpack_last(words, shape[1]), wide > THETA, 0)
        compare(
            f"gate {dtype}",
            gpu.gate(x, words, interpret=interpret),
            np.where(wide > THETA, wide, 0),
            0,
        )
    poison(4 * 2**20)
    x, w, ct = (
        jnp.asarray(rng.integers(-7, 8, shape) / 8, jnp.bfloat16)
        for shape in ((70, 130), (130, 300), (70, 300))
    )
    b = jnp.asarray(rng.integers(-7, 8, (1, 300)) / 8, jnp.bfloat16)
    x64, w64, ct64, b64 = (np.asarray(a, np.float64) for a in (x, w, ct, b))
    z = x64 @ w64 + b64
    y, words = gpu_linear.forward(
        x, w, b, jnp.full((1, 1), THETA), HARD, ("value", "gate"), interpret=interpret
    )
    compare("linear", y, np.where(z > THETA, z, 0), 2**-8 * np.abs(z).max())
    compare("linear words", unpack_last(words, 300), z > THETA, 0)
    words = pack_last(jnp.asarray(z > THETA))
    gated = np.where(z > THETA, ct64, 0)
    dx = gpu_linear.input_gradient(ct, words, w, interpret=interpret)
    compare("linear dx", dx, gated @ w64.T, 2**-8 * np.abs(gated @ w64.T).max())
    dw, total = gpu_linear.weight_gradient(x, ct, words, interpret=interpret)
    compare("linear dw", dw, x64.T @ gated, 2**-8 * np.abs(x64.T @ gated).max())
    compare("linear db", total, gated.sum(0, keepdims=True), 1e-4)
    return failures


def poison(size: int) -> None:
    """Leaves NaN in memory that the allocator hands out next: what is not written shows."""
    jax.block_until_ready(jnp.full(size // 4, jnp.nan)).delete()


# cases


def elementwise(size: int, dtype: str, torch) -> list[Case]:
    shape = (size // 16384 or 1, min(size, 16384))
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    words = pack_last(x > THETA)
    itemsize = x.dtype.itemsize

    def forward(name):
        def function(x):
            y, pull = jax.vjp(
                lambda x: jaxtrelu.thresholded_relu(x, THETA, variant="hard", implementation=name),
                x,
            )
            return y, jax.tree.leaves(pull)

        return functools.partial(jax.jit(function), x)

    def backward(name):
        from jaxtrelu.gate import gate
        from jaxtrelu.packing import Packing

        function = jax.jit(lambda t, w: gate(t, w, Packing(), implementation=name))
        return functools.partial(function, x, words)

    copy = functools.partial(jax.jit(lambda x: -x), x)
    first = {
        "copy": copy,
        "xla": forward("xla"),
        "where": functools.partial(jax.jit(lambda x: jnp.where(x > THETA, x, 0)), x),
    }
    second = {"copy": copy, "xla": backward("xla")}
    if on_gpu():
        first["mosaic_gpu"], second["mosaic_gpu"] = forward("mosaic_gpu"), backward("mosaic_gpu")
    if torch is not None:
        t = torch.randn(shape, dtype=getattr(torch, dtype), device="cuda")
        threshold = torch.nn.functional.threshold
        pull = torch.ops.aten.threshold_backward
        first["torch (no mask)"] = lambda: threshold(t, THETA, 0.0)
        compiled = torch.compile(lambda t: (threshold(t, THETA, 0.0), t > THETA))
        first["torch.compile, bool mask"] = lambda: compiled(t)
        second["torch (reads x)"] = lambda: pull(t, t, THETA)
    moved = size * (2 * itemsize + 1 / 8)
    label = f"{size} {dtype}"
    return [
        Case(f"forward + words, {label}", first, "copy", moved, "bytes"),
        Case(f"gate, {label}", second, "copy", moved, "bytes"),
    ]


def linear(rows: int, depth: int, columns: int, torch) -> list[Case]:
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((rows, depth), (depth, columns), (columns,), (rows, columns))
    x, w, b, ct = (jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True))
    w = w / depth**0.5

    def forward(name):
        def function(x, w, b):
            y, pull = jax.vjp(
                lambda b: jaxtrelu.thresholded_linear(x, w, b, THETA, implementation=name), b
            )
            return y, jax.tree.leaves(pull)[-1]

        return functools.partial(jax.jit(function), x, w, b)

    def both(name):
        def function(x, w, b, ct):
            def apply(*operands):
                return jaxtrelu.thresholded_linear(*operands, THETA, implementation=name)

            return jax.vjp(apply, x, w, b)[1](ct)

        return functools.partial(jax.jit(function), x, w, b, ct)

    first = {
        "product": functools.partial(jax.jit(jnp.matmul), x, w),
        "xla": forward("xla"),
        # cuBLASLt's epilogue knows max(x @ w + b, 0): the threshold goes into the bias.
        "bias + relu": functools.partial(
            jax.jit(lambda x, w, b: jnp.maximum(x @ w + (b - jnp.bfloat16(THETA)), 0)), x, w, b
        ),
    }
    second = {
        "three products": functools.partial(
            jax.jit(lambda x, w, b, ct: (x @ w, ct @ w.T, x.T @ ct)), x, w, b, ct
        ),
        "xla": both("xla"),
    }
    if on_gpu():
        first["mosaic_gpu"], second["mosaic_gpu"] = forward("mosaic_gpu"), both("mosaic_gpu")
    if torch is not None:
        tx, tw, tb = (torch.randn(s, dtype=torch.bfloat16, device="cuda") for s in shapes[:3])

        def eager(x, w, b):
            return torch.relu(torch.addmm(b, x, w) - THETA)

        compiled = torch.compile(eager, mode="max-autotune-no-cudagraphs")
        first["torch"], first["torch.compile"] = (
            (lambda: eager(tx, tw, tb)),
            (lambda: compiled(tx, tw, tb)),
        )
    flops = 2.0 * rows * depth * columns
    label = f"{rows}x{depth}x{columns} bfloat16"
    return [
        Case(f"act(x@W+b) + words, {label}", first, "product", flops, "flop"),
        Case(f"with gradients, {label}", second, "three products", 3 * flops, "flop"),
    ]


def sparse(tokens: int, width: int, features: int, active: int) -> list[Case]:
    """The autoencoder's step in plain JAX, sparse against dense: the baseline for later kernels."""
    from jaxtrelu.sparse import sparse_mlp

    keys = jax.random.split(jax.random.key(2), 3)
    x = jax.random.normal(keys[0], (tokens, width))
    w_in = jax.random.normal(keys[1], (features, width)) / width**0.5  # rows are features
    w_out = jax.random.normal(keys[2], (features, width)) / width**0.5
    theta = statistics.NormalDist().inv_cdf(1 - active / features)

    def dense_loss(x, w_in, w_out):
        return (jaxtrelu.thresholded_relu(x @ w_in.T, theta, variant="hard") @ w_out).sum()

    def sparse_loss(x, w_in, w_out):
        return sparse_mlp(x, w_in, None, theta, w_out)[0].sum()

    peers = {
        name: functools.partial(jax.jit(jax.grad(loss, argnums=(1, 2))), x, w_in, w_out)
        for name, loss in (("dense", dense_loss), ("sparse", sparse_loss))
    }
    flops = 2.0 * tokens * width * features
    return [
        Case(
            f"sparse step, {tokens}x{width}x{features}, L0 {active}", peers, "dense", flops, "flop"
        )
    ]
