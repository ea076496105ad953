"""What may happen to a run: killed, stopped, no room, no right to write, in company. `benchmarks/faults.py` does it at length.

All of it through the command line, on the study of `tests/small`.
"""

import dataclasses
import errno
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

import icldyn.studies
from icldyn import checks
from icldyn.cli import main
from icldyn.engine.train import Options
from icldyn.store import arrays, checkpoints, files, manifest, run_folder
from icldyn.store.run_folder import RunFolder
from icldyn.store.verify import verify
from icldyn.study import study

SMALL = Path(__file__).with_name("small")
LONG = ["run", "small2026", "--steps", "4000", "--checkpoint-seconds", "0", "--quiet"]  # seconds, to be killed in
SHORT = ["run", "small2026", "--steps", "80", "--checkpoint-seconds", "0", "--quiet"]
CELLS = 8


@pytest.fixture(scope="module", autouse=True)
def small_study():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icldyn.studies, "__path__", [*icldyn.studies.__path__, str(SMALL / "studies")])
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing happened to: words -> folder."""
    made = {}

    def run(words):
        if words[3] not in made:
            made[words[3]] = tmp_path_factory.mktemp("runs") / "whole"
            assert main([*words, "--out", str(made[words[3]])]) == 0
        return made[words[3]]

    return run


@pytest.fixture
def start(compile_cache):
    """Starts a process of the command line: (words, what its theory and its figures wait, in seconds)."""
    begun = []

    def one(words, pause=0.0):
        environment = os.environ | compile_cache | {"JAX_PLATFORMS": "cpu", "SMALL_PAUSE": str(pause)}
        call = [sys.executable, str(SMALL), *words]
        begun.append(subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk: options of mount -> folder; `mount` again changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        how = "remount," if os.path.ismount(folder) else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{how}{options}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        return folder

    try:
        yield mount
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def content(path):
    return {p.relative_to(path): p.read_bytes() for p in (path / "data.zarr").rglob("*") if p.is_file()}


def claims(path):
    return json.loads((path / "result.json").read_text())["claims"]


def named(path):
    """What the manifest names, once for every time that it was made."""
    found = [(e["cell"], e["files"]) for e in manifest.entries(path) if "cell" in e]
    return found + [(e["saved"], e["files"]) for e in manifest.entries(path) if "saved" in e]


def cells(path):
    return [what for what, _ in named(path) if isinstance(what, list)]


def ends(path):
    """How many times the run was ended."""
    return [what for what, _ in named(path)].count("result")


def same(path, reference):
    """Whether a run is complete, sound and tidy, with every bit of another, and no block was trained twice."""
    litter = [p for p in path.rglob("*") if p.name.startswith(".") or p.suffix in (".partial", ".ckpt")]
    return (
        verify(path) == []
        and RunFolder.open(path).complete
        and content(path) == content(reference)
        and claims(path) == claims(reference)
        and len(cells(path)) == CELLS
        and litter == []
    )


def wait_for(condition, process, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


def kept(path):
    return list((path / "checkpoints").glob("*.ckpt"))


def saved(path, prefix):
    return [what for what, _ in named(path) if str(what).startswith(prefix)]


# ---------------------------------------------------------------------- killed and stopped


def test_killed_at_every_stage_a_run_loses_nothing_it_named_and_goes_on_to_the_same_bits(whole, start, tmp_path):
    path = tmp_path / "run"
    words, done = [*LONG, "--out", str(path), "--resume"], []
    moments = [
        lambda: (path / "run.json").exists(),
        lambda: saved(path, "layout/"),
        lambda: kept(path),
        lambda: len(cells(path)) > len([what for what, _ in done if isinstance(what, list)]),
        lambda: saved(path, "theory/rise"),
    ]
    for k, moment in enumerate(moments):
        process = start(words, pause=0.5)  # so that it is drawing figures when its theory is seen
        wait_for(moment, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert verify(path) == [] and [one for one in done if one not in named(path)] == []
        done = named(path)
        assert (len(cells(path)) == CELLS) == (k == len(moments) - 1) and not (path / "result.json").exists()
    assert main(words) == 0 and same(path, whole(LONG))


def test_sigterm_stops_training_at_its_next_call(whole, start, tmp_path):
    path = tmp_path / "run"
    words = [*LONG, "--out", str(path), "--resume"]
    process = start(words)
    wait_for(lambda: kept(path), process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=30)[1]  # the usual time of grace; `benchmarks/faults.py` measures it
    assert process.returncode == 75 and "--resume" in told and "Traceback" not in told
    assert verify(path) == [] and len(cells(path)) < CELLS
    assert main(words) == 0 and same(path, whole(LONG))


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("experiments", signal.SIGTERM),
        ("theories", signal.SIGTERM),
        ("claims", signal.SIGINT),
        ("figures", signal.SIGTERM),
    ],
)
def test_a_signal_outside_of_training_stops_at_once(whole, tmp_path, monkeypatch, capsys, stage, number):
    path, paper = tmp_path / "run", study("small2026")
    words = [*SHORT, "--out", str(path), "--resume"]

    def interrupted(*args):
        signal.raise_signal(number)
        assert stage == "experiments", "it went on"
        return getattr(paper, stage)(*args)

    monkeypatch.setattr("icldyn.studies.small2026.STUDY", dataclasses.replace(paper, **{stage: interrupted}))
    assert main(words) == 75 and "Stopped. All that was done is kept" in capsys.readouterr().err
    assert verify(path) == [] and ends(path) == 0
    monkeypatch.undo()
    assert main(words) == 0 and same(path, whole(SHORT))


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_killed_between_a_file_and_its_line_in_the_manifest_a_run_is_sound(whole, tmp_path, monkeypatch, calls):
    """First the result; then, as they are made again otherwise, each of both figures and the result in place of the first."""
    path = tmp_path / "run"
    words = [*SHORT, "--out", str(path), "--resume"]

    def stop_after(calls):
        left = iter(range(calls - 1, -1, -1))

        def write(*args, **settings):
            files.write_atomically(*args, **settings)
            if args[0].suffix in (".png", ".json") and next(left) == 0:
                raise KeyboardInterrupt

        return write

    assert main([*words, "--shard", "1/2"]) == 0  # and run.json is written
    for stopped, dpi in ((3, 50), (calls, 70)):
        monkeypatch.setattr(run_folder, "write_atomically", stop_after(stopped))
        with matplotlib.rc_context({"savefig.dpi": dpi}):
            assert main(words) == 130 and verify(path) == [] and ends(path) == 0
    monkeypatch.undo()
    assert main(words) == 0 and same(path, whole(SHORT)) and ends(path) == 1


@pytest.mark.parametrize("last", [["--resume"], ["--shard", "2/2"]])
def test_what_killed_processes_left_half_written_goes_when_no_one_else_writes_and_nothing_else_does(
    whole, tmp_path, last
):
    path = tmp_path / "run"
    words = [*SHORT, "--out", str(path)]
    assert main([*words, "--shard", "1/2"]) == 0
    code = uuid.uuid4().hex
    half = [f"data.zarr/seeds/main/p/c/0/0/0.{code}.partial", f".run.json.{code}.tmp", f"checkpoints/.a.{code}.tmp"]
    half += [f"data.zarr/seeds/.main.{code}.tmp/p/zarr.json", "checkpoints/main-0.ckpt", "checkpoints/main-1.ckpt"]
    others = ["checkpoints/.note.tmp", ".hidden", "figures/mine.partial"]
    for name in half + others:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("half")
    assert main([*words, "--shard", "1/2"]) == 0 and all((path / name).exists() for name in half + others)
    if last == ["--resume"]:  # at once, for the room that it takes
        RunFolder.open(path, write=True).close()
        assert [(path / name).exists() for name in half] == [False] * 4 + [True] * 2
    assert main([*words, *last]) == 0 and not any((path / name).exists() for name in half)
    for name in others:
        (path / name).unlink()
    assert same(path, whole(SHORT)) and not list((path / "data.zarr/seeds").glob(".*"))


def test_a_run_folder_in_the_checkout_is_no_change_of_the_code(tmp_path, monkeypatch):
    code = tmp_path / "icldyn/store/run_folder.py"
    code.parent.mkdir(parents=True)
    code.write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run_folder, "__file__", str(code))
    before = run_folder._commit()
    assert len(before) == 40
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    assert run_folder._commit() == before
    code.write_text("changed")
    assert run_folder._commit() == before + "+"


def test_a_complete_run_is_shown_again_and_not_touched(whole, capsys):
    path = whole(SHORT)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "locks" not in p.parts}
    assert main([*SHORT, "--out", str(path), "--resume"]) == 0
    assert "Number 3" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before


# ---------------------------------------------------------------------- in company


def test_of_four_shards_started_at_once_one_is_killed_and_run_again_and_the_bits_are_those_of_one_process(
    whole, start, tmp_path
):
    path = tmp_path / "run"
    words = [*LONG, "--out", str(path)]
    four = [start([*words, "--shard", f"{k}/4"]) for k in (1, 2, 3, 4)]
    wait_for(lambda: any(e.get("session", {}).get("shard") == [3, 4] for e in manifest.entries(path)), four[2])
    four[2].kill()
    told = [process.communicate(timeout=120)[1] for process in four]
    assert [process.returncode for process in four] == [0, 0, -signal.SIGKILL, 0], told
    assert verify(path) == [] and ends(path) == 0 and 0 < len(cells(path)) < CELLS
    assert main([*words, "--shard", "3/4"]) == 0 and same(path, whole(LONG)) and ends(path) == 1


def test_one_process_ends_a_run_another_is_told_so_and_if_it_is_killed_another_does(whole, start, tmp_path, capsys):
    path = tmp_path / "run"
    words = [*SHORT, "--out", str(path)]
    assert main([*words, "--shard", "2/2"]) == 0
    assert "shard 2/2 is done" in capsys.readouterr().err and ends(path) == 0
    first = start([*words, "--shard", "1/2"], pause=60)
    wait_for((path / "locks/finish.json").exists, first)
    assert main([*words, "--shard", "2/2"]) == 0
    told = capsys.readouterr()
    assert f"another process ends the run: process {first.pid} on {platform.node()}" in told.err and told.out == ""
    assert ends(path) == 0 and not (path / "result.json").exists()
    for other in (["--shard", "1/2"], ["--resume"], ["--shard", "3/3"]):
        assert main([*words, *other]) == 2
        told = capsys.readouterr().err
        assert f"process {first.pid} on {platform.node()} holds it since " in told and told.count("\n") == 1
    first.kill()
    first.wait()
    assert main([*words, "--shard", "2/2"]) == 0 and same(path, whole(SHORT)) and ends(path) == 1
    assert main([*words, "--shard", "1/2"]) == 0 and same(path, whole(SHORT)) and ends(path) == 1
    assert capsys.readouterr().out.count("Number 3") == 2


def test_eight_that_make_the_same_folder_at_once_all_get_it(whole, tmp_path):
    paper, gate, stop = study("small2026"), threading.Barrier(8), threading.Event()
    config = dataclasses.replace(paper.scales["laptop"], steps=80)
    experiments = paper.experiments(config)
    stop.set()  # before the first block

    def one(k, path):
        gate.wait()
        with RunFolder.resume(path, "small2026", "laptop", dataclasses.asdict(config), share=(k, 8)) as run:
            with suppress(checks.Stopped):
                run.train(experiments, Options(share=(k, 8), stop=stop))
            return run.missing(experiments)

    for repeat in range(3):
        path = tmp_path / f"run{repeat}"
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(1, 9), [path] * 8)) == [CELLS] * 8
        assert verify(path) == []
    assert main([*SHORT, "--out", str(path), "--resume"]) == 0 and same(path, whole(SHORT))


# ---------------------------------------------------------------------- no room


def out_of_room(path, words, capsys):
    """The run ends with one sentence, and what it named is sound."""
    capsys.readouterr()
    assert main(words) == 74
    told = capsys.readouterr()
    *before, last = told.err.splitlines()
    assert last.startswith("No room left to write ") and last.endswith("go on with --resume.")
    assert "Traceback" not in told.err and not any("No room" in line for line in before)
    assert told.out == "" and (not (path / "run.json").exists() or verify(path) == [])


@pytest.mark.parametrize(
    "room", ["nr_inodes=4", "nr_inodes=40", "nr_inodes=90"] + [f"size={k}k" for k in (8, 64, 160, 320, 480)]
)
def test_a_full_disk_costs_nothing_that_was_named_and_more_room_ends_the_run(whole, disk, capsys, room):
    path = disk(room) / "run"
    words = [*SHORT, "--out", str(path), "--resume"]
    out_of_room(path, words, capsys)
    out_of_room(path, words, capsys)  # to try again harms nothing
    disk("size=100m,nr_inodes=10000")
    assert main(words) == 0 and same(path, whole(SHORT))


WRITES = {  # what is written: (object, its attribute, at which call there is no room)
    "cells": (arrays.Region, "write", (0, 7)),
    "layouts": (arrays, "create", (1,)),
    "theory": (arrays, "save", (0, 1)),
    "lines of the manifest": (manifest, "os", (0, 5, 14)),
    "checkpoints": (checkpoints, "write_atomically", (5,)),
    "record, figures and result": (run_folder, "write_atomically", (0, 1, 3)),
    "what is synced": (files, "os", (1, 40)),
}


def failing(real, when, number):
    """A function that does what it should, but for one call: that one does it and then says that there is no room."""
    calls = itertools.count()

    def call(*args, **settings):
        told = real(*args, **settings)
        if next(calls) == when:
            raise OSError(number, os.strerror(number))
        return told

    return call


@pytest.mark.parametrize(("what", "when"), [(what, when) for what, (_, _, calls) in WRITES.items() for when in calls])
def test_no_room_for_one_write_of_any_kind_costs_nothing_that_was_named(
    whole, tmp_path, monkeypatch, capsys, what, when
):
    path = tmp_path / "run"
    words = [*SHORT, "--out", str(path), "--resume"]
    (where, attribute, _), number = WRITES[what], [errno.ENOSPC, errno.EDQUOT][when % 2]
    if attribute == "os":  # a copy for this module: the threads of zarr have the real one
        fake = SimpleNamespace(**vars(os))
        fake.fsync = failing(os.fsync, when, number)
    else:
        fake = failing(getattr(where, attribute), when, number)
    monkeypatch.setattr(where, attribute, fake)
    out_of_room(path, words, capsys)
    before = named(path) if path.exists() else []
    monkeypatch.undo()
    assert main(words) == 0 and same(path, whole(SHORT))
    assert [one for one in before if one not in named(path)] == []


# ---------------------------------------------------------------------- no right to write


def test_a_read_only_folder_is_one_sentence_and_is_left_as_it_is_and_can_be_read(whole, disk, capsys):
    folder = disk("size=100m")
    path = folder / "run"
    words = [*SHORT, "--out", str(path)]
    assert main([*words, "--shard", "1/2"]) == 0 and len(cells(path)) > 0
    before = {p: (p.stat().st_ctime_ns, p.stat().st_size) for p in folder.rglob("*")}
    disk("ro")
    for asked in ([*words, "--resume"], [*words, "--shard", "2/2"], [*SHORT, "--out", str(folder / "other")]):
        capsys.readouterr()
        assert main(asked) == 2
        told = capsys.readouterr()
        assert told.err.startswith("Argument `out` must be a folder that can be written, but is ")
        assert "Read-only file system" in told.err and told.err.count("\n") == 1 and told.out == ""
    assert main(["verify", str(path)]) == 0
    assert {p: (p.stat().st_ctime_ns, p.stat().st_size) for p in folder.rglob("*")} == before
    disk("rw")
    assert main([*words, "--resume"]) == 0 and same(path, whole(SHORT))
