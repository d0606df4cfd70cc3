"""What `depth` can be told, and the nets that follow from it."""

import argparse
import dataclasses
import shlex
from typing import Any, NamedTuple

from jaxtrelu._cli import UserError, datasets
from jaxtrelu._cli.datasets import Dataset
from jaxtrelu._cli.parser import Number, add_number

_MAX_BYTES = 8e9
_MAX_OPERATIONS = 1e17

_DEFAULTS: dict[str, Any] = {
    "depth": 30,
    "width": 100,
    "seeds": 5,
    "epochs": 110,
    "batch": 64,
    "optimiser": "adam",
    "learning_rate": 7e-4,
    "sparsity": [0.6, 0.7, 0.8, 0.85, 0.9],
    "slope": [0.5, 0.7, 0.9],
    "seed": 0,
    "together": 1,
}
OPTIMISERS = ("adam", "sgd")
# A run of a minute at most, too small to show what the whole one does.
_QUICK = {"depth": 8, "width": 32, "seeds": 2, "epochs": 2, "sparsity": [0.7, 0.85], "slope": [0.5]}


class _NumberOrNone(Number):
    """A number, or the word none."""

    def __call__(self, word: str) -> Any:
        return None if word.strip().lower() == "none" else super().__call__(word)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The same for all nets.

    Attributes:
        depth: hidden layers.
        width: units of each.
        seeds: initial weights, splits and orders of batches for each configuration.
        epochs: passes over the training rows.
        batch: rows of a training step; never more than there are training rows.
        optimiser: "adam", its gradient's norm clipped to 1; or "sgd", with momentum of .9 and not
            clipped.
        learning_rate: of the optimiser, after a warm-up.
        sparsity: the shares of zeros that the nets start with.
        slope: V' of those with a ceiling.
        seed: where all randomness comes from.
        together: how many configurations train in one program.
    """

    depth: int
    width: int
    seeds: int
    epochs: int
    batch: int
    optimiser: str
    learning_rate: float
    sparsity: tuple[float, ...]
    slope: tuple[float, ...]
    seed: int
    together: int


class Start(NamedTuple):
    """The activation and the variances of a net; numbers, or arrays of several nets."""

    threshold: float
    ceiling: float | None
    weight_variance: float
    bias_variance: float


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A net to be trained.

    Attributes:
        sparsity: the share of zeros at the start; None: ReLU.
        slope: V'; None: no ceiling.
        start: what follows from them.
    """

    sparsity: float | None
    slope: float | None
    start: Start

    @property
    def name(self) -> str:
        """As files and lines of progress call it."""
        if self.sparsity is None:
            return "relu"
        ceiling = "no-ceiling" if self.slope is None else f"slope-{self.slope:g}"
        return f"sparsity-{self.sparsity:g}-{ceiling}"


def configurations(settings: Settings) -> list[Configuration]:
    """ReLU, then every share of zeros without a ceiling, then with that of each slope.

    Raises:
        UserError: if one of them has no critical start.
    """
    found = [Configuration(None, None, Start(0.0, None, 2.0, 0.0))]
    for slope in (None, *settings.slope):
        found += [Configuration(s, slope, _critical(s, slope)) for s in settings.sparsity]
    return found


def _critical(sparsity: float, slope: float | None) -> Start:
    from jaxtrelu import theory

    try:
        found = theory.critical_init(sparsity, slope=slope)
    except ValueError as error:
        raise UserError(f"--sparsity {sparsity:g} has no critical start: {error}") from None
    ceiling = None if found.ceiling is None else float(found.ceiling)
    return Start(
        float(found.threshold), ceiling, float(found.weight_variance), float(found.bias_variance)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every setting. What is not given is None: `from_arguments` fills it in."""

    def add(name: str, kind: type, text: str, low: float, high: float) -> None:
        shown = _DEFAULTS[name]
        add_number(
            parser,
            f"--{name.replace('_', '-')}",
            kind,
            None,
            text,
            low=low,
            high=high,
            shown=shown,
        )

    def add_several(name: str, text: str, low: float, high: float, kind: type[Number]) -> None:
        shown = " ".join(map(str, _DEFAULTS[name]))
        parser.add_argument(
            f"--{name}",
            type=kind(f"--{name}", float, low, high),
            nargs="+",
            metavar="X",
            help=f"{text} (default: {shown})",
        )

    add("depth", int, "hidden layers", 2, 1_000)
    add("width", int, "units of each", 2, 8_192)
    add_several("sparsity", "shares of zeros at the start, from 0.5", 0.5, 0.99, Number)
    text = "V' of the nets with a ceiling, smaller: more stable; the word none: no such nets"
    add_several("slope", text, 0.05, 0.95, _NumberOrNone)
    add("seeds", int, "splits and initialisations of each net", 1, 64)
    add("epochs", int, "passes over the training rows; 0: only measure the start", 0, 10_000)
    add("batch", int, "rows of a training step", 1, 65_536)
    parser.add_argument(
        "--optimiser",
        choices=OPTIMISERS,
        help="adam: the gradient clipped to norm 1; sgd: gradient descent, as published, with "
        "momentum .9, which needs many more epochs (default: adam)",
    )
    add("learning_rate", float, "of the optimiser, after a warm-up", 1e-8, 10.0)
    add("seed", int, "seed of splits, initial weights and batches", 0, 2**32 - 1)
    add("together", int, "configurations in one program, more for a GPU", 1, 256)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small nets, for a run of a minute at most; options that are given are kept",
    )


def from_arguments(args: argparse.Namespace) -> Settings:
    """The settings that the options say."""
    defaults = _DEFAULTS | (_QUICK if args.quick else {})
    fields = {name: getattr(args, name) for name in defaults}
    fields |= {name: defaults[name] for name, value in fields.items() if value is None}
    for name in ("sparsity", "slope"):
        fields[name] = tuple(v for v in dict.fromkeys(fields[name]) if v is not None)
    return Settings(**fields)


def command(settings: Settings, data: str) -> str:
    """What is typed to have the same figures again, wherever they go."""
    words = ["jaxtrelu", "depth"] + (["--data", data] if data != datasets.DEFAULT else [])
    for name, value in dataclasses.asdict(settings).items():
        default = _DEFAULTS[name]
        several = isinstance(default, list)
        if value != (tuple(default) if several else default):
            told = (value or ["none"]) if several else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, told)]
    return shlex.join(words)


def check_size(settings: Settings, count: int, data: Dataset) -> None:
    """Refuses what would fill the memory or run for weeks. Raises UserError."""
    rows, inputs = data.features.shape
    weights = settings.width * (inputs + settings.depth * settings.width + data.classes)
    nets = settings.seeds * min(settings.together, count)
    # Parameters, their gradient and Adam's two moments; the outputs of the layers.
    each = 4 * 4 * weights + 8 * settings.batch * settings.width * settings.depth
    if nets * each > _MAX_BYTES:
        raise UserError(
            f"{nets} nets of width {settings.width} and depth {settings.depth} at once would need "
            f"about {nets * each / 1e9:.0f} GB (limit {_MAX_BYTES / 1e9:.0f}): lower --together, "
            "--seeds, --width, --depth or --batch."
        )
    operations = 6.0 * weights * rows * settings.epochs * settings.seeds * count
    if operations > _MAX_OPERATIONS:
        raise UserError(
            f"this would take about {operations:.0e} operations (limit {_MAX_OPERATIONS:.0e}): "
            "lower --epochs, --width, --depth or --seeds."
        )
