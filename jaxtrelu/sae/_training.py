"""A training run: a loop that can be killed at any moment.

Everything that a run depends on is in its `Settings`, its rows and its `TrainState`; the state is
checkpointed, and batches are a function of the step's number. So a run that is resumed goes on bit
for bit as if it had not been stopped (on the same machine, with the same versions).
"""

import contextlib
import math
import os
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxtrelu.sae._checkpoints import Checkpoints
from jaxtrelu.sae._devices import Devices
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._processes import Processes
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import Rows, Statistics
from jaxtrelu.sae._settings import Settings, flag, identity_of
from jaxtrelu.sae._start import Start
from jaxtrelu.sae._step import TrainState, initial_state, measure, revive, revives_after, train_step
from jaxtrelu.sae._warn import warn
from jaxtrelu.sae._weights import Weights, input_scale

#: The columns of `Result.history`. Thresholds are given by their quantiles; silent_share is the
#: share of features that are open nowhere in one batch, which few would be called dead for.
HISTORY = (
    "step", "l0", "reconstruction", "coefficient", "silent_share", "window_share",
    "threshold_distance", "threshold_05", "threshold_25", "threshold_50", "threshold_75",
    "threshold_95",
)  # fmt: skip
# What is said at the end: of an L0 that is further from its target than this, and of thresholds
# that moved by less than this part of the bandwidth, in as many steps or more.
_L0_TOLERANCE, _STILL, _LONG_ENOUGH = 0.15, 0.02, 200
_OFF_CENTRE = 3.0  # docs/autoencoders.md has what was measured


def run(
    rows: Rows,
    settings: Settings,
    *,
    start: Start | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    fresh: bool = False,
    mesh: Mesh | None = None,
    on_read: Callable[[int], None] | None = None,
    on_step: Callable[[int, dict[str, float] | None], None] | None = None,
) -> Result:
    """A training run, from its settings: what `train` is made of.

    Args:
      rows: the examples, unscaled; with their targets, where `train` has any. All are read once
        before the start, to be checked and measured, which several processes share.
      settings: size, length and recipe.
      start: what to begin with, which `train` takes from a model; None: as the recipe says.
      checkpoint_folder: where to keep checkpoints, and to look for one to resume from. The newest
        intact one is taken, and a warning names each that is damaged. One of a run of fewer steps
        is taken up, too, where all else agrees: the run is extended, and goes on with the schedules
        of its new length.
      checkpoint_every: steps between two checkpoints.
      fresh: whether to remove the checkpoints in the folder first, whatever run they are of.
      mesh: the devices to train on, with the axes "examples", "features" or both, automatic ones;
        of several processes, too, each of which calls this with the same arguments, on one folder
        of checkpoints. Each then reads the rows and writes the part of a checkpoint that its own
        devices hold (docs/many_processes.md). A checkpoint goes on with any mesh. None: one device.
      on_read: called while the rows are checked, with the number of rows since the last call.
      on_step: called after every step with the number of steps done, and with a row of the history
        where one was taken (else None).

    Returns:
      A `Result`. A warning says where it ended far from the L0 that was asked for, with a negative
      explained variance, or with thresholds that hardly moved.

    Raises:
      ValueError: rows that are not finite or all the same; a skip connection without targets; a
        batch or a dictionary that the mesh
        cannot share equally; a checkpoint of another run (the message
        says what differs, and nothing is overwritten); a folder that another run writes to.
      FloatingPointError: the loss is not finite any more; the message says at which step.
      MemoryError: the run would need more memory than is free.
      OSError: checkpoints cannot be written.
    """
    check_interval(checkpoint_every)
    fresh = flag(fresh, "fresh")
    check_skip(settings, rows)
    check_memory(settings, rows)
    size = settings.recipe.batch_size
    rows.check_batch(size)
    devices = Devices(mesh)
    devices.check(size, settings.features)
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoint_folder is not None:
            # Locked, and tried by writing, before the data are read, which can take long.
            store = stack.enter_context(Checkpoints(checkpoint_folder, devices.processes))
        found = checked_statistics(rows, on_read, devices.processes)
        if store is not None:
            if fresh:
                store.clear()
            store.identity = identity_of(settings, rows, found[0].fingerprint)
            if start is not None:
                store.identity = {**store.identity, "start": start.fingerprint()}
        return _run(rows, settings, found, start, store, devices, checkpoint_every, on_step)


def check_skip(settings: Settings, rows: Rows) -> None:
    """Raises ValueError where a skip connection would pass the features by."""
    if settings.skip and not isinstance(rows, Pairs):
        raise ValueError(
            "`skip` is for a transcoder: in an autoencoder, what passes the features by would be "
            "the rows themselves. Pass `targets`, or leave it out."
        )


def scales_of(found: list[Statistics], rows: Rows, recipe: Recipe) -> tuple[float, float]:
    """What inputs are multiplied with, and what is to be reconstructed: the same number for one."""
    scales = [
        input_scale(f.mean_norm, f.mean_square_norm, part.array.shape[1], recipe)
        for f, part in zip(found, rows._parts, strict=True)
    ]
    return scales[0], scales[-1]


def off_centre(found: list[Statistics], rows: Rows) -> list[str]:
    """Sentences on parts whose mean is far from 0, beside how far rows are from it."""
    sentences = []
    for part, f in zip(rows._parts, found, strict=True):
        ratio = math.sqrt(max(0.0, f.mean_square_norm - f.variance) / f.variance)
        if ratio > _OFF_CENTRE:
            sentences.append(
                f"{part.name} lies off centre: the norm of the mean is {ratio:.3g} times the root "
                "mean square distance from it, and features are found badly where that is more "
                f"than about {_OFF_CENTRE:g}. Subtract the mean from all rows (array - "
                "array.mean(axis=0)), here and wherever the model is used."
            )
    return sentences


def check_interval(checkpoint_every: int) -> None:
    """Raises where that is no number of steps."""
    whole = isinstance(checkpoint_every, Integral) and not isinstance(checkpoint_every, bool)
    if not whole or checkpoint_every < 1:
        raise ValueError(
            f"`checkpoint_every` should be a whole number ≥ 1, but is {checkpoint_every!r}."
        )


def checked_statistics(
    rows: Rows, on_read: Callable[[int], None] | None, processes: Processes | None = None
) -> list[Statistics]:
    """What a pass over the rows finds, shared among the processes: of them, and of targets.

    Raises ValueError where there is no variance.
    """
    statistics = rows._statistics(processes or Processes(), on_read)
    for part, found in zip(rows._parts, statistics, strict=True):
        if not found.variance > 1e-12 * found.mean_square_norm:
            what = "one row only" if rows.training_rows == 1 else "the same values in all rows"
            raise ValueError(f"{part.name} has {what}: there is no variance to reconstruct.")
    return statistics


def _run(
    rows: Rows,
    settings: Settings,
    found: list[Statistics],
    start: Start | None,
    store: Checkpoints | None,
    devices: Devices,
    checkpoint_every: int,
    on_step: Callable[[int, dict[str, float] | None], None] | None,
) -> Result:
    size = settings.recipe.batch_size
    scale, output_scale = scales_of(found, rows, settings.recipe)
    probe, wanted = rows.split(devices.batch(rows, 0, size))
    probe = probe * np.float32(scale)
    if wanted is not None:
        wanted = wanted * np.float32(output_scale)
    weights: Weights | None = None
    skip: np.ndarray | None = None
    start_threshold: jax.Array | float = settings.recipe.initial_threshold
    if start is not None:
        unit_norm = settings.recipe.unit_norm_decoder
        weights = start.scaled(scale, output_scale, unit_norm=unit_norm)
        skip = start.scaled_skip(scale, output_scale)
        start_threshold = jnp.asarray(weights.threshold)
    elif devices.processes.first:
        for sentence in off_centre(found, rows):
            warn(sentence)
    given = probe, weights, wanted, skip

    def check_loss(step: int, loss: Any) -> None:
        # That of the weights before the step: of step 1, of those at the start.
        at_first = not_finite_at_first(settings.recipe, scale, start)
        _check_finite(loss, at_first if step == 1 else _not_finite_at(step))

    def first(given):
        return initial_state(settings, *given)

    shapes = devices.shapes(first, given, settings.features)
    state: TrainState | None = None
    variance = found[-1].variance * output_scale**2
    history = np.zeros((0, len(HISTORY)))
    if store is not None:
        restored, skipped = store.restore((shapes, history))
        if restored is not None:
            state, history = restored
        for sentence in skipped if devices.processes.first else []:
            warn(sentence)
    if state is None:
        state = devices.made(first, given, shapes)
    resumed_from = int(state.step)
    before: tuple[int, Any] | None = None
    for step in range(resumed_from, settings.steps):
        x, y = rows.split(devices.batch(rows, step, size))
        state, terms = train_step(state, x, scale, settings, y, output_scale)
        # Looked at one step late, when it is there anyway: asking now would stop the pipeline.
        if before is not None:
            check_loss(*before)
        before = step + 1, terms.reconstruction
        if revives_after(step + 1, settings):
            state = revive(state, x, scale, settings, y, output_scale)
        entry = None
        last = step + 1 == settings.steps
        if (step + 1) % settings.log_every == 0 or last:
            check_loss(*before)
            seen = measure(state.weights, probe, start_threshold, settings.recipe.surrogate)
            fixed: list[Any] = [step + 1, terms.l0, terms.reconstruction / variance]
            fixed += [state.controller.coefficient, *seen]
            history = np.concatenate([history, [[float(v) for v in fixed]]])
            entry = dict(zip(HISTORY, history[-1].tolist(), strict=True))
        if last or (store is not None and (step + 1) % checkpoint_every == 0):
            # Weights of after the step, which its loss says nothing about.
            check_loss(*before)
            parameters = state.weights, state.skip
            _check_finite(_size_of(parameters), _not_finite_at(step + 1))
            if store is not None:
                state = devices.placed(state, shapes)
                store.save(step + 1, (state, history))
        if on_step:
            on_step(step + 1, entry)
    columns = dict(zip(HISTORY, history.T, strict=True))
    for sentence in shortcomings(columns, settings, settings.target_l0):
        if devices.processes.first:
            warn(sentence)
    ended, passed = devices.whole((state.weights, state.skip))
    return Result(ended, scale, columns, resumed_from, found[0].fingerprint, output_scale, passed)


def shortcomings(
    history: dict[str, np.ndarray], settings: Settings, target: float | None
) -> list[str]:
    """Sentences on what a run did not reach, from the columns of its history."""
    found = []
    l0 = float(history["l0"][-5:].mean())
    if target is not None and not abs(l0 / target - 1) <= _L0_TOLERANCE:
        if settings.recipe.penalty == "quadratic_l0":
            advice = "a larger coefficient brings it nearer"
        else:
            first, last = settings.recipe.coefficient, float(history["coefficient"][-1])
            advice = (
                "pass more steps, or a larger learning rate, or a coefficient nearer to the one "
                f"that this L0 needs (λ began at {first:.2g} and ended at {last:.2g})"
            )
        found.append(
            f"L0 is {l0:.3g} at the end of the run, and {target:.3g} was asked for: {advice}."
        )
    lost = float(history["reconstruction"][-5:].mean())
    if lost > 1:
        found.append(
            f"the explained variance is {1 - lost:.2g} at the end of the run, which is below 0: "
            "the mean of what is reconstructed would do better. Pass more steps, a larger L0, "
            "or another learning rate."
        )
    moved, reach = float(history["threshold_distance"][-1]), settings.recipe.surrogate.bandwidth
    if settings.steps >= _LONG_ENOUGH and moved < _STILL * reach:
        hits = float(history["window_share"][-5:].mean()) * settings.recipe.batch_size
        found.append(
            f"the thresholds moved by {moved:.2g} on average, which is little beside the bandwidth "
            f"of {reach:.2g}: {hits:.2g} entries per feature and batch lie in the surrogate's "
            "window, and below about 1 nothing is learned. Pass a larger bandwidth, or larger "
            "batches."
        )
    return found


def _check_finite(value: Any, sentence: str) -> None:
    if not math.isfinite(float(value)):
        raise FloatingPointError(sentence)


@jax.jit
def _size_of(parameters: Any) -> Array:
    """The sum of all magnitudes, which is finite only where all are."""
    return sum((jnp.sum(jnp.abs(v)) for v in jax.tree.leaves(parameters)), jnp.zeros(()))


def _not_finite_at(step: int) -> str:
    return (
        f"the loss is not finite any more at step {step}: the run was stopped there. Pass a "
        "smaller learning rate."
    )


def not_finite_at_first(recipe: Recipe, scale: float, start: Start | None) -> str:
    """What is said of a loss that the first weights have, which no learning rate changes."""
    begun = (
        "the loss is not finite at step 1, before anything was learned: with inputs multiplied by "
        f"{scale:.3g}, "
    )
    if start is not None:
        return (
            f"{begun}the weights of `start` give numbers that float32 does not have. Pass a "
            "recipe with another `input_scaling`."
        )
    return (
        f"{begun}encoder rows of norm {recipe.initial_norm:.3g} give numbers that float32 does not "
        "have. Pass a recipe with another `input_scaling` or `initial_norm`."
    )


def memory_needed(settings: Settings, dimension: int, output_dimension: int | None = None) -> int:
    """An estimate of the bytes that a run needs at its fullest.

    Five copies of the weights in a step (themselves, two moments of Adam, gradient and update),
    three in a checkpoint that is being written; and three arrays of the size of the latent.
    """
    to = dimension if output_dimension is None else output_dimension
    weights = 4 * (settings.features * (dimension + to + 2) + to + settings.skip * dimension * to)
    latent = 4 * settings.recipe.batch_size * settings.features
    return 8 * weights + 3 * latent


def memory_free() -> int | None:
    """Bytes of memory that a process can still have, where the system says so (Linux)."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(text.partition("MemAvailable:")[2].split()[0]))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError, IndexError):
        pass  # another system, or one that hides it
    return min(found) if found else None


def check_memory(settings: Settings, rows: Rows, runs: int = 1) -> None:
    """Raises MemoryError where runs need more memory than there is: the kernel would end them."""
    if jax.default_backend() != "cpu":
        return
    needed = runs * memory_needed(settings, rows.dimension, rows.output_dimension)
    free = memory_free()
    if free is not None and needed > free:
        what = "a run" if runs == 1 else f"a sweep of {runs} runs"
        raise MemoryError(
            f"{what} with {settings.features:,} features of dimension {rows.dimension:,} in "
            f"batches of {settings.recipe.batch_size:,} needs about {needed / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are free. Pass fewer features, or a smaller batch "
            "size."
        )
