"""How `gpu.py` times: peers in turns by one clock, the device's own, and differences.

The clock that ratios come from is the same for every peer: calls queued behind each other for 20 ms
or more, and one wait. Beside it stands the device's own: for JAX the kernels' durations from CUPTI,
for PyTorch CUDA events. Far apart, they show a peer that waits for its host.
"""

import contextlib
import dataclasses
import functools
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from _gpu_cases import Case, Peer
from _gpu_memory import plan_of, torch_peak

TURNS = 7
QUEUE = 0.02  # seconds
PEER_LIMIT = 60.0  # seconds to compile a peer and run it once


@dataclasses.dataclass
class Row:
    """One peer of a case; None is not measured, and `note` says why."""

    case: str
    peer: str
    unit: str
    milliseconds: float | None = None  # median over the turns
    spread: float | None = None  # from the lower to the upper quartile, as a share of the median
    device_milliseconds: float | None = None
    rate: float | None = None  # work per second
    share: float | None = None  # of the best baseline's rate
    difference: float | None = None  # the largest, over the reference's largest value
    planned_bytes: int | None = None  # what the compiled program allocates beside its operands
    peak_bytes: int | None = None  # what the allocator saw beside the operands
    note: str = ""


class Budget:
    """Seconds that are left to the run."""

    def __init__(self, seconds: float):
        self.started, self.end = time.perf_counter(), time.perf_counter() + seconds

    @property
    def used(self) -> float:
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Interrupts what takes longer, once it is back in Python."""
        if self.left <= 0:
            raise TimeoutError("left out: no time was left")
        limit = min(seconds, self.left)

        def stop(*_):
            raise TimeoutError(f"left out: stopped after {limit:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit, 1.0)  # again, should a compiler swallow it
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def measure(case: Case, torch, budget: Budget) -> list[Row]:
    """Prepares the peers of a case, compares them with the reference, and times them in turns."""
    rows = {name: Row(case.name, name, case.unit) for name in case.peers}
    calls: dict[str, Callable[[], Any]] = {}
    with budget.limited(PEER_LIMIT):
        operands = jax.block_until_ready(jax.jit(case.operands)())
        read = {o for peer in case.peers.values() if peer.torch for o in peer.takes}
        tensors = {name: torch.from_dlpack(operands[name]) for name in read}
    reference = None
    products = {*case.baselines} - {case.reference}  # which compute something else
    for name in sorted(case.peers, key=lambda name: name != case.reference):
        row, peer = rows[name], case.peers[name]
        try:
            with budget.limited(PEER_LIMIT):
                calls[name] = bound(peer, tensors if peer.torch else operands)
                result = waited(calls[name](), torch)
                if name == case.reference:
                    reference = result
                if reference is not None and name not in products:
                    row.difference = difference(result, reference)
                if peer.torch:
                    row.peak_bytes = torch_peak(calls[name], torch)
                else:
                    row.planned_bytes, row.note = plan_of(calls[name])
        except Exception as error:  # a peer that fails is a row, not the end of the run
            calls.pop(name, None)
            row.note = reason(error)
        result = None
    del reference
    _in_turns(case, calls, rows, torch, budget)
    base = max((rows[n].rate or 0 for n in case.baselines), default=0)
    for row in rows.values():
        row.share = row.rate / base if row.rate and base else None
    return list(rows.values())


def _in_turns(case: Case, calls: Mapping, rows: Mapping, torch, budget: Budget) -> None:
    counts, samples = {}, {name: [] for name in calls}
    for name, call in calls.items():
        rows[name].device_milliseconds, missing = device_time(call, case.peers[name].torch, torch)
        rows[name].note = ", ".join(filter(None, (rows[name].note, missing)))
        once = _queued(call, 1, torch)
        counts[name] = max(1, min(100, round(QUEUE / once)))
    for turn in range(TURNS):
        if turn and budget.left <= 0:
            break
        # Every other turn backwards: nobody always follows the same neighbour.
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            samples[name].append(_queued(calls[name], counts[name], torch))
    for name, times in samples.items():
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median,) * 3
        rows[name].milliseconds, rows[name].spread = median * 1e3, (high - low) / median
        rows[name].rate = case.peers[name].work / median
        if len(times) < TURNS:
            rows[name].note = f"{len(times)} turns of {TURNS}: no time was left"


def bound(peer: Peer, operands: Mapping) -> functools.partial:
    return functools.partial(peer.call, *(operands[name] for name in peer.takes))


def waited(result, torch):
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result)):
        return jax.block_until_ready(result)
    torch.cuda.synchronize()
    return result


def _queued(call: Callable, count: int, torch) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = call()
    waited(result, torch)
    return (time.perf_counter() - start) / count


def device_time(call, of_torch: bool, torch) -> tuple[float | None, str]:
    """The median of a few calls in milliseconds of the device, or None and why."""
    times, started = [], time.perf_counter()
    try:
        while not times or (len(times) < 5 and time.perf_counter() - started < 1):
            times.append(_events(call, torch) if of_torch else _cupti(call))
    except Exception as error:
        return None, f"no device time: {reason(error)}"
    return statistics.median(times), ""


def _events(call: Callable, torch) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _cupti(call: functools.partial) -> float:
    from jax.experimental.mosaic.gpu import profiler

    # The jitted function apart from its operands, which would become constants of another one.
    _, milliseconds = profiler.measure(call.func)(*call.args)
    if milliseconds is None:
        raise RuntimeError("CUPTI saw no kernel")
    return milliseconds


@jax.jit
def _difference(ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.issubdtype(theirs.dtype, jnp.integer):  # words
        return jnp.any(ours != theirs).astype(jnp.float32), jnp.float32(1)
    ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
    return jnp.max(jnp.abs(ours - theirs)), jnp.max(jnp.abs(theirs))


def difference(result, reference) -> float | None:
    """The largest over all arrays that both have, relative to the reference's largest value."""
    worst = None
    for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=False):
        ours = ours if isinstance(ours, jax.Array) else jnp.from_dlpack(ours)
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            continue  # a product alone, a mask for words
        apart, largest = map(float, _difference(ours, theirs))
        found = apart / largest if largest else apart
        worst = found if worst is None or not found <= worst else worst  # NaN is the worst
    return worst


def reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0][:160]
    return text if text.startswith("left out") else f"{type(error).__name__}: {text}"
