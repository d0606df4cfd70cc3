"""Timing shared by the benchmarks: peers in one process, alternating, with ratios and differences.

A benchmark is a list of suites; a suite yields cases; a case is one input with several
implementations of the same mathematics. All of them are warmed up, then timed in turns, each in an
order of its own, so that a change of clock or load meets all of them and nobody always follows the
same neighbour; what is reported is the median time, and the median and quartiles of the time
relative to the case's baseline in the same turn.

In its turn a peer is called for about 30 ms, at least once, and the mean call counts. So a short
call finds in the caches what fits there of its own arrays, as in a loop, and a long one what the
peer before it left.

Before anything is timed, the results of all peers are compared. Where one is further from the
reference than rounding explains, the benchmark stops there with status 1: the time of something
else is not a figure.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxtrelu
from jaxtrelu._files import OutputError, check_file, write_file

# Seconds between two peers: PyTorch's threads spin on after a call, on the cores of the next one.
_PAUSE = 5e-3
#: How far two ways to sum the same numbers may be apart, relative to the norm of the result.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
#: Beside a jump, a rounding error decides whether a gate is open. Of some 10^7 entries a few are so
#: close; each changes one row in one of its terms. A term that is missing in every row is more.
FLIPS = 2e-2
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row group of the table.

    Attributes:
        shape: what the table calls the input, such as ``"2^22"``.
        mode: ``"forward"``, ``"forward+backward"``, …
        peers: name to a function of no arguments that does the work once and returns its result;
            JAX results are waited for.
        baseline: the peer whose time the ratios are relative to.
        reference: the peer whose result the numerical differences are relative to.
        limit: the fewest bytes that have to move, or a description such as ``"3.1 Gflop"``.
        compare: whether results are comparable (a peer that returns nothing is never compared).
        tolerance: by how much an array may differ from the reference's, ‖a − b‖ / ‖b‖; None: what
            `TOLERANCES` has for its dtype. `FLIPS` where a rounding error may open a gate.
        view: what is compared of a result.
    """

    shape: str
    mode: str
    peers: Mapping[str, Callable[[], Any]]
    baseline: str
    reference: str
    limit: int | str = ""
    compare: bool = True
    tolerance: float | None = None
    view: Callable[[Any], Any] = lambda result: result


@dataclasses.dataclass(frozen=True)
class Fact:
    """A row that is not a time: bytes kept, import time."""

    shape: str
    mode: str
    peer: str
    value: float
    unit: str
    ratio: float | None = None
    suite: str = ""


@dataclasses.dataclass(frozen=True)
class Timing:
    """One implementation of a case, measured. Times are in seconds."""

    suite: str
    shape: str
    mode: str
    peer: str
    median: float
    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float | None
    limit: int | str


def compared(suite: str, case: Case) -> dict[str, float | None]:
    """The peers' largest differences from the reference; stops where one is something else."""
    results = {name: jax.block_until_ready(peer()) for name, peer in case.peers.items()}
    if not case.compare:
        return dict.fromkeys(results)
    seen = {name: jax.tree.leaves(case.view(result)) for name, result in results.items()}
    where = f"{suite}, {case.shape}, {case.mode}"
    reference = seen[case.reference]
    return {
        name: difference(f"{where}: {name}", found, reference, case.tolerance)
        for name, found in seen.items()
    }


def measure(suite: str, case: Case, *, seconds: float) -> list[Timing]:
    """Times the peers of a case in turns for about `seconds`, at least five turns."""
    differences = compared(suite, case)
    repeats = {name: _repeats(peer) for name, peer in case.peers.items()}
    samples: dict[str, list[float]] = {name: [] for name in case.peers}
    end, turns = time.perf_counter() + seconds, 0
    order, generator = list(case.peers), random.Random(0)
    while turns < 5 or time.perf_counter() < end:
        generator.shuffle(order)
        for name in order:
            time.sleep(_PAUSE)
            samples[name].append(_time(case.peers[name], repeats[name]))
        turns += 1
    timings = []
    for name, times in samples.items():
        ratios = [a / b for a, b in zip(times, samples[case.baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        timings.append(
            Timing(
                suite, case.shape, case.mode, name, statistics.median(times), middle, low, high,
                differences[name], case.limit,
            )
        )  # fmt: skip
    return timings


def quietly(peer: Callable[[], Any]) -> Callable[[], None]:
    """The same work, of a peer whose result is not what the others compute."""

    def wait() -> None:
        jax.block_until_ready(peer())

    return wait


def _time(peer, repeats: int) -> float:
    """Seconds per call, the mean over the calls of a sample."""
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(peer())
    return (time.perf_counter() - start) / repeats


def _repeats(peer, *, sample: float = 30e-3) -> int:
    """How many calls make a sample."""
    jax.block_until_ready(peer())
    return max(1, int(sample / max(_time(peer, 3), 1e-9)))


def difference(
    where: str, ours: list, theirs: list, tolerance: float | None = None
) -> float | None:
    """The largest absolute difference over all arrays; None where a result has none.

    Raises:
        SystemExit: with status 1, after a line that says what is wrong, if the result is another
            one than the reference's.
    """
    if not ours:
        return None
    if [np.shape(a) for a in ours] != [np.shape(b) for b in theirs]:
        shapes = [[np.shape(a) for a in arrays] for arrays in (ours, theirs)]
        sys.exit(f"WRONG: {where} returns shapes {shapes[0]}, and the reference {shapes[1]}")
    largest = 0.0
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        allowed = TOLERANCES.get(_dtype(a), 0.0) if tolerance is None else tolerance
        exact = np.asarray(b, np.float64)
        size = float(np.linalg.norm(exact))
        apart = np.asarray(a, np.float64) - exact
        off = float(np.linalg.norm(apart))
        if not off <= allowed * size:  # NaN is not
            sys.exit(
                f"WRONG: {where} differs from the reference by {off / size if size else off:.2g} "
                f"of its norm in array {number}, where {allowed:g} is allowed; nothing was timed"
            )
        largest = max(largest, float(np.max(np.abs(apart), initial=0)))
    return largest


def _dtype(array: Any) -> str:
    """Its name, of PyTorch's as well."""
    return str(getattr(array, "dtype", "")).removeprefix("torch.")


def environment() -> dict[str, str]:
    """What the figures depend on besides the code."""
    found = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    found["machine"] = platform.machine()
    # Of the code that runs: an environment may remember an older one of an editable install.
    found["jaxtrelu"] = jaxtrelu.__version__
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["device"] = str(jax.devices()[0].device_kind)
    found["threads"] = str(len(os.sched_getaffinity(0)))
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    found["huge pages"] = "on" if "glibc.malloc.hugetlb=1" in tunables else "off"
    return found


def command() -> str:
    """This process's, as it is typed to have its figures again, but for where they go."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--json":
            next(arguments, None)
        elif not word.startswith("--json="):
            words.append(word)
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return (f"GLIBC_TUNABLES={tunables} " if tunables else "") + shlex.join(words)


def write_figures(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """What docs/figures holds: rows of (suite, shape, mode, peer, …), and where they are from."""
    found = {"command": command()} | environment()
    write_file(path, json.dumps({"environment": found, "rows": list(rows)}, indent=1) + "\n")


def _readable(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _limit(limit: int | str) -> str:
    return limit if isinstance(limit, str) else f"{limit / 1e6:.4g} MB"


def _timing_table(title: str, timings: Iterable[Timing]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("shape", "mode", "implementation"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "ratio", "quartiles", "max diff", "limit"):
        table.add_column(column, justify="right")
    previous = None
    for row in timings:
        if previous not in (None, (row.shape, row.mode)):
            table.add_section()
        first = previous != (row.shape, row.mode)
        previous = (row.shape, row.mode)
        table.add_row(
            row.shape if first else "",
            row.mode if first else "",
            row.peer,
            _readable(row.median),
            f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f}–{row.ratio_high:.3f}",
            "" if row.difference is None else f"{row.difference:.2g}",
            _limit(row.limit) if first else "",
        )
    return table


def _fact_table(title: str, facts: Iterable[Fact]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("shape", "mode", "implementation"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "ratio"):
        table.add_column(column, justify="right")
    for fact in facts:
        ratio = "" if fact.ratio is None else f"{fact.ratio:.3f}"
        table.add_row(fact.shape, fact.mode, fact.peer, f"{fact.value:.4g} {fact.unit}", ratio)
    return table


def run(
    description: str,
    suites: Mapping[str, Callable[[argparse.Namespace], Iterable[Case | Fact]]],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> int:
    """The command line of a benchmark: runs the suites asked for, prints tables, writes JSON.

    A suite is a function of the parsed arguments that yields cases, which are timed one at a time
    (so that only one case's arrays are alive), and facts, which are taken as they are.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=suites, default=list(suites), help="suites")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per case (default: 1)")
    parser.add_argument(
        "--json", type=check_file, metavar="PATH", help="also write all figures here"
    )
    add_arguments(parser)
    try:
        args = parser.parse_args()
    except OutputError as error:
        parser.error(str(error))
    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    found = environment()
    console.print(", ".join(f"{name} {value}" for name, value in found.items()))
    rows: list[Timing | Fact] = []
    for name in args.only:
        timings: list[Timing] = []
        facts: list[Fact] = []
        for item in suites[name](args):
            if isinstance(item, Case):
                timings += measure(name, item, seconds=args.seconds)
            else:
                facts.append(dataclasses.replace(item, suite=name))
        if timings:
            console.print(_timing_table(name, timings))
        if facts:
            console.print(_fact_table(name, facts))
        rows += [*timings, *facts]
    if args.json:
        write_figures(Path(args.json), map(dataclasses.asdict, rows))
    return 0
