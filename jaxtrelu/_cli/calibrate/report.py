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
                "sparsity": result.sparsity,
                "threshold": result.threshold.tolist(),
                "reached": float(result.used.mean()),
                "held_out": None if result.held_out is None else _spread(result.held_out),
            }
            for result in results
        ],
    }


def _spread(shares: np.ndarray) -> dict[str, float]:
    """Over all entries, and of the channels that have fewest and most zeros."""
    return {"mean": float(shares.mean()), "low": float(shares.min()), "high": float(shares.max())}


def to_npz(found: "tuple[list[Found], float]", variant: str) -> bytes:
    """The content of a .npz file: sparsity and threshold, a row each, and shares by channel."""
    results, _ = found
    arrays: dict[str, Any] = {
        "sparsity": np.array([result.sparsity for result in results]),
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
    print(f"{'wanted':>8}  {'threshold':<24}  {'reached':>8}  held out (channels from, to)")
    for result in summary["results"]:
        values = np.asarray(result["threshold"])
        text = f"{values.min():.6g}"
        if values.ndim:
            text += f" to {values.max():.6g}"
        held = result["held_out"]
        there = "-"
        if held is not None:
            there = f"{held['mean']:.2%} ({held['low']:.2%}, {held['high']:.2%})"
        print(f"{result['sparsity']:>8.2%}  {text:<24}  {result['reached']:>8.2%}  {there}")
    if summary["rank_error"]:
        print(f"the sketch's shares are within {summary['rank_error']:.2%} with 99 % confidence")
