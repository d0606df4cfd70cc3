"""What the commands of `jaxtrelu sae` read: a model, and rows."""

import argparse
from typing import Any


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """Adds a model, and what it is looked at with."""
    parser.add_argument("model", metavar="MODEL", help="a file or folder in any known format")
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a .npy or .safetensors file with one example per row, a folder of them, or 'patches'",
    )
    add_targets(parser)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Adds what a transcoder should make of the rows."""
    parser.add_argument(
        "--targets",
        metavar="DATA",
        help="a .npy or .safetensors file with the output that a transcoder should make of each "
        "row, or a folder of them",
    )


def open_data(name: str, seed: int = 0, held_out: int | None = None) -> Any:
    """The rows that a user names: a file, or the image patches."""
    from jaxtrelu import sae
    from jaxtrelu.sae._train import rows_of, usual_aside

    if name == "patches":
        array = sae.image_patches().rows
        aside = usual_aside(len(array)) if held_out is None else held_out
        return sae.Rows(array, "the image patches", seed, held_out=aside)
    return rows_of(name, seed, held_out)
