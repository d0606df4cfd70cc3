"""Set-up shared by all tests, and what they can use.

- The CPU with eight virtual devices.
- ``@pytest.mark.slow``: a test left out of `make test`, because a cheaper one there covers its law.
  ``--all`` runs these too, `make test-slow` nothing else. A test that is named
  (``file.py::test``) always runs.
- Hypothesis profiles: "quick" with 50 examples, and under ``--all`` "thorough" with 200, the same
  ones in every run. ``@examples(count)`` of cases.py takes ``count`` of each 100.
- Memory: what JAX compiled is let go of whenever a worker has grown past ``MEMORY`` (MB), and by
  ``GROWTH`` (MB) since the last time: it may not get back below.
- Python's collector skips what there is after collection: a million objects, which stay.
- `strict_promotion`, a fixture.
- Compilation: quick, except under ``--optimised``; and with ``JAX_COMPILATION_CACHE_DIR``, which
  the Makefile sets, each program is compiled once for all workers and later runs.
- At the end of a run, one line for each reason to skip a test, and how much memory it took.
"""

import collections
import ctypes
import gc
import importlib.metadata
import os
import sys

_JAX = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])

# Read when the back end starts, so set before the first `import jax`.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
if _JAX < (0, 11):
    # jaxlib 0.10's CPU back end sums some vmapped reductions wrongly:
    # https://github.com/jax-ml/jax/issues/39103
    _FLAGS.append("--xla_cpu_experimental_ynn_fusion_type=")
# LLVM's optimisations are a third of a compilation; threads for the parts of a program cost more
# than they save where each core has a worker; and jaxlib 0.10 has a second set of emitters, which
# takes half the time. XLA's own passes are the same.
_QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if _JAX < (0, 11):
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")


def _set_flags(flags):
    """A flag that is already there wins: the user's, or a worker's from the process that began it.

    Nor does a worker add one twice: JAX's cache takes other words for another compilation.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in given}
    added = [flag for flag in flags if flag.partition("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join([*added, *given])


_set_flags(_FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.pop("JAX_ENABLE_X64", None)

import hypothesis
import jax
import pytest

pytest.register_assert_rewrite("cases", "kernel_back_ends")

MEMORY = 1000
GROWTH = 150
_of_workers = []  # MB that each had in memory at most

hypothesis.settings.register_profile(
    "quick",
    max_examples=50,
    deadline=None,  # the first example compiles
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("quick"), max_examples=200
)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests, and more examples")
    parser.addoption("--optimised", action="store_true", help="compile as users do")


def pytest_configure(config):
    config.pluginmanager.register(LettingGo())
    config.addinivalue_line("markers", "slow: left out of `make test`; --all runs it")
    hypothesis.settings.load_profile("thorough" if config.getoption("--all") else "quick")
    if not config.getoption("--optimised"):
        _set_flags(_QUICK)  # early enough: no back end has been started


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all") or config.option.markexpr:
        return
    named = any("::" in argument for argument in config.args)
    slow = [item for item in items if item.get_closest_marker("slow") and not named]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    gc.disable()  # nearly all that is imported and collected stays
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()  # a full collection would take half a second with these objects
        gc.set_threshold(10_000)  # tracing makes many objects; by default 5 % of the time goes here
        gc.enable()


def _megabytes():
    """What this process has in memory now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # no Linux: then what it once had
        return _most_megabytes()


class LettingGo:
    """Compiled programs are kept until they are let go of; unchecked, a worker grows to 5 GB.

    It takes half a second, and what comes next compiles again: so not after every test. A plugin,
    since the hooks of this file are not called for the examples in docstrings.
    """

    def __init__(self):
        self.remained = 0.0  # MB in memory after the last time

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self):
        if _megabytes() > max(MEMORY, self.remained + GROWTH):
            jax.clear_caches()
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)
            self.remained = _megabytes()


def _most_megabytes():
    """What this process once had in memory, at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["megabytes"] = _most_megabytes()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _of_workers.append(getattr(node, "workeroutput", {}).get("megabytes", 0.0))


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(str(r.longrepr[2]).removeprefix("Skipped: ") for r in reports)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
    most = max(_of_workers, default=_most_megabytes())
    terminalreporter.write_line(f"memory: at most {most / 1000:.2f} GB in a process")


@pytest.fixture
def strict_promotion():
    """Makes JAX refuse an implicit promotion of dtypes or ranks: a library must not rely on one."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
