"""`python -m jaxtrelu`. See `jaxtrelu.cli`."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from jaxtrelu.cli import parser, process
from jaxtrelu.cli.errors import UserError, missing_extra


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 2 after an error that the user can put right (said in one sentence on
        stderr), 130 after an interrupt, 141 if the reader of stdout went away.
    """
    try:
        return _run(argv)
    except UserError as error:
        print(f"jaxtrelu: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxtrelu: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(argv: Sequence[str] | None) -> int:
    try:
        try:
            args = parser.build().parse_args(argv)
        except SystemExit as stop:  # after --help and --version
            return int(stop.code or 0)
        command = parser.load(args.command)
        if argv is None and getattr(command, "HUGE_PAGES", False):
            process.restart_with_huge_pages()
        process.avoid_wrong_sums(version("jaxlib"))
        return command.run(args)
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        raise known from None


if __name__ == "__main__":
    sys.exit(main())
