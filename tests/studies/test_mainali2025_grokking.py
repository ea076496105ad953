"""What the study of grokking refuses, how it finds times, and which wrong runs its claims catch."""

import dataclasses

import numpy as np
import pytest

import icldyn as ic
from icldyn.studies.mainali2025_grokking import crossing
from icldyn.study import study

PAPER = study("mainali2025_grokking")
CONFIG = PAPER.scales["smoke"]


@pytest.fixture(scope="module")
def run(smoke_run):
    folder = ic.RunFolder.open(smoke_run("mainali2025_grokking"))
    return folder.load("seeds"), folder.load("theory")


def failing(seeds, theory):
    return [c.sentence for c in PAPER.claims(CONFIG, seeds, theory) if not c.holds]


def test_seeds_that_never_memorise_first_are_caught(run):
    seeds, theory = run
    values = seeds["transformer"].values
    at_once = dict(values) | {"test_accuracy": values["train_accuracy"]}
    wrong = seeds | {"transformer": dataclasses.replace(seeds["transformer"], values=at_once)}
    found = failing(wrong, theory)
    assert any("training accuracy is .99 before" in f for f in found) and any("Delay" in f for f in found)


def test_an_intervention_that_does_nothing_is_caught(run):
    seeds, theory = run
    found = failing(seeds | {"inside": seeds["inside_null"]}, theory)
    assert sum("own frequencies left" in f for f in found) >= 2


def test_a_control_that_generalises_is_caught(run):
    seeds, theory = run
    assert any("Without weight decay" in f for f in failing(seeds | {"undecayed": seeds["inside"]}, theory))


def test_seeds_of_an_intervention_start_as_those_without_it(run):
    seeds, _ = run
    step = seeds["inside"].coords["step"][1]
    before = step <= CONFIG.first  # the same up to rounding in another program, which AdamW's first steps enlarge
    for name in ("inside", "inside_null"):
        pair = (seeds[arm]["train_accuracy"][:, before] for arm in (name, "transformer"))
        np.testing.assert_allclose(*pair, atol=0.05)
        assert np.array_equal(seeds[name]["test_loss"][:, 0], seeds["transformer"]["test_loss"][:, 0])


def test_crossings_are_found_between_records():
    step = np.array([0, 10, 20, 30])
    value = np.array([[0.0, 0.4, 0.8, 0.1], [0.6, 0, 0, 0], [0, 0.1, 0.2, 0.3]])
    np.testing.assert_allclose(crossing(step, value, 0.5), [12.5, 0, np.inf])
    np.testing.assert_allclose(crossing(step, 1 - value, 0.5, rising=False), [12.5, 0, np.inf])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": 1}, "Argument `seeds` must be at least 2, but is 1."),
        ({"p": 36}, "Argument `p` must be odd, but is 36."),
        ({"p_mlp": 4}, "Argument `p_mlp` must be at least 5, but is 4."),
        ({"count": 19}, "Argument `count` must be at most 18, the frequencies of `p`, but is 19."),
        ({"first": 500}, "Argument `first` must be below `steps`, 500, but is 500."),
        ({"fraction": 1.0}, "Argument `fraction` must be positive and finite and at most 0.99, but is 1.0."),
        ({"fraction_mlp": 1e-4}, "Argument `fraction_mlp` must leave a pair to train on, but is 0.0001."),
        ({"split": "symmetric"}, "Argument `split` must be one of ordered, unordered, but is 'symmetric'."),
        ({"wd": -1.0, "lr": 0.0}, "Argument `lr` must be finite and above 1e-12"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(ic.BadArgument) as error:
        PAPER.check(dataclasses.replace(CONFIG, **change))
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_scale_is_accepted(scale):
    PAPER.check(PAPER.scales[scale])
