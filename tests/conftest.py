"""Every test runs in float64, with strict promotion of dtypes and ranks and with reused keys refused."""

import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
import pytest
from filelock import FileLock

import icldyn

matplotlib.use("Agg")


CACHE = "ICLDYN_TEST_CACHE"  # a folder for what a test session compiles


def pytest_configure(config):
    import jax

    # Processes that tests start run the code that is tested, not another that is installed: a run's identity has its commit.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(icldyn.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    if CACHE not in os.environ:  # the workers inherit it
        os.environ[CACHE] = tempfile.mkdtemp(prefix="icldyn-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    own = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # its own: else it may read a file that another still writes
    jax.config.update("jax_compilation_cache_dir", f"{os.environ[CACHE]}/{own}")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_debug_key_reuse", True)


SLOW = ("tests/studies/", "tests/test_notebooks.py", "tests/test_sweep.py", "tests/engine/test_spmd.py")


def pytest_collection_modifyitems(items):
    root = Path(__file__).parents[1]
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def compile_cache():
    """Environment in which the processes of a test session share what they compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": f"{os.environ[CACHE]}/processes",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The folder of `icldyn run STUDY --scale smoke`, made once for each study and shared by all tests, which only read it."""
    from icldyn.cli import main

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    shared.mkdir(exist_ok=True)

    def run(name):
        out = shared / name
        with FileLock(shared / f"{name}.lock"):  # one worker makes it, the others wait
            if not (out / "result.json").exists():
                assert main(["run", name, "--scale", "smoke", "--out", str(out), "--quiet"]) == 0
        return out

    return run
