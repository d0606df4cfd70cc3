"""What `jaxtrelu sae` leaves of a run: the table, sae.json, weights, history, and two figures."""

import csv
import io
import math
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from jaxtrelu._cli import console, style

if TYPE_CHECKING:
    from jaxtrelu.sae import Recipe, Result, Rows, Settings

_DPI = {"png": 150, "svg": None}  # of the image in an SVG: the figure's own
_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9822b", "#8a8f98"
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "svg.hashsalt": "jaxtrelu",
}


def summary(rows: "Rows", settings: "Settings", result: "Result") -> dict[str, Any]:
    """What was run and what came out, as JSON has it."""
    # An entry of the history is one batch: the mean of the last five says where the run came to.
    last = {name: float(column[-5:].mean()) for name, column in result.history.items()}
    last["step"] = settings.steps
    recipe = {name: value for name, value in vars(settings.recipe).items() if name != "surrogate"}
    return {
        "data": {"name": rows.name, "rows": len(rows), "dimension": rows.dimension},
        "features": settings.features,
        "steps": settings.steps,
        "target_l0": settings.target_l0,
        "seed": settings.seed,
        "sparse": settings.sparse,
        "input_scale": result.scale,
        "recipe": {**recipe, "surrogate": repr(settings.recipe.surrogate)},
        "result": last,
    }


def show(summary: dict[str, Any], settings: "Settings", result: "Result", seconds: float) -> None:
    """The table on stdout, and what to make of it."""
    terminal = console.out()
    last = summary["result"]
    data = summary["data"]
    table = Table(title=f"Sparse autoencoder on {data['name']}", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    done = settings.steps - result.resumed_from
    for cells in (
        ("examples", f"{data['rows']:,} x {data['dimension']}", "rows and their dimension"),
        ("features", f"{settings.features:,}", "size of the dictionary"),
        ("L0", f"{last['l0']:.2f}", f"open features per example; wanted {settings.target_l0:g}"),
        ("λ", f"{last['coefficient']:.3g}", "the coefficient that this took"),
        ("lost variance", f"{last['reconstruction']:.1%}", "of the inputs, not reconstructed"),
        ("dead features", f"{last['dead_share']:.1%}", "open for no example of the probe batch"),
        ("in the window", f"{last['window_share']:.2%}", "entries that teach thresholds"),
        ("median threshold", f"{last['threshold_50']:.3f}", "in scaled units"),
        ("time", f"{seconds:.1f} s", f"for {done:,} steps"),
    ):
        table.add_row(*(console.spelled(cell, terminal.encoding) for cell in cells))
    terminal.print(table)
    if result.resumed_from:
        print(f"resumed from step {result.resumed_from}")
    print(
        "One run with one seed: it shows that thresholds and λ find their place, not how this "
        "compares with other methods."
    )


def to_npz(result: "Result", recipe: "Recipe") -> bytes:
    """The content of a .npz file: the weights, `input_scale` and the recipe's name."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in result.weights._asdict().items()}
    np.savez(stream, input_scale=np.float32(result.scale), recipe=recipe.name, **arrays)
    return stream.getvalue()


def to_csv(result: "Result") -> str:
    """The content of a .csv file: a line per entry of the history."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.history)
    for entry in zip(*result.history.values(), strict=True):
        writer.writerow([f"{value:.7g}" for value in entry])
    return stream.getvalue()


def draw_training(result: "Result", settings: "Settings") -> dict[str, bytes]:
    """L0, lost variance, λ and thresholds over the run: {file name: content}."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True)
        history = result.history
        steps = history["step"]
        _draw_l0(axes[0, 0], steps, history["l0"], settings)
        axes[0, 1].plot(steps, 100 * history["reconstruction"], color=_BLUE)
        axes[0, 1].set(
            title="Variance lost in the reconstruction", ylabel="per cent", ylim=(0, None)
        )
        axes[1, 0].plot(steps, history["coefficient"], color=_ORANGE)
        axes[1, 0].set(title="The coefficient λ", ylabel="λ", ylim=(0, None))
        if settings.target_l0:
            axes[1, 0].set_title("The coefficient λ that the controller chose")
        _draw_thresholds(axes[1, 1], steps, history)
        if settings.recipe.penalty == "l0":
            root = np.sqrt(history["coefficient"])
            axes[1, 1].plot(steps, root, color=_ORANGE, linestyle="--", linewidth=1, label="√λ")
            axes[1, 1].legend(frameon=False, loc="lower right")
        for axis in axes[1]:
            axis.set_xlabel("step")
        return _contents("training", figure)


def _draw_l0(axis: Any, steps: np.ndarray, l0: np.ndarray, settings: "Settings") -> None:
    axis.plot(steps, l0, color=_BLUE)
    axis.set(title="L0: open features per example", ylim=(0, None))
    if settings.target_l0:
        axis.axhline(settings.target_l0, color=_ORANGE, linestyle="--", linewidth=1)
        place = (steps[-1], settings.target_l0)
        axis.annotate(
            f"target {settings.target_l0:g}", place, xytext=(0, -11),
            textcoords="offset points", ha="right", color=_ORANGE,
        )  # fmt: skip


def _draw_thresholds(axis: Any, steps: np.ndarray, history: dict[str, np.ndarray]) -> None:
    for low, high, alpha in (("05", "95", 0.2), ("25", "75", 0.35)):
        band = history[f"threshold_{low}"], history[f"threshold_{high}"]
        axis.fill_between(steps, *band, color=_BLUE, alpha=alpha, linewidth=0)
    axis.plot(steps, history["threshold_50"], color=_BLUE, label="threshold")
    axis.set(title="Thresholds: median, middle half, 5 to 95 per cent", ylabel="scaled units")


def draw_dictionary(result: "Result", rows: "Rows", side: int | None) -> dict[str, bytes]:
    """The features and their thresholds, most often open first: {file name: content}."""
    weights = result.weights
    probe = rows.batch(0, min(2048, rows.shuffled_together)) * np.float32(result.scale)
    pi = probe @ np.asarray(weights.encoder).T + np.asarray(weights.encoder_bias)
    threshold = np.asarray(weights.threshold)
    share = (pi > threshold).mean(axis=0)
    order = np.argsort(-share, kind="stable")
    with matplotlib.rc_context(_STYLE):
        if side is None:
            figure = Figure(figsize=(6.4, 4.8), layout="constrained")
            right = figure.subplots()
        else:
            figure = Figure(figsize=(12.6, 7.4), layout="constrained")
            left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
            _draw_grid(left, np.asarray(weights.decoder)[order], side, int((share > 0).sum()))
        _draw_shares(right, threshold, share)
        return _contents("dictionary", figure)


def _draw_grid(axis: Any, atoms: np.ndarray, side: int, alive: int) -> None:
    shown = max(1, min(alive, 400))
    columns = math.ceil(shown**0.5)
    lines = math.ceil(shown / columns)
    image = np.full((lines * (side + 1) + 1, columns * (side + 1) + 1), np.nan)
    for number, atom in enumerate(atoms[:shown]):
        line, column = divmod(number, columns)
        top, left = line * (side + 1) + 1, column * (side + 1) + 1
        tile = atom.reshape(side, side) / max(np.abs(atom).max(), 1e-12)
        image[top : top + side, left : left + side] = tile
    colours = matplotlib.colormaps["gray"].with_extremes(bad="white")
    axis.imshow(image, cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    which = "all" if shown >= alive else f"the {shown} most often open of"
    axis.set_title(f"The dictionary: {which} {alive} living features of {len(atoms)}")
    axis.set_axis_off()


def _draw_shares(axis: Any, threshold: np.ndarray, share: np.ndarray) -> None:
    alive = share > 0
    axis.scatter(threshold[alive], 100 * share[alive], s=12, color=_BLUE, alpha=0.7, linewidths=0)
    axis.set(
        title="Living features: threshold, and how often open",
        xlabel="threshold (scaled units)",
        ylabel="open for … per cent of the examples",
        ylim=(0, None),
    )


def _contents(name: str, figure: Figure) -> dict[str, bytes]:
    return {f"{name}.{kind}": style.to_bytes(figure, kind, dpi) for kind, dpi in _DPI.items()}
