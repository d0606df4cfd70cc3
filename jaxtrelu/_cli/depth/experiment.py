"""The experiment: measures all nets before training, trains what is not trained yet."""

import functools
import itertools
import time
from pathlib import Path

import numpy as np

from jaxtrelu._cli.console import Bar
from jaxtrelu._cli.datasets import Dataset
from jaxtrelu._cli.depth import initialisation, runs, training
from jaxtrelu._cli.depth.initialisation import Measured
from jaxtrelu._cli.depth.settings import Configuration, Settings
from jaxtrelu._cli.depth.training import Result


def work(settings: Settings, wanted: list[Configuration]) -> int:
    """Units of progress that `run` reports: an epoch of a configuration, and the measurement."""
    return len(wanted) * (settings.epochs + 1)


def run(
    data: Dataset,
    settings: Settings,
    wanted: list[Configuration],
    folder: Path,
    fresh: bool,
    bar: Bar,
) -> tuple[list[Measured], list[Result]]:
    """What each configuration is like at its start, and what becomes of it."""
    parts = training.divide(data, settings)
    bar.advance(0, "before training")
    rows = np.asarray(training.prepared(parts.train[0][0], parts.mean[0]))
    measured = initialisation.measure(
        wanted, rows, width=settings.width, depth=settings.depth, seed=settings.seed
    )
    bar.advance(len(wanted))
    if not settings.epochs:
        return measured, []
    keys = [runs.key_of(configuration, settings, data) for configuration in wanted]
    found: list[Result | None] = [
        None if fresh else runs.load(folder, configuration, key)
        for configuration, key in zip(wanted, keys, strict=True)
    ]
    for configuration, result in zip(wanted, found, strict=True):
        if result is not None:
            bar.advance(settings.epochs)
            bar.log(f"{_line(configuration, result)}  (from {folder / runs.FOLDER})")
    missing = [i for i, result in enumerate(found) if result is None]
    for group in _groups(missing, wanted, settings.together):
        started = time.perf_counter()
        chosen = [wanted[i] for i in group]
        names = ", ".join(configuration.name for configuration in chosen)

        bar.advance(0, names)
        for i, result in zip(
            group,
            training.train(
                chosen,
                parts,
                data.classes,
                settings,
                functools.partial(bar.advance, len(group), names),
            ),
            strict=True,
        ):
            runs.save(folder, wanted[i], keys[i], result)
            found[i] = result
            bar.log(f"{_line(wanted[i], result)}  ({time.perf_counter() - started:.0f} s)")
    return measured, [result for result in found if result is not None]


def _groups(
    missing: list[int], wanted: list[Configuration], together: int
) -> list[tuple[int, ...]]:
    """Those that train in one program; with and without a ceiling are two programs."""

    def capped(i: int) -> bool:
        return wanted[i].start.ceiling is not None

    return [
        group
        for _, same in itertools.groupby(missing, capped)
        for group in _batched(list(same), together)
    ]


def _batched(numbers: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _line(configuration: Configuration, result: Result) -> str:
    last = result.loss[:, -1]
    broken = int(np.sum(~np.isfinite(last)))
    note = f", {broken} fell apart" if broken else ""
    return (
        f"{configuration.name:<24} test accuracy {np.mean(result.test_accuracy):.3f}, training "
        f"loss {np.median(last):.3f}{note}"
    )
