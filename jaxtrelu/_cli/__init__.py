"""The command line: `python -m jaxtrelu COMMAND`, also installed as `jaxtrelu`. Private.

A command is one module or one package of this package, named in `jaxtrelu._cli.parser.COMMANDS`,
with

    def add_parser(subparsers) -> None:
        parser = subparsers.add_parser("name", help="...", description="...")
        parser.add_argument(...)

    def run(args: argparse.Namespace) -> int:   # the exit status
        ...

Importing it must be cheap: flax, optax, matplotlib, scikit-learn, rich and the modules that use
them are imported inside `run`; `main` turns a missing one into the sentence that names the extra
to install. What the user can put right is raised as `UserError`. Options that take numbers are
made with `parser.Number`. Files are checked with `jaxtrelu._files` before long work, and written
before anything is printed; progress is shown with `console.progress`. A command that sets
`HUGE_PAGES = True` runs in a process with transparent huge pages (see `process`).
"""


class UserError(Exception):
    """Something the user can put right. `main` prints the message to stderr and returns 2.

    The message is one sentence that says what was given and what to pass instead.
    """
