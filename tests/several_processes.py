"""Training runs in several processes on the loopback; and as a script, one of these processes.

`run` starts them with tasks that they do one after the other: see `train` for what a task may say.
Data, pieces and spans are small, so that all that can be shared is shared.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from jaxtrelu import _files, sae
from jaxtrelu.sae import _checkpoints, _rows
from jaxtrelu.sae._shards import Shards

FEATURES, BATCH, EVERY = 128, 64, 8
RNG = np.random.default_rng(0)
X = (RNG.laplace(size=(2000, 24)) @ RNG.normal(size=(24, 16))).astype(np.float32)
Y = np.maximum(X @ RNG.normal(size=(16, 20)), 0).astype(np.float32)  # for a transcoder
RECIPE = dataclasses.replace(
    sae.short_run(), batch_size=BATCH, learning_rate_warmup=10, resample_every=20
)
#: Seconds that all of them may take, on a busy machine.
PATIENCE = 600


class Counted(Shards):
    """Shards that count the rows that are read."""

    read = 0

    def __init__(self, parts):
        super().__init__(parts, [f"part {k}" for k in range(len(parts))])

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        self.read += len(found)
        return found


@contextlib.contextmanager
def small_pieces():
    """16 rows in a piece, or 6 where rows are kept aside, and 128 rows in a span."""
    sizes = {"_CHUNK_BYTES": 16 * X[0].nbytes, "_SPAN_BYTES": 128 * X[0].nbytes}
    sizes["_PIECES_ASIDE"] = 16
    with mock.patch.multiple(_rows, **sizes):
        yield


def rows():
    """The data as four shards, of which a group is a fourth; inside of `small_pieces`."""
    shards = Counted(np.split(X, [300, 1000, 1500]))
    return sae.Rows(shards, held_out=100, group_bytes=512 * X[0].nbytes)


def train(mesh=None, *, steps, output, on_step=None, **options):
    """(model, rows read before the first step, rows read in all)."""
    data, measured = None, []

    def seen(step, entry):
        measured.append(data.array.read)
        if on_step:
            on_step(step)

    with small_pieces(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "L0 is ")  # far from its target after so few steps
        data = rows()
        model = sae.train(
            data, features=FEATURES, l0=8.0, steps=steps, recipe=RECIPE, mesh=mesh, log_every=10,
            checkpoint_folder=output, checkpoint_every=EVERY, on_step=seen, **options,
        )  # fmt: skip
    return model, measured[0] if measured else data.array.read, data.array.read


def start(count, tasks):
    """The processes, started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(Path(_files.__file__).parents[1]),
    }  # fmt: skip
    command = [sys.executable, __file__, address, str(count)]
    return [
        subprocess.Popen(
            [*command, str(number), json.dumps(tasks, default=str)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def run(count, *tasks):
    """For each task what each process reports; for each process None if one was to be killed."""
    started = start(count, tasks)
    if "victim" in tasks[-1]:
        victim = started[tasks[-1]["victim"]]
        said = victim.communicate(timeout=PATIENCE)[1]
        for process in started:  # as Slurm does with those that are left
            process.kill()
            process.communicate()
        assert victim.returncode == -signal.SIGKILL, said
        return [[None] * count for _ in tasks]
    ended = [process.communicate(timeout=PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0] * count, ended
    reports = [json.loads(out.splitlines()[-1]) for out, _ in ended]  # after what Gloo says
    return list(map(list, zip(*reports, strict=True)))


def do(number, task):
    """One task: shape (of the mesh), output (folder), steps; model (file), if one is wanted; pairs:
    whether it is a transcoder with a skip connection.

    Of process `victim`, `kill_at`: the step after which it kills itself; `full_at`: the step of the
    checkpoint for which its disk is full; `elsewhere`: it sees another folder.
    """
    count, victim = jax.process_count(), number == task.get("victim")
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(tuple(task["shape"]), ("examples", "features"), axis_types=kinds)
    output = f"{task['output']}-{number}" if task.get("elsewhere") else task["output"]
    write = _files.write_file

    def write_file(path, content):
        if victim and f"{task.get('full_at', 0):010d}" in path.name:
            raise _files.OutputError(f"cannot write to {path.parent}: no space left on device.")
        return write(path, content)

    def on_step(step):
        if victim and step == task.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        mock.patch.object(_files, "write_file", write_file),
        mock.patch.object(_checkpoints, "_PATIENCE", 0.5),
    ):
        try:
            options = {"targets": Y, "skip": True} if task.get("pairs") else {}
            model, measured, read = train(
                mesh, steps=task["steps"], output=output, on_step=on_step, **options
            )
        except (OSError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
    if number == 0 and "model" in task:
        sae.save(model, task["model"])
    result = model.training
    history = {name: column.tolist() for name, column in result.history.items()}
    report = {"measured": measured, "read": read, "resumed_from": result.resumed_from}
    return report | {"scale": result.scale, "history": history, "count": count}


if __name__ == "__main__":
    # Compilers of several processes can take all of a busy machine for long.
    patience = {"heartbeat_timeout_seconds": PATIENCE, "shutdown_timeout_seconds": PATIENCE}
    jax.distributed.initialize(sys.argv[1], *map(int, sys.argv[2:4]), **patience)
    print(json.dumps([do(int(sys.argv[3]), task) for task in json.loads(sys.argv[4])]))
