import json
import os
import types

import numpy as np
import pytest
import xarray as xr

import icldyn as ic
from icldyn.store import run_folder
from tests.test_trajectory import make


def create(path):
    return ic.RunFolder.create(path, "mainali2025", "smoke", {"seeds": 4})


def test_what_is_saved_opens_again_and_in_xarray_with_named_dimensions(tmp_path):
    run = create(tmp_path / "run")
    run.save("seeds", "main", make())
    run.finish(claims=[])
    again = ic.RunFolder.open(tmp_path / "run")
    loaded = again.load("seeds")["main"]
    np.testing.assert_array_equal(loaded["a"], make()["a"])
    assert loaded.dims["a"] == ("seed", "time", "mode") and again.load("theory") == {}
    with xr.open_zarr(tmp_path / "run" / "data.zarr" / "seeds" / "main", consolidated=False) as data:
        assert data["a"].dims == ("seed", "time", "mode")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "complete" and record["config"] == {"seeds": 4} and record["versions"]["jax"]
    assert record["trajectories"]["seeds/main"] == {"diverged": 0, "seeds": 4}


def test_a_flipped_bit_is_found_on_reading(tmp_path):
    run = create(tmp_path / "run")
    run.save("seeds", "main", make())
    chunk = next(p for p in (tmp_path / "run/data.zarr/seeds/main/a/c").rglob("*") if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum|crc"):
        run.load("seeds")


def test_a_trajectory_being_written_is_not_yet_there(tmp_path, monkeypatch):
    run = create(tmp_path / "run")
    run.save("seeds", "first", make())

    def stop(*_):
        raise KeyboardInterrupt

    only_ours = types.SimpleNamespace(**{**vars(os), "replace": stop})  # zarr's own threads keep theirs
    monkeypatch.setattr(run_folder, "os", only_ours)
    with pytest.raises(KeyboardInterrupt):
        run.save("seeds", "second", make())
    again = ic.RunFolder.open(tmp_path / "run")
    assert list(again.load("seeds")) == ["first"]


def test_a_folder_that_holds_anything_is_refused_and_left_as_it_was(tmp_path):
    create(tmp_path / "run")
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(ic.BadArgument, match="`out` must be a new or empty folder, but .* already holds another run"):
        create(tmp_path / "run")
    assert (tmp_path / "run/run.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/note").write_text("mine")
    with pytest.raises(ic.BadArgument, match="is not empty"):
        create(tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ic.BadArgument, match="is not a folder"):
        create(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ic.BadArgument, match="is not a folder"):
        create(tmp_path / "link")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ic.BadArgument, match="`out` must be a folder that can be written, but is"):
        create("/proc/nowhere/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ic.BadArgument, match="`out` must be a folder that can be written, but is"):
        create(tmp_path / "file" / "run")


HOSTILE = json.dumps(
    {"format_version": 1, "study": "s", "config": {}, "status": "complete", "trajectories": {"seeds/../../../etc": {}}}
)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": "x", "study": "s"}',
        '{"format_version": 1, "study": "s"}',
        "\x00\xff",
        HOSTILE,
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ic.BadArgument, match="`run` must be a run folder"):
        ic.RunFolder.open(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format_version": 99, "study": "mainali2025"}')
    with pytest.raises(ic.BadArgument, match="format 1 or older, but .* of format 99"):
        ic.RunFolder.open(tmp_path)
