"""A synthetic world: `jaxtrelu.sae` against SAELens on the very same batches, at equal L0.

    python benchmarks/synthetic_world.py [--seeds 0 1 2 3 4] [--steps 2000] [--rows 524288]
        [--scale 1] [--recipes NAME …] [--peer-coefficient λ] [--peer-from PATH] [--json PATH]

The world is `jaxtrelu.sae.SyntheticWorld`: 2,048 planted directions in 256 dimensions (--scale
divides both, and the width), Zipf's law, 32 trees of depth 2 and correlation; autoencoders have
1,024 features. SAELens (`JumpReLUTrainingSAE` in `SAETrainer`) trains at a fixed λ; each of our
recipes is then steered to the L0 that SAELens has on the examples that scores are taken on, which
neither has seen; the few percent by which the steering misses it are made good, on the inputs of
those examples, by one factor for all thresholds. Batches are the same, in the same order, in
float32.

Common to both: Adam(0.9, 0.999), rates that fall to 0 over the last fifth, batches of 512,
gradients clipped to norm 1 (SAELens always does), bandwidths and first thresholds in the units of
the data.
What is tuned was tuned on world 100, at --scale 4 and --scale 1: see docs/design/autoencoders.md.

The recipes are the rows of an ablation: each differs from "jaxtrelu" by what its name says. Scores
are those of `jaxtrelu.sae.synthetic_scores`; `f1_all` counts dead features as 0, as SynthSAEBench
does, where F1 is the mean over living ones. ± is the standard error over worlds, of a difference
that of the paired differences.

Needs torch and `pip install sae-lens==6.*`, of which `--no-deps` is enough; with --peer-from,
neither: SAELens's scores and its L0 are those of an earlier run of the same worlds.
"""

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import _saelens
import jax
import numpy as np
from _harness import write_figures

from jaxtrelu import Gaussian, Rectangle, Surrogate, sae
from jaxtrelu._files import check_file

BATCH = 512
#: Of SAELens; lengths in the units of the data; `ramp`: the fraction of the run in which λ rises.
PEER: dict[str, Any] = {
    "learning_rate": 8e-3,
    "decoder_init_norm": 0.1,
    "jumprelu_init_threshold": 0.1,
    "jumprelu_bandwidth": 0.1,
    "ramp": 0.5,
}
#: In the units of the data; `first`: thresholds at the start; `ramp`: the fraction of the run in
#: which λ rises, and `steer_from` the one from which it is steered; "none": inputs as they are.
OURS: dict[str, Any] = {
    "learning_rate": 4e-3,
    "norm": 0.1,
    "bandwidth": 0.1,
    "first": 0.1,
    "ramp": 0.8,
    "steer_from": 0.5,
    "coefficient": 0.1,
    "resample_every": 0.0125,
    "resample_until": 0.9,
    "resample_from": "residuals",
    "unit_norm_decoder": False,
    "to_input": False,
    "scaling": "none",
    "steered": True,
}
#: What tuning at the full size, --scale 1, changed of it.
PEER_AT_FULL_SIZE: dict[str, Any] = {"learning_rate": 4e-3, "ramp": 0.8}
#: What was "jaxtrelu" before its parts were exchanged with SAELens's one at a time.
BEFORE: dict[str, Any] = {
    "norm": 1.0,
    "ramp": 0.03,
    "steer_from": 0.0,
    "coefficient": 0.05,
    "resample_every": 0.05,
    "resample_until": 0.75,
    "unit_norm_decoder": True,
    "scaling": "sqrt_dimension",
}
#: What tuning at the full size, --scale 1, changed of a row.
FULL_SIZE: dict[str, dict[str, Any]] = {"before": {"learning_rate": 2e-3, "ramp": 0.1}}
#: What each row of the ablation changes.
CHANGES: dict[str, dict[str, Any]] = {
    "jaxtrelu": {},
    # `sae.frequent_resampling`, whose inputs have a mean norm of √L0.
    "by name": {"by_name": True},
    "by name, λ doubled": {"by_name": True, "coefficient": 0.2},
    "by name, λ halved": {"by_name": True, "coefficient": 0.05},
    "no revival": {"resample_every": 0.0},
    "revival at examples": {"resample_from": "examples"},
    "revival to half of run": {"resample_until": 0.5},
    "revival half as often": {"resample_every": 0.025},
    "initial norm .3": {"norm": 0.3},
    "initial norm 1": {"norm": 1.0},
    "decoder norms of 1": {"unit_norm_decoder": True},
    "inputs to mean norm √d": {"scaling": "sqrt_dimension"},
    "inputs to mean square 1": {"scaling": "unit_mean_square"},
    "λ as in SAELens": {"steered": False, "steer_from": 0.0},
    "λ rises over .3": {"ramp": 0.3, "steer_from": 0.3},
    "L0 falls over .1": {"ramp": 0.1, "steer_from": 0.0},
    "L0 falls over .8": {"ramp": 0.8, "steer_from": 0.0},
    "bandwidth doubled": {"bandwidth": 0.2},
    "bandwidth halved": {"bandwidth": 0.05},
    "first threshold .3": {"first": 0.3},
    "estimate to input": {"to_input": True},
    "Gaussian surrogate": {"shape": "gaussian"},
    "rate doubled": {"times": 2.0},
    "rate halved": {"times": 0.5},
    "no decay of the rate": {"decay": 0.0},
    "no clipping": {"clip_norm": None},
    # As it was before its parts were exchanged with SAELens's, one at a time.
    "before": BEFORE,
}


def world_of(seed: int, scale: int) -> sae.SyntheticWorld:
    """The world of a seed, its sizes divided by `scale`."""
    return sae.SyntheticWorld(
        features=2048 // scale, dimension=256 // scale, roots=32 // scale, depth=2, seed=seed
    )


def ours(
    rows: sae.Rows, width: int, steps: int, seed: int, l0: float, scored: np.ndarray, **changes: Any
) -> Any:
    """A model of this library, steered to an L0, which it then has on the inputs `scored`."""
    told = {**OURS, **changes}
    if told.get("by_name"):  # λ, bandwidth and thresholds in units of the scaled inputs
        recipe = sae.frequent_resampling(l0, coefficient=told["coefficient"])
    else:
        recipe = _recipe(rows, told)
    target = l0 if told["steered"] else None
    settings = sae.Settings(width, steps, recipe, target_l0=target, seed=seed, sparse=False)
    result = sae.run(rows, settings)
    weights = _at(result.weights, scored * np.float32(result.scale), l0)
    return sae.Autoencoder(weights, input_scale=result.scale, output_scale=result.scale)


def _recipe(rows: sae.Rows, told: dict[str, Any]) -> sae.Recipe:
    """A recipe, of what is told in the units of the data."""
    seen = rows.statistics()
    norms = seen.mean_norm, seen.mean_square_norm
    scaling = norms[0] if told["scaling"] == "none" else told["scaling"]
    recipe = dataclasses.replace(sae.short_run(), input_scaling=scaling)
    scale = sae.input_scale(*norms, rows.dimension, recipe)
    return dataclasses.replace(
        recipe,
        surrogate=_surrogate(told, scale),
        initial_threshold=told["first"] * scale,
        coefficient=told["coefficient"] * scale**2,
        coefficient_warmup=told["ramp"],
        learning_rate=told["learning_rate"] * told.get("times", 1.0),
        learning_rate_warmup=0,
        learning_rate_decay=told.get("decay", 0.2),
        clip_norm=told.get("clip_norm", 1.0),
        batch_size=BATCH,
        resample_every=told["resample_every"],
        resample_until=told["resample_until"],
        resample_from=told["resample_from"],
        unit_norm_decoder=told["unit_norm_decoder"],
        initial_norm=told["norm"],
        steer_from=told["steer_from"],
    )


def _at(weights: sae.Weights, x: np.ndarray, l0: float) -> sae.Weights:
    """The weights with all thresholds times one number, so that L0 on x is exactly that."""
    pi = x @ np.asarray(weights.encoder).T + np.asarray(weights.encoder_bias)
    threshold, low, high = np.asarray(weights.threshold), 0.5, 2.0
    for _ in range(16):
        middle = (low * high) ** 0.5
        opened = np.count_nonzero(pi > middle * threshold) / len(x)
        low, high = (middle, high) if opened > l0 else (low, middle)
    return weights._replace(threshold=jax.numpy.asarray(threshold * middle))


def scored_inputs(world: sae.SyntheticWorld, key: jax.Array) -> np.ndarray:
    """The inputs, without what is planted in them, that `synthetic_scores` draws from a key."""
    blocks = (world.sample(jax.random.fold_in(key, block), 1024)[0] for block in range(16))
    return np.concatenate([np.asarray(x) for x in blocks])


def _surrogate(told: dict[str, Any], scale: float) -> Surrogate:
    if told.get("shape") == "gaussian":  # of the same deviation as the rectangle
        return Gaussian(told["bandwidth"] * scale / 12**0.5, to_input=told["to_input"])
    return Rectangle(told["bandwidth"] * scale, to_input=told["to_input"])


def peer(
    rows: sae.Rows, width: int, steps: int, seed: int, coefficient: float, **changes: Any
) -> Any:
    """A model of SAELens, at a λ that rises to a fixed one."""
    told = {**PEER, **changes}
    ramp = int(told.pop("ramp") * steps)
    weights = _saelens.trained(
        (rows.batch(step, BATCH) for step in range(steps + 1)),
        dimension=rows.dimension,
        features=width,
        steps=steps,
        batch_size=BATCH,
        decay=0.2,
        seed=seed,
        l0_coefficient=coefficient,
        l0_warm_up_steps=ramp,
        **told,
    )
    return sae.Autoencoder(sae.Weights(**{k: jax.numpy.asarray(v) for k, v in weights.items()}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=2**19, help="different examples to train on")
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--recipes", nargs="+", default=["jaxtrelu"], choices=CHANGES)
    parser.add_argument("--peer-coefficient", type=float, default=0.1)
    parser.add_argument(
        "--peer-from",
        type=Path,
        help="an earlier --json, from which SAELens's scores are taken in place of training it",
    )
    parser.add_argument("--cache", type=Path, help="a folder in which examples are kept")
    parser.add_argument("--json", type=check_file)
    args = parser.parse_args()
    earlier: dict[int, dict[str, float]] = {}
    try:
        if args.peer_from:
            name, earlier = earlier_peer(parser, args)
        else:
            name = f"SAELens {_saelens.version()}"
    except ImportError:
        print("this benchmark needs its peer: pip install 'sae-lens==6.*' torch", file=sys.stderr)
        return 2
    except ValueError as error:
        parser.error(str(error))
    # That L0 is not the one asked for, to 15 %, is in the table.
    warnings.filterwarnings("ignore", message="L0 is ")
    width, full = 1024 // args.scale, args.scale == 1
    results: dict[str, list[dict[str, float]]] = {key: [] for key in (name, *args.recipes)}
    for seed in args.seeds:
        world = world_of(seed, args.scale)
        rows = sae.Rows(_examples(world, args), f"world {seed}", seed)
        key = jax.random.key(10_000 + seed)
        for who, found in results.items():
            start = time.perf_counter()
            if who == name and earlier:
                found.append(earlier[seed])
                print(f"seed {seed}  {who:24s} " + _line(found[-1]), flush=True)
                continue
            if who == name:
                changes = PEER_AT_FULL_SIZE if full else {}
                model = peer(rows, width, args.steps, seed, args.peer_coefficient, **changes)
            else:
                l0 = results[name][-1]["l0"]
                changes = {**CHANGES[who], **(FULL_SIZE.get(who, {}) if full else {})}
                model = ours(
                    rows, width, args.steps, seed, l0, scored_inputs(world, key), **changes
                )
            seconds = time.perf_counter() - start
            scores = sae.synthetic_scores(model, world, key)._asdict()
            scores["f1_all"] = scores["f1"] * (1 - scores["dead"])
            found.append({"seed": seed, **scores, "seconds": seconds})
            print(f"seed {seed}  {who:24s} " + _line(found[-1]), flush=True)
        if args.json:  # after each world: one that is cut off loses no other
            write_figures(args.json, figures(results))
    _print_table(results, name)
    return 0


def earlier_peer(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[str, dict[int, dict[str, float]]]:
    """The peer's name and its scores by seed, from a run of the same worlds. ValueError."""
    path = args.peer_from
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = shlex.split(content["environment"]["command"])
        rows = [row for row in content["rows"] if row["peer"].startswith("SAELens ")]
        (name,) = {row["peer"] for row in rows}
        found: dict[int, dict[str, float]] = {}
        for row in rows:
            seed = int(row["shape"].removeprefix("seed "))
            found.setdefault(seed, {"seed": seed})[row["mode"]] = row["value"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of this benchmark: {error}") from None
    then = parser.parse_args(words[words.index("benchmarks/synthetic_world.py") + 1 :])
    for option in ("scale", "rows", "steps", "peer_coefficient"):
        if getattr(then, option) != getattr(args, option):
            said = option.replace("_", "-")
            raise ValueError(f"{path} is of a run with --{said} {getattr(then, option)}.")
    missing = sorted(set(args.seeds) - set(found))
    if missing:
        raise ValueError(f"{path} has no scores of SAELens for the seeds {missing}.")
    return name, found


def figures(results: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each score of a model, as docs/figures has them."""
    return [
        {"suite": "world", "shape": f"seed {seed}", "mode": mode, "peer": who, "value": value}
        for who, found in results.items()
        for seed, scores in ((one["seed"], one) for one in found)
        for mode, value in scores.items()
        if mode != "seed"
    ]


def _examples(world: sae.SyntheticWorld, args: argparse.Namespace) -> np.ndarray:
    """The examples of a world to train on, from the cache where they are there."""
    folder = args.cache or Path(tempfile.gettempdir())
    path = folder / f"world-{world.features}-{world.dimension}-{world.seed}-{args.rows}.npy"
    if args.cache and path.exists():
        return np.load(path)
    x = world.rows(jax.random.key(1000 + world.seed), args.rows)
    if args.cache:
        np.save(path, x)
    return x


_SHOWN = ("f1", "f1_all", "mcc", "precision", "recall", "uniqueness", "dead", "r2", "l0")


def _line(scores: dict[str, float]) -> str:
    return "  ".join(f"{k} {scores[k]:.3f}" for k in _SHOWN)


def _print_table(results: dict[str, list[dict[str, float]]], peer: str) -> None:
    print(f"\n{'':24s} " + " ".join(f"{k:>15s}" for k in _SHOWN))
    for who, found in results.items():
        cells = [_mean([f[k] for f in found]) for k in _SHOWN]
        print(f"{who:24s} " + " ".join(f"{cell:>15s}" for cell in cells))
    for who, found in results.items():
        if who == peer:
            continue
        pairs = list(zip(found, results[peer], strict=True))
        cells = [_mean([a[k] - b[k] for a, b in pairs], sign="+") for k in _SHOWN]
        print(f"{who + ' − SAELens':24s} " + " ".join(f"{cell:>15s}" for cell in cells))
    print("± is the standard error over worlds.")


def _mean(values: list[float], sign: str = "") -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):{sign}.3f} ± {error:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
