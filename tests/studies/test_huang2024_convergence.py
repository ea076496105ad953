"""What the study of Huang, Cheng and Liang refuses, and which wrong theories its claims catch."""

import dataclasses

import pytest

import icldyn as ic
from icldyn.study import study

PAPER = study("huang2024_convergence")
CONFIG = PAPER.scales["smoke"]


@pytest.fixture(scope="module")
def run(smoke_run):
    folder = ic.RunFolder.open(smoke_run("huang2024_convergence"))
    return folder.load("seeds"), folder.load("theory")


def failing(seeds, theory, config=CONFIG):
    return [c.sentence for c in PAPER.claims(config, seeds, theory) if not c.holds]


def test_a_recursion_of_another_step_is_caught(run):
    seeds, theory = run
    wrong = PAPER.theories(dataclasses.replace(CONFIG, eta=2.2), seeds)  # at the same numbers of steps
    found = failing(seeds, theory | {n: t for n, t in wrong.items() if n.startswith("descent")})
    assert sum("against the exact recursion" in f for f in found) == 3
    assert any("Extrapolated" in f for f in found) and any("batch loss" in f for f in found)


def test_prompts_of_another_length_are_caught(run):
    seeds, theory = run
    wrong = PAPER.theories(dataclasses.replace(CONFIG, N=44), seeds)
    found = failing(seeds, theory | {n: t for n, t in wrong.items() if n.startswith("descent")})
    assert any("queries k >= 2" in f for f in found) and any("Extrapolated" in f for f in found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"K": 0}, "Argument `K` must be at least 3, but is 0."),
        ({"K": 2.5}, "Argument `K` must be an integer of at least 3, but is 2.5."),
        ({"N": 0}, "Argument `N` must be at least 1, but is 0."),
        ({"seeds": 7}, "Argument `seeds` must be at least 8, but is 7."),
        ({"alpha": 1.0}, "Argument `alpha` must be finite and at least 0.05 and at most 0.95, but is 1.0."),
        ({"eta": -2.0}, "Argument `eta` must be positive and finite and at most 1e+06, but is -2.0."),
        ({"small_batch": 128}, "Argument `small_batch` must be below `batch`, but is 128."),
        ({"sizes": (50, 10)}, "Argument `sizes` must hold ascending numbers, at least one, but is (50, 10)."),
        ({"sizes": (2, 10)}, "Argument `sizes[0]` must be at least 3, but is 2."),
        ({"wide": ()}, "Argument `wide` must hold ascending numbers, at least one, but is ()."),
        ({"steps": 0, "batch": 0}, "Argument `batch` must be at least 2, but is 0.\nArgument `steps` must be"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(change, sentence):
    for refuse in (PAPER.check, PAPER.experiments):
        with pytest.raises(ic.BadArgument) as error:
            refuse(dataclasses.replace(CONFIG, **change))
        assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_scale_is_accepted(scale):
    PAPER.check(PAPER.scales[scale])
