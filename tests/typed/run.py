"""mypy and pyright, from outside: on user.py beside nothing but the installed wheel.

    python tests/typed/run.py

Builds the wheel, installs it with Flax into an empty environment, copies user.py into an empty
folder and runs it and both checkers there.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PYRIGHT = """\
{"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error",
 "reportMissingModuleSource": "none"}
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", room, ROOT], check=True
        )
        (wheel,) = room.glob("*.whl")
        venv.create(room / "env", with_pip=True)
        python = room / "env" / "bin" / "python"
        needed = [f"{wheel}[flax]", "mypy>=1.15", "pyright[nodejs]>=1.1.390"]
        subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True)
        program = room / "outside" / "user.py"
        program.parent.mkdir()
        shutil.copy(Path(__file__).with_name("user.py"), program)
        (program.parent / "pyrightconfig.json").write_text(PYRIGHT)
        commands = [
            [python, program],
            [python, "-m", "mypy", "--warn-unused-ignores", "--python-executable", python, program],
            [python, "-m", "pyright", "--pythonpath", python, program],
        ]
        failed = 0
        for command in commands:
            print(f"::: {' '.join(map(str, command[1:3]))}", flush=True)
            failed += bool(subprocess.run(command, cwd=program.parent).returncode)
        return failed


if __name__ == "__main__":
    sys.exit(main())
