"""`jaxtrelu calibrate --model`: a network from its checkpoint, its activations exchanged."""

import argparse
import dataclasses
import fnmatch
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrelu._cli import UserError
from jaxtrelu._cli.calibrate import checkpoint
from jaxtrelu._cli.calibrate.data import check_finite, open_array, to_float32
from jaxtrelu.nnx import Swapped, swap_activations, zeros_by_layer
from jaxtrelu.nnx._swap_layers import is_activation

_ROWS = 2000

save = checkpoint.save


@dataclasses.dataclass(frozen=True)
class Result:
    """One exchanged model.

    Attributes:
        wanted: the share of zeros, or the error of each next layer.
        swapped: what `swap_activations` returned.
        held_out: from a layer's path to its share of zeros on held-out rows; None without any.
        change: by how much the output differs on them, relative; None where it is no array.
    """

    wanted: float
    swapped: Swapped
    held_out: dict[str, float] | None
    change: float | None


@dataclasses.dataclass(frozen=True)
class Found:
    """All results, and what is written of them as JSON."""

    results: list[Result]
    summary: dict[str, Any]


def calibrate(args: argparse.Namespace) -> Found:
    """Builds the model, restores it and exchanges its activations once for each wish."""
    build = _function(args.model, "--model")
    forward = None if args.forward is None else _function(args.forward, "--forward")
    rows, held_out = _rows(args)
    model = _called(build, "--model", args.model)
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"--model {args.model} should return a flax.nnx.Module, but returned "
            f"{type(model).__name__}."
        )
    source = checkpoint.restore(model, args.file, args.part)
    model.eval()
    run = _forward(forward, args)
    _check_width(run, model, rows, args)
    wish = "sparsity" if args.error is None else "error"
    results = [
        _result(model, rows, held_out, wish, wanted, run, args) for wanted in getattr(args, wish)
    ]
    return Found(results, _summary(results, source, len(rows), held_out, wish, args))


def _result(
    model: nnx.Module,
    rows: Any,
    held_out: Any,
    wish: str,
    wanted: float,
    run: Callable[[Any, Any], Any],
    args: argparse.Namespace,
) -> Result:
    by_error = wish == "error"
    patterns = args.layers or ["*"]
    seen, used = [], set()

    def chosen(path: tuple, value: Any) -> bool:
        if not is_activation(path, value):
            return False
        name = ".".join(map(str, path))
        matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]
        seen.append(name)
        used.update(matching)
        return bool(matching)

    try:
        found = swap_activations(
            model,
            rows,
            sparsity=None if by_error else wanted,
            error=wanted if by_error else None,
            variant=args.variant,
            per_channel=args.per_channel,
            which=chosen,
            forward=run,
        )
    except ValueError as error:
        _check_patterns(patterns, used, seen)
        raise UserError(f"--model {args.model}: {error}") from None
    _check_patterns(patterns, used, seen)
    if held_out is None:
        return Result(wanted, found, None, None)
    zeros = zeros_by_layer(found.model, held_out, forward=run)
    return Result(wanted, found, zeros, _change(run(model, held_out), run(found.model, held_out)))


def _check_patterns(patterns: list[str], used: set[str], seen: list[str]) -> None:
    """Raises where one names no activation: a typing error would leave layers out."""
    if seen and (idle := [pattern for pattern in patterns if pattern not in used]):
        known = ", ".join(dict.fromkeys(seen))
        raise UserError(f"--layers {idle[0]} names no activation of the model, which has {known}.")


def _change(before: Any, after: Any) -> float | None:
    """By how much an output differs, relative to its norm."""
    if not isinstance(before, jnp.ndarray) or not jnp.issubdtype(before.dtype, jnp.floating):
        return None
    norm = jnp.linalg.norm(before.astype(jnp.float32))
    off = jnp.linalg.norm(after.astype(jnp.float32) - before.astype(jnp.float32))
    return float(off / norm) if norm > 0 else None


def _summary(
    results: list[Result],
    source: Path,
    rows: int,
    held_out: Any,
    wish: str,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What was asked and what came out, as JSON has it."""
    return {
        "checkpoint": str(source),
        "model": args.model,
        "data": args.data,
        "rows": rows,
        "held_out_rows": 0 if held_out is None else len(held_out),
        "seed": args.seed,
        "wish": wish,
        "per_channel": args.per_channel,
        "variant": args.variant,
        "results": [
            {
                "wanted": result.wanted,
                "reached": result.swapped.zeros,
                "layers": [
                    {
                        "path": layer.path,
                        "was": layer.was,
                        "threshold": np.asarray(layer.threshold).tolist(),
                        "reached": layer.zeros,
                        "held_out": result.held_out and result.held_out[layer.path],
                        "error": layer.error,
                    }
                    for layer in result.swapped.layers
                ],
                "output_change": result.change,
                "kept_before": result.swapped.kept_before,
                "kept_after": result.swapped.kept_after,
            }
            for result in results
        ],
    }


def _rows(args: argparse.Namespace) -> tuple[Any, Any]:
    """Some rows of the file to calibrate on, and others that are held out, or None."""
    array = open_array(args.data, args.array)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{args.data} should hold numbers, but its dtype is {array.dtype}.")
    if array.ndim == 0 or not array.size:
        raise UserError(f"{args.data} should hold rows, but its shape is {array.shape}.")
    count = min(len(array), args.rows or _ROWS)
    others = round(args.held_out * count)
    if others == count or (args.held_out and not others):
        raise UserError(
            f"{count} rows of {args.data} are too few to hold out a share of {args.held_out:g}: "
            "pass --held-out 0."
        )
    order = np.random.default_rng(args.seed).permutation(len(array))[:count]
    # Read in order, as a file on a disk likes it.
    parts = [np.sort(part) for part in (order[others:], order[:others])]
    found = [array[numbers] for numbers in parts]
    if array.dtype.kind == "f":
        for numbers, rows in zip(parts, found, strict=True):
            check_finite(args.data, to_float32(rows), numbers.__getitem__)
    used, held_out = map(jnp.asarray, found)
    return used, held_out if others else None


def _check_width(run: Callable, model: Any, rows: Any, args: argparse.Namespace) -> None:
    """One call with a few rows, before anything is exchanged. Raises UserError where it fails."""
    try:
        run(model, rows[:2])
    except UserError as error:
        raise UserError(
            f"{error}; it was called with rows of {args.data}, whose shape is {rows.shape[1:]}: "
            "pass with --data what the network takes."
        ) from error


def _forward(forward: Callable | None, args: argparse.Namespace) -> Callable[[Any, Any], Any]:
    if forward is None:
        return lambda model, rows: _called(model, "--model", args.model, rows)
    return lambda model, rows: _called(forward, "--forward", args.forward, model, rows)


def _called(function: Callable, option: str, name: str, *operands: Any) -> Any:
    """Calls what the user wrote; what goes wrong there is said with its place."""
    try:
        return function(*operands)
    except (UserError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        # What ends a forward pass on purpose, or speaks of the exchange, is the library's.
        if type(error).__module__.startswith("jaxtrelu") or _is_ours(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in place if "site-packages" not in frame.filename] or place
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        text = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise UserError(f"{option} {name} raised {type(error).__name__}: {text}{where}") from error


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by the exchange, which says what to do about it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name.startswith("_swap")


def _function(text: str, option: str) -> Callable:
    """What MODULE:FUNCTION names. Raises UserError."""
    module_name, colon, name = text.rpartition(":")
    if not colon or not module_name or not name:
        raise UserError(
            f"{option} should be MODULE:FUNCTION, such as net:build or net.py:build, not {text!r}."
        )
    # As `python -m` finds it: from where the command is called.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = _module(module_name)
    except UserError:
        raise
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(
            f"{option}: cannot import {module_name}: {type(error).__name__}: {text}."
        ) from error
    try:
        function = module
        for attribute in name.split("."):
            function = getattr(function, attribute)
    except AttributeError:
        raise UserError(f"{option}: {module_name} has no {name!r}.") from None
    if not callable(function):
        raise UserError(f"{option}: {name} of {module_name} should be a function.")
    return function


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    # What lies beside it is what it imports.
    if str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
