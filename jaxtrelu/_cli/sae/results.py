"""What `jaxtrelu sae` says of runs and models: tables, sae.json, the history, and two figures."""

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from jaxtrelu._cli import console, style

if TYPE_CHECKING:
    from jaxtrelu.sae import Autoencoder, Evaluation, Rows, Sweep

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


class Results:
    """What there is to say about a run.

    Args:
      rows: what it was trained on.
      model: what came out.
    """

    def __init__(self, rows: "Rows", model: "Autoencoder"):
        from jaxtrelu import sae
        from jaxtrelu.sae._pairs import Pairs

        self.rows, self.model = rows, model
        assert model.training is not None and model.recipe is not None
        self.result, self.recipe = model.training, model.recipe
        self.about: dict[str, Any] = model.about["training"]
        # Kept aside, or where nothing was, a batch's worth of what was trained on.
        self.targets = rows.targets_name if isinstance(rows, Pairs) else None
        if not rows.held_out:
            self.judged, wanted = rows.split(rows.batch(0, self.recipe.batch_size))
        else:
            wanted = rows.held_out_targets if isinstance(rows, Pairs) else None
            self.judged = rows.held_out_rows
        self.evaluation = sae.evaluate(model, self.judged, targets=wanted)
        looked = max(100_000, self.about["steps"] * self.recipe.batch_size // 10)
        self.dead = sae.dead_features(model, rows, rows=looked)

    @property
    def which(self) -> str:
        """The rows that figures are of."""
        kind = "kept aside" if self.rows.held_out else "of the training data"
        return f"{len(self.judged):,} rows {kind}"

    def summary(self) -> dict[str, Any]:
        """What was run and what came out, as JSON has it."""
        # An entry of the history is one batch: the mean of the last five says where it came to.
        last = {name: float(column[-5:].mean()) for name, column in self.result.history.items()}
        last["step"] = self.about["steps"]
        recipe = {name: value for name, value in vars(self.recipe).items() if name != "surrogate"}
        recipe["initialisation"] = self.about["initialisation"]  # as it was, not as it would be
        numbers = {k: v if np.isfinite(v) else None for k, v in self.evaluation.numbers().items()}
        data = {
            "name": self.rows.name,
            "rows": len(self.rows),
            "dimension": self.rows.dimension,
            "fingerprint": self.result.fingerprint,
        }
        scales: dict[str, Any] = {"input_scale": self.result.scale}
        if self.targets is not None:
            data |= {"targets": self.targets, "output_dimension": self.rows.output_dimension}
            scales["output_scale"] = float(self.model.output_scale)
            scales["skip"] = self.model.skip is not None
        return {
            "data": data,
            "features": self.model.features,
            "steps": self.about["steps"],
            "target_l0": self.about["target_l0"],
            "seed": self.about["seed"],
            "sparse": self.about["sparse"],
            "screen": self.about["screen"],
            **scales,
            "recipe": {**recipe, "surrogate": repr(self.recipe.surrogate)},
            "result": last,
            "evaluation": {"held_out": bool(self.rows.held_out), **numbers},
            "dead": {"features": len(self.dead.features), "rows": self.dead.rows},
        }

    def show(self, seconds: float) -> None:
        """The table on stdout, and what to make of it."""
        last = self.summary()["result"]
        found, dead = self.evaluation, self.dead
        done = self.about["steps"] - self.result.resumed_from
        size = f"{len(self.rows):,} x {self.rows.dimension}"
        kind, what = f"Sparse autoencoder on {self.rows.name}", "rows and their dimension"
        if self.targets is not None:
            size += f" to {self.rows.output_dimension}"
            kind = f"Transcoder from {self.rows.name} to {self.targets}"
            if self.model.skip is not None:
                kind = kind.replace("Transcoder", "Transcoder with a skip connection", 1)
            what += ", and the targets'"
        wanted = self.about["target_l0"]
        _table(
            f"{kind}; figures on {self.which}",
            (
                ("examples", size, what),
                ("features", f"{self.model.features:,}", "size of the dictionary"),
                ("L0", f"{found.l0:.2f}", f"open features per example; wanted {wanted:g}"),
                ("λ", f"{last['coefficient']:.3g}", "the coefficient that this took"),
                ("explained variance", f"{found.explained_variance:.1%}", "1: nothing is lost"),
                ("dead features", f"{len(dead.features):,}", f"open in none of {dead.rows:,} rows"),
                ("in the window", f"{last['window_share']:.2%}", "entries that teach thresholds"),
                ("median threshold", f"{last['threshold_50']:.3f}", "in scaled units"),
                ("time", f"{seconds:.1f} s", f"for {done:,} steps"),
            ),
        )
        if self.result.resumed_from:
            print(f"resumed from step {self.result.resumed_from}")
        print(
            "One run with one seed: it shows that thresholds and λ find their place, not how this "
            "compares with other methods."
        )

    def to_csv(self) -> str:
        """The content of a .csv file: a line per entry of the history."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.result.history)
        for entry in zip(*self.result.history.values(), strict=True):
            writer.writerow([f"{value:.7g}" for value in entry])
        return stream.getvalue()

    def draw_training(self) -> dict[str, bytes]:
        """L0, lost variance, λ and thresholds over the run: {file name: content}."""
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(10, 6.4), layout="constrained")
            axes = figure.subplots(2, 2, sharex=True)
            history = self.result.history
            steps, target = history["step"], self.about["target_l0"]
            _draw_l0(axes[0, 0], steps, history["l0"], target)
            axes[0, 1].plot(steps, 100 * history["reconstruction"], color=_BLUE)
            axes[0, 1].set(
                title="Variance lost in the reconstruction", ylabel="per cent", ylim=(0, None)
            )
            axes[1, 0].plot(steps, history["coefficient"], color=_ORANGE)
            axes[1, 0].set(title="The coefficient λ", ylabel="λ", ylim=(0, None))
            if target:
                axes[1, 0].set_title("The coefficient λ that the controller chose")
            _draw_thresholds(axes[1, 1], steps, history)
            if self.recipe.penalty == "l0":
                root = np.sqrt(history["coefficient"])
                axes[1, 1].plot(steps, root, color=_ORANGE, linestyle="--", linewidth=1, label="√λ")
                axes[1, 1].legend(frameon=False, loc="lower right")
            for axis in axes[1]:
                axis.set_xlabel("step")
            return _contents("training", figure)

    def draw_dictionary(self, side: int | None) -> dict[str, bytes]:
        """The features and their thresholds, most often open first: {file name: content}."""
        share = self.evaluation.density
        alive = np.ones(len(share), bool)
        alive[self.dead.features] = False
        order = np.lexsort((-share, ~alive))
        with matplotlib.rc_context(_STYLE):
            if side is None:
                figure = Figure(figsize=(6.4, 4.8), layout="constrained")
                right = figure.subplots()
            else:
                figure = Figure(figsize=(12.6, 7.4), layout="constrained")
                left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
                decoder = np.asarray(self.model.weights.decoder)[order]
                _draw_grid(left, decoder, side, int(alive.sum()))
            _draw_shares(right, np.asarray(self.model.threshold), share, alive)
            return _contents("dictionary", figure)


def draw_sweep(found: "Sweep") -> dict[str, bytes]:
    """Explained variance against L0, a point for each run: {file name: content}."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axis = figure.subplots()
        l0 = np.array([f.l0 for f in found.evaluations])
        explained = np.array([f.explained_variance for f in found.evaluations])
        asked = np.array([np.nan if t is None else t for t in found.targets])
        groups = np.unique(asked[np.isfinite(asked)])
        means = np.array(
            [(l0[asked == g].mean(), explained[asked == g].mean()) for g in groups]
        ).reshape(-1, 2)
        axis.plot(*means.T, color=_BLUE, linewidth=1.2)
        axis.scatter(l0, explained, s=26, color=_BLUE, alpha=0.75, linewidths=0, zorder=3)
        for group, place in zip(groups, means, strict=True):
            axis.annotate(
                f"{group:g}", tuple(place), xytext=(6, -12), textcoords="offset points", color=_GREY
            )
        axis.set(
            title="What sparsity costs: a point is a run, its label the L0 asked for",
            xlabel="L0: open features per example",
            ylabel="explained variance",
        )
        return _contents("sweep", figure)


def show_sweep(found: "Sweep", name: str, targets: str | None) -> None:
    """A line for each run of a sweep, on stdout."""
    terminal = console.out()
    rows = found.evaluations[0].rows
    kind = f"Sparse autoencoders on {name}"
    if targets is not None:
        kind = f"Transcoders from {name} to {targets}"
    title = f"{kind}; figures on {rows:,} rows"
    table = Table(title=console.spelled(title, terminal.encoding), title_justify="left")
    heads = ("L0 asked for", "seed", "L0", "explained variance", "alive", "nearest decoder")
    for head in heads:
        table.add_column(head, justify="right")
    runs = zip(found.targets, found.seeds, found.evaluations, strict=True)
    for target, seed, figures in runs:
        table.add_row(
            "" if target is None else f"{target:g}",
            str(seed),
            f"{figures.l0:.3f}",
            f"{figures.explained_variance:.4f}",
            f"{figures.alive_share:.1%}",
            f"{np.nanmean(figures.max_decoder_cosine):.3f}",
        )
    terminal.print(table)


def show_evaluation(found: "Evaluation", title: str, *, of_targets: bool = False) -> None:
    """The figures of an evaluation, as a table on stdout."""
    what, made = ("target", "output") if of_targets else ("row", "reconstruction")
    cosine = [float(c.mean()) for c in (found.max_encoder_cosine, found.max_decoder_cosine)]
    share = "share of the features"
    _table(
        title,
        (
            ("rows", f"{found.rows:,}", "that were looked at"),
            ("explained variance", f"{found.explained_variance:.4f}", "1: nothing is lost"),
            ("mean squared error", f"{found.mean_squared_error:.4g}", "per row"),
            ("cosine similarity", f"{found.cosine_similarity:.4f}", f"of {what} and {made}"),
            ("norm in", f"{found.norm_in:.4g}", f"mean of the {what}s'"),
            ("norm out", f"{found.norm_out:.4g}", f"mean of the {made}s'"),
            ("norm ratio", f"{found.norm_ratio:.4f}", "out to in"),
            (
                "reconstruction bias",
                f"{found.relative_reconstruction_bias:.4f}",
                "below 1: shrinks",
            ),
            ("L0", f"{found.l0:.3f}", "open features per row"),
            ("L1", f"{found.l1:.4g}", "sum of a row's features"),
            ("open in over 1 %", f"{found.over_1_percent:.2%}", f"{share}; of the rows"),
            ("open in over 10 %", f"{found.over_10_percent:.2%}", f"{share}; of the rows"),
            ("alive", f"{found.alive_share:.2%}", f"{share} open in one of the rows at least"),
            ("nearest encoder", f"{cosine[0]:.4f}", "mean of the largest cosine to another row"),
            ("nearest decoder", f"{cosine[1]:.4f}", "mean of the largest cosine to another row"),
        ),
    )


def _table(title: str, lines: Sequence[tuple[str, str, str]]) -> None:
    terminal = console.out()
    table = Table(title=console.spelled(title, terminal.encoding), title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    for cells in lines:
        table.add_row(*(console.spelled(cell, terminal.encoding) for cell in cells))
    terminal.print(table)


def _draw_l0(axis: Any, steps: np.ndarray, l0: np.ndarray, target: float | None) -> None:
    axis.plot(steps, l0, color=_BLUE)
    axis.set(title="L0: open features per example", ylim=(0, None))
    if target:
        axis.axhline(target, color=_ORANGE, linestyle="--", linewidth=1)
        # At the left, where the curve is far above, as L0 falls to its target.
        axis.annotate(
            f"target {target:g}", (steps[0], target), xytext=(0, -13),
            textcoords="offset points", color=_ORANGE,
        )  # fmt: skip


def _draw_thresholds(axis: Any, steps: np.ndarray, history: dict[str, np.ndarray]) -> None:
    for low, high, alpha in (("05", "95", 0.2), ("25", "75", 0.35)):
        band = history[f"threshold_{low}"], history[f"threshold_{high}"]
        axis.fill_between(steps, *band, color=_BLUE, alpha=alpha, linewidth=0)
    axis.plot(steps, history["threshold_50"], color=_BLUE, label="threshold")
    axis.set(title="Thresholds: median, middle half, 5 to 95 per cent", ylabel="scaled units")


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
    # A frame that no pixel melts into: they are black to white.
    colours = matplotlib.colormaps["gray"].with_extremes(bad=_BLUE)
    axis.imshow(image, cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    which = "all" if shown >= alive else f"the {shown} most often open of"
    axis.set_title(f"The dictionary: {which} {alive} living features of {len(atoms)}")
    axis.set_axis_off()


def _draw_shares(axis: Any, threshold: np.ndarray, share: np.ndarray, alive: np.ndarray) -> None:
    axis.scatter(threshold[alive], 100 * share[alive], s=12, color=_BLUE, alpha=0.7, linewidths=0)
    axis.set(
        title="Living features: threshold, and how often open",
        xlabel="threshold (scaled units)",
        ylabel="open for … per cent of the examples",
        ylim=(0, None),
    )


def _contents(name: str, figure: Figure) -> dict[str, bytes]:
    return {f"{name}.{kind}": style.to_bytes(figure, kind, dpi) for kind, dpi in _DPI.items()}
