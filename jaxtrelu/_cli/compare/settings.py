"""What `compare` can be told, and the limits of it."""

import argparse
import dataclasses
import functools
import itertools

from jaxtrelu._cli import UserError
from jaxtrelu._cli.datasets import Dataset
from jaxtrelu._cli.parser import add_number, check_choice
from jaxtrelu._cli.style import PEERS, VARIANTS

REFERENCE = "relu"
KINDS = ("fixed", "calibrated", "learned")
ACTIVATIONS = (*PEERS, *(f"{variant}-{kind}" for variant in VARIANTS for kind in KINDS))

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
    # Beyond the limits something was mistyped, or this is the wrong tool.
    add = functools.partial(add_number, parser)
    add("--seeds", int, 5, "splits and initialisations per activation", low=1, high=64)
    add("--epochs", int, 30, "passes over the training rows", low=1, high=10_000)
    add("--width", int, 128, "units of each hidden layer", low=1, high=8_192)
    add("--depth", int, 2, "hidden layers", low=1, high=32)
    add("--batch", int, 64, "rows of a training step", low=1, high=65_536)
    add(
        "--learning-rate",
        float,
        [3e-3, 1e-2, 3e-2],
        "learning rates of Adam; of several, each activation gets the one with the best mean "
        "accuracy on validation rows",
        low=1e-8,
        high=10.0,
    )
    text = "share of closed gates that calibrated thresholds aim at"
    add("--sparsity", float, 0.8, text, low=0.01, high=0.99)
    text = "fixed thresholds, in units of the pre-activation"
    add("--threshold", float, 1.0, text, low=-1e6, high=1e6)
    add("--seed", int, 0, "seed of splits, initial weights and batches", low=0, high=2**32 - 1)


def from_arguments(args: argparse.Namespace) -> Settings:
    """The settings that the options say. Raises UserError."""
    count = len(args.learning_rate)
    if count > _MAX_RATES:
        raise UserError(f"--learning-rate takes at most {_MAX_RATES} values, but got {count}.")
    names = [REFERENCE, *(check_choice(name, ACTIVATIONS) for name in args.activations)]
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}
    fields["activations"] = tuple(dict.fromkeys(names))
    fields["learning_rate"] = tuple(dict.fromkeys(args.learning_rate))
    return Settings(**fields)


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
