#!/usr/bin/env python
"""The kernels on an NVIDIA GPU: correctness first, then their time against peers in one process.

    python benchmarks/gpu.py --output gpu.json    # needs compute capability 9.0
    python benchmarks/gpu.py --dry-run            # on a CPU: small sizes, kernels interpreted

Peers: XLA's lowering of the same function, PyTorch eager and torch.compile (where it is installed);
the limit: a device copy, or the product alone. A run ends within eight minutes: it has a budget,
leaves out what does not fit and says so, and stops itself should a compiler not come back.

columns: ms by the clock that all peers share, its spread between quartiles, ms of the device alone,
work per second, that relative to the best copy or product, the largest difference from the
reference relative to its largest value, peak memory beside the operands (as the allocator saw it;
~ as XLA plans it).
"""

import argparse
import dataclasses
import json
import os
import sys
import threading

# PyTorch allocates next to JAX, and peaks are read.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from _gpu_cases import SMALL, Sizes, cases
from _gpu_check import check
from _gpu_memory import peak_in_new_process, peak_of
from _gpu_report import Report
from _gpu_timing import PEER_LIMIT, Budget, Row, measure, reason
from jax import export
from rich.console import Console

from jaxtrelu._files import OutputError, check_file

SECONDS = 420.0  # in which work may be started
STOP = 470.0  # after which the process stops itself


def run(report: Report, console: Console, sizes: Sizes, torch) -> None:
    """Correctness, then every case, then peaks in what time is left."""
    report.checks = check(None)
    report.show_checks(console)
    for case in cases(sizes, torch):
        try:
            rows = measure(case, torch, report.budget)
        except Exception as error:  # its operands could not be made, or no time was left
            rows = [Row(case.name, name, case.unit, note=reason(error)) for name in case.peers]
        report.add(case, rows)
    arguments = () if sizes == Sizes() else ("--small",)
    for case in cases(sizes, None):
        for name in (name for name, peer in case.peers.items() if peer.whole):
            row = next(r for r in report.rows if (r.case, r.peer) == (case.name, name))
            try:
                with report.budget.limited(PEER_LIMIT):
                    row.peak_bytes = peak_in_new_process(__file__, case, name, arguments)
            except Exception as error:
                row.note = ", ".join(filter(None, (row.note, f"peak: {reason(error)}")))


def dry_run(report: Report, console: Console) -> None:
    """What can be shown without a GPU. Times are taken, to try the clocks, and thrown away."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu, "InterpretGPUParams"):
        report.checks = check(
            plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
        )
        report.show_checks(console)
    else:
        console.print(
            f"NOT CHECKED: JAX {jax.__version__} cannot interpret Mosaic GPU kernels, 0.12 can"
        )
    console.print(f"lowered for cuda at full size: {_lowered(report)} programs")
    for case in cases(SMALL, None):
        kept = {n: p for n, p in case.peers.items() if not n.startswith("experimental_mosaic_gpu")}
        rows = measure(dataclasses.replace(case, peers=kept), None, report.budget)
        for i, row in enumerate(rows):
            note = row.note if row.milliseconds is None else ""
            rows[i] = Row(row.case, row.peer, row.unit, difference=row.difference, note=note)
        rows += [
            Row(case.name, name, case.unit, note="not measured: on a GPU only")
            for name in case.peers
            if name not in kept
        ]
        report.add(case, rows)


def _lowered(report: Report) -> int:
    count = 0
    for case in cases(Sizes(), None):
        shapes = jax.eval_shape(case.operands)
        for name, peer in case.peers.items():
            try:
                export.export(peer.call, platforms=("cuda",))(*(shapes[o] for o in peer.takes))
                count += 1
            except Exception as error:
                report.failures.append(f"{case.name}, {name}: not lowered: {reason(error)}")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small sizes on a CPU, interpreted")
    parser.add_argument("--small", action="store_true", help="small sizes on a GPU")
    parser.add_argument("--output", type=check_file, help="a JSON file for the full numbers")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    try:
        args = parser.parse_args()
    except OutputError as error:
        parser.error(str(error))
    if not args.dry_run and jax.default_backend() != "gpu":
        parser.error("JAX sees no GPU. Install jaxtrelu[cuda], or pass --dry-run.")
    sizes = SMALL if args.small else Sizes()
    if args.peak_of:
        found = {case.name: case for case in cases(sizes, None)}
        print(json.dumps(peak_of(found[args.peak_of[0]], args.peak_of[1])))
        return 0
    report, console = Report(args.output, Budget(SECONDS)), Console(width=180, highlight=False)
    watchdog = threading.Timer(STOP, _stop, (report, console))
    watchdog.daemon = True
    watchdog.start()
    if args.dry_run:
        dry_run(report, console)
    else:
        run(report, console, sizes, _torch())
    watchdog.cancel()
    report.show(console)
    report.write(finished=True)
    return 1 if report.checks.failures or report.failures else 0


def _stop(report: Report, console: Console) -> None:
    report.show(console)
    report.write(finished=False)
    console.print(f"STOPPED after {STOP:.0f} s: what is missing above was left out")
    sys.stdout.flush()
    os._exit(3)


def _torch():
    """PyTorch, if it is here and sees the GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
