"""What `compare` can be told, and the limits of it."""

import argparse
import dataclasses
import difflib
import itertools
import math

from jaxtrelu.cli.data import Dataset
from jaxtrelu.cli.errors import UserError

REFERENCE = "relu"
PEERS = (REFERENCE, "leaky_relu", "prelu", "gelu", "elu")
VARIANTS = ("shift", "hard", "clamp")
KINDS = ("fixed", "calibrated", "learned")
ACTIVATIONS = (*PEERS, *(f"{variant}-{kind}" for variant in VARIANTS for kind in KINDS))

# Inclusive ranges. Beyond them something was mistyped, or this is the wrong tool.
_LIMITS = {
    "seeds": (1, 64),
    "epochs": (1, 10_000),
    "width": (1, 8_192),
    "depth": (1, 32),
    "batch": (1, 65_536),
    "seed": (0, 2**32 - 1),
    "learning_rate": (1e-8, 10.0),
    "sparsity": (0.01, 0.99),
    "threshold": (-1e6, 1e6),
}
_MAX_RATES = 8
_MAX_BYTES = 8e9
_MAX_OPERATIONS = 1e16


@dataclasses.dataclass(frozen=True)
class Settings:
    """The same for every activation that is compared.

    Attributes:
        activations: names out of `ACTIVATIONS`; `REFERENCE` is among them, and first.
        seeds: the number of splits and initialisations.
        epochs: passes over the training rows.
        width: units of each hidden layer.
        depth: hidden layers.
        batch: rows of a training step; never more than there are training rows.
        learning_rate: the candidates; each activation takes its best on the validation rows.
        sparsity: the share of closed gates that `calibrated` thresholds are set to.
        threshold: θ of `fixed` thresholds, in units of the pre-activation.
        seed: where all randomness comes from.
    """

    activations: tuple[str, ...]
    seeds: int
    epochs: int
    width: int
    depth: int
    batch: int
    learning_rate: tuple[float, ...]
    sparsity: float
    threshold: float
    seed: int

    @property
    def runs(self) -> int:
        """Networks trained side by side for one activation."""
        return self.seeds * len(self.learning_rate)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every setting."""
    parser.add_argument(
        "--activations",
        nargs="+",
        metavar="NAME",
        default=list(ACTIVATIONS),
        help=f"what to compare, out of {', '.join(ACTIVATIONS)} (default: all; {REFERENCE} is "
        "always included, as the reference)",
    )
    integer = {"type": int, "metavar": "N"}
    number = {"type": float, "metavar": "X"}
    options: tuple[tuple[str, dict, object, str], ...] = (
        ("seeds", integer, 5, "splits and initialisations per activation"),
        ("epochs", integer, 30, "passes over the training rows"),
        ("width", integer, 128, "units of each hidden layer"),
        ("depth", integer, 2, "hidden layers"),
        ("batch", integer, 64, "rows of a training step"),
        (
            "learning-rate",
            {**number, "nargs": "+"},
            [3e-3, 1e-2, 3e-2],
            "learning rates of Adam; of several, each activation gets the one with the best mean "
            "accuracy on validation rows",
        ),
        ("sparsity", number, 0.8, "share of closed gates that calibrated thresholds aim at"),
        ("threshold", number, 1.0, "fixed thresholds, in units of the pre-activation"),
        ("seed", integer, 0, "seed of splits, initial weights and batches"),
    )
    for name, kind, default, text in options:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        parser.add_argument(f"--{name}", **kind, default=default, help=f"{text} (default: {shown})")


def from_arguments(args: argparse.Namespace) -> Settings:
    """Checks every setting by itself. Raises UserError."""
    for name, (low, high) in _LIMITS.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if not (math.isfinite(value) and low <= value <= high):
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} should be from {low:g} to {high:g}, but is {value:g}.")
    count = len(args.learning_rate)
    if count > _MAX_RATES:
        raise UserError(f"--learning-rate takes at most {_MAX_RATES} values, but got {count}.")
    names = [REFERENCE, *(check_name(name, ACTIVATIONS) for name in args.activations)]
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    fields["activations"] = tuple(dict.fromkeys(names))
    fields["learning_rate"] = tuple(dict.fromkeys(args.learning_rate))
    return Settings(**fields)


def check_name(name: str, known: tuple[str, ...]) -> str:
    """Returns `name` if it is known, else raises UserError with what it may have meant."""
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no activation {name!r}: {hint}known are {', '.join(known)}.")


def check_size(settings: Settings, data: Dataset) -> None:
    """Refuses what would fill the memory or run for days. Raises UserError."""
    rows, inputs = data.features.shape
    sizes = [inputs, *[settings.width] * settings.depth, data.classes]
    weights = sum(a * b + b for a, b in itertools.pairwise(sizes))
    # Parameters, their gradient and Adam's two moments; inputs and some 20 bytes a hidden unit.
    each = 4 * 4 * weights + max(settings.batch, 512) * (8 * inputs + 24 * sum(sizes[1:]))
    size = settings.runs * each
    if size > _MAX_BYTES:
        raise UserError(
            f"{settings.runs} networks of width {settings.width} and depth {settings.depth} on "
            f"{inputs} features would need about {size / 1e9:.0f} GB (limit "
            f"{_MAX_BYTES / 1e9:.0f}): "
            "lower --width, --depth, --seeds, --batch or the number of learning rates."
        )
    operations = 6.0 * weights * rows * settings.epochs * settings.runs * len(settings.activations)
    if operations > _MAX_OPERATIONS:
        raise UserError(
            f"this would take about {operations:.0e} operations (limit {_MAX_OPERATIONS:.0e}): "
            "lower --epochs, --width, --depth, --seeds or the number of --activations."
        )
