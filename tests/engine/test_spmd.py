"""The second engine has the bits of the first, on one device, on many devices and on many processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from spmd_process import Folder, experiment, run

import icldyn as ic
from icldyn.engine import spmd
from icldyn.engine.ensemble import ensembles
from icldyn.engine.train import Options

SCRIPT = Path(__file__).with_name("spmd_process.py")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the first engine trains on one device."""
    folder = Folder(tmp_path_factory.mktemp("reference"))
    assert run(folder, "blocks") == 0
    return folder


@pytest.fixture
def start(compile_cache):
    """Starts a process of the script: (command, CPU devices, arguments)."""
    begun = []

    def one(command, devices, **arguments):
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        call = [sys.executable, "-W", "error", str(SCRIPT), json.dumps([command, arguments])]
        begun.append(
            subprocess.Popen(
                call, env=os.environ | flags | compile_cache, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def start_many(start):
    """Starts a distributed run on loopback: (folder, processes, devices of each, what is special about some)."""

    def many(folder, count, devices, special=None, slow=0.0):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        base = {"path": str(folder.path), "address": address, "processes": count, "slow": slow, "full": False}
        return [
            start("one_of_many", devices, **(base | {"index": k} | (special or {}).get(k, {}))) for k in range(count)
        ]

    return many


def codes(processes, seconds=100):
    """Their exit codes; none may hang."""
    until = time.monotonic() + seconds
    for process in processes:
        told, _ = process.communicate(timeout=max(until - time.monotonic(), 1))
        print(told.decode(errors="replace")[-3000:], "---", process.returncode)  # shown where the test fails
    return [process.returncode for process in processes]


def wait_for(file, seconds=100):
    until = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_one_device_it_has_the_bits_of_the_first_engine(dtype):
    one = experiment(seeds=20, lr=[0.01, 0.02], t_end=0.4, steps=None, init_scale=[0.2, 0.3], dtype=dtype)
    made = [ensembles({"a": one}, Options(engine=engine))["a"] for engine in ("blocks", "spmd")]
    assert made[0]["loss"].shape == (2, 2, 20, 5) and made[0]["loss"].dtype == dtype
    np.testing.assert_array_equal(made[0]["loss"], made[1]["loss"])


@pytest.mark.parametrize("across_values", [False, True])
def test_experiments_of_other_values_and_lengths_have_waves_of_their_own(across_values):
    several = {
        "a": experiment(seeds=20),
        "b": experiment(seeds=3, steps=30),
        "c": experiment(seeds=2, steps=30, lr=[0.03, 50.0], spread=2.0),
    }
    one, other = (
        ensembles(several, Options(engine=engine, across_values=across_values)) for engine in ("blocks", "spmd")
    )
    for name in several:
        np.testing.assert_array_equal(one[name]["loss"], other[name]["loss"])
        np.testing.assert_array_equal(one[name].finite(), other[name].finite())
    assert one["c"].diverged == 2


def test_a_block_that_one_engine_left_is_taken_up_by_the_other(reference, tmp_path):
    for first, second in (("spmd", "blocks"), ("blocks", "spmd")):
        folder = Folder(tmp_path / first, saves=1)
        assert run(folder, first, checkpoint_seconds=0.0) == 75
        assert list(folder.path.glob("kept-*")) and folder != reference
        assert run(folder, second) == 0 and folder == reference
        assert not list(folder.path.glob("kept-*"))


def test_a_sink_that_fails_says_so_itself(tmp_path):
    with pytest.raises(OSError, match="No room"):
        run(Folder(tmp_path, full=True))


def test_too_little_memory_is_told_in_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(spmd, "advance_all", lambda *_: full)
    with pytest.raises(ic.BadArgument, match="`block` must be smaller .* is 8: .*--engine blocks"):
        run(Folder(tmp_path))


def test_many_devices_have_the_bits_of_one_and_nothing_is_communicated(reference, start, tmp_path):
    """Six blocks do not fill eight devices, nor four. That the program holds no collective is asserted in the script."""
    several = start("over_devices", 8, path=str(tmp_path))
    adam = Folder(tmp_path / "wanted")
    run(adam, "blocks", {"optimiser": optax.adam})
    assert codes([several], seconds=200) == [0]
    for name in ("blocks-1", "blocks-2", "blocks-4", "blocks-8", "spmd-4", "spmd-8"):
        assert Folder(tmp_path / name) == reference
    assert Folder(tmp_path / "adam") == adam != reference


def test_killing_one_of_four_processes_loses_nothing_and_two_others_go_on(reference, start_many, tmp_path):
    folder = Folder(tmp_path)
    four = start_many(folder, 4, 1, slow=1.0)
    wait_for(folder.path / "kept-a-4.npz")  # the second wave
    four[1].kill()
    assert codes(four)[1] == -signal.SIGKILL and 0 not in [process.returncode for process in four]
    done = sorted(file.name for file in folder.path.glob("cell-*"))
    assert done == [f"cell-a-{k}.npz" for k in range(4)]
    assert all(np.array_equal(np.load(folder.path / f)["loss"], np.load(reference.path / f)["loss"]) for f in done)
    assert codes(start_many(folder, 2, 2)) == [0, 0]
    assert folder == reference and not list(folder.path.glob("kept-*"))


def test_two_processes_stop_together_and_fail_together(reference, start_many, tmp_path):
    folder = Folder(tmp_path)
    two = start_many(folder, 2, 1, slow=1.0)
    wait_for(folder.path / "kept-a-1.npz")
    two[1].send_signal(signal.SIGTERM)
    assert codes(two) == [75, 75]
    assert {"kept-a-0.npz", "kept-a-1.npz"} <= {file.name for file in folder.path.iterdir()}
    assert codes(start_many(folder, 2, 1, {1: {"full": True}})) == [75, 1]
    assert not (folder.path / "cell-a-1.npz").exists() and (folder.path / "kept-a-1.npz").exists()
    assert run(folder) == 0 and folder == reference


def test_what_keeps_one_process_from_starting_stops_all(start_many, tmp_path):
    assert codes(start_many(Folder(tmp_path), 2, 1, {1: {"seeds": 43}})) == [2, 2]  # another experiment
    assert codes(start_many(Folder(tmp_path), 2, 1, {1: {"full": "at once"}})) == [75, 2]


@pytest.mark.parametrize(
    "address, processes, index, told",
    [
        ("127.0.0.1:29400", None, 0, "`processes` must be given along"),
        ("127.0.0.1:29400", 2, 2, "`process-index` must be below 2"),
        ("127.0.0.1", 2, 0, "`coordinator` must be HOST:PORT"),
        ("127.0.0.1:port", 2, 0, "`coordinator` must be HOST:PORT"),
        ("no-such-host.invalid:29400", 2, 1, "`coordinator` must be an address of process 0"),
        (None, None, None, "`distributed` must be for processes that find each other"),
    ],
)
def test_what_cannot_be_joined_is_told_in_a_sentence(address, processes, index, told):
    with pytest.raises(ic.BadArgument, match=told):
        spmd.initialise(address, processes, index)


def test_a_port_that_is_taken_is_told_in_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ic.BadArgument, match="in use"):
            spmd.initialise(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)
