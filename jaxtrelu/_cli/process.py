"""The process: settings that JAX and glibc read when they start, and the platforms asked for."""

import contextlib
import ctypes
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxtrelu._cli import UserError

T = TypeVar("T")

SWITCH = "JAXTRELU_HUGE_PAGES"
_TUNABLE = "glibc.malloc.hugetlb"
_FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"

_LAST_WORDS = 2.0  # seconds
# Bytes: with fewer, threads or LLVM abort the process when JAX starts or compiles.
_ADDRESS_SPACE = 2e9
#: What ends a command, and what is then said.
_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_ending = threading.Lock()  # taken by who says first why the process ends, and never given back
_handlers: list[Any] = []  # kept alive: C calls them

HELP = (
    f"On Linux with glibc, commands that train restart themselves once with "
    f"GLIBC_TUNABLES={_TUNABLE}=1 (transparent huge pages), which makes fresh large arrays several "
    f"times cheaper on the CPU. A setting of yours is kept; {SWITCH}=0 turns it off."
)


def huge_page_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with huge pages asked for, or None where there is nothing to change.

    None on other systems than Linux with glibc, if `SWITCH` is off, and if the tunable is already
    set, to whatever value (so that a restarted process does not restart again).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    if environment.get(SWITCH, "1").lower() in ("0", "no", "off", "false"):
        return None
    present = environment.get("GLIBC_TUNABLES", "")
    if _TUNABLE in present:
        return None
    setting = f"{_TUNABLE}=1"
    return {**environment, "GLIBC_TUNABLES": f"{present}:{setting}" if present else setting}


def restart_with_huge_pages() -> None:
    """Replaces this process by itself with huge pages on. Returns where that does not apply.

    glibc reads the tunable when a process starts, so setting it from inside comes too late.
    """
    if not is_own_command_line():
        return
    environment = huge_page_environment(os.environ)
    if environment is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        # A locked-down sandbox may refuse; the command works without.
        return


def check_address_space() -> None:
    """Raises UserError where a limit (``ulimit -v``) would end JAX in the middle of native code."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
        raise UserError(
            f"the process may use {limit / 1e9:.1f} GB of address space (ulimit -v), and JAX needs "
            f"{_ADDRESS_SPACE / 1e9:.0f} GB at least: raise that limit."
        )


def avoid_wrong_sums(version: str) -> None:
    """Works around wrong sums of some vmapped reductions on the CPU (github.com/jax-ml/jax#39103).

    Before JAX's first computation. Can go when jaxlib 0.10 does.

    Args:
        version: jaxlib's version.
    """
    present = os.environ.get("XLA_FLAGS", "")
    if version.startswith("0.10.") and _FUSION_FLAG not in present:
        os.environ["XLA_FLAGS"] = f"{present} {_FUSION_FLAG}=".strip()


def check_platforms() -> None:
    """Starts the platforms that JAX_PLATFORMS names. Raises UserError if one does not start."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if not asked:
        return
    import jax

    try:
        with _collected_exceptions(logging.getLogger("jax")) as logged:
            jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: cuda without its plugin
        # What kept a plug-in from starting is logged; what is raised afterwards only says that
        # there is none.
        reason = str(logged[0] if logged else error)
        reason = reason.partition(" (set JAX_PLATFORMS")[0].partition("\n")[0].rstrip(".")
        raise UserError(
            f"JAX cannot start what JAX_PLATFORMS={asked} asks for"
            f"{f' ({reason})' if reason else ''}: set it to a platform that is installed, such as "
            "cpu, or unset it."
        ) from None


@contextlib.contextmanager
def _collected_exceptions(logger: logging.Logger) -> Iterator[list[BaseException]]:
    """The exceptions logged at or below `logger`, which are then not printed."""
    exceptions: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                exceptions.append(record.exc_info[1])
            else:
                for handler in before[0]:
                    handler.handle(record)

    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Collector()], False
    try:
        yield exceptions
    finally:
        logger.handlers, logger.propagate = before


def end(why: str, status: int, *, after: float = 0.0) -> NoReturn:
    """Ends the process at once, with one line on stderr: of several reasons, the first.

    Args:
        why: what is said.
        status: the exit status.
        after: seconds from the line to the end.
    """
    # A progress bar hides the cursor of a terminal.
    show = "\x1b[?25h\r\x1b[K" if os.isatty(2) else ""
    line = f"{show}jaxtrelu: {why}\n".encode(errors="backslashreplace")
    if _ending.acquire(blocking=False):
        os.write(2, line)
        time.sleep(after)
    else:
        time.sleep(0.1)  # another thread is just saying it
    os._exit(status)


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Ends the process at Ctrl-C and SIGTERM with one line and status 130 or 143, at any moment.

    An exception would have to find its way out through compilers, threads and half-built state, and
    did not always. Nothing is lost: files are put in place whole, and a lock dies with its process.
    """

    def leave(number: int, frame: Any) -> None:
        end(_SIGNALS[number], 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # somebody else's program, who sees to interrupts
        return
    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        # In a process of its own it lasts to the end: shutting down can be interrupted, too.
        if not is_own_command_line():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave(message: str) -> None:
    """Ends one of several processes at once, with one line and status 2. Never returns.

    Python's own way out would wait for the other processes, which wait for this one, or are gone.
    In somebody else's program a UserError is raised.
    """
    if is_own_command_line():
        import jax

        # The others find each other through the first: they should have said what they have to.
        end(f"error: {message}", 2, after=0.0 if jax.process_index() else _LAST_WORDS)
    raise UserError(message)


def end_where_jax_aborts(why: str, status: int) -> None:
    """From now on an abort() of this process is an end with one line and that status.

    The client by which JAX's processes know of each other aborts, in a thread of its own, when the
    first process is gone or another one is not heard of, and no option of JAX prevents it. A
    handler of Python's signal module would run when abort() has ended the process; one in C can
    keep it from that.
    """
    if os.name != "posix":
        return

    def aborted(number: int) -> None:
        end(why, status)

    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handlers.append(kind(aborted))
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, kind), ctypes.c_void_p
    install(signal.SIGABRT, _handlers[-1])


def in_a_thread(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Calls it in another thread: in the main one, a long call would keep signals waiting."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *args, **options).result()


def is_own_command_line() -> bool:
    """True where the process is `jaxtrelu ...` or `python -m jaxtrelu ...`, and nobody else's."""
    if not sys.executable or not sys.argv:
        return False
    script = Path(sys.argv[0])
    own = Path(__file__).resolve().parent.parent / "__main__.py"
    return script.name in ("jaxtrelu", "jaxtrelu.exe") or script.resolve() == own
