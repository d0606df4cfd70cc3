"""Training over a mesh, in one process and in several: the run of one device, to rounding."""

import dataclasses
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxtrelu import sae
from jaxtrelu.__main__ import main

RECIPE = dataclasses.replace(sae.short_run(), batch_size=64, learning_rate_warmup=10)
RNG = np.random.default_rng(0)
X = (RNG.laplace(size=(2000, 24)) @ RNG.normal(size=(24, 16))).astype(np.float32)


def mesh_of(examples, features):
    return jax.make_mesh(
        (examples, features), ("examples", "features"), axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: examples * features],
    )  # fmt: skip


def train(mesh=None, steps=60, **options):
    return sae.train(X, features=128, l0=3.0, steps=steps, recipe=RECIPE, mesh=mesh, **options)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_a_mesh_gives_the_run_of_one_device(shape, tmp_path):
    alone, over = train(), train(mesh_of(*shape), checkpoint_folder=tmp_path, checkpoint_every=20)
    for name, one, other in zip(sae.Weights._fields, alone.weights, over.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(alone.training.history["l0"], over.training.history["l0"], rtol=1e-2)
    # What was saved there goes on anywhere: here on one device, extended.
    longer = train(steps=80, checkpoint_folder=tmp_path, checkpoint_every=20)
    assert longer.training.resumed_from == 60


def test_meshes_are_checked():
    wrong = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"axes .examples. and .features.* but has .rows."):
        train(wrong)
    explicit = jax.make_mesh(
        (2,), ("examples",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2]
    )
    with pytest.raises(ValueError, match="should have automatic axes"):
        train(explicit)
    with pytest.raises(ValueError, match="a batch of 63 examples cannot be shared equally by 8"):
        sae.train(
            X, features=128, l0=3.0, steps=5, mesh=mesh_of(8, 1),
            recipe=dataclasses.replace(RECIPE, batch_size=63),
        )  # fmt: skip
    with pytest.raises(ValueError, match="a dictionary of 130 features cannot be shared"):
        sae.train(X, features=130, l0=3.0, steps=5, recipe=RECIPE, mesh=mesh_of(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "2"], "need a --coordinator"),
        (["--coordinator", "localhost:1"], "needs --processes and --process"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "below"),
        (["--feature-devices", "2"], "needs --all-devices or a --coordinator"),
        (["--all-devices", "--feature-devices", "3"], "divide the number of devices, 8"),
    ],
)
def test_options_are_checked(options, message, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    command = ["sae", str(tmp_path / "x.npy"), "--output", str(tmp_path / "out"), *options]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("jaxtrelu: error:") == 1 and message in said


# several processes


class Processes:
    """Several processes of `jaxtrelu sae train` on the loopback."""

    def __init__(self, room):
        self.room = room
        np.save(room / "x.npy", X)

    def start(self, count, output, *options, steps=400):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "-m", "jaxtrelu", "sae", "train", str(self.room / "x.npy"),
            "--features", "128", "--l0", "3", "--steps", str(steps), "--batch-size", "64",
            "--checkpoint-every", "20", "--output", str(self.room / output),
        ]  # fmt: skip
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1",
        }  # fmt: skip
        together = ["--coordinator", f"localhost:{port}", "--processes", str(count)]
        started = []
        for number in range(count):
            more = [*together, "--process", str(number), *options] if count > 1 else []
            started.append(
                subprocess.Popen(
                    [*command, *more], env=environment, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        return started

    def run(self, *args, **options):
        outcomes = []
        for process in self.start(*args, **options):
            out, said = process.communicate(timeout=400)
            outcomes.append((process.returncode, out, said))
        return outcomes

    def weights(self, output):
        return sae.load(self.room / output).weights


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return Processes(tmp_path_factory.mktemp("processes"))


def assert_close(one, other):
    for name, a, b in zip(sae.Weights._fields, one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [(2, []), (2, ["--feature-devices", "2"]), (4, ["--feature-devices", "2"])],
)
def test_processes_give_the_result_of_one(processes, count, options):
    ((status, _, said),) = processes.run(1, "alone", steps=60)
    assert status == 0, said
    name = f"of {count} {' '.join(options)}"
    outcomes = processes.run(count, name, *options, steps=60)
    assert [status for status, _, _ in outcomes] == [0] * count, outcomes
    assert_close(processes.weights("alone"), processes.weights(name))
    # The first one alone writes and prints (but for what Gloo says of its connections).
    assert ["sae.safetensors" in out for _, out, _ in outcomes] == [True] + [False] * (count - 1)


@pytest.mark.slow
def test_a_killed_process_and_another_number_of_them(processes):
    assert all(status == 0 for status, _, _ in processes.run(2, "whole"))
    started = processes.start(2, "killed")
    folder = processes.room / "killed" / "checkpoints"
    while not list(folder.glob("step-*")) and started[0].poll() is None:
        time.sleep(0.05)
    started[1].kill()
    for process in started:
        process.kill()
        process.communicate()
    assert list(folder.glob("step-*"))
    assert all(status == 0 for status, _, _ in processes.run(2, "killed"))
    for one, other in zip(processes.weights("whole"), processes.weights("killed"), strict=True):
        np.testing.assert_array_equal(one, other)
    # Extended by one process, and by four.
    assert all(status == 0 for status, _, _ in processes.run(1, "killed", steps=440))
    assert all(status == 0 for status, _, _ in processes.run(4, "killed", steps=480))
