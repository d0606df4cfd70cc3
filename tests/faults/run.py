"""Bad days of `jaxtrelu sae`: killed, interrupted, on a full disk, with damaged files.

    python tests/faults/run.py --moments 50

Each kind of fault is tried on the real command in processes of its own. A trial is survived if the
command says what happened in one line on stderr and never shows a traceback, if no checkpoint that
was there is lost, and if the run goes on to the very bytes of an undisturbed one. Prints a table of
tried, survived and lost, with what was wrong with each that was lost, and fails if any was.

    python tests/faults/run.py --only kill --json docs/figures/faults.json && make tables

An hour in one piece is long, so with --json what the file has of other kinds stays, each with the
command and the date that it is from.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from jaxtrelu._files import OutputError, check_file, write_file
from jaxtrelu.sae._formats import safetensors

STEPS, EVERY = 600, 5
OPTIONS = [
    "--features", "64", "--l0", "4", "--steps", str(STEPS), "--checkpoint-every", str(EVERY),
    "--batch-size", "64", "--held-out", "100",
]  # fmt: skip
#: What is compared with an undisturbed run, byte by byte.
RESULTS = ("sae.safetensors", "history.csv", "sae.json")
_LINE = re.compile(r"jaxtrelu: (error|interrupted|terminated)")


@dataclasses.dataclass
class Tally:
    """The trials of one kind of fault."""

    what: str
    tried: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    note: str = ""

    def trial(self, *wrong: str) -> None:
        self.tried += 1
        self.lost += [f"trial {self.tried}: {'; '.join(wrong)}"] if wrong else []


class Room:
    """A folder with data, an undisturbed run, and how long that took."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        # Ignored where a shell started this in the background, and then in all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        rng = np.random.default_rng(seed)
        x = rng.laplace(size=(2000, 24)) @ rng.normal(size=(24, 16))
        self.data = folder / "data.npy"
        np.save(self.data, x.astype(np.float32))
        self.environment = dict(os.environ) | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        finished(self.run(self.folder / "first"))  # compiles
        started = time.monotonic()
        finished(self.run(self.folder / "whole"))
        self.seconds = time.monotonic() - started
        self.expected = contents(self.folder / "whole")

    def command(self, output: Path, *more: str) -> list[str]:
        run = [sys.executable, "-m", "jaxtrelu", "sae", "train", str(self.data), *OPTIONS]
        return [*run, "--output", str(output), *more]

    def start_two(self, output: Path) -> list[subprocess.Popen]:
        """Two processes of one run, which share the examples."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = self.environment | {"JAX_NUM_CPU_DEVICES": "1"}
        together = ["--coordinator", address, "--processes", "2", "--process"]
        return [self.start(output, *together, str(n), env=environment) for n in range(2)]

    def start(self, output: Path, *more: str, **options) -> subprocess.Popen:
        options = {"env": self.environment, "cwd": self.folder} | options
        return subprocess.Popen(
            self.command(output, *more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, output: Path, *more: str, **options) -> tuple[int, str]:
        """The exit status, and what was said on stderr."""
        return ended(self.start(output, *more, **options))

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate(timeout=600)[1].decode(errors="replace")
    return process.returncode, said


def finished(outcome: tuple[int, str]) -> None:
    status, said = outcome
    if status:
        raise RuntimeError(f"an undisturbed run ended with {status}: {said}")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def checkpoints(output: Path) -> dict[int, bool]:
    """The steps of the checkpoints that are there, and whether each is intact, parts included."""
    found = {}
    for path in (output / "checkpoints").glob("step-??????????.safetensors"):
        try:
            metadata = safetensors.check_seal(path, *safetensors.read(path))
            for name, about in json.loads(metadata.get("parts", "{}")).items():
                tensors, of_part = safetensors.read(path.with_name(name))
                safetensors.check_seal(path.with_name(name), tensors, of_part)
                if of_part[safetensors.SEAL] != about["seal"]:
                    raise ValueError("it is of another checkpoint")
            found[int(path.stem[5:])] = True
        except (ValueError, OSError):
            found[int(path.stem[5:])] = False
    return found


def newest_checkpoint(output: Path, before: int) -> tuple[int, list[str]]:
    """Its step, and what is wrong where the newest was of step `before`."""
    found = checkpoints(output)
    newest, wrong = max((step for step, intact in found.items() if intact), default=0), []
    if newest < before:
        wrong.append(f"the checkpoint of step {before} is lost: {found}")
    if not all(found.values()):
        wrong.append(f"a damaged checkpoint under its own name: {found}")
    return newest, wrong


def faults_of(said: str, *, lines: int | None = None) -> list[str]:
    """What is wrong with what was said: a traceback, or another number of lines than one."""
    wrong = []
    # Of Python; what JAX's own log says of errors stands behind a colon.
    if "Traceback" in said or re.search(r"^[\w.]*Error\b", said, re.MULTILINE):
        wrong.append(f"a traceback: {said.strip()[-300:]!r}")
    if lines is not None and len(_LINE.findall(said)) != lines:
        wrong.append(f"not {lines} line on stderr: {said.strip()[-300:]!r}")
    return wrong


def completed(room: Room, output: Path, *more: str, **options) -> list[str]:
    """What is wrong with the run when it is gone on with to its end."""
    status, said = room.run(output, *more, **options)
    if status:
        return [f"not resumed: status {status}, {said.strip()[-300:]!r}"]
    wrong = faults_of(said)
    different = [name for name, held in contents(output).items() if held != room.expected[name]]
    if different:
        wrong.append(f"another result: {', '.join(different)}")
    if left := [path.name for path in output.rglob("*.part")]:
        wrong.append(f"left behind: {left}")
    return wrong


# the faults


def killed(room: Room, number: signal.Signals, moments: int) -> Tally:
    """A signal at a random moment of a process, again and again until a run is through."""
    tally = Tally(number.name)
    status = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    output, before = room.fresh("killed"), 0
    early = 0
    for moment in range(moments):
        process = room.start(output)
        time.sleep(room.random.uniform(0, room.seconds))
        process.send_signal(number)
        code, said = ended(process)
        wrong = []
        if code == 0:  # it was through
            wrong += faults_of(said)
        elif code == -number and all((output / name).is_file() for name in RESULTS):
            wrong += faults_of(said)  # through, and shutting down
        elif code == -number and number != signal.SIGKILL and not said:
            early += 1  # before the command was there: the system's own end, without a word
        elif number == signal.SIGINT and code in (1, -number) and "jaxtrelu" not in said:
            early += 1  # while Python itself was starting, which shows a traceback of its own
        else:
            wrong += [] if code == status else [f"status {code}"]
            wrong += faults_of(said, lines=None if number == signal.SIGKILL else 1)
        before, lost = newest_checkpoint(output, before)
        wrong += lost
        if code == 0 or before > 0.8 * STEPS or moment == moments - 1:
            wrong += completed(room, output)
            output, before = room.fresh("killed"), 0
        tally.trial(*wrong)
    tally.note = f"{early} before the command had begun" if early else ""
    return tally


def one_of_two(room: Room, moments: int) -> Tally:
    """One of two processes is killed, and the other one ended, as Slurm does; then both go on."""
    tally = Tally("SIGKILL to one of two processes")
    started = time.monotonic()
    for code, said in map(ended, room.start_two(room.fresh("whole of two"))):
        finished((code, said))
    seconds = time.monotonic() - started
    expected = contents(room.folder / "whole of two")
    output, before = room.fresh("killed of two"), 0
    for moment in range(moments):
        both = room.start_two(output)
        time.sleep(room.random.uniform(0, seconds))
        victim, other = room.random.sample(both, 2)
        victim.kill()
        ended(victim)
        with contextlib.suppress(subprocess.TimeoutExpired):
            other.wait(room.random.uniform(0, 10))  # it may notice, and say so
        other.terminate()
        code, said = ended(other)
        # It noticed, it was ended, both before the command was there, or it was through.
        wrong = [] if code in (2, 143, -signal.SIGTERM, 0) else [f"status {code}"]
        wrong += faults_of(said, lines=1 if code in (2, 143) else None)
        before, lost = newest_checkpoint(output, before)
        wrong += lost
        if before > 0.8 * STEPS or moment == moments - 1:
            for code, said in map(ended, room.start_two(output)):
                wrong += [f"not resumed: status {code}, {said.strip()[-300:]!r}"] if code else []
            if contents(output) != expected:
                wrong.append("another result")
            if left := [path.name for path in output.rglob(".*.part")]:
                wrong.append(f"left behind: {left}")
            output, before = room.fresh("killed of two"), 0
        tally.trial(*wrong)
    return tally


def full_disk(room: Room, moments: int) -> Tally:
    """File systems of all sizes up to what a run needs; then there is room, and it goes on."""
    tally = Tally("full disk")
    try:
        with small_disk(room.folder, 1 << 20):
            pass
    except OSError as error:
        tally.note = f"files of limited size in place of a full disk: {error}"
        return limited_files(room, moments, tally)
    needed = sum(f.stat().st_size for f in (room.folder / "whole").rglob("*") if f.is_file())
    for moment in range(moments):
        size = round(needed * (moment + 0.5) / moments / 4096) * 4096
        with small_disk(room.folder, max(size, 4096)) as (disk, enlarge):
            status, said = room.run(disk / "output")
            wrong = []
            if status not in (0, 2):
                wrong.append(f"status {status}")
            wrong += faults_of(said, lines=1 if status else 0)
            if not all(checkpoints(disk / "output").values()):
                wrong.append("a damaged checkpoint under its own name")
            enlarge(4 * needed)
            wrong += completed(room, disk / "output")
        tally.trial(*wrong)
    return tally


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system of that many bytes in memory, and how to enlarge it. OSError: not allowed."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip() or "mount failed")

    try:
        mount(f"size={size}")
    except FileNotFoundError as error:
        raise OSError(str(error)) from None
    try:
        yield disk, lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def limited_files(room: Room, moments: int, tally: Tally) -> Tally:
    largest = max(f.stat().st_size for f in (room.folder / "whole").rglob("*") if f.is_file())
    for moment in range(moments):
        size = round(largest * (moment + 0.5) / moments)

        def limit(size=size) -> None:
            # An error of write(), not the signal that would come first.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        output = room.fresh("limited")
        without = dict(room.environment)
        without.pop("JAX_COMPILATION_CACHE_DIR")  # JAX's own files have nothing to do with it
        status, said = room.run(output, preexec_fn=limit, env=without)
        wrong = [] if status in (0, 2) else [f"status {status}"]
        wrong += faults_of(said, lines=1 if status else 0)
        if not all(checkpoints(output).values()):
            wrong.append("a damaged checkpoint under its own name")
        tally.trial(*wrong, *completed(room, output))
    return tally


def flipped_bytes(room: Room, moments: int) -> Tally:
    """A byte in one checkpoint, in the other, in both; the run goes on from what is intact."""
    tally = Tally("a flipped byte")
    output = room.fresh("flipped")
    process = room.start(output)
    while max(checkpoints(output), default=0) < STEPS // 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    ended(process)
    kept = room.fresh("kept")
    shutil.copytree(output, kept)
    files = sorted(path.name for path in (kept / "checkpoints").glob("step-*.safetensors"))
    for moment in range(moments):
        which = [files[-1:], files[:-1], files][moment % 3]
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        for name in which:
            path = output / "checkpoints" / name
            data = bytearray(path.read_bytes())
            # The first bytes are lengths and names, where most can go wrong.
            place = room.random.randrange(200 if moment % 2 else len(data))
            data[place] ^= 1 << room.random.randrange(8)
            path.write_bytes(data)
        wrong = completed(room, output)
        tally.trial(*(f"{' and '.join(which)}: {one}" for one in wrong))
    return tally


def flipped_models(room: Room, moments: int) -> Tally:
    """A byte in the finished model: it is refused in one line."""
    tally = Tally("a flipped byte of a model")
    original = room.expected["sae.safetensors"]
    path = room.folder / "damaged.safetensors"
    for moment in range(moments):
        data = bytearray(original)
        data[room.random.randrange(300 if moment % 2 else len(data))] ^= 0x10
        path.write_bytes(data)
        command = [sys.executable, "-m", "jaxtrelu", "sae", "eval", str(path), str(room.data)]
        done = subprocess.run(command, env=room.environment, capture_output=True, text=True)
        wrong = [] if done.returncode == 2 else [f"status {done.returncode}"]
        tally.trial(*wrong, *faults_of(done.stderr, lines=1))
    return tally


def two_at_once(room: Room, moments: int) -> Tally:
    """Two runs in one folder: one is done, the other is refused in one line."""
    tally = Tally("two in one folder")
    for _ in range(moments):
        output = room.fresh("shared")
        both = [room.start(output), room.start(output)]
        outcomes = [ended(process) for process in both]
        codes = sorted(code for code, _ in outcomes)
        wrong = []
        # Where the second began when the first was through, both are done.
        if codes not in ([0, 2], [0, 0]):
            wrong.append(f"statuses {codes}")
        for code, said in outcomes:
            wrong += faults_of(said, lines=1 if code else 0)
        tally.trial(*wrong, *completed(room, output))
    return tally


def odd_surroundings(room: Room) -> Tally:
    """Clocks and locales: files from the future and from 1970, time zones, encodings, names."""
    tally = Tally("clock, locale, names")
    environments = [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "TZ": "XYZ-14:59"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE@euro", "TZ": "no such place"},
        {"PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "20"},
        {"PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "0", "HOME": "/nowhere"},
    ]
    names = ["plain", "with spaces, and 'quotes'", "größer-ναι-はい", "-dash", "new\nline"]
    for changes, name in zip(environments, names, strict=True):
        output = room.fresh(name)
        process = room.start(output, env=room.environment | changes)
        while max(checkpoints(output), default=0) < EVERY and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        ended(process)
        # The newer one is the older by its date, and neither date is of today.
        for age, path in enumerate(sorted((output / "checkpoints").glob("step-*"))):
            date = [4102444800, 0][age % 2]
            os.utime(path, (date, date))
        wrong = completed(room, output, env=room.environment | changes)
        tally.trial(*(f"{changes}, {name!r}: {one}" for one in wrong))
    return tally


#: The kinds of faults, by the names under which they are chosen; of some, fewer moments are tried.
KINDS: dict[str, Callable[[Room, int], Tally]] = {
    "kill": lambda room, moments: killed(room, signal.SIGKILL, moments),
    "terminate": lambda room, moments: killed(room, signal.SIGTERM, moments),
    "interrupt": lambda room, moments: killed(room, signal.SIGINT, moments),
    "one-of-two": lambda room, moments: one_of_two(room, max(1, moments // 5)),
    "disk": lambda room, moments: full_disk(room, max(1, moments // 5)),
    "checkpoint": lambda room, moments: flipped_bytes(room, max(1, moments // 5)),
    "model": lambda room, moments: flipped_models(room, max(1, moments // 5)),
    "folder": lambda room, moments: two_at_once(room, max(1, moments // 10)),
    "surroundings": lambda room, moments: odd_surroundings(room),
}


def about(args: argparse.Namespace, kinds: list[str], room: Room) -> dict[str, str]:
    """What has the same figures again, and what they depend on."""
    words = ["python", "tests/faults/run.py", "--moments", str(args.moments)]
    words += ["--seed", str(args.seed)] if args.seed else []
    words += ["--only", *kinds] if kinds != list(KINDS) else []
    return {
        "command": " ".join(words),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": version("jax"),
        "device": "cpu",
        "threads": str(len(os.sched_getaffinity(0))),
        "undisturbed": f"{room.seconds:.1f} s",
    }


def write_json(path: Path, tally: Tally, about: dict[str, str]) -> None:
    """Puts a kind's row in the place of the one that the file has of it, or behind the others."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    row = {"suite": "faults", "shape": tally.what, "mode": "", "peer": "", "tried": tally.tried}
    row |= {"lost": len(tally.lost), "note": tally.note} | about
    others = [one["shape"] for one in rows]
    if tally.what in others:
        rows[others.index(tally.what)] = row
    else:
        rows.append(row)
    write_file(path, json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="of each signal (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
        help=f"which faults (default: all): {', '.join(KINDS)}",
    )  # fmt: skip
    parser.add_argument("--json", type=check_file, metavar="PATH", help="also write them here")
    try:
        args = parser.parse_args()
    except OutputError as error:
        parser.error(str(error))
    started = time.monotonic()
    lost = 0
    # As a page can show it: the table in Markdown, with what it was made with below.
    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder), args.seed)
        print("| fault | tried | survived | lost | |\n| --- | --- | --- | --- | --- |", flush=True)
        sentences = []
        for name in args.only:
            tally = KINDS[name](room, args.moments)
            wrong = len(tally.lost)
            lost += wrong
            cells = (tally.what, tally.tried, tally.tried - wrong, wrong, tally.note)
            print(f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |"), flush=True)
            sentences += [f"{tally.what}, {sentence}" for sentence in tally.lost]
            if args.json:
                write_json(args.json, tally, about(args, [name], room))
    found = about(args, args.only, room)
    print(
        f"\n`{found['command']}`, JAX {found['jax']}, Python {found['python']}, {found['date']}; "
        f"an undisturbed run takes {room.seconds:.1f} s, all of it "
        f"{time.monotonic() - started:.0f} s.\n"
    )
    print(*sentences, sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
