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
