"""Every study, at smoke scale: its claims hold, and they would not if the theory were wrong."""

import dataclasses
import json

import pytest

import icldyn as ic
from icldyn.study import study


@pytest.mark.parametrize("name", ic.study_names())
def test_every_claim_of_a_study_holds_at_smoke_scale(name, smoke_run):
    failed = [c for c in json.loads((smoke_run(name) / "result.json").read_text())["claims"] if not c["holds"]]
    assert failed == []


@pytest.fixture(scope="module")
def mainali(smoke_run):
    run = ic.RunFolder.open(smoke_run("mainali2025"))
    paper = study("mainali2025")
    return paper, paper.scales["smoke"], run.load("seeds"), run.load("theory")


def failing(paper, config, seeds, theory):
    return [c.sentence for c in paper.claims(config, seeds, theory) if not c.holds]


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.1])
def test_a_wrong_factor_in_the_exact_flow_is_caught(mainali, factor):
    paper, config, seeds, theory = mainali
    wrong = {n: scaled(t, "strength", factor) if n.startswith("exact_N") else t for n, t in theory.items()}
    assert len([f for f in failing(paper, config, seeds, wrong) if "exact coupled flow" in f]) == len(config.N)


def test_the_closed_form_passed_off_as_exact_is_caught_at_small_N(mainali):
    paper, config, seeds, theory = mainali
    wrong = theory | {"exact_N8": theory["closed_N8"]}
    assert any("N/d = 2 " in f for f in failing(paper, config, seeds, wrong))


def test_clocks_that_run_twice_too_fast_are_caught(mainali):
    paper, config, seeds, theory = mainali
    fast = {n: dataclasses.replace(t, coords={**t.coords, "t": (t.coords["t"][0], 2 * t.t)}) for n, t in seeds.items()}
    wrong = paper.theories(config, fast)
    found = failing(paper, config, seeds, wrong)
    assert sum("gap" in f for f in found) >= len(config.N) and any("Unaligned" in f for f in found)


def test_a_diverged_seed_is_counted_by_its_claim(mainali):
    paper, config, seeds, theory = mainali
    steps = seeds["N8"].coords["diverged_step"][1].copy()
    steps[3] = 7
    lost = seeds | {
        "N8": dataclasses.replace(seeds["N8"], coords={**seeds["N8"].coords, "diverged_step": (("seed",), steps)})
    }
    assert any("diverged" in f for f in failing(paper, config, lost, theory))


def scaled(trajectory, name, factor):
    return dataclasses.replace(trajectory, values={**trajectory.values, name: factor * trajectory[name]})
