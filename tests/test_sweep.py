import csv
import json

import numpy as np
import pytest

import icldyn as ic
from icldyn import checks
from icldyn.cli import main
from icldyn.store.verify import verify

STUDY = "mainali2025"
SMALL = "--scale smoke --seeds 12 --other-seeds 8 --reference-seeds 2 --t-end 3 --t-end-unaligned 2 --batch 8".split()
WORDS = [*SMALL, "--lr", "0.06", "--N", "20", "8,40"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "whole"
    assert main(["sweep", STUDY, *WORDS, "--out", str(out), "--quiet"]) == 0
    return out


def points(out):
    return sorted((out / "points").iterdir())


def test_a_sweep_leaves_a_run_for_every_combination_one_table_and_one_figure(swept):
    names = ["000_N=20", "001_N=8,40"]
    assert [p.name for p in points(swept)] == names
    rows = json.loads((swept / "table.json").read_text())["rows"]
    assert [(r["N"], r["run"], r["seeds"]) for r in rows] == [("20", names[0], 68), ("8,40", names[1], 76)]
    with (swept / "table.csv").open() as file:
        assert [r["run"] for r in csv.DictReader(file)] == names
    for row, path in zip(rows, points(swept), strict=True):
        result = ic.RunFolder.open(path).result
        assert row["largest gap"] == max(c["measured"] for c in result["claims"] if c["gap"])
        assert verify(path) == []
    assert (swept / "figures/grid.png").stat().st_size > 20_000


def test_a_point_has_the_numbers_of_the_same_run_alone(swept, tmp_path, capsys):
    out = tmp_path / "alone"
    assert main(["run", STUDY, *SMALL, "--lr", "0.06", "--N", "8", "40", "--out", str(out), "--quiet"]) == 0
    capsys.readouterr()
    alone, point = (ic.RunFolder.open(p).load("seeds") for p in (out, points(swept)[1]))
    assert set(alone) == set(point)
    for name in alone:
        # small experiments ran beside those of other points, values lane by lane: the last bits may be rounded otherwise
        for value in ("p", "q"):
            scale = np.abs(alone[name][value]).max()
            np.testing.assert_allclose(point[name][value], alone[name][value], atol=2e-6 * scale, rtol=0)
    one, other = (json.loads((p / "result.json").read_text())["claims"] for p in (out, points(swept)[1]))
    assert [c["claim"] for c in one] == [c["claim"] for c in other]


def test_a_stopped_shard_of_a_sweep_goes_on_and_the_whole_has_the_same_bits(swept, tmp_path, monkeypatch, capsys):
    from icldyn.store import run_folder

    out, written = tmp_path / "sweep", []
    write = run_folder.arrays.Region.write

    def stop_after_five(region, where, values):
        written.append(where)
        if len(written) == 5:
            raise checks.Stopped
        return write(region, where, values)

    monkeypatch.setattr(run_folder.arrays.Region, "write", stop_after_five)
    assert main(["sweep", STUDY, *WORDS, "--out", str(out), "--shard", "2/2", "--quiet"]) == 75
    assert main(["sweep", STUDY, *WORDS, "--out", str(out)]) == 2  # not without --resume
    other = [w.replace("0.06", "0.07").replace("8,40", "8,41") for w in WORDS]
    assert main(["sweep", STUDY, *other, "--out", str(out), "--resume"]) == 2
    for shard in ("2/2", "1/2"):
        assert not (out / "table.csv").exists()
        assert main(["sweep", STUDY, *WORDS, "--out", str(out), "--shard", shard, "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "already holds a sweep" in said and "holds another" in said and "blocks of others are not" in said
    for one, whole in zip(points(out), points(swept), strict=True):
        a, b = (
            {p.relative_to(r): p.read_bytes() for p in (r / "data.zarr").rglob("*") if p.is_file()}
            for r in (one, whole)
        )
        assert a == b
    assert (out / "table.csv").read_bytes() == (swept / "table.csv").read_bytes()


def test_small_runs_of_a_sweep_share_programs():
    from icldyn.engine.blocks import blocks_of

    task, model = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35]), ic.linear_attention(4)

    def experiment(N, lr, seeds=4, s=task.s):
        t = ic.linear_regression(N, s)
        objective = ic.statistics(t, ic.linear_attention(t.D), 8)
        init = ic.gaussian(model if t.D == 4 else ic.linear_attention(t.D))
        return ic.Experiment(objective, init, seeds=seeds, lr=lr, steps=10, block=16)

    values = [experiment(N, lr) for N in (20, 30) for lr in (0.1, 0.2)]
    assert [len(b) for b in blocks_of(values, across_values=True)] == [4]
    assert [len(b) for b in blocks_of(values)] == [2, 2]  # rates alone: N would round the last bit otherwise
    shapes = [*values, experiment(20, 0.1, s=[1.0, 0.5])]
    assert sorted(len(b) for b in blocks_of(shapes, across_values=True)) == [1, 4]
    assert [len(b) for b in blocks_of([experiment(20, 0.1, seeds=40)] * 2, across_values=True)] == [1] * 6
