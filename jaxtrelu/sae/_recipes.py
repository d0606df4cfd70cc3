"""The published recipes for training sparse autoencoders with JumpReLU, as plain data.

A recipe is a frozen dataclass; change one with `dataclasses.replace`. Every length in it
(bandwidth, initial threshold) is in units of the *scaled* inputs, and each says how it scales them.
"""

import dataclasses
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import optax

from jaxtrelu._surrogates import Rectangle, Surrogate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about training a sparse autoencoder that is not its size or its data.

    Args:
      name: how the recipe is called in tables.
      surrogate: the surrogate gradient; its bandwidth is in units of the scaled inputs.
      initial_threshold: every threshold at the start, in units of the scaled inputs.
      input_scaling: "unit_mean_square" scales inputs to a mean squared norm of 1,
        "sqrt_dimension" to a mean norm of √d; a number, to that mean norm. Adam moves thresholds
        and biases by the learning rate whatever the scale, so the larger it is the slower they are
        beside the weights: a mean norm of √L0 gives features values near 1.
      penalty: "l0" is λ Σ H(π − θ); "tanh" is λ Σ tanh(c f ‖d‖), f the feature's value, ‖d‖ the
        norm of its decoder row; "quadratic_l0" is λ (mean L0 / target − 1)², whose target is that
        of the run.
      tanh_scale: c above.
      pre_activation_penalty: λ_P of λ_P Σ max(θ − π, 0) ‖d‖, which revives dead features; 0: none.
      resample_every: steps, or a fraction of the run if at most 1, after which features that were
        open in no batch since are started again; 0: never. See `revived`.
      resample_until: the fraction of the run after which none is started again.
      resample_from: where they start: "examples" (as published) or "residuals", what the model
        leaves of an example; see `revived`.
      unit_norm_decoder: whether decoder rows are kept at norm 1, with the part of their gradient
        that is parallel to them projected out.
      initialisation: "tied_unit" draws decoder rows of unit norm and sets the encoder to the same
        (for a transcoder, to other ones, drawn so, too: `initial_weights`), times `initial_norm`;
        "uniform" draws them from U(−1/√d, 1/√d), sets the encoder to d/m of that, and the encoder
        bias so that each of the m features is open for the share 10,000/m of a sample of the data
        (for half of it, where 10,000/m is more than that).
      initial_norm: the norm of encoder rows at the start, with "tied_unit", and of decoder rows
        where theirs is free; small, features are closed until they have learned a direction.
      coefficient: λ, if it is not steered to a target.
      coefficient_warmup: steps over which λ ramps up from 0; a fraction of the run if at most 1.
      steer_from: the fraction of the run from which λ is steered, where there is a target; before,
        λ ramps up. 0: steered throughout, to an L0 that falls to the target in the ramp's time.
        Refused without a target, and with the penalty "quadratic_l0": there it has no effect.
      learning_rate, adam_b1, adam_b2, adam_eps: of Adam.
      learning_rate_warmup: steps of cosine warm-up from a tenth of the learning rate.
      learning_rate_decay: the last fraction of the run, in which the rate falls linearly to 0.
      clip_norm: largest global norm of the gradient; None: no clipping.
      batch_size: examples in a step.

    Raises:
      TypeError: a field is of another kind, such as a text where a number should be.
      ValueError: a field is a number or a name that it cannot be, or has no effect beside another.
    """

    name: str
    surrogate: Surrogate
    initial_threshold: float
    input_scaling: Literal["unit_mean_square", "sqrt_dimension"] | float
    penalty: Literal["l0", "tanh", "quadratic_l0"]
    tanh_scale: float = 4.0
    pre_activation_penalty: float = 0.0
    unit_norm_decoder: bool = True
    initialisation: Literal["tied_unit", "uniform"] = "tied_unit"
    coefficient: float = 1e-3
    coefficient_warmup: float = 10_000
    learning_rate: float = 7e-5
    adam_b1: float = 0.0
    adam_b2: float = 0.999
    adam_eps: float = 1e-8
    learning_rate_warmup: int = 1000
    learning_rate_decay: float = 0.0
    clip_norm: float | None = None
    batch_size: int = 4096
    resample_every: float = 0.0
    resample_until: float = 0.5
    resample_from: Literal["examples", "residuals"] = "examples"
    initial_norm: float = 1.0
    steer_from: float = 0.0

    def __post_init__(self) -> None:
        for field, rule in _NUMBERS.items():
            _check_number(field, getattr(self, field), *rule)
            object.__setattr__(self, field, plain(getattr(self, field)))
        for field, known in _CHOICES.items():
            value = getattr(self, field)
            if not isinstance(value, str) or value not in known:
                named = " or ".join(f'"{name}"' for name in known)
                raise ValueError(f"`{field}` of a recipe should be {_but(named, value)}")
        if not isinstance(self.name, str):
            raise TypeError(f"`name` of a recipe should be {_but('a text', self.name)}")
        if not isinstance(self.unit_norm_decoder, bool):
            raise TypeError(
                "`unit_norm_decoder` of a recipe should be "
                f"{_but('True or False', self.unit_norm_decoder)}"
            )
        if not _is_scaling(self.input_scaling):
            wanted = '"unit_mean_square", "sqrt_dimension" or a mean norm greater than 0'
            raise ValueError(
                f"`input_scaling` of a recipe should be {_but(wanted, self.input_scaling)}"
            )
        if not isinstance(self.input_scaling, str):
            object.__setattr__(self, "input_scaling", plain(self.input_scaling))
        if not isinstance(self.surrogate, Surrogate):
            wanted = "a surrogate such as jaxtrelu.Rectangle(0.05)"
            raise TypeError(
                f"`surrogate` of a recipe should be {_but(wanted, self.surrogate)[:-1]}: without "
                "one the thresholds would not learn."
            )
        if self.initial_norm != 1 and self.initialisation != "tied_unit":
            raise ValueError(
                '`initial_norm` of a recipe is for the initialisation "tied_unit", and this one is '
                f"{self.initialisation!r}. Leave it out."
            )
        if self.steer_from and self.penalty == "quadratic_l0":
            raise ValueError(
                "`steer_from` of a recipe is for a λ that is steered, and with the penalty "
                '"quadratic_l0" it is not. Leave it out.'
            )

    def learning_rate_schedule(self, steps: int) -> optax.Schedule:
        """The learning rate at each of `steps` steps: cosine warm-up, constant, linear decay."""
        warmup = min(self.learning_rate_warmup, steps // 2)
        decay = int(self.learning_rate_decay * steps)
        pieces = [optax.constant_schedule(self.learning_rate)]
        borders = []
        if warmup:
            rise = optax.cosine_decay_schedule(1.0, warmup)
            low = 0.1 * self.learning_rate
            high = self.learning_rate
            pieces.insert(0, lambda step: high - (high - low) * rise(step))
            borders.append(warmup)
        if decay:
            pieces.append(optax.linear_schedule(self.learning_rate, 0.0, decay))
            borders.append(steps - decay)
        return optax.join_schedules(pieces, borders)

    def warmup_steps(self, steps: int) -> int:
        """Over how many of `steps` steps λ ramps up."""
        ramp = self.coefficient_warmup
        return int(ramp * steps if ramp <= 1 else min(ramp, steps))

    def coefficient_schedule(self, steps: int) -> optax.Schedule:
        """The coefficient λ at each of `steps` steps, where it is not steered: a linear ramp."""
        ramp = self.warmup_steps(steps)
        if not ramp:
            return optax.constant_schedule(self.coefficient)
        return optax.linear_schedule(0.0, self.coefficient, ramp)

    def resampling_steps(self, steps: int) -> int:
        """After how many of `steps` steps silent features are started again; 0: never."""
        every = self.resample_every
        return max(1, int(every * steps) if every <= 1 else int(every)) if every else 0

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Adam as the recipe has it, for a run of `steps` steps."""
        rate = self.learning_rate_schedule(steps)
        adam = optax.adam(rate, self.adam_b1, self.adam_b2, self.adam_eps)
        if self.clip_norm is None:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adam)


# What each number of a recipe should be: in words, and as a test.
_POSITIVE = "greater than 0", lambda value: 0 < value < math.inf
_NOT_NEGATIVE = "at least 0", lambda value: 0 <= value < math.inf
_DECAY = "at least 0 and less than 1", lambda value: 0 <= value < 1
_STEPS_OR_FRACTION = (
    "a number of steps, a fraction of the run (at most 1), or 0",
    lambda value: 0 <= value <= 1 or 2 <= value < math.inf,  # 1.5 would be read as one step
)
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "initial_threshold": (
        "at least 0 (below zero the gate would let negative pre-activations through)",
        _NOT_NEGATIVE[1],
    ),
    "tanh_scale": _POSITIVE,
    "pre_activation_penalty": _NOT_NEGATIVE,
    "coefficient": _POSITIVE,
    "coefficient_warmup": _STEPS_OR_FRACTION,
    "learning_rate": _POSITIVE,
    "adam_b1": _DECAY,
    "adam_b2": _DECAY,
    "adam_eps": _POSITIVE,
    "learning_rate_warmup": (
        "a whole number of steps, at least 0",
        lambda value: isinstance(value, Integral) and int(value) >= 0,
    ),
    "learning_rate_decay": (
        "a fraction of the run, at least 0 and at most 1", lambda value: 0 <= value <= 1,
    ),
    "clip_norm": ("greater than 0, or None", _POSITIVE[1]),
    "batch_size": (
        "a whole number greater than 0",
        lambda value: isinstance(value, Integral) and int(value) > 0,
    ),
    "resample_every": _STEPS_OR_FRACTION,
    "resample_until": (
        "a fraction of the run, greater than 0 and at most 1", lambda value: 0 < value <= 1,
    ),
    "initial_norm": _POSITIVE,
    "steer_from": (
        "a fraction of the run, at least 0 and less than 1", lambda value: 0 <= value < 1,
    ),
}  # fmt: skip
_CHOICES = {
    "penalty": ("l0", "tanh", "quadratic_l0"),
    "initialisation": ("tied_unit", "uniform"),
    "resample_from": ("examples", "residuals"),
}


def plain(number: Any) -> Any:
    """A number of Python's own kinds, which files and checkpoints hold, or None."""
    if number is None:
        return None
    return int(number) if isinstance(number, Integral) else float(number)


def _check_number(field: str, value: Any, words: str, is_good: Callable[[Any], bool]) -> None:
    """Raises TypeError where a field is no number, and ValueError where it is another one."""
    if value is None and field == "clip_norm":
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        wanted = words if words.startswith("a ") else f"a number {words}"
        raise TypeError(f"`{field}` of a recipe should be {_but(wanted, value)}")
    if not is_good(value):
        raise ValueError(f"`{field}` of a recipe should be {_but(words, value)}")


def _but(wanted: str, value: Any) -> str:
    """The end of a sentence on what a field should be and is."""
    return f"{wanted}, but is {value!r:.80}."


def _is_scaling(value: Any) -> bool:
    """Whether inputs can be scaled so: to a norm that has a name here, or to a number."""
    if isinstance(value, str):
        return value in ("unit_mean_square", "sqrt_dimension")
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def gemma_scope() -> Recipe:
    """The recipe of Rajamanoharan et al. 2024 (arXiv 2407.14435) and Gemma Scope (2408.05147).

    Inputs scaled to a mean squared norm of 1; bandwidth and initial threshold 0.001 in those units;
    the L0 penalty λ Σ H(π − θ), its estimate sent to the threshold only; decoder rows of unit norm,
    the encoder equal to the decoder at the start; Adam(0, 0.999) at 7e-5 with 1000 steps of cosine
    warm-up; λ ramped over 10,000 steps; batches of 4096. One thing differs on purpose: thresholds
    are trained themselves and not as logarithms, under which Adam moves them by θ · learning rate a
    step and hence hardly at all (SAELens#494).

    Returns:
      A `Recipe`.

    >>> gemma_scope().surrogate
    Rectangle(bandwidth=0.001, to_input=False)
    """
    return Recipe("gemma_scope", Rectangle(1e-3), 1e-3, "unit_mean_square", "l0")


def gemma_scope_2() -> Recipe:
    """The first recipe with the penalty of Gemma Scope 2: quadratic in L0, about a target.

    The penalty is λ (L0 / target − 1)², L0 the mean over a batch, in place of λ · L0: it needs the
    run's target, and nothing else steers λ. L0 comes to lie above its target, by the more the
    smaller λ is. All else is `gemma_scope`; λ = 10 is this library's choice.

    Returns:
      A `Recipe`.

    >>> gemma_scope_2().penalty
    'quadratic_l0'

    Source: the technical paper of Gemma Scope 2 (Google DeepMind, 2025).
    """
    return dataclasses.replace(
        gemma_scope(), name="gemma_scope_2", penalty="quadratic_l0", coefficient=10.0
    )


def anthropic_2025() -> Recipe:
    """The recipe of Anthropic's January 2025 circuits update.

    Inputs scaled to a mean norm of √d; bandwidth 2, initial threshold 0.1 in those units; the
    estimate also flows to the pre-activations; λ_S Σ tanh(4 f ‖d‖) with λ_S = 10 ramped over the
    whole run, and 3e-6 Σ max(θ − π, 0) ‖d‖ against dead features; decoder norms free; Adam at 2e-4,
    falling to 0 over the last fifth, gradients clipped to norm 1. Thresholds are trained themselves
    here and as logarithms there.

    Returns:
      A `Recipe`.

    >>> anthropic_2025().surrogate
    Rectangle(bandwidth=2.0, to_input=True)

    Source: transformer-circuits.pub/2025/january-update.
    """
    return Recipe(
        "anthropic_2025",
        Rectangle(2.0, to_input=True),
        0.1,
        "sqrt_dimension",
        "tanh",
        pre_activation_penalty=3e-6,
        unit_norm_decoder=False,
        initialisation="uniform",
        coefficient=10.0,
        coefficient_warmup=1.0,
        learning_rate=2e-4,
        adam_b1=0.9,
        learning_rate_warmup=0,
        learning_rate_decay=0.2,
        clip_norm=1.0,
    )


def short_run() -> Recipe:
    """The first recipe scaled to runs of a few thousand steps on small data; not a published one.

    Against `gemma_scope`: inputs scaled to a mean norm of √d, so that pre-activations, biases and
    thresholds are of order 1 and Adam's steps suit all parameters alike; bandwidth 0.5 and initial
    threshold 1 in those units; Adam(0.9, 0.999) at 0.004 with 100 steps of warm-up, falling to 0
    over the last fifth; batches of 512; no ramp of λ, which a short run has no time for.

    Returns:
      A `Recipe`.

    >>> short_run().input_scaling
    'sqrt_dimension'
    """
    return Recipe(
        "short_run",
        Rectangle(0.5),
        1.0,
        "sqrt_dimension",
        "l0",
        coefficient=1.0,
        coefficient_warmup=0,
        learning_rate=4e-3,
        adam_b1=0.9,
        learning_rate_warmup=100,
        learning_rate_decay=0.2,
        batch_size=512,
    )


def frequent_resampling(l0: float, *, coefficient: float = 0.1) -> Recipe:
    """`short_run` with small norms at the start and neuron resampling, often; not a published one.

    Against `short_run`: inputs scaled to a mean norm of √L0, so that single features have values
    near 1; encoder rows of norm .1 at the start and free decoder rows; bandwidth and first
    thresholds .1; λ ramps up over .8 of the run and is steered to the L0 from half of it; silent
    features start again at residuals, every eightieth of the run until .9 of it; gradients clipped
    to norm 1; no warm-up of the learning rate.

    When to take it: data that are sums of a few sparse directions, runs of 2,000 steps and more. In
    synthetic worlds with twice as many planted directions as features it finds more of them than
    SAELens does. When not: on image patches it explains no more variance than `short_run`, and less
    where λ is off. Nor was it tried with skip connections.

    Args:
      l0: the mean number of open features that the run is to be steered to.
      coefficient: λ at the end of its ramp. Where it is steered first, after five eighths of the
        ramp, it should be near the one that the L0 needs, or L0 comes late: a first run ends with
        that one, `model.about["training"]["coefficient"]`, of which 1.6 times are to be passed.

    Returns:
      A `Recipe`.

    Raises:
      TypeError: `l0` or `coefficient` is no number.
      ValueError: one of them is not greater than 0.

    >>> frequent_resampling(16).input_scaling
    4.0

    Source: neuron resampling is that of Bricken et al. 2023; what each part is worth is in
    docs/design/autoencoders.md.
    """
    _check_number("l0", l0, *_POSITIVE)
    return dataclasses.replace(
        short_run(),
        name="frequent_resampling",
        surrogate=Rectangle(0.1),
        initial_threshold=0.1,
        input_scaling=math.sqrt(l0),
        unit_norm_decoder=False,
        coefficient=coefficient,
        coefficient_warmup=0.8,
        learning_rate_warmup=0,
        clip_norm=1.0,
        resample_every=0.0125,
        resample_until=0.9,
        resample_from="residuals",
        initial_norm=0.1,
        steer_from=0.5,
    )
