"""`python -m jaxtrelu`. See `jaxtrelu._cli`."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from jaxtrelu._cli import UserError, console, parser, process
from jaxtrelu._files import OutputError

# Top-level modules that the `cli` extra brings. Any other missing module is a defect, and shows.
_EXTRA_MODULES = frozenset({"flax", "optax", "orbax", "matplotlib", "rich", "sklearn"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 2 after an error that the user can put right (said in one sentence on
        stderr), 130 after an interrupt, 141 if the reader of stdout went away.
    """
    console.spell_out(sys.stdout)
    try:
        status = _run(argv)
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()  # or what cannot be printed shows after all handlers
        return status
    except (UserError, OutputError) as error:
        print(f"jaxtrelu: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxtrelu: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence()
        return 141
    except MemoryError:
        print("jaxtrelu: error: there is not enough memory.", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _silence()
        print("jaxtrelu: error: no space left on the device.", file=sys.stderr)
        return 2


def _silence() -> None:
    """Python flushes stdout once more at exit, and would complain there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    try:
        whole = parser.build()
        try:
            args = whole.parse_args(sys.argv[1:] if argv is None else argv)
        except SystemExit as stop:  # after --help and --version
            return int(stop.code or 0)
        if args.command is None:
            whole.print_help()
            return 0
        process.check_address_space()
        command = parser.load(args.command)
        if argv is None and getattr(command, "HUGE_PAGES", False):
            process.restart_with_huge_pages()
        with process.leaving_on_signals():
            process.avoid_wrong_sums(version("jaxlib"))
            if (prepare := getattr(command, "prepare", None)) is not None:
                prepare(args)  # what has to be done before JAX looks for devices
            process.check_platforms()
            return command.run(args)
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        raise known from None


def missing_extra(error: ModuleNotFoundError) -> UserError | None:
    """The sentence for a module that the `cli` extra would have installed, else None."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRA_MODULES:
        return None
    return UserError(
        f"this command needs {module}, which is not installed: pip install 'jaxtrelu[cli]'."
    )


if __name__ == "__main__":
    sys.exit(main())
