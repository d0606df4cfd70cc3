"""What the command line says when it cannot go on: one sentence, no traceback."""

MISSING_EXTRA = "pip install 'jaxtrelu[cli]'"

# Top-level modules that the `cli` extra brings. Any other missing module is a defect, and shows.
_EXTRA_MODULES = frozenset({"flax", "optax", "orbax", "matplotlib", "rich", "sklearn"})


class UserError(Exception):
    """Something the user can put right. `main` prints the message to stderr and returns 2.

    The message is one sentence that says what was given and what to pass instead.
    """


def missing_extra(error: ModuleNotFoundError) -> UserError | None:
    """The sentence for a module that the `cli` extra would have installed, else None."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRA_MODULES:
        return None
    return UserError(f"this command needs {module}, which is not installed: {MISSING_EXTRA}.")
