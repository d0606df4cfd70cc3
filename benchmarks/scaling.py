#!/usr/bin/env python
"""How a training step of a sparse autoencoder scales over devices: measured, compiled, predicted.

    python benchmarks/scaling.py --examples 512

On 1, 2, 4 and 8 devices (of the CPU unless there are others), strong (one size) and weak (examples
or features grow with the devices): the time of a step, and what the compiled program says of one
device: its floating-point operations, the bytes that it touches, and the bytes in collectives.
Devices of one CPU share its cores, so there the time says little and the rest says all. First, what
several devices compute is compared with what one alone does; something else ends the benchmark.

Then a model of the same quantities, which is compared with the compiled programs first, predicts a
step with --large-features and --large-examples on 8 to 256 accelerators of the figures given. Dense
products, which are what accelerators take by default.
"""

import argparse
import dataclasses
import functools
import os
import re
import statistics
import time

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, difference, write_figures
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import jaxtrelu
from jaxtrelu import Rectangle
from jaxtrelu._files import check_file

COUNTS = (1, 2, 4, 8)
WORD = 4  # bytes of a float32
# Copies of the weights: themselves, the gradient, and two moments of Adam; of the latent: the
# pre-activations, the activations, and the gradient.
WEIGHTS, LATENTS = 4, 3


@dataclasses.dataclass(frozen=True)
class Size:
    """A step: B examples of d numbers and m features, shared by so many devices each."""

    examples: int
    dimension: int
    features: int
    example_devices: int = 1
    feature_devices: int = 1

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.example_devices * self.feature_devices

    def flops(self) -> float:
        """Of one device: two products forward; backward the latent's gradient and two weights'."""
        share = self.examples * self.features / self.devices
        return 2 * 5 * share * self.dimension

    def counted(self) -> float:
        """What XLA counts of these: six products more, in branches that are taken beside a NaN."""
        return self.flops() * 11 / 5

    def sums(self) -> list[tuple[int, float]]:
        """Over how many devices a device sums how many bytes: outputs, and gradients."""
        outputs = self.examples / self.example_devices * self.dimension
        gradients = self.features / self.feature_devices * (2 * self.dimension + 1)
        return [(self.feature_devices, WORD * outputs), (self.example_devices, WORD * gradients)]

    def collective_bytes(self) -> float:
        """Of one device."""
        return sum(number for devices, number in self.sums() if devices > 1)

    def memory(self) -> float:
        """Of one device, at least."""
        weights = 2 * self.features * self.dimension / self.feature_devices
        latent = self.examples * self.features / self.devices
        return WORD * (WEIGHTS * weights + LATENTS * latent)


def compiled(size: Size):
    """The gradient step of a size, compiled, and its operands, placed."""
    mesh = jax.make_mesh(
        (size.example_devices, size.feature_devices), ("examples", "features"),
        axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: size.devices],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = [(size.examples, size.dimension), *2 * [(size.features, size.dimension)]]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays.append(np.full(size.features, 2.4 * size.dimension**0.5, np.float32))
    specs = [P("examples"), P("features"), P("features"), P("features")]
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]

    def loss(x, *weights):
        y = jaxtrelu.sparse_mlp(
            x, *weights, variant="hard", surrogate=Rectangle(1.0), products="dense"
        )
        return jnp.sum((y - x) ** 2)

    step = jax.jit(jax.grad(loss, argnums=(1, 2, 3)))
    return step.lower(*placed).compile(), placed


def collectives(text: str) -> int:
    """The bytes of the results of a program's collectives, but for scalars."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    total = 0
    for types in re.findall(rf" = (.*?) (?:{kinds})(?:-start)?\(", text):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]+)\]", types):
            width = int(re.sub(r"\D", "", dtype)) // 8
            total += width * int(np.prod([int(n) for n in shape.split(",")]))
    return total


@functools.cache
def one_device(size: Size) -> list[np.ndarray]:
    """The gradients of a size, on one device."""
    program, operands = compiled(size)
    return [np.asarray(array) for array in program(*operands)]


def measured(size: Size, seconds: float) -> dict[str, float]:
    """The median time of a step, and what the program says of a device."""
    program, operands = compiled(size)
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    found = [np.asarray(array) for array in program(*operands)]
    where = f"{size.example_devices} x {size.feature_devices} devices, m = {size.features}"
    alone = one_device(dataclasses.replace(size, example_devices=1, feature_devices=1))
    difference(where, found, alone, FLIPS)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = time.perf_counter()
        jax.block_until_ready(program(*operands))
        times.append(time.perf_counter() - started)
    return {
        "ms": 1e3 * statistics.median(times),
        "flops": cost.get("flops", float("nan")),
        "bytes": cost.get("bytes accessed", float("nan")),
        "collective": collectives(program.as_text()),
    }


def series(base: Size) -> dict[str, list[Size]]:
    """What is measured: a size for each number of devices."""
    grown = dataclasses.replace
    return {
        "strong, examples": [grown(base, example_devices=n) for n in COUNTS],
        "strong, features": [grown(base, feature_devices=n) for n in COUNTS],
        "weak, examples": [
            grown(base, examples=base.examples * n // 8, example_devices=n) for n in COUNTS
        ],
        "weak, features": [
            grown(base, features=base.features * n // 8, feature_devices=n) for n in COUNTS
        ],
    }


def show(base: Size, seconds: float, console: Console) -> tuple[float, list[dict]]:
    """Prints what was measured; returns the largest relative error of the model, and all rows."""
    table = Table(title=f"B = {base.examples}, d = {base.dimension}, m = {base.features}")
    heads = (
        "",
        "devices",
        "ms",
        "Mflop a device",
        "MB touched",
        "MB in collectives",
        "off the model",
    )
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    worst, rows = 0.0, []
    for name, sizes in series(base).items():
        for size in sizes:
            found = measured(size, seconds)
            errors = [found["flops"] / size.counted() - 1]
            if size.devices > 1:
                errors.append(found["collective"] / size.collective_bytes() - 1)
            elif found["collective"]:
                errors.append(float("inf"))
            worst = max(worst, *map(abs, errors))
            figures = {
                "operations of the model": (size.flops() / 1e6, "Mflop"),
                "operations that XLA counts": (found["flops"] / 1e6, "Mflop"),
                "collectives": (found["collective"] / 1e6, "MB"),
                "time": (found["ms"], "ms"),
            }
            rows += [
                {"suite": name, "shape": str(size.devices), "mode": mode, "peer": "jaxtrelu",
                 "value": value, "unit": unit}
                for mode, (value, unit) in figures.items()
            ]  # fmt: skip
            table.add_row(
                name, str(size.devices), f"{found['ms']:.1f}", f"{found['flops'] / 1e6:,.0f}",
                f"{found['bytes'] / 1e6:,.1f}", f"{found['collective'] / 1e6:.2f}",
                ", ".join(f"{error:+.1%}" for error in errors),
            )  # fmt: skip
    console.print(table)
    return worst, rows


def predicted(size: Size, args: argparse.Namespace) -> tuple[float, float]:
    """(seconds of computing, seconds of summing over the network, one after the other)."""
    computing = size.flops() / (args.share_of_peak * args.peak * 1e12)
    # A ring sends each byte twice, but for the share that a device has already.
    sent = sum(2 * (n - 1) / n * number for n, number in size.sums())
    return computing, sent / (args.network * 1e9)


def predictions(args: argparse.Namespace, console: Console) -> list[dict]:
    """Prints and returns, as rows, the model's steps on 8 to 256 accelerators."""
    size = Size(args.large_examples, args.large_dimension, args.large_features)
    table = Table(
        title=f"predicted: B = {size.examples:,}, d = {size.dimension:,}, m = {size.features:,}; "
        f"{args.peak:g} Tflop/s at {args.share_of_peak:.0%}, {args.network:g} GB/s, dense products"
    )
    for head in ("devices", "examples × features", "ms", "of these network", "GB a device"):
        table.add_column(head, justify="right")
    rows: list[dict] = []
    for count in (8, 16, 32, 64, 128, 256):
        for features in (8, count):
            if features == count and count == 8 and rows:
                continue
            one = dataclasses.replace(
                size, example_devices=count // features, feature_devices=features
            )
            computing, network = predicted(one, args)
            name = (
                "features over all"
                if features == count
                else "features over 8, examples over the rest"
            )
            figures = {
                "step": (1e3 * (computing + network), "ms"),
                "network": (1e3 * network, "ms"),
                "memory": (one.memory() / 1e9, "GB"),
            }
            rows += [
                {"suite": "predicted", "shape": str(count), "mode": mode, "peer": name,
                 "value": value, "unit": unit}
                for mode, (value, unit) in figures.items()
            ]  # fmt: skip
            table.add_row(
                str(count), f"{one.example_devices} × {one.feature_devices}",
                f"{1e3 * (computing + network):,.0f}", f"{1e3 * network:,.0f}",
                f"{one.memory() / 1e9:,.1f}",
            )  # fmt: skip
    console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--examples", type=int, default=1024, help="B of what is measured (default: 1024)")
    add("--dimension", type=int, default=128, help="d (default: 128)")
    add("--features", type=int, default=4096, help="m (default: 4096)")
    add("--seconds", type=float, default=1.0, help="of measuring for each row (default: 1)")
    add("--large-examples", type=int, default=65536, help="predicted: B (default: 65536)")
    add("--large-dimension", type=int, default=2304, help="predicted: d (default: 2304)")
    add("--large-features", type=int, default=1048576, help="predicted: m (default: 1048576)")
    add("--peak", type=float, default=989.0, help="Tflop/s of an accelerator (default: 989, H100)")
    add(
        "--share-of-peak", type=float, default=0.508,
        help="that is reached (default: .508, Gemma Scope's on TPUs)",
    )  # fmt: skip
    add(
        "--network", type=float, default=50.0,
        help="GB/s of an accelerator, one way (default: 50, InfiniBand of 400 Gbit/s each)",
    )  # fmt: skip
    add("--json", type=check_file, metavar="PATH", help="also write all figures here")
    args = parser.parse_args()
    console = Console()
    if jax.device_count() < max(COUNTS):
        parser.error(f"{max(COUNTS)} devices are needed, and there are {jax.device_count()}.")
    base = Size(args.examples, args.dimension, args.features)
    worst, rows = show(base, args.seconds, console)
    console.print(f"The model is off by {worst:.1%} at most.")
    rows += predictions(args, console)
    if args.json:
        write_figures(args.json, rows)


if __name__ == "__main__":
    main()
