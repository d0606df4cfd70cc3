"""What `jaxtrelu calibrate` says and leaves: the table, the .json and the .npz file."""

import argparse
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtrelu._cli.calibrate.data import Found, Rows


def summary(
    rows: "Rows", found: "tuple[list[Found], float]", args: argparse.Namespace
) -> dict[str, Any]:
    """What was asked and what came out, as JSON has it."""
    results, error = found
    wish = "sparsity" if args.error is None else "error"
    return {
        "file": str(rows.path),
        "channels": rows.channels,
        "rows": rows.used,
        "held_out_rows": rows.held_out,
        "seed": rows.seed,
        "method": args.method,
        "rank_error": None if math.isnan(error) else error,
        "per_channel": args.per_channel,
        "variant": args.variant,
        "results": [
            {
                wish: result.wanted,
                "threshold": result.threshold.tolist(),
                "reached": float(result.used.mean()),
                "held_out": None if result.held_out is None else _spread(result.held_out),
                **(_errors(result.errors) if result.errors else {}),
            }
            for result in results
        ],
    }


def _errors(errors: tuple[float, float | None]) -> dict[str, float | None]:
    return dict(zip(("error_reached", "error_held_out"), errors, strict=True))


def _spread(shares: np.ndarray) -> dict[str, float]:
    """Over all entries, and of the channels that have fewest and most zeros."""
    return {"mean": float(shares.mean()), "low": float(shares.min()), "high": float(shares.max())}


def to_npz(found: "tuple[list[Found], float]", variant: str) -> bytes:
    """The content of a .npz file: sparsity and threshold, a row each, and shares by channel."""
    results, _ = found
    arrays: dict[str, Any] = {
        "sparsity" if results[0].errors is None else "error": np.array([r.wanted for r in results]),
        "threshold": np.stack([np.asarray(result.threshold) for result in results]),
        "reached": np.stack([result.used for result in results]),
    }
    if results[0].held_out is not None:
        arrays["held_out"] = np.stack([np.asarray(result.held_out) for result in results])
    stream = io.BytesIO()
    np.savez(stream, variant=variant, **arrays)
    return stream.getvalue()


def show(summary: dict[str, Any]) -> None:
    """One line for each share."""
    print(
        f"{summary['file']}: {summary['rows']:,} rows of {summary['channels']:,} to calibrate on, "
        f"{summary['held_out_rows']:,} held out"
    )
    errors = "error" in summary["results"][0]
    first = "error, there, held out" if errors else "wanted"
    width = max(8, len(first))
    print(f"{first:>{width}}  {'threshold':<24}  {'zeros':>8}  held out (channels from, to)")
    for result in summary["results"]:
        values = np.asarray(result["threshold"])
        text = f"{values.min():.6g}"
        if values.ndim:
            text += f" to {values.max():.6g}"
        held = result["held_out"]
        there = "-"
        if held is not None:
            there = f"{held['mean']:.2%} ({held['low']:.2%}, {held['high']:.2%})"
        wanted = f"{result['error' if errors else 'sparsity']:.2%}"
        if errors:
            of_held = result["error_held_out"]
            wanted += f", {result['error_reached']:.2%}, "
            wanted += "-" if of_held is None else f"{of_held:.2%}"
        print(f"{wanted:>{width}}  {text:<24}  {result['reached']:>8.2%}  {there}")
    if summary["rank_error"]:
        print(f"the sketch's shares are within {summary['rank_error']:.2%} with 99 % confidence")


def network_to_npz(summary: dict[str, Any], results: Any) -> bytes:
    """The content of a .npz file: what was wanted, and for each layer a row each of these."""
    arrays: dict[str, Any] = {summary["wish"]: np.array([r["wanted"] for r in summary["results"]])}
    for number, layer in enumerate(results[0].swapped.layers):
        rows = [result["layers"][number] for result in summary["results"]]
        arrays[f"{layer.path}.threshold"] = np.stack([np.asarray(r["threshold"]) for r in rows])
        arrays[f"{layer.path}.reached"] = np.array([row["reached"] for row in rows])
        if rows[0]["held_out"] is not None:
            arrays[f"{layer.path}.held_out"] = np.array([row["held_out"] for row in rows])
    stream = io.BytesIO()
    np.savez(stream, variant=summary["variant"], **arrays)
    return stream.getvalue()


def show_network(summary: dict[str, Any]) -> None:
    """A table for each wish: a line a layer."""
    print(
        f"{summary['checkpoint']}, {summary['model']}: {summary['rows']:,} rows to calibrate on, "
        f"{summary['held_out_rows']:,} held out"
    )
    for result in summary["results"]:
        _show_result(result, summary["wish"])


def _show_result(result: dict[str, Any], wish: str) -> None:
    what = {"sparsity": "zeros in each layer", "error": "error of each next layer"}[wish]
    print(f"\n{result['wanted']:.2%} {what}")
    width = max(len("layer"), *(len(layer["path"]) for layer in result["layers"]))
    errors = "  error of the next" if wish == "error" else ""
    print(f"{'layer':<{width}}  {'was':<12}  {'threshold':>18}  {'zeros':>8}  held out{errors}")
    for layer in result["layers"]:
        values = np.asarray(layer["threshold"])
        text = f"{values.min():.4g}" + (f" to {values.max():.4g}" if values.ndim else "")
        held = "-" if layer["held_out"] is None else f"{layer['held_out']:.2%}"
        error = f"  {layer['error']:.2%}" if wish == "error" else ""
        print(
            f"{layer['path']:<{width}}  {layer['was']:<12}  {text:>18}  {layer['reached']:>8.2%}  "
            f"{held:>8}{error}"
        )
    kept = result["kept_before"], result["kept_after"]
    print(
        f"kept for the backward pass of these rows: {kept[0] / 1e6:.3g} MB before, "
        f"{kept[1] / 1e6:.3g} MB after"
    )
    if (change := result["output_change"]) is not None:
        print(f"the network's output differs by {change:.2%} of its norm on the held-out rows")
