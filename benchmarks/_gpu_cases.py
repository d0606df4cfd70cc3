"""What `gpu.py` times: each case is one input and several implementations of the same work on it.

Operands are made by a function, so that a dry run can lower the programs at full size from their
shapes alone. PyTorch reads the same arrays.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

import jaxtrelu
from jaxtrelu._primitive.packing import Packing, pack_last
from jaxtrelu._primitive.rules import gate

THETA = 0.5
# XLA calls cuBLASLt, and so its epilogues, only where it is told to, and no Triton product instead.
CUBLASLT = {"xla_gpu_enable_cublaslt": True, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A function (jitted, or of torch tensors), the operands it takes, the work it has to do."""

    call: Callable
    takes: tuple[str, ...]
    work: float  # bytes that have to move, or floating-point operations
    torch: bool = False
    whole: bool = False  # whether its peak memory is of interest


@dataclasses.dataclass(frozen=True)
class Goal:
    """A peer's work per second is to be at least that share of the best of those named."""

    against: tuple[str, ...]
    least: float


@dataclasses.dataclass(frozen=True)
class Case:
    """`tolerance` is the largest difference from the reference, as a share of its largest value."""

    name: str
    operands: Callable[[], dict[str, jax.Array]]
    peers: dict[str, Peer]
    baselines: tuple[str, ...]
    reference: str
    unit: str  # of the peers' work
    tolerance: float
    goals: tuple[Goal, ...] = ()


def cases(sizes: "Sizes", torch) -> Iterator[Case]:
    """All cases, those that matter most first."""
    yield from elementwise(sizes.elements, "float32", torch)
    for rows, depth, columns in sizes.products:
        yield from linear(rows, depth, columns, torch)
    for active in sizes.active:
        yield sparse(*sizes.autoencoder, active)
    yield from elementwise(sizes.elements, "bfloat16", torch)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Full size by default."""

    elements: int = 2**28
    products: tuple[tuple[int, int, int], ...] = ((8192, 8192, 8192), (8192, 4096, 16384))
    autoencoder: tuple[int, int, int] = (4096, 2304, 65536)  # tokens, width, features
    active: tuple[int, ...] = (64, 16, 256)


SMALL = Sizes(2**14, ((64, 64, 128),), (16, 32, 256), (8,))


def elementwise(size: int, dtype: str, torch) -> list[Case]:
    shape = (max(1, size // 16384), min(size, 16384))
    itemsize = jnp.dtype(dtype).itemsize
    copied, moved = 2 * itemsize * size, 2 * itemsize * size + size / 8

    def operands():
        x = jax.random.normal(jax.random.key(0), shape, dtype)
        return {"x": x, "words": pack_last(x > THETA), "mask": x > THETA}

    def forward(name):
        def function(x):
            def apply(x):
                return jaxtrelu.thresholded_relu(x, THETA, variant="hard", implementation=name)

            y, pull = jax.vjp(apply, x)
            return y, jax.tree.leaves(pull)

        return Peer(jax.jit(function), ("x",), moved, whole=True)

    def backward(name):
        def function(ct, words):
            return gate(ct, words, Packing(), implementation=name)

        return Peer(jax.jit(function), ("x", "words"), moved)

    copy = Peer(jax.jit(jnp.negative), ("x",), copied)
    where = Peer(jax.jit(lambda x: jnp.where(x > THETA, x, 0)), ("x",), copied, whole=True)
    first = {"copy": copy, "where, no words": where}
    second = {"copy": copy}
    for name in ("xla", "experimental_mosaic_gpu"):
        first[name], second[name] = forward(name), backward(name)
    if torch is not None:
        threshold = torch.nn.functional.threshold

        def masked(t):
            return threshold(t, THETA, 0.0), t > THETA

        def gated(t, mask):
            return torch.where(mask, t, 0.0)

        with_mask = copied + size  # a byte per element for the mask
        pull = functools.partial(torch.ops.aten.threshold_backward, threshold=THETA)
        alone = functools.partial(threshold, threshold=THETA, value=0.0)
        first["torch, no mask"] = Peer(alone, ("x",), copied, torch=True)
        first["torch, mask"] = Peer(masked, ("x",), with_mask, torch=True)
        first["torch.compile, mask"] = Peer(_compiled(torch, masked), ("x",), with_mask, torch=True)
        second["torch, reads x"] = Peer(
            lambda t: pull(t, t), ("x",), copied + itemsize * size, torch=True
        )
        takes = ("x", "mask")
        second["torch.compile, mask"] = Peer(_compiled(torch, gated), takes, with_mask, torch=True)
    of_copy = (Goal(("copy",), 0.9),)
    label = f"2^{size.bit_length() - 1} {dtype}"
    shared = (("copy",), "xla", "bytes", 0.0, of_copy)
    return [
        Case(f"forward + words {label}", operands, first, *shared),
        Case(f"gate {label}", operands, second, *shared),
    ]


def linear(rows: int, depth: int, columns: int, torch) -> list[Case]:
    shapes = {"x": (rows, depth), "w": (depth, columns), "b": (columns,), "ct": (rows, columns)}
    flops = 2.0 * rows * depth * columns

    def operands():
        keys = jax.random.split(jax.random.key(1), len(shapes))
        made = {
            name: jax.random.normal(key, shape, jnp.bfloat16)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return made | {"w": made["w"] / jnp.bfloat16(depth**0.5)}

    def layer(name):
        def call(x, w, b):
            return jaxtrelu.thresholded_linear(x, w, THETA, b=b, implementation=name)

        return call

    def forward(name):
        def function(x, w, b):
            y, pull = jax.vjp(lambda b: layer(name)(x, w, b), b)
            return y, [a for a in jax.tree.leaves(pull) if a.dtype == jnp.uint32]

        return Peer(jax.jit(function), ("x", "w", "b"), flops)

    def gradients(name):
        def function(x, w, b, ct):
            y, pull = jax.vjp(layer(name), x, w, b)
            return y, pull(ct)

        return Peer(jax.jit(function), ("x", "w", "b", "ct"), 3 * flops, whole=True)

    def folded(x, w, b):
        """max(x @ w + b, 0), which cuBLASLt's epilogue computes, the threshold inside the bias."""
        return jnp.maximum(x @ w + (b - jnp.bfloat16(THETA)), 0)

    def three(x, w, ct):
        return x @ w, ct @ w.T, x.T @ ct

    def peer(function, takes, work, **options):
        return Peer(jax.jit(function, compiler_options=options or None), tuple(takes), work)

    first = {
        "product": peer(jnp.matmul, "xw", flops),
        "product, cuBLASLt": peer(jnp.matmul, "xw", flops, **CUBLASLT),
        "bias + relu": peer(folded, "xwb", flops),
        "bias + relu, cuBLASLt": peer(folded, "xwb", flops, **CUBLASLT),
    }
    products = ("x", "w", "ct")
    second = {
        "three products": peer(three, products, 3 * flops),
        "three products, cuBLASLt": peer(three, products, 3 * flops, **CUBLASLT),
    }
    for name in ("xla", "experimental_mosaic_gpu"):
        first[name], second[name] = forward(name), gradients(name)
        first[f"{name}, no words"] = peer(layer(name), "xwb", flops)
    if torch is not None:

        def eager(x, w, b):
            return torch.relu(torch.addmm(b, x, w) - THETA)

        compiled = _compiled(torch, eager, mode="max-autotune-no-cudagraphs")
        for name, function in (("torch", eager), ("torch.compile", compiled)):
            first[name] = Peer(function, ("x", "w", "b"), flops, torch=True)
    baselines = ("product", "product, cuBLASLt")
    goals = (Goal(baselines, 1 / 1.02), Goal(("torch.compile",), 1.0))
    label = f"{rows}x{depth}x{columns}"
    # Rounding may open or close a gate, which moves a gradient by one term of its sum.
    return [
        Case(f"linear {label}", operands, first, baselines, "xla", "flop", 2**-6, goals),
        Case(f"linear gradients {label}", operands, second, tuple(second)[:2], "xla", "flop", 0.25),
    ]


def sparse(tokens: int, width: int, features: int, active: int) -> Case:
    """The autoencoder's gradients in plain JAX, sparse against dense: what kernels have to beat."""
    theta = statistics.NormalDist().inv_cdf(1 - active / features)

    def operands():
        keys = jax.random.split(jax.random.key(2), 3)
        x = jax.random.normal(keys[0], (tokens, width))
        w_in, w_out = (jax.random.normal(k, (features, width)) / width**0.5 for k in keys[1:])
        return {"x": x, "w_in": w_in, "w_out": w_out}  # rows of the weights are features

    def dense_y(x, w_in, w_out):
        return jaxtrelu.thresholded_relu(x @ w_in.T, theta, variant="hard") @ w_out

    def sparse_y(x, w_in, w_out):
        return jaxtrelu.sparse_mlp(x, w_in, w_out, theta, variant="hard")

    def peer(function):
        def loss(x, w_in, w_out):
            return jnp.mean((function(x, w_in, w_out) - x) ** 2)

        return Peer(
            jax.jit(jax.value_and_grad(loss, argnums=(1, 2))),
            ("x", "w_in", "w_out"),
            2.0 * tokens * width * features,  # of the first product, which stays dense
            whole=True,
        )

    peers = {"dense": peer(dense_y), "sparse": peer(sparse_y)}
    name = f"sparse {tokens}x{width}x{features} L0 {active}"
    return Case(name, operands, peers, ("dense",), "dense", "flop", 0.25)


def _compiled(torch, function: Callable, **options) -> Callable:
    """torch.compile, when it is first called: what it raises is then a row of that peer."""

    @functools.cache
    def once() -> Callable:
        return torch.compile(function, **options)

    return lambda *tensors: once()(*tensors)
