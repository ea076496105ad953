"""The recipes of RUNNING.md, run for real, on the study of `tests/small`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from icldyn.store.verify import verify

TEXT = (Path(__file__).parents[1] / "RUNNING.md").read_text()
RECIPES = {re.search(r"recipe: (.*)", block)[1]: block for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)}
SMALL = Path(__file__).with_name("small")


@pytest.fixture(scope="module")
def there(tmp_path_factory, compile_cache):
    """What the recipes find: `icldyn`, and programs that were compiled before."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "icldyn").write_text(f'#!/bin/sh\nexec {sys.executable} {SMALL} "$@"\n')
    (folder / "icldyn").chmod(0o755)
    return os.environ | compile_cache | {"PATH": f"{folder}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, there):
    """The run of a single process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    subprocess.run(["icldyn", "run", "small2026", "--out", out, "--quiet"], env=there, check=True)
    return out


def content(run):
    return {p.relative_to(run): p.read_bytes() for p in (run / "data.zarr").rglob("*") if p.is_file()}


def started(recipe, folder, there, with_words="", **variables):
    """The recipe as written, of another study."""
    text = RECIPES[recipe].replace("icldyn run mainali2025", f"icldyn run small2026 {with_words}")
    environment = there | variables
    return subprocess.Popen(["bash", "-c", text], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended_well(processes):
    for process in processes:
        err = process.communicate(timeout=250)[1]
        assert process.returncode == 0, err


def test_one_process_for_each_gpu_of_a_host(alone, there, tmp_path):
    ended_well([started("one host, four GPUs, four processes", tmp_path, there)])
    assert content(tmp_path / "runs/shared") == content(alone) and verify(tmp_path / "runs/shared") == []


def test_a_slurm_array_of_which_a_task_comes_late(alone, there, tmp_path):
    recipe = "Slurm array"
    for tasks in ((1, 3), (2,)):
        variables = [{"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": "3"} for k in tasks]
        assert not (tmp_path / "runs/shared/result.json").exists()
        ended_well([started(recipe, tmp_path, there, **v) for v in variables])
    assert content(tmp_path / "runs/shared") == content(alone) and verify(tmp_path / "runs/shared") == []


def test_a_tpu_pod_slice_with_a_share_for_each_host(alone, there, tmp_path):
    recipe = "TPU pod slice, one share for each host, run with --worker=all"
    ended_well([started(recipe, tmp_path, there, TPU_WORKER_ID=str(k)) for k in range(4)])
    assert content(tmp_path / "runs/shared") == content(alone)


def test_submitit_runs_shards_as_jobs(alone, there, tmp_path):
    """In a process of its own: to import submitit closes every handler of `logging`, those of the tests too."""
    words = ["icldyn", "submit", "2", "--executor", "local", "--wait", "--json", "--", "run", "small2026"]
    done = subprocess.run([*words, "--out", "runs/shared"], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0 and '"exit_codes": [0, 0]' in done.stdout, done.stderr
    assert content(tmp_path / "runs/shared") == content(alone)


def test_one_program_over_the_processes_of_a_pod(alone, there, tmp_path):
    """As on a pod, where jax finds the others by itself; on loopback they are named."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    recipe = "TPU pod slice, one program, run with --worker=all"
    named = f"--coordinator {address} --processes 2 --process-index"
    ended_well([started(recipe, tmp_path, there, f"{named} {k}") for k in range(2)])
    assert content(tmp_path / "runs/shared") == content(alone)
