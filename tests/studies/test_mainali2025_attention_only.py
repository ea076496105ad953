"""What the study of attention-only transformers refuses, and which wrong references and swapped runs its claims catch."""

import dataclasses

import numpy as np
import pytest

import icldyn as ic
from icldyn.study import study

PAPER = study("mainali2025_attention_only")
CONFIG = PAPER.scales["smoke"]


@pytest.fixture(scope="module")
def run(smoke_run):
    folder = ic.RunFolder.open(smoke_run("mainali2025_attention_only"))
    return folder.load("seeds"), folder.load("theory")


def failing(seeds, theory):
    return [c.sentence for c in PAPER.claims(CONFIG, seeds, theory) if not c.holds]


def with_losses_of(one, other):
    return dataclasses.replace(one, values=dict(one.values) | {"losses": other["losses"]})


def test_one_layer_passed_off_as_two_is_caught(run):
    seeds, theory = run
    found = failing(seeds | {"L2": with_losses_of(seeds["L2"], seeds["L1"])}, theory)
    assert any("0.3 below the unigram level" in f for f in found)


def test_two_layers_passed_off_as_one_are_caught(run):
    seeds, theory = run
    found = failing(seeds | {"L1": with_losses_of(seeds["L1"], seeds["L2"])}, theory)
    assert any(f.startswith("1 layer: share of seeds within 0.1") for f in found)


def test_swapped_interventions_are_caught(run):
    seeds, theory = run
    found = failing(seeds | {"own": seeds["random"], "random": seeds["own"]}, theory)
    assert any("delay of emergence" in f for f in found) and any("emerge later" in f for f in found)


def test_arms_that_differ_before_the_intervention_are_caught(run):
    seeds, theory = run
    losses = seeds["own"]["losses"].copy()
    losses[0, 1] += 1e-6
    wrong = dataclasses.replace(seeds["own"], values=dict(seeds["own"].values) | {"losses": losses})
    assert any("before it" in f for f in failing(seeds | {"own": wrong}, theory))


def test_references_are_those_of_counts_taken_one_by_one(run):
    """Bayes and unigram losses of the evaluation set, by dictionaries."""
    from icldyn.studies.mainali2025_attention_only import _evaluated

    _, theory = run
    x, k, alpha = _evaluated(CONFIG), CONFIG.k, CONFIG.alpha
    for name in ("bayes", "unigram"):
        wanted = np.zeros(CONFIG.T)
        for row in x.tolist():
            counts: dict = {}
            for t in range(CONFIG.T):
                state = row[t] if name == "bayes" else None
                if name == "unigram":
                    counts[None, row[t]] = counts.get((None, row[t]), 0) + 1
                seen = sum(n for (i, _), n in counts.items() if i == state)
                wanted[t] -= np.log((counts.get((state, row[t + 1]), 0) + alpha) / (seen + k * alpha)) / len(x)
                if name == "bayes":
                    counts[row[t], row[t + 1]] = counts.get((row[t], row[t + 1]), 0) + 1
        np.testing.assert_allclose(
            theory["references"][name][0], wanted, rtol=1e-6
        )  # sampled tokens, float32 or float64


def test_ranks_and_distances_are_those_of_the_recorded_matrices(run):
    seeds, theory = run
    W_Q, W_K, W_V, W_O = np.moveaxis(np.asarray(seeds["L2"]["factors"], float), 2, 0)[:, 1, :, 1, 0]
    s = np.linalg.svd(W_Q[5] @ W_K[5].T, compute_uv=False)[2 : CONFIG.d_head]
    p = s / s.sum()
    assert theory["L2"]["er"][1, 5, 2, 1, 0] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
    pairs = {"key": (W_K, W_Q), "query": (W_Q, W_K), "write": (W_O, W_V), "read": (W_V, W_O)}
    for n, (of, other) in enumerate(pairs.values()):
        M = of[-1] @ other[-1].T  # the side is that of its columns
        left = M - of[5] @ np.linalg.lstsq(of[5], M)[0]
        wanted = np.linalg.norm(left) / np.linalg.norm(M)
        assert theory["L2"]["distance"][1, 5, n, 1, 0] == pytest.approx(wanted, rel=1e-6)


BAD = {
    "seeds": 1, "held_seeds": 5, "layers": (1, 3), "k": 1, "alpha": 0.0, "T": 15, "batch": 0, "evaluated": 0, "d": 0, "H": 0,
    "d_head": 64, "positions": "learned", "norm": 1, "lr": 0.0, "weight_decay": -1.0, "steps": 1, "every": 7, "window": 2000,
    "since": 0, "rank": 9,
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(BAD))
def test_a_bad_setting_is_named(field):
    assert set(BAD) == {f.name for f in dataclasses.fields(CONFIG)}
    with pytest.raises(ic.BadArgument) as error:
        PAPER.check(dataclasses.replace(CONFIG, **{field: BAD[field]}))
    assert f"Argument `{field}`" in str(error.value)


def test_every_scale_is_accepted():
    for config in PAPER.scales.values():
        PAPER.check(config)
