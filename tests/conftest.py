"""Eight host devices, strict shapes and one compile cache for every test; all must be set before jax is imported.

The programs of a test's own process, and of most commands that it starts, are compiled by QUICK_FLAGS; test_verdicts
has flags of its own, and what tests/serve and tests/perf start is optimised as a user's is.
"""

import atexit
import os
import shutil
import tempfile

from warm_python import QUICK_FLAGS, warm_python  # imports no jax

os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Programs of one test are those of another, here and in the commands that tests start: each is compiled once a run.
    compiled = tempfile.mkdtemp(prefix="em_jax_tests_")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest  # after the environment is set


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A `python` that runs the commands of em_jax as a user's does, in a process that stays warm."""
    with warm_python(tmp_path_factory.mktemp("warm")) as program:
        yield str(program)


@pytest.fixture(scope="module")
def unrendered():
    """Figures are painted but not rendered: for tests that look at what runs write, not at its pictures."""

    def savefig(self, out, **options):
        out.write(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><style/></svg>')

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matplotlib.figure.Figure.savefig", savefig)
        yield


WHOLE_RUNS = ("test_verdicts", "test_multihost", "test_kill", "test_commands", "test_tutorials")


def pytest_collection_modifyitems(items):
    """The files that take minutes come first, so that the workers end together."""
    items.sort(key=lambda item: item.path.stem not in WHOLE_RUNS)


def pytest_runtest_setup(item):
    """Tests of a GPU are collected everywhere and skipped where jax has none."""
    if item.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() != "gpu":
            pytest.skip("jax finds no GPU")
