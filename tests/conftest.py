"""Every test runs in float64, with strict promotion of dtypes and ranks and with reused keys refused."""

import matplotlib
import pytest

matplotlib.use("Agg")


def pytest_configure():
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """Environment in which the processes of a test session share what they compiled."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The folder of `icldyn run STUDY --scale smoke`, made once for each study and shared by the tests that read it."""
    from icldyn.cli import main

    made = {}

    def run(name):
        if name not in made:
            out = tmp_path_factory.mktemp("runs") / name
            assert main(["run", name, "--scale", "smoke", "--out", str(out), "--quiet"]) == 0
            made[name] = out
        return made[name]

    return run
