"""Planted features: `jaxtrelu.sae` against SAELens on the same data, recipe, steps and L0.

    python benchmarks/planted_features.py [--seeds 0 1 2 3 4] [--steps 3000] [--json PATH]

A world of ground-truth directions with Zipf-distributed firing (`jaxtrelu.sae.PlantedWorld`). Both
sides train JumpReLU autoencoders by the recipe of Rajamanoharan et al. (rectangle surrogate, its
estimate to the threshold only, λ Σ H(π − θ) with λ ramped up) on the very same batches in float32,
with Adam(0.9, 0.999), the same bandwidth and first threshold. SAELens runs through its own trainer,
with its own initialisation, at a fixed λ; ours is then steered by `l0_target_controller` to the L0
that SAELens reached. Scores are taken on held-out data: F1 and mean correlation (|cosine|) under
the best one-to-one matching.

Both have the settings that suited them best on worlds 10 and 11, which are not among the default
seeds. SAELens: learning rates of .002, .004 and .008 (mean F1 .825, .858, .863) and a ramp of 1500
steps (.860); tried later, and not taken over: .012 (.866) and .016 (.847). Ours: input scaling,
clipping, starts of the controller and ramps, .72 to .91; those whose L0 came out over 2 % above its
target were left out. What differs beyond the target: SAELens leaves decoder norms free after a
start at `--peer-norm`, subtracts the bias of its decoder from its inputs, and does not project
gradients.

Needs torch and `pip install sae-lens==6.*`, of which `--no-deps` is enough.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator

import _saelens
import jax
import numpy as np
from _harness import write_figures

from jaxtrelu import Rectangle, sae
from jaxtrelu._files import check_file

BATCH, FEATURES = 512, 128
BANDWIDTH, FIRST = 0.1, 0.1
RATE, COEFFICIENT, WARMUP = 4e-3, 0.05, 300
PEER_RATE, PEER_COEFFICIENT, PEER_WARMUP = 8e-3, 0.12, 500


@dataclasses.dataclass
class Outcome:
    """What a trained autoencoder scored on held-out data."""

    f1: float
    mean_correlation: float
    l0: float
    lost_variance: float


def score(world, weights: dict[str, np.ndarray], seed: int) -> Outcome:
    """Scores on held-out data; `weights` act on unscaled inputs."""
    x, magnitudes = map(np.asarray, world.sample(jax.random.key(10_000 + seed), 20_000))
    pi = x @ weights["encoder"].T + weights["encoder_bias"]
    gates = pi > weights["threshold"]
    rebuilt = np.where(gates, pi, 0) @ weights["decoder"] + weights["decoder_bias"]
    found = sae.planted_scores(weights["decoder"], gates, world.directions, magnitudes > 0)
    lost = ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    return Outcome(found.f1, found.mean_correlation, float(gates.sum(1).mean()), float(lost))


def ours(world, rows: sae.Rows, steps: int, seed: int, target: float) -> Outcome:
    recipe = dataclasses.replace(
        sae.gemma_scope(),
        learning_rate=RATE,
        learning_rate_warmup=0,
        adam_b1=0.9,
        batch_size=BATCH,
        coefficient_warmup=WARMUP,
        clip_norm=1.0,
        # To unit mean square, Adam's steps at this rate would be large against the weights.
        input_scaling="sqrt_dimension",
    )
    # The peer sees unscaled inputs; lengths are given in units of ours, which the recipe scales.
    scale = rows.dimension**0.5 / rows.statistics().mean_norm
    recipe = dataclasses.replace(
        recipe,
        surrogate=Rectangle(BANDWIDTH * scale),
        initial_threshold=FIRST * scale,
        coefficient=COEFFICIENT * scale**2,  # where the controller starts
    )
    settings = sae.Settings(FEATURES, steps, recipe, target_l0=target, seed=seed)
    result = sae.run(rows, settings)
    weights = {k: np.asarray(v) for k, v in result.weights._asdict().items()}
    for name in ("encoder_bias", "threshold", "decoder_bias"):
        weights[name] = weights[name] / result.scale
    return score(world, weights, seed)


def saelens(world, rows: sae.Rows, steps: int, seed: int, norm: float) -> Outcome:
    weights = _saelens.trained(
        (rows.batch(step, BATCH) for step in range(steps + 1)),
        dimension=rows.dimension,
        features=FEATURES,
        steps=steps,
        batch_size=BATCH,
        learning_rate=PEER_RATE,
        seed=seed,
        decoder_init_norm=norm,
        jumprelu_init_threshold=FIRST,
        jumprelu_bandwidth=BANDWIDTH,
        l0_coefficient=PEER_COEFFICIENT,
        l0_warm_up_steps=PEER_WARMUP,
    )
    return score(world, weights, seed)


def figures(results: dict[str, list[Outcome]], steps: int) -> Iterator[dict]:
    """Mean, standard deviation and single seeds of each score, for docs/figures."""
    for peer, outcomes in results.items():
        for field in dataclasses.fields(Outcome):
            seeds = [getattr(outcome, field.name) for outcome in outcomes]
            yield {
                "suite": "planted", "shape": f"{steps} steps", "mode": field.name, "peer": peer,
                "value": statistics.fmean(seeds), "seeds": seeds,
                "spread": statistics.stdev(seeds) if len(seeds) > 1 else 0.0,
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--peer-norm", type=float, default=0.1, help="decoder_init_norm of SAELens")
    parser.add_argument("--json", type=check_file)
    args = parser.parse_args()
    try:
        version = _saelens.version()
    except ImportError:
        print("this benchmark needs its peer: pip install 'sae-lens==6.*' torch", file=sys.stderr)
        return 2
    results: dict[str, list[Outcome]] = {f"SAELens {version}": [], "jaxtrelu": []}
    peer, own = results
    for seed in args.seeds:
        world = sae.PlantedWorld(features=FEATURES, seed=seed)
        data, _ = world.sample(jax.random.key(seed), 200_000)
        rows = sae.Rows(np.asarray(data), "the planted world", seed)
        results[peer].append(saelens(world, rows, args.steps, seed, args.peer_norm))
        results[own].append(ours(world, rows, args.steps, seed, results[peer][-1].l0))
        for name in results:
            print(f"seed {seed}  {name:16s} {results[name][-1]}", flush=True)
    print(f"\n{'':16s} {'F1':>15s} {'correlation':>15s} {'L0':>13s} {'lost':>7s}")
    for name, outcomes in results.items():
        columns = {
            f.name: [getattr(o, f.name) for o in outcomes] for f in dataclasses.fields(Outcome)
        }
        mean = {k: statistics.fmean(v) for k, v in columns.items()}
        spread = {k: statistics.stdev(v) if len(v) > 1 else 0.0 for k, v in columns.items()}
        print(
            f"{name:16s} {mean['f1']:7.3f} ± {spread['f1']:.3f} "
            f"{mean['mean_correlation']:7.3f} ± {spread['mean_correlation']:.3f} "
            f"{mean['l0']:6.2f} ± {spread['l0']:.2f} {mean['lost_variance']:6.1%}"
        )
    print("± is the standard deviation over seeds; every seed is another world.")
    if args.json:
        write_figures(args.json, figures(results, args.steps))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
