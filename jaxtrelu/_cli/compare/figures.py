"""The figures of `compare`."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxtrelu._cli import style
from jaxtrelu._cli.compare.experiment import Outcome
from jaxtrelu._cli.compare.settings import KINDS, REFERENCE
from jaxtrelu._cli.numbers import standard_error
from jaxtrelu._cli.style import PEERS, VARIANTS

_MARKERS = {"fixed": "o", "calibrated": "s", "learned": "^"}
_DASHES = {"fixed": "-", "calibrated": "--", "learned": ":"}


def draw(
    outcomes: list[Outcome], records: list[dict[str, Any]], data_name: str
) -> dict[str, bytes]:
    """All figures, each as PNG and SVG: file name to content."""
    contents = {}
    with style.applied():
        drawn = {
            "accuracy_sparsity": _accuracy_sparsity(records, data_name),
            "learning_curves": _learning_curves(outcomes, data_name),
        }
        if any(outcome.cut is not None for outcome in outcomes):
            drawn["fatrelu_after_training"] = _after_training(outcomes, data_name)
        if any(outcome.name.endswith("-learned") for outcome in outcomes):
            drawn["learned_thresholds"] = _learned_thresholds(outcomes, data_name)
        for name, figure in drawn.items():
            for kind in ("png", "svg"):
                contents[f"{name}.{kind}"] = style.to_bytes(figure, kind)
    return contents


def _look(name: str) -> tuple[str, str, str]:
    """Colour, marker and dashes of an activation."""
    family, _, kind = name.partition("-")
    return style.COLOURS[family], _MARKERS.get(kind, "D"), _DASHES.get(kind, "-")


def _accuracy_sparsity(records: list[dict[str, Any]], data_name: str) -> Figure:
    """A line for each activation, so that none hides another."""
    figure = Figure(figsize=(8, 1.4 + 0.27 * len(records)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, record in enumerate(records):
        colour, marker, _ = _look(record["activation"])
        look = {"color": colour, "marker": marker, "ms": 6, "ls": "none"}
        spread = np.nan_to_num(record["test_accuracy_se"])
        left.errorbar([record["test_accuracy"]], [place], xerr=[spread], capsize=2.5, **look)
        right.plot([record["closed"]], [place], **look)
    left.set_yticks(range(len(records)), [record["activation"] for record in records])
    left.invert_yaxis()
    left.xaxis.set_major_formatter(PercentFormatter(1))
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set_xlim(-0.04, 1.04)
    left.set(xlabel="test accuracy ± standard error")
    right.set(xlabel="hidden units with derivative 0, on test rows")
    left.set_title(f"Accuracy and sparsity, {data_name}")
    return figure


def _after_training(outcomes: list[Outcome], data_name: str) -> Figure:
    """Accuracy against zeros, of networks whose activation was exchanged once they were trained."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        if outcome.cut is None:
            continue
        accuracy, zeros = outcome.cut
        colour, marker, _ = _look(outcome.name)
        error = np.nan_to_num([standard_error(column) for column in accuracy.T])
        axes.errorbar(
            zeros.mean(0), accuracy.mean(0), yerr=error, capsize=2.5, elinewidth=1,
            color=colour, marker=marker, ms=5, label=f"trained with {outcome.name}",
        )  # fmt: skip
        axes.axhline(outcome.accuracy.mean(), color=colour, lw=0.8, ls="--")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="zeros, on test rows", ylabel="test accuracy ± standard error")
    axes.set_title(f"FATReLU after training, {data_name} (dashed: before)")
    axes.legend()
    return figure


def _learning_curves(outcomes: list[Outcome], data_name: str) -> Figure:
    groups: list[tuple[str, tuple[str, ...]]] = [("other activations", PEERS)]
    groups += [(v, tuple(f"{v}-{kind}" for kind in KINDS)) for v in VARIANTS]
    by_name = {outcome.name: outcome for outcome in outcomes}
    present = [(title, [n for n in names if n in by_name]) for title, names in groups]
    present = [(title, names) for title, names in present if names]
    figure = Figure(figsize=(1.6 + 2.9 * len(present), 5.6), layout="constrained")
    grid = figure.subplots(2, len(present), sharex=True, sharey="row", squeeze=False)
    for column, (title, names) in enumerate(present):
        above, below = grid[:, column]
        for name in dict.fromkeys((REFERENCE, *names)):
            history = by_name[name].history
            label = name.partition("-")[2] or name
            _curve(above, history.validation, name, label)
            _curve(below, history.loss, name, label)
        above.set_title(title)
        below.set_yscale("log")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        above.legend(loc="lower right")
    last = np.concatenate([outcome.history.validation[:, -1] for outcome in outcomes])
    grid[0, 0].set_ylim(bottom=max(0, 2.5 * last.min() - 1.5))
    grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    # From all of the losses but a few: the spike of one run would press the others together.
    losses = np.concatenate([outcome.history.loss.mean(axis=0) for outcome in outcomes])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    if losses.size:
        grid[1, 0].set_ylim(0.7 * losses.min(), 1.5 * np.quantile(losses, 0.98))
    grid[0, 0].set_ylabel("validation accuracy")
    grid[1, 0].set_ylabel("training loss")
    figure.suptitle(
        f"Learning curves, {data_name}: mean, and its standard error at the end", x=0.01, ha="left"
    )
    return figure


def _curve(axes: Axes, values: np.ndarray, name: str, label: str) -> None:
    """The mean over seeds (axis 0) by epoch; its standard error at the end alone: bands overlap."""
    epochs = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    colour, _, dashes = _look(name)
    axes.plot(epochs, mean, dashes, color=colour, label=label)
    error = np.nan_to_num(standard_error(values[:, -1]))
    axes.errorbar(epochs[-1:], mean[-1:], yerr=[error], color=colour, capsize=2.5, elinewidth=1.2)


def _learned_thresholds(outcomes: list[Outcome], data_name: str) -> Figure:
    learned = [outcome for outcome in outcomes if outcome.name.endswith("-learned")]
    figure = Figure(figsize=(1.2 + 3.0 * len(learned), 3.6), layout="constrained")
    grid = figure.subplots(1, len(learned), sharey=True, squeeze=False)[0]
    for axes, outcome in zip(grid, learned, strict=True):
        quantiles = outcome.history.thresholds.mean(axis=0)
        epochs = np.arange(1, len(quantiles) + 1)
        for layer in range(quantiles.shape[1]):
            low, median, high = quantiles[:, layer].T
            colour = style.SEQUENCE[layer % len(style.SEQUENCE)]
            axes.plot(epochs, median, color=colour, label=f"layer {layer + 1}")
            for edge in (low, high):
                axes.plot(epochs, edge, color=colour, lw=0.8, ls=":")
        axes.axhline(0, color=style.GREY, lw=0.8)
        axes.set_title(outcome.name.partition("-")[0])
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0].set_ylabel("threshold")
    grid[-1].legend(loc="best")
    figure.suptitle(
        f"Learned thresholds, {data_name}: median, and dotted the middle 80 % of the units",
        x=0.01,
        ha="left",
    )
    return figure
