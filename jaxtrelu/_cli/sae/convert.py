"""`jaxtrelu sae convert`: a model's file as another library has it."""

import argparse
from typing import Any

_DESCRIPTION = """\
Reads a model in any of the known formats and writes it in another. No PyTorch is needed, and
nothing in a file is run. Settings that a format has no place for are folded into the weights."""


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser."""
    parser = subparsers.add_parser(
        "convert",
        help="write a model in another library's format",
        description=_DESCRIPTION,
    )
    parser.add_argument("model", metavar="IN", help="a file or folder in any known format")
    parser.add_argument(
        "target",
        metavar="OUT",
        help="the file or folder to write; a new name without the suffix of the format's file is a "
        "folder, which takes that file under its usual name",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        choices=(
            "jaxtrelu", "gemma_scope", "gemma_scope_2", "saelens", "dictionary_learning",
            "dictionary_learning_batch_top_k", "llama_scope", "circuit_tracer",
        ),
        help="jaxtrelu (one file, with everything), gemma_scope, gemma_scope_2, saelens (a "
        "folder), dictionary_learning (a folder), dictionary_learning_batch_top_k, llama_scope or "
        "circuit_tracer (the layer's number is that of OUT, such as layer_7.safetensors)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Converts, and prints what was written."""
    from jaxtrelu import sae

    model = sae.load(args.model)
    for path in sae.save(model, args.target, format=args.to):
        print(path)
    return 0
