#!/usr/bin/env python
"""Whole training runs on image patches: products that skip the zeros against dense ones.

suites:
  default    what `python -m jaxtrelu sae` does by itself: 12 x 12 pixels, 256 features, L0 10
  wide       12 x 12 pixels, 4,096 features, L0 16
  wider      16 x 16 pixels, 8,192 features, L0 32
  widest     28 x 28 pixels, 16,384 features, L0 64

Runs of `jaxtrelu.sae.run` differ in `Settings.sparse` and `Settings.screen` alone: data, batches,
recipe, first weights and controller are the same. They take turns, a chunk of steps each, and each
one's clock runs in its own turns: statistics of the data, compilation, steps, history, all of it.
Reported are

  whole run     seconds
  curves        differences of the loss curves (the recipe's loss, λ times L0 included, of one batch
                in ten) from the dense one, relative to it: the largest, the median, and the step
                up to which none exceeds 1e-3
  late step     a step with the weights that the dense run came to, in turns

ratio is the time relative to dense, so below 1 is faster. "plain" is the same step without this
library: `jnp.where`, a gradient written by hand, and the same Adam. It shows that dense is no straw
man. With --control, a third run is the dense one on inputs multiplied by 1 + 2^-20, which their
scaling takes out again but for the rounding: how far a dense run is from itself. Gates that flip on
a rounding error part two runs sooner or later. Huge pages for all or for none:
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/sae_training.py
"""

import dataclasses
import functools
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _harness import Case, Fact, run

from jaxtrelu import sae


class Turns:
    """Threads that work one at a time, each with a clock of its own."""

    def __init__(self, names):
        self.doors = {name: threading.Semaphore(0) for name in names}
        self.seconds = dict.fromkeys(names, 0.0)
        self.results = {}

    def run(self, works):
        """Runs all works, functions of a `pause`; returns {name: (seconds, result)}."""
        threads = [threading.Thread(target=self._work, args=item) for item in works.items()]
        for thread in threads:
            thread.start()
        next(iter(self.doors.values())).release()
        for thread in threads:
            thread.join()
        return {name: (self.seconds[name], self.results[name]) for name in works}

    def _work(self, name, work):
        names = list(self.doors)
        following = self.doors[names[(names.index(name) + 1) % len(names)]]
        self.doors[name].acquire()
        started = time.perf_counter()

        def pause():
            nonlocal started
            self.seconds[name] += time.perf_counter() - started
            following.release()
            self.doors[name].acquire()
            started = time.perf_counter()

        try:
            self.results[name] = work(pause)
        finally:
            self.seconds[name] += time.perf_counter() - started
            following.release()


def whole(rows, settings, pause):
    """One run, which pauses after each row of the history: there the device has been waited for."""
    return sae.run(rows, settings, on_step=lambda step, entry: pause() if entry else None)


def plain_step(settings):
    """A training step in five dense products and `jnp.where`, gradient and all written out."""
    recipe, optimizer = settings.recipe, settings.recipe.optimizer(settings.steps)
    bandwidth = recipe.surrogate.bandwidth

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(w, state, x, scale, coefficient):
        x = x * scale
        z = x @ w.encoder.T + w.encoder_bias
        is_open, inside = z > w.threshold, jnp.abs(z - w.threshold) < bandwidth / 2
        features = jnp.where(is_open, z, 0)
        residual = features @ w.decoder + w.decoder_bias - x
        g = 2 / len(x) * residual
        latent = g @ w.decoder.T
        dz = jnp.where(is_open, latent, 0)
        pull = jnp.where(inside, w.threshold * latent + coefficient / len(x), 0)
        tangent = sae.project_out(features.T @ g, w.decoder)
        gradient = sae.Weights(dz.T @ x, dz.sum(0), -pull.sum(0) / bandwidth, tangent, g.sum(0))
        updates, state = optimizer.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        w = w._replace(threshold=jnp.maximum(w.threshold, 0), decoder=sae.unit_rows(w.decoder))
        return w, state, jnp.sum(residual**2) / len(x)

    return step, optimizer


class Late:
    """A step that feeds itself, from the weights of a finished run; returns ‖x − x̂‖²."""

    def __init__(self, rows, settings, result, plain=False):
        self.x, self.scale, self.settings = (
            rows.batch(0, settings.recipe.batch_size),
            result.scale,
            settings,
        )
        self.coefficient = float(result.history["coefficient"][-1])
        weights = jax.tree.map(jnp.copy, result.weights)
        self.plain = None
        if plain:
            self.plain, optimizer = plain_step(settings)
            self.state = weights, optimizer.init(weights)
            return
        state = sae.initial_state(settings, self.x[:2])
        controller = state.controller._replace(coefficient=jnp.float32(self.coefficient))
        self.state = state._replace(weights=weights, controller=controller)

    def __call__(self):
        """Takes a step."""
        if self.plain:
            *self.state, value = self.plain(*self.state, self.x, self.scale, self.coefficient)
            return value
        self.state, terms = sae.train_step(self.state, self.x, self.scale, self.settings)
        return terms.reconstruction


def suite(args, *, pixels, features, l0, batch, steps, threshold=1.0):
    rows = sae.Rows(sae.image_patches(size=pixels).rows, "the image patches")
    recipe = dataclasses.replace(sae.short_run(), batch_size=batch, initial_threshold=threshold)
    steps = args.steps or steps
    every = max(1, min(50, steps // 20))  # as the command has it
    run_of = functools.partial(sae.Settings, features, steps, recipe, l0, log_every=every)
    settings = {"sparse": run_of(), "dense": run_of(sparse=False)}
    if args.screen:
        settings[args.screen] = run_of(screen=args.screen)
    shape = f"d={rows.dimension}, m={features:,}, L0={l0}, B={batch}, {steps:,} steps"
    runs = {name: functools.partial(whole, rows, s) for name, s in settings.items()}
    if args.control:
        moved = sae.Rows(rows.array * np.float32(1 + 2**-20), "the same, moved")
        runs["dense, inputs moved"] = functools.partial(whole, moved, settings["dense"])
    found = Turns(runs).run(runs)
    for name, (seconds, result) in found.items():
        yield Fact(shape, "whole run", name, seconds, "s", seconds / found["dense"][0])
        for column, unit in (("l0", "open"), ("reconstruction", "of the variance")):
            yield Fact(shape, "came to", name, float(result.history[column][-5:].mean()), unit)
        if name != "dense":
            yield from differences(shape, name, rows, settings["dense"], found["dense"][1], result)
    last = found["dense"][1]
    peers = {name: Late(rows, s, last) for name, s in settings.items()}
    peers["plain"] = Late(rows, settings["dense"], last, plain=True)
    least = limit(rows, settings["dense"])
    yield Case(shape, "late step", peers, "dense", "dense", least, tolerance=1e-3)


def limit(rows, settings):
    """The dense encode, and what Adam moves: reads weights, gradient and moments, writes three."""
    flop = 2 * settings.recipe.batch_size * rows.dimension * settings.features
    moved = 4 * 7 * 2 * rows.dimension * settings.features
    return f"{flop / 1e9:.3g} Gflop + {moved / 1e6:.3g} MB"


def differences(shape, name, rows, settings, dense, other):
    """How far the curve of a run is from that of the dense one, relative to it."""
    probe = rows.batch(0, settings.recipe.batch_size) * np.float32(dense.scale)
    variance = float(np.sum(np.var(probe, axis=0)))

    def loss(history):
        return variance * history["reconstruction"] + history["coefficient"] * history["l0"]

    a, b = loss(dense.history), loss(other.history)
    apart = np.abs(b - a) / a
    if not apart[0] <= 1e-3:
        sys.exit(f"WRONG: {shape}: the first loss of {name} differs by {apart[0]:.2g} from dense")
    together = dense.history["step"][: np.argmax([*(apart > 1e-3), True])]
    yield Fact(shape, "curves, largest", name, float(apart.max()), "")
    yield Fact(shape, "curves, median", name, float(np.median(apart)), "")
    yield Fact(shape, "curves, to 1e-3", name, float(together.max(initial=0)), "steps")


def add_arguments(parser):
    parser.add_argument("--steps", type=int, help="of each run (default: the suite's)")
    parser.add_argument("--screen", choices=("int8", "bfloat16"), help="a run with that, as well")
    parser.add_argument("--control", action="store_true", help="a third run: see above")


SUITES = {
    "default": {"pixels": 12, "features": 256, "l0": 10, "batch": 512, "steps": 2500},
    "wide": {"pixels": 12, "features": 4096, "l0": 16, "batch": 1024, "steps": 4000},
    "wider": {"pixels": 16, "features": 8192, "l0": 32, "batch": 1024, "steps": 600},
    "widest": {"pixels": 28, "features": 16_384, "l0": 64, "batch": 1024, "steps": 150},
}

if __name__ == "__main__":
    suites = {name: functools.partial(suite, **sizes) for name, sizes in SUITES.items()}
    sys.exit(run(__doc__, suites, add_arguments))
