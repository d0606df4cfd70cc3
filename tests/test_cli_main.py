"""The command line as a whole: help, errors, files, and what is imported when."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrelu.__main__ import main, missing_extra
from jaxtrelu._cli import UserError, console, parser, process

PROJECT = Path(__file__).parents[1]


def refused(capsys, *argv):
    """Runs a command that must be refused, and returns the sentence that says why."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jaxtrelu: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in parser.COMMANDS:
        assert re.search(rf"\n    {command}\s", out)
    assert process.SWITCH in out


@pytest.mark.parametrize("command", parser.COMMANDS)
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: jaxtrelu {command}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxtrelu ")


def test_unknown_command_and_option(capsys):
    assert "'comapre'" in refused(capsys, "comapre")
    assert "--colour" in refused(capsys, "plot", "--colour", "red")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("plot --colour red", "unrecognized arguments: --colour red; see jaxtrelu plot --help"),
        ("sae sweep --screen", "unrecognized arguments: --screen; see jaxtrelu sae sweep --help"),
        ("sae x.npy y.npy", "unrecognized arguments: y.npy; see jaxtrelu sae train --help"),
        ("sae eval a b --json c -1", "unrecognized arguments: -1; see jaxtrelu sae eval --help"),
        ("--colour", "unrecognized arguments: --colour; see jaxtrelu --help"),
    ],
)
def test_surplus_arguments_point_to_the_help_of_their_command(arguments, words, capsys):
    assert words in refused(capsys, *arguments.split())


def test_without_arguments_it_prints_its_help(capsys):
    assert main(["--help"]) == 0
    asked = capsys.readouterr()
    assert main([]) == 0
    assert capsys.readouterr() == asked


def test_help_and_info_load_nothing_heavy():
    code = """
import json, sys
from jaxtrelu.__main__ import main
assert main(["--help"]) == 0 and main(["compare", "--help"]) == 0 and main(["info"]) == 0
heavy = {"flax", "optax", "orbax", "matplotlib", "rich", "sklearn"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_missing_extra_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jaxtrelu._cli.plot.figure", raising=False)
    monkeypatch.delattr("jaxtrelu._cli.plot.figure", raising=False)
    message = refused(capsys, "plot", "--output", tmp_path / "plot.png")
    assert "matplotlib" in message
    assert "pip install 'jaxtrelu[cli]'" in message


def test_other_missing_modules_are_defects():
    assert missing_extra(ModuleNotFoundError(name="jaxtrelu._cli.nothing")) is None
    assert missing_extra(ModuleNotFoundError("no name")) is None


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (UserError, 2)])
def test_exit_status(raised, status, monkeypatch, capsys):
    def stop(args):
        raise raised("stopped")

    monkeypatch.setattr(parser.load("info"), "run", stop)
    assert main(["info"]) == status
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [["info"], ["sae", "convert", "a", "b", "--to", "saelens"]])
def test_a_terminal_that_is_full(words, monkeypatch, capfd):
    def fail(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parser.load(".".join(words[:2])), "run", fail)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    assert main(words) == 2
    assert capfd.readouterr().err == "jaxtrelu: error: no space left on the device.\n"


@pytest.mark.parametrize("words", [["info"], ["sae", "convert", "a", "b", "--to", "saelens"]])
def test_python_without_memory(words, monkeypatch, capsys):
    def fail(args):
        raise MemoryError

    monkeypatch.setattr(parser.load(".".join(words[:2])), "run", fail)
    assert "error: there is not enough memory." in refused(capsys, *words)


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory")
@pytest.mark.parametrize("arguments", [("info",), ("sae", "train", "patches"), ("--help",)])
def test_a_limited_address_space(arguments):
    """Under 1.3 GB (ulimit -v) threads of JAX cannot start, and the process would be aborted."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, {(1_300_000_000,) * 2}); "
    run = "from jaxtrelu.__main__ import main; raise SystemExit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", limited + run, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if arguments == ("--help",):
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 2
    assert done.stderr == (
        "jaxtrelu: error: the process may use 1.3 GB of address space (ulimit -v), and JAX needs "
        "2 GB at least: raise that limit.\n"
    )


def test_errors_of_the_system_have_no_number(monkeypatch, capsys):
    def fail(args):
        raise PermissionError(13, "Permission denied", "here.npy")

    monkeypatch.setattr(parser.load("sae.convert"), "run", fail)
    said = refused(capsys, "sae", "convert", "a", "b", "--to", "saelens")
    assert said == "jaxtrelu: error: here.npy: permission denied.\n"


def test_a_defect_is_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(parser.load("info"), "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_a_closed_pipe_is_no_error():
    command = [sys.executable, "-m", "jaxtrelu", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
        assert child.wait() in (0, 141)


def test_a_closed_stdout_is_no_error():
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m jaxtrelu info >&-",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_info_reports_versions_devices_and_lowerings(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["jax", __import__("jax").__version__] in lines
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        assert any(line[0] == platform and len(line) > 1 for line in lines), platform


# Numbers.


@pytest.mark.parametrize(
    ("option", "given", "words"),
    [
        ("--seed", "-1", "--seed should be from 0 to 9223372036854775807, but is -1."),
        ("--seed", "9" * 30, "--seed should be from 0 to 9223372036854775807, but is 999"),
        ("--features", "0", "--features should be from 1 to 2147483647, but is 0."),
        ("--steps", "9" * 30, "--steps should be from 1 to 2147483647, but is 999"),
        ("--batch-size", "0", "--batch-size should be from 1 to 2147483647, but is 0."),
        ("--checkpoint-every", "0", "--checkpoint-every should be at least 1, not 0."),
    ],
)
def test_whole_numbers_of_sae(option, given, words, tmp_path, capsys):
    output = tmp_path / "out"
    assert words in refused(capsys, "sae", option, given, "--output", output)
    assert not output.exists()


def test_a_number_looks_like_no_option(capsys):
    """-1e-3 is a number, -e is an option, and what does not follow an option stays as it is."""
    assert "unrecognized arguments: -e" in refused(capsys, "plot", "-e", "-1e-3")
    assert "unrecognized arguments: -1e-3x" in refused(capsys, "plot", "--threshold", "1", "-1e-3x")
    assert parser.build().parse_args(["plot", "--threshold", "-1e-3"]).threshold == [-0.001]


# Characters that a terminal does not have.


def test_spelling():
    assert console.spelled("θ ± 1", "utf-8") == "θ ± 1"
    assert console.spelled("1 ± 2", "latin-1") == "1 ± 2"
    assert console.spelled("θ ± 1 – é", "ascii") == "theta +- 1 - \\xe9"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_stdout_of_the_c_locale_lacks_nothing(errors):
    """There its errors are "surrogateescape", which raises for a λ as well."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    console.spell_out(stream)
    stream.write("λ ± 1, caf\udcc3 é")  # a name whose byte C3 could not be decoded
    stream.flush()
    assert stream.buffer.getvalue().startswith(b"lambda +- 1, caf\xc3")
    assert stream.buffer.getvalue().endswith(b" \\xe9")


def test_help_in_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert main(["plot", "--help"]) == 0
        stream.flush()
    assert b"at x = theta the gate is closed" in b" ".join(stream.buffer.getvalue().split())


# Platforms.


@pytest.mark.parametrize("platforms", ["foo", "cuda"])
def test_platforms_that_do_not_start(platforms, tmp_path):
    """One sentence from every command. `cuda` fails in JAX by another way than an unknown name."""
    commands = [command for command in parser.COMMANDS if command != "calibrate"]  # wants a file
    code = """
import sys
import jaxtrelu.__main__
print([jaxtrelu.__main__.main([command]) for command in sys.argv[1:]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": platforms},
    )
    if platforms == "cuda" and done.stdout.startswith("versions"):
        pytest.skip("there is a GPU")
    assert done.stdout == f"{[2] * len(commands)}\n"
    sentences = [line for line in done.stderr.splitlines() if line.startswith("jaxtrelu: error: ")]
    assert len(sentences) == len(commands)
    assert all(f"JAX_PLATFORMS={platforms} asks for" in line for line in sentences)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Huge pages.


def test_huge_pages_are_asked_for_once(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2.39"))
    asked = process.huge_page_environment({"HOME": "/"})
    assert asked == {"HOME": "/", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert process.huge_page_environment(asked) is None


def test_huge_pages_keep_what_the_user_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("glibc", "2.39"))
    other = process.huge_page_environment({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert other["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert process.huge_page_environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None
    assert process.huge_page_environment({process.SWITCH: "0"}) is None


def test_huge_pages_need_glibc(monkeypatch):
    monkeypatch.setattr(process.platform, "libc_ver", lambda: ("", ""))
    assert process.huge_page_environment({}) is None


def test_only_its_own_process_is_restarted(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
    # Or nothing would be restarted anyway where huge pages are set or unknown.
    monkeypatch.setattr(process, "huge_page_environment", lambda _: {"GLIBC_TUNABLES": "x"})
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    process.restart_with_huge_pages()
    assert not seen


def test_its_own_process_is_restarted_with_the_same_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execve", lambda *given: seen.append(given))
    monkeypatch.setattr(process, "huge_page_environment", lambda _: {"GLIBC_TUNABLES": "x"})
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxtrelu", "compare"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "/usr/bin/jaxtrelu", "compare"])
    process.restart_with_huge_pages()
    assert seen == [
        (
            sys.executable,
            [sys.executable, "/usr/bin/jaxtrelu", "compare"],
            {"GLIBC_TUNABLES": "x"},
        )
    ]


def test_the_flag_against_wrong_sums(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    process.avoid_wrong_sums("0.12.0")
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=/nowhere"
    process.avoid_wrong_sums("0.10.2")
    process.avoid_wrong_sums("0.10.2")
    expected = "--xla_dump_to=/nowhere --xla_cpu_experimental_ynn_fusion_type="
    assert os.environ["XLA_FLAGS"] == expected


# The end.


def _ended(code):
    code = "import os, threading, time\nfrom jaxtrelu._cli import process\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="aborts are caught on POSIX systems only")
@pytest.mark.parametrize(
    "abort", ["os.abort()", "threading.Thread(target=os.abort).start()\ntime.sleep(60)"]
)
def test_an_abort_of_jax_is_an_end_with_one_line(abort):
    code = "process.end_where_jax_aborts('error: gone.', 2)\n"
    assert _ended(code + abort) == (2, "jaxtrelu: error: gone.\n")


def test_of_several_reasons_to_end_the_first_is_said():
    code = """
first = threading.Thread(target=process.end, args=("error: gone.", 2), kwargs={"after": 60})
first.start()
time.sleep(0.5)
process.end("terminated", 143)
"""
    assert _ended(code) == (143, "jaxtrelu: error: gone.\n")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_while_it_is_loaded_shows_no_traceback(tmp_path):
    """A module that JAX imports sends it; and once the command is there, it is heard again."""
    (tmp_path / "jax.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, "-m", "jaxtrelu", "info"]
    paths = os.pathsep.join([str(tmp_path), str(PROJECT)])

    def default():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, it stays so

    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        preexec_fn=default,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_of_the_command_is_one_line():
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as it is while the command is loaded
sys.argv[0] = "jaxtrelu"
from jaxtrelu import __main__
from jaxtrelu._cli import info
info.run = lambda args: os.kill(os.getpid(), signal.SIGINT) or signal.pause()
sys.exit(__main__.main(["info"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "jaxtrelu: interrupted\n")
