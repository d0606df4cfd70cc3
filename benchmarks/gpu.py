"""The kernels on an NVIDIA GPU: correctness first, then device time against peers in one process.

    python benchmarks/gpu.py --output gpu.json    # needs compute capability 9.0, under 8 minutes
    python benchmarks/gpu.py --dry-run            # on a CPU: small cases, kernels interpreted

Peers: XLA's lowering of the same function, PyTorch eager and torch.compile (if it is installed),
and for the elementwise cases the bandwidth of a device copy, for the linear ones the product alone,
each measured in the same run. PyTorch allocates next to JAX, so JAX's preallocation is turned off.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from _gpu_cases import Case, check, elementwise, linear, on_gpu, sparse
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Row:
    """One peer of a case, measured; numbers are None where it was not."""

    case: str
    peer: str
    milliseconds: float | None
    spread: float | None
    relative: float | None  # of the baseline's time
    rate: float | None  # in the case's unit, per second
    unit: str
    peak_bytes_so_far: int | None
    note: str = ""


# timing


def seconds_of(peer: Callable, torch) -> list[float]:
    """Device time per call. PyTorch by CUDA events; JAX by calls queued behind each other.

    The queue is at least 20 ms long, next to which starting it and waiting for it do not count.
    """
    result = peer()
    if torch is not None and not jax.tree.leaves(result)[0].__class__.__module__.startswith("jax"):
        torch.cuda.synchronize()
        times = []
        for _ in range(10):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            peer()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return times
    jax.block_until_ready(result)
    del result
    once = _queued(peer, 1)
    count = max(2, min(50, int(0.02 / once)))
    return [_queued(peer, count) for _ in range(5)]


def _queued(peer: Callable, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = peer()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / count


def run(case: Case, torch, *, measured: bool) -> list[Row]:
    times, rows, notes = {}, [], {}
    for name, peer in case.peers.items():
        try:
            times[name] = seconds_of(peer, torch)
        except Exception as error:  # a peer that fails is a row, not the end of the run
            notes[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    base = statistics.median(times[case.baseline]) if case.baseline in times else None
    for name in case.peers:
        if name in notes or not measured:
            note = notes.get(name, "not measured")
            rows.append(Row(case.name, name, None, None, None, None, case.unit, None, note))
            continue
        median = statistics.median(times[name])
        stats = jax.devices()[0].memory_stats() or {}
        rows.append(
            Row(
                case.name, name, median * 1e3, (max(times[name]) - min(times[name])) / median,
                median / base if base else None, case.work / median, case.unit,
                stats.get("peak_bytes_in_use"),
            )
        )  # fmt: skip
    return rows


def report(rows: list[Row]) -> Table:
    table = Table("case", "peer", "ms", "spread", "of baseline", "per second", box=None)
    for row in rows:
        cells = [row.note or "not measured", "", "", ""]
        if row.milliseconds is not None:
            scale, prefix = (1e12, "T") if row.unit == "flop" else (1e9, "G")
            rate = f"{row.rate / scale:.4g} {prefix}{row.unit}"
            cells = [
                f"{row.milliseconds:.3f}",
                f"{row.spread:.0%}",
                f"{row.relative or 0:.3f}",
                rate,
            ]
        table.add_row(row.case, row.peer, *cells)
    return table


def planned(args, torch):
    """The cases, made one after the other: two at full size do not fit beside each other."""
    if args.dry_run:
        yield from elementwise(2**14, "float32", None)
        yield from linear(64, 64, 128, None)
        yield from sparse(16, 32, 256, 8)
        return
    for dtype in ("float32", "bfloat16"):
        yield from elementwise(2**28, dtype, torch)
    for sizes in ((8192, 8192, 8192), (8192, 4096, 16384)):
        yield from linear(*sizes, torch)
    for active in (16, 64, 256):
        yield from sparse(4096, 2304, 65536, active)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="small cases on a CPU, interpreted")
    parser.add_argument("--output", type=Path, help="a JSON file for the full numbers")
    args = parser.parse_args()
    if not args.dry_run and not on_gpu():
        parser.error("JAX sees no GPU. Install jaxtrelu[cuda], or pass --dry-run.")
    interpret, torch, started = None, None, time.perf_counter()
    if args.dry_run:
        from jax.experimental.pallas import mosaic_gpu as plgpu

        if not hasattr(plgpu, "InterpretGPUParams"):
            parser.error(f"JAX {jax.__version__} cannot interpret Mosaic GPU kernels: use 0.12.")
        interpret = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
    else:
        try:
            import torch
        except ImportError:
            torch = None
        if torch is not None and not torch.cuda.is_available():
            torch = None
    console = Console()
    failures = check(interpret)
    console.print("correct" if not failures else "\n".join(failures))
    rows = []
    for case in planned(args, torch):
        rows += run(case, torch, measured=not args.dry_run)
    console.print(report(rows))
    if args.output:
        device = jax.devices()[0]
        document = {
            "device": device.device_kind,
            "jax": jax.__version__,
            "torch": getattr(torch, "__version__", None),
            "measured": not args.dry_run,
            "seconds": time.perf_counter() - started,
            "failures": failures,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        whole = args.output.with_suffix(".part")
        whole.write_text(json.dumps(document, indent=1))
        os.replace(whole, args.output)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
