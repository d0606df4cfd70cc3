"""The command line: `python -m jaxtrelu COMMAND`, also installed as `jaxtrelu`.

A command is one module of this package, named in `jaxtrelu.cli.parser.COMMANDS`, with

    def add_parser(subparsers) -> None:
        parser = subparsers.add_parser("name", help="...", description="...")
        parser.add_argument(...)

    def run(args: argparse.Namespace) -> int:   # the exit status
        ...

Importing the module must be cheap: flax, optax, matplotlib, scikit-learn, rich and the modules of
this package that use them are imported inside `run`. `main` turns a missing one into the sentence
that names the extra to install. What the user can put right is raised as `errors.UserError`; files
are checked with `files.check_folder` before long work and written with `files.write_files`;
progress is shown with `console.progress`. A command whose module sets `HUGE_PAGES = True` runs in
a process with transparent huge pages (see `process`).
"""
