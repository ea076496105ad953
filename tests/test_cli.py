import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import icldyn as ic
from icldyn.cli import main

STUDY = "mainali2025"


def said(capsys, *words):
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_run_leaves_a_folder_with_data_config_versions_and_figures(smoke_run):
    out = smoke_run(STUDY)
    record = json.loads((out / "run.json").read_text())
    result = json.loads((out / "result.json").read_text())
    assert record["scale"] == "smoke" and record["config"]["seeds"] == 128
    assert {"jax", "icldyn", "python"} <= set(record["versions"]) and record["device"].startswith("cpu")
    assert all(c["holds"] for c in result["claims"]) and result["wall_seconds"] > 0
    figures = sorted(p.name for p in (out / "figures").glob("*.png"))
    assert figures == [
        "alignment.png", "conservation.png", "escape_and_fixed_point.png", "exact_measures.png", "overlay.png", "phase_plane.png",
        "spread.png", "where_the_closed_form_holds.png",
    ]  # fmt: skip
    assert all((out / "figures" / name).stat().st_size > 20_000 for name in figures)


def test_check_of_a_run_folder_measures_the_same_numbers_again(smoke_run, capsys):
    out = smoke_run(STUDY)
    code, text, _ = said(capsys, "check", str(out), "--json")
    assert code == 0
    again, before = json.loads(text), json.loads((out / "result.json").read_text())["claims"]
    assert [c["claim"] for c in again] == [c["claim"] for c in before]
    np.testing.assert_allclose([c["measured"] for c in again], [c["measured"] for c in before], rtol=1e-9)


def test_plot_draws_the_figures_again_from_the_stored_data(smoke_run, capsys, tmp_path):
    out = shutil.copytree(smoke_run(STUDY), tmp_path / "run")
    (out / "figures/overlay.png").unlink()
    code, text, _ = said(capsys, "plot", str(out))
    assert code == 0 and (out / "figures/overlay.png").stat().st_size > 20_000 and "overlay.png" in text


def test_list_and_info_answer_people_and_machines(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = said(capsys, "list")
    assert code == 0 and "arXiv 2504.12916" in text and "not run in ./runs" in text
    assert STUDY in [row["study"] for row in json.loads(said(capsys, "list", "--json")[1])]
    code, text, _ = said(capsys, "info")
    assert code == 0 and "jax" in text and "cpu" in text
    assert json.loads(said(capsys, "info", "--json")[1])["versions"]["jax"]


def test_list_knows_the_gap_of_the_last_run(smoke_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/one").symlink_to(smoke_run(STUDY))
    capsys.readouterr()
    rows = {row["study"]: row["last_gap"] for row in json.loads(said(capsys, "list", "--json")[1])}
    assert 0 < rows[STUDY] < 0.02


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["walk"],
            "Argument `verb` must be one of check, info, list, plot, replay, run, submit, sweep, verify, but is 'walk'.",
        ),
        (["rum"], "did you mean 'run'?"),
        (["run"], f"Argument `study` must be one of {', '.join(ic.study_names())}, but is missing"),
        (
            ["run", "mainali2024"],
            f"Argument `study` must be one of {', '.join(ic.study_names())}, but is 'mainali2024' (did you mean 'mainali2025'?).",
        ),
        (["run", STUDY, "--scale", "huge"], "Argument `scale` must be one of laptop, paper, smoke, but is 'huge'."),
        (["run", STUDY, "--lr", "nan"], "Argument `lr` must be positive and finite, but is nan."),
        (["run", STUDY, "--lr", "-0.5"], "Argument `lr` must be positive and finite, but is -0.5."),
        (
            ["run", STUDY, "--lr", "70"],
            "Argument `lr` must be at most 60, the shorter of `t_end` and `t_end_unaligned`, so that it takes a step",
        ),
        (["run", STUDY, "--seeds", "0"], "Argument `seeds` must be at least 2, but is 0."),
        (["run", STUDY, "--N", "0", "20"], "Argument `N[0]` must be at least 1, but is 0."),
        (["run", STUDY, "--s"], "Argument `s` must hold at least one eigenvalue, but is empty."),
        (["run", STUDY, "--s", "0.5", "1.0"], "Argument `s` must be descending, but is [0.5, 1.0]."),
        (["run", STUDY, "--s", "1.0", "-0.5"], "Argument `s` must not be negative, but its smallest entry is -0.5."),
        (
            ["run", STUDY, "--start", "3"],
            "Argument `start` must be below 0.832, where the fastest mode of `s` ends, but is 3.0.",
        ),
        (
            ["run", STUDY, "--shard", "3/2", "--out", "x"],
            "Argument `shard` must be i/n with 1 <= i <= n, such as 1/4, but is '3/2'.",
        ),
        (
            ["run", STUDY, "--shard", "1/2"],
            "Argument `out` must name the run folder to go on with, or to share, but is missing.",
        ),
        (
            ["run", STUDY, "--resume"],
            "Argument `out` must name the run folder to go on with, or to share, but is missing.",
        ),
        (["run", STUDY, "--block", "12"], "Argument `block` must be a multiple of 8, but is 12."),
        (
            ["run", STUDY, "--engine", "smpd"],
            "Argument `engine` must be one of blocks, spmd, but is 'smpd' (did you mean 'spmd'?).",
        ),
        (["run", STUDY, "--distributed"], "Argument `distributed` must go with --engine spmd"),
        (["run", STUDY, "--out", "../../etc"], "Argument `out` must be a path without '..'"),
        (["run", STUDY, "--out", "runs/a\x1b[2J"], "Argument `out` must be a path without '..'"),
        (["run", STUDY, "--out", "r" * 101], "Argument `out` must be a path without '..'"),
        (["sweep", STUDY], "Give at least one field two values or more, such as --lr 0.01 0.02."),
        (["sweep", STUDY, "--lr", "0.1", "fast"], "Argument `lr` must be a number, but is 'fast'."),
        (["sweep", STUDY, "--lr", "0.1", "-1"], "Argument `lr` must be positive and finite, but is -1.0."),
        (["sweep", STUDY, "--seeds", "8", "8"], "Argument `seeds` must have different values, but is 8 8."),
        (
            ["sweep", STUDY, "--N", "20", "4,8"],
            "Argument `N[0]` must be above the number of eigenvalues in `s`, 4, but is 4.",
        ),
        (["submit", "2"], "Give the command after `--`, such as icldyn submit 8 -- run mainali2025 --out FOLDER."),
        (
            ["submit", "2", "--", "run", STUDY],
            "Argument `out` must name the folder that the jobs share, but is missing.",
        ),
        (
            ["submit", "2", "--", "rum"],
            "Argument `command` must be one of run, sweep, but is 'rum' (did you mean 'run'?).",
        ),
        (["submit", "0", "--", "run", STUDY, "--out", "x"], "Argument `shards` must be at least 1, but is 0."),
        (
            ["submit", "2", "--", "run", "--out", "x", "--shard", "1/2"],
            "Argument `shard` must be left to icldyn submit",
        ),
        (["verify"], "Argument `run` must be a run folder, but is missing"),
        (["verify", "nowhere"], "Argument `run` must be a run folder, but 'nowhere' is none."),
        (["run", STUDY, "--lrs", "0.1"], "Argument `lrs` must hold at least two different learning rates"),
        (["check", STUDY, "--batch", "-1"], "Argument `batch` must be at least 1, but is -1."),
        (["plot"], "Argument `run` must be a run folder, but is missing"),
        (["plot", "nowhere"], "Argument `run` must be a run folder, but 'nowhere' has no readable run.json."),
        (["list", "--all"], "Argument `--all` is not known to icldyn list"),
        (
            ["run", STUDY, "--out", "/proc/nowhere"],
            "Argument `out` must be a folder that can be written, but is '/proc/nowhere'",
        ),
    ],
)
def test_a_bad_command_is_one_sentence_and_exit_code_2(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *words)
    assert code == 2 and sentence in err and err.count("\n") == 1 and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []  # nothing written


@pytest.mark.parametrize("words", [["--lrr", "0.1"], ["--lr", "fast"], ["--seeds", "1.5"], ["--N", "a", "b"]])
def test_an_unknown_field_or_a_word_for_a_number_exits_with_2_and_names_the_field(words):
    done = subprocess.run([sys.executable, "-m", "icldyn", "run", STUDY, *words], capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 2 and words[0] in text and "Traceback" not in text


def test_several_faults_are_told_together(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, "run", STUDY, "--lr", "-1", "--batch", "0")
    assert code == 2 and "`lr`" in err and "`batch`" in err and err.count("\n") == 2


def test_a_folder_that_holds_a_run_is_left_alone(smoke_run, capsys):
    out = smoke_run(STUDY)
    before = (out / "run.json").read_bytes()
    code, _, err = said(capsys, "run", STUDY, "--scale", "smoke", "--out", str(out))
    assert code == 2 and "already holds another run" in err and (out / "run.json").read_bytes() == before


def test_help_shows_every_setting_of_a_study():
    done = subprocess.run([sys.executable, "-m", "icldyn", "run", STUDY, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for flag in ("--lr", "--seeds", "--batch", "--s ", "--out", "--scale", "--t-end-unaligned"):
        assert flag in done.stdout


def test_a_claim_that_fails_makes_check_fail(smoke_run, capsys, monkeypatch):
    from icldyn.study import Claim, study

    real = study(STUDY)
    import dataclasses

    broken = dataclasses.replace(real, claims=lambda *_: [Claim("two is at most one", 2.0, high=1.0)])
    monkeypatch.setattr("icldyn.studies.mainali2025.STUDY", broken)
    code, text, _ = said(capsys, "check", str(smoke_run(STUDY)))
    assert code == 1 and "NO" in text
