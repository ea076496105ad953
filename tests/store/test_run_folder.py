import json
import os
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import icldyn as ic
from icldyn import checks
from icldyn.engine.train import Options, Training
from icldyn.store import arrays, files, manifest, verify
from icldyn.store.run_folder import LAYOUT
from tests.test_trajectory import make

TASK = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35])
MODEL = ic.linear_attention(4)
OBJECTIVE = ic.statistics(TASK, MODEL, 8)
SETTINGS = {"init_scale": 0.3, "measures": ic.modes.measures(TASK.U), "records": 5, "block": 8}


def experiments(**changes):
    """Three experiments in 12 blocks of one program, two of them swept or padded."""
    settings = SETTINGS | changes
    init = ic.gaussian(MODEL)
    return {
        "main": ic.Experiment(OBJECTIVE, init, seeds=36, lr=0.02, steps=40, **settings),
        "rates": ic.Experiment(OBJECTIVE, init, seeds=20, lr=[0.04, 0.01], t_end=0.4, **settings),
        "few": ic.Experiment(OBJECTIVE, init, seeds=[9], lr=0.02, steps=40, **settings),
    }


def in_memory():
    return {
        name: ic.ensemble(e.objective, e.init, seeds=e.seeds, lr=e.lr, steps=e.steps, t_end=e.t_end, **SETTINGS)
        for name, e in experiments().items()
    }


def same(one, other):
    return set(one) == set(other) and all(
        np.array_equal(one[n][v], other[n][v], equal_nan=True) for n in one for v in one[n].values
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder trained in one go."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    with ic.RunFolder.create(path) as run:
        run.train(experiments())
        run.save("theory", "curve", make())
        run.finish(claims=[])
    return path


def content(path, part="data.zarr"):
    return {p.relative_to(path): p.read_bytes() for p in (path / part).rglob("*") if p.is_file()}


def test_a_folder_holds_the_bits_of_the_ensemble_with_named_dimensions(whole):
    loaded = ic.RunFolder.open(whole).load("seeds")
    assert same(loaded, in_memory())
    assert loaded["rates"].dims["p"][:3] == ("lr", "seed", "time") and loaded["rates"].t.shape == (2, 5)
    with xr.open_zarr(whole / "data.zarr/seeds/main", consolidated=False) as data:
        assert data["strength"].dims[:2] == ("seed", "time") and {"t", "step", "diverged_step"} <= set(data.coords)
        assert (data["diverged_step"].values == -1).all()


def test_statistics_of_stored_values_read_a_piece_at_a_time_and_agree(whole, monkeypatch):
    lazy, held = ic.RunFolder.open(whole).load("seeds"), in_memory()
    monkeypatch.setattr("icldyn.trajectory.SLAB", {"seed": 2000, "time": 2000})  # a few seeds or times in a piece
    for name in held:
        np.testing.assert_allclose(lazy[name].mean("strength"), held[name].mean("strength"), rtol=1e-12)
        np.testing.assert_allclose(
            lazy[name].standard_error("p"), held[name].standard_error("p"), rtol=1e-9, equal_nan=True
        )
        wanted = held[name].quantile("strength", (0.1, 0.5))
        np.testing.assert_array_equal(lazy[name].quantile("strength", (0.1, 0.5)), wanted)
    assert not isinstance(lazy["main"].values["p"], np.ndarray)
    np.testing.assert_array_equal(lazy["main"].isel(seed=slice(3))["p"], held["main"]["p"][:3])


def test_a_whole_trajectory_is_saved_once(whole, tmp_path):
    again = ic.RunFolder.open(whole)
    np.testing.assert_array_equal(again.load("theory")["curve"]["a"], make()["a"])
    assert again.result["claims"] == [] and again.names("seeds") == ["main", "rates", "few"]
    with ic.RunFolder.create(tmp_path / "run") as run:
        run.save("theory", "curve", make())
        with pytest.raises(ic.BadArgument, match="`name` must be new in this run, but theory/curve is there already"):
            run.save("theory", "curve", make())
        with pytest.raises(ic.BadArgument, match="`name` must be letters, digits"):
            run.save("theory", "../curve", make())


def test_a_folder_opened_to_read_is_not_written(whole):
    with pytest.raises(ic.BadArgument, match="opened to read"):
        ic.RunFolder.open(whole).finish()


def test_record_holds_settings_versions_device_and_commit(whole):
    record = json.loads((whole / "run.json").read_text())
    assert {"jax", "icldyn", "python"} <= set(record["versions"]) and record["device"].startswith("cpu")
    assert "commit" in record and record["started"] and record["flags"]["jax_threefry_partitionable"] is True
    assert json.loads((whole / "result.json").read_text())["wall_seconds"] > 0


# ---------------------------------------------------------------------- to go on


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, checkpoint_seconds):
    """Stopped after 1, 2, 3, ... calls of the program, in the middle of blocks, until it is done."""
    monkeypatch.setattr("icldyn.engine.train.SECONDS_PER_CALL", 1e-9)  # calls of one step
    path, rounds = tmp_path / "run", 0
    while True:
        with ic.RunFolder.resume(path) as run:
            stop = StopAfter(40 * (rounds + 1))
            try:
                run.train(experiments(), Options(stop=stop, checkpoint_seconds=checkpoint_seconds))
                break
            except checks.Stopped:
                rounds += 1
                assert run.missing(experiments()) > 0
    assert rounds >= 3
    assert {k: v for k, v in content(path).items() if "theory" not in k.parts} == {
        k: v for k, v in content(whole).items() if "theory" not in k.parts
    }
    assert list((path / "checkpoints").glob("*")) == []


class StopAfter(threading.Event):
    """Set when it was asked `count` times."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def is_set(self):
        self.count -= 1
        return self.count <= 0


@pytest.mark.parametrize("n", [2, 3, 8])
def test_shards_in_any_order_make_the_bits_of_one_process(whole, tmp_path, n):
    path = tmp_path / "run"
    for i in reversed(range(1, n + 1)):
        with ic.RunFolder.resume(path, share=(i, n)) as run:
            assert run.missing(experiments()) > 0
            run.train(experiments(), Options(share=(i, n)))
    assert run.missing(experiments()) == 0
    assert same(ic.RunFolder.open(path).load("seeds"), ic.RunFolder.open(whole).load("seeds"))


def test_trajectories_have_the_order_of_the_study_whichever_was_begun_first(tmp_path):
    with ic.RunFolder.create(tmp_path / "run") as run, run.keeper() as keeper:
        work = list(zip(experiments().values(), run.sinks(experiments(), keeper), strict=True))
        Training(work[::-1], Options())
        assert run.names("seeds") == list(experiments())


def test_a_run_opens_in_xarray_while_it_goes_on_with_nan_where_nothing_is_yet(tmp_path):
    with ic.RunFolder.create(tmp_path / "run") as run:
        run.train(experiments(), Options(share=(1, 3)))
        with xr.open_zarr(tmp_path / "run/data.zarr/seeds/main", consolidated=False) as data:
            done = data["diverged_step"].values == -1
            assert 0 < done.sum() < 36 and (data["diverged_step"].values[~done] == -2).all()
            assert np.isfinite(data["p"].values[done]).all() and np.isnan(data["p"].values[~done]).all()
        with pytest.raises(ic.BadArgument, match="stopped before its end: . of . blocks of main are done"):
            run.load("seeds")


def test_other_settings_versions_or_code_are_refused_and_named(tmp_path, monkeypatch):
    with ic.RunFolder.create(tmp_path / "run", "study", "smoke", {"lr": 0.1, "N": (8, 20)}) as run:
        run.train({"few": experiments()["few"]})
    asked = {"study": "study", "scale": "smoke", "config": {"lr": 0.1, "N": (8, 20)}}
    with ic.RunFolder.resume(tmp_path / "run", **asked) as run:
        with pytest.raises(ic.BadArgument, match="must hold the same experiments, but few"):
            run.train({"few": experiments(init_scale=0.31)["few"]})
    with pytest.raises(ic.BadArgument, match=r"`lr` must be 0.1, as when .* was started, but is 0.2"):
        ic.RunFolder.resume(tmp_path / "run", **asked | {"config": {"lr": 0.2, "N": (8, 20)}})
    with pytest.raises(ic.BadArgument, match="`study` must be 'study'"):
        ic.RunFolder.resume(tmp_path / "run", **asked | {"study": "other"})
    monkeypatch.setattr("icldyn.store.run_folder.version", lambda name: "9.9")
    with pytest.raises(ic.BadArgument, match="made with icldyn .*, here 9.9; jax .*, here 9.9.*--allow-skew"):
        ic.RunFolder.resume(tmp_path / "run", **asked)
    ic.RunFolder.resume(tmp_path / "run", **asked, allow_skew=True).close()
    assert any("skew" in entry.get("session", {}) for entry in manifest.entries(tmp_path / "run"))


def test_a_second_writer_is_told_who_holds_the_run(tmp_path):
    with ic.RunFolder.create(tmp_path / "run", share=(1, 2)):
        with pytest.raises(
            ic.BadArgument, match=f"must be a run that no one is writing, but process {os.getpid()} on "
        ):
            ic.RunFolder.resume(tmp_path / "run", share=(1, 2))
        with pytest.raises(ic.BadArgument, match="`shard` must be i/2 while others write so, but is 1/1: process"):
            ic.RunFolder.resume(tmp_path / "run")
        ic.RunFolder.resume(tmp_path / "run", share=(2, 2)).close()
    ic.RunFolder.resume(tmp_path / "run").close()


def test_of_many_racing_processes_one_gets_the_run(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom icldyn.store.locks import Lock\nfrom icldyn.checks import BadArgument\n"
        "try:\n    lock = Lock(Path(sys.argv[1]), (1, 1)); print('got it'); time.sleep(3)\n"
        "except BadArgument as error: print(error)"
    )
    racing = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    told = [p.communicate(timeout=60)[0].strip() for p in racing]
    assert told.count("got it") == 1 and sum("must be a run that no one is writing" in t for t in told) == 7


# ---------------------------------------------------------------------- damage


def broken(path, copy_of):
    import shutil

    shutil.copytree(copy_of, path)
    return path


def flip(path, position=None, bit=1):
    held = bytearray(path.read_bytes())
    held[len(held) // 2 if position is None else position] ^= bit
    path.write_bytes(held)


def all_files(path):
    return sorted(p for p in path.rglob("*") if p.is_file() and "locks" not in p.parts)


def test_a_thousand_flipped_bits_are_all_found_and_the_file_is_named(whole, tmp_path):
    path, random = broken(tmp_path / "run", whole), np.random.default_rng(0)
    assert verify.verify(path) == []
    candidates, silent = all_files(path), []
    for _ in range(1000):
        file = candidates[random.integers(len(candidates))]
        before, where, bit = file.read_bytes(), random.integers(file.stat().st_size), 1 << random.integers(8)
        flip(file, where, int(bit))
        found = verify.verify(path)
        if not any(d.file == str(file.relative_to(path)) for d in found):
            silent.append((file, where, bit))
        file.write_bytes(before)
    assert silent == []


def test_a_missing_file_is_found(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    (path / "data.zarr/seeds/main/p/c/2/0/0").unlink()
    assert [str(d) for d in verify.verify(path)] == [
        "data.zarr/seeds/main/p/c/2/0/0 (block 2 of main): cannot be read (No such file or directory)"
    ]


def test_damaged_blocks_and_metadata_are_made_again_with_the_same_bits(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    flip(path / "data.zarr/seeds/main/p/c/2/0/0")
    (path / "data.zarr/seeds/rates/loss/c/1/0/0").unlink()
    flip(path / "data.zarr/seeds/few/loss/zarr.json")
    damage = verify.verify(path)
    assert {d.cell for d in damage} == {("main", 2), ("rates", 3), None}
    told = []
    with ic.RunFolder.resume(path, say=told.append) as run:
        run.train(experiments(), redo=[("main", 2), ("rates", 3), ("few", LAYOUT)])
    assert verify.verify(path) == [] and content(path) == content(whole) and told == []


def test_a_damaged_line_of_the_manifest_costs_its_block_alone(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    file = path / "manifest/000001.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    where = next(k for k, line in enumerate(lines) if b'"cell":["main",1]' in line)
    file.write_bytes(b"".join(lines[:where] + [lines[where].replace(b'"main"', b'"mbin"')] + lines[where + 1 :]))
    damage = verify.verify(path)
    assert [(d.file, d.cell) for d in damage] == [("manifest/000001.jsonl", None), ("manifest", ("main", 1))]
    with ic.RunFolder.resume(path) as run:
        assert run.missing(experiments()) == 1
        verify.discard(run, damage)
        run.train(experiments())
    assert verify.verify(path) == [] and content(path) == content(whole)


def test_a_lost_record_is_restored_from_the_manifest(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    before = (path / "run.json").read_bytes()
    flip(path / "run.json", 40)
    with pytest.raises(ic.BadArgument, match="no readable run.json; icldyn verify RUN --repair restores it"):
        ic.RunFolder.open(path)
    assert verify.restore_record(path) and (path / "run.json").read_bytes() == before


def test_reading_damaged_data_is_one_sentence(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    flip(path / "data.zarr/seeds/main/p/c/2/0/0")
    with pytest.raises(ic.BadArgument, match="`run` must hold sound data, .*icldyn verify"):
        ic.RunFolder.open(path).load("seeds")["main"].mean("p")


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other version", "other settings"])
def test_a_checkpoint_that_is_not_ours_costs_its_block_alone_and_is_said(whole, tmp_path, monkeypatch, harm):
    monkeypatch.setattr("icldyn.engine.train.SECONDS_PER_CALL", 1e-9)
    path, told = tmp_path / "run", []
    with ic.RunFolder.resume(path) as run, pytest.raises(checks.Stopped):
        run.train(experiments(), Options(stop=StopAfter(60)))
    kept = sorted((path / "checkpoints").glob("*.ckpt"))
    assert kept
    for file in kept:
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-100])
        elif harm == "flip":
            flip(file)
        elif harm == "empty":
            file.write_bytes(b"")
        else:
            held = files.unpack(file.read_bytes())
            held |= {"format": np.int64(99)} if harm == "other version" else {"identity": np.zeros(32, np.uint8)}
            file.write_bytes(files.pack(held))
    assert (harm in ("cut", "flip", "empty")) == bool(verify.verify(path))
    with ic.RunFolder.resume(path, say=told.append) as run:
        run.train(experiments())
    assert len(told) == len(kept) and all("its block starts again." in t for t in told)
    assert same(ic.RunFolder.open(path).load("seeds"), ic.RunFolder.open(whole).load("seeds"))


def test_a_clock_that_jumps_changes_nothing(whole, tmp_path, monkeypatch):
    import time

    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    monkeypatch.setattr(time, "strftime", lambda *_: "1970-01-01")
    with ic.RunFolder.resume(tmp_path / "run") as run:
        run.train(experiments())
        run.finish()
    assert same(ic.RunFolder.open(tmp_path / "run").load("seeds"), ic.RunFolder.open(whole).load("seeds"))
    assert 0 < ic.RunFolder.open(tmp_path / "run").result["wall_seconds"] < 600


# ---------------------------------------------------------------------- what is not ours


def test_a_folder_that_holds_anything_is_refused_and_left_as_it_was(whole, tmp_path):
    before = (whole / "run.json").read_bytes()
    with pytest.raises(ic.BadArgument, match="`out` must be a new or empty folder, but .* already holds another run"):
        ic.RunFolder.create(whole)
    assert (whole / "run.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/note").write_text("mine")
    with pytest.raises(ic.BadArgument, match="is not empty"):
        ic.RunFolder.resume(tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ic.BadArgument, match="is not a folder"):
        ic.RunFolder.create(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ic.BadArgument, match="is not a folder"):
        ic.RunFolder.create(tmp_path / "link")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ic.BadArgument, match="`out` must be a folder that can be written, but is"):
        ic.RunFolder.create("/proc/nowhere/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ic.BadArgument, match="`out` must be a folder that can be written, but is"):
        ic.RunFolder.create(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"format_version": "x"}', '{"format_version": 2}', "\x00\xff", "[" * 10**5]
)
def test_what_is_no_run_is_refused(tmp_path, told):
    (tmp_path / "run.json").write_text(told)
    with pytest.raises(ic.BadArgument, match="`run` must be a run folder"):
        ic.RunFolder.open(tmp_path)


def test_another_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format_version": 99, "study": "mainali2025"}')
    with pytest.raises(
        ic.BadArgument, match="must be of format 2, which this version of icldyn reads, but .* of format 99"
    ):
        ic.RunFolder.open(tmp_path)


def edit(path, **changes):
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zarr_format": 2}, "not an array of zarr v3"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "not made of plain numbers"),
        ({"data_type": "variable_length_utf8"}, "not made of plain numbers"),
        ({"shape": [10**12, 5, 4]}, "claims .* chunks, but has"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 5, 4]}}}, "chunks above"),
    ],
)
def test_hostile_arrays_are_refused_before_a_byte_of_them_is_read(whole, tmp_path, changes, reason):
    path = broken(tmp_path / "run", whole)
    edit(path / "data.zarr/seeds/main/p/zarr.json", **changes)
    with pytest.raises(ic.BadArgument, match=f"`run` must hold sound data, but .*{reason}"):
        ic.RunFolder.open(path).load("seeds")


def test_a_manifest_that_points_outside_is_not_followed(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    for name in ("../../../etc/hostname", "/etc/hostname"):
        entry = {"saved": "theory/x", "files": {name: "00"}, "at": 1.0}
        with (path / "manifest/000001.jsonl").open("ab") as file:
            file.write(manifest._encoded(entry))
    assert [d.what for d in verify.verify(path)] == ["lies outside of the run"] * 2


def test_links_inside_a_run_are_refused_before_writing(whole, tmp_path):
    path = broken(tmp_path / "run", whole)
    (path / "checkpoints").rmdir() if (path / "checkpoints").exists() else None
    (path / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(ic.BadArgument, match="must hold no links, but checkpoints in it is one"):
        ic.RunFolder.resume(path)


class Boom:
    def __reduce__(self):
        return (os.system, ("touch /tmp/icldyn-was-here",))


def test_numbers_are_all_that_is_ever_read_from_an_npz(tmp_path):
    import io
    import zipfile

    def npz(**members):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)
        return buffer.getvalue()

    def npy(array, pickled=False):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=pickled)
        return buffer.getvalue()

    np.testing.assert_array_equal(
        files.read_npz(npz(a=npy(np.arange(6.0).reshape(2, 3))))["a"], np.arange(6.0).reshape(2, 3)
    )
    header = npy(np.zeros(3)).replace(b"(3,)", b"(9,)")
    huge = npy(np.zeros(10**9, "u1")[:1]).replace(b"(1,), }           ", b"(100000000000,), }")
    for hostile in (
        npz(a=npy(np.array([Boom()], object), pickled=True)),
        npz(a=header),
        npz(a=huge),
        npz(a=b"\x80\x04."),
        npz(a=npy(np.array(["text"]))),
        b"PK\x03\x04 not a zip",
        b"",
    ):
        with pytest.raises(ValueError):
            files.read_npz(hostile)
    assert not os.path.exists("/tmp/icldyn-was-here")


def test_nothing_in_the_package_unpickles_or_evaluates():
    from pathlib import Path

    for path in Path(ic.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle",
            "import dill",
            "import yaml",
            "allow_pickle=True",
            " eval(",
            "exec(",
            "import marshal",
        ):
            assert word not in text, (path, word)


def test_layouts_are_created_whole_whoever_is_first(tmp_path):
    layout = experiments()["few"].layout({"a": jnp.zeros((), "float32")})
    racing = [threading.Thread(target=arrays.create, args=(tmp_path / "few", layout, 1, {})) for _ in range(1)]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    arrays.create(tmp_path / "few", layout, 1, {})  # the loser of a race leaves the winner's
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few"]
