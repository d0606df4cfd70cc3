"""What `jaxtrelu sae` says about a run: the table, sae.json, the weights and the history."""

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtrelu.sae import Recipe, Result, Rows, Settings


def report(rows: "Rows", settings: "Settings", result: "Result") -> dict[str, Any]:
    """What was run and what came out, as JSON has it."""
    # A row of the history is one batch: the mean of the last five says where the run came to.
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


def print_table(
    report: dict[str, Any], settings: "Settings", result: "Result", seconds: float
) -> None:
    """The table on stdout, and what to make of it."""
    from rich.table import Table

    from jaxtrelu.cli import console

    last = report["result"]
    data = report["data"]
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
        table.add_row(*cells)
    console.out().print(table)
    if result.resumed_from:
        print(f"resumed from step {result.resumed_from}")
    print(
        "One run with one seed: it shows that thresholds and λ find their place, not how this "
        "compares with other methods."
    )


def weights_file(result: "Result", recipe: "Recipe") -> bytes:
    """The content of a .npz file: the weights, `input_scale` and the recipe's name."""
    import numpy as np

    stream = io.BytesIO()
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in result.weights._asdict().items()}
    np.savez(stream, input_scale=np.float32(result.scale), recipe=recipe.name, **arrays)
    return stream.getvalue()


def history_file(result: "Result") -> str:
    """The content of a .csv file: a line per row of the history."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(result.history)
    for row in zip(*result.history.values(), strict=True):
        writer.writerow([f"{value:.7g}" for value in row])
    return stream.getvalue()
