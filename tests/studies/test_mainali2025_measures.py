"""Measures on the exact solution, at the numbers of the notes: a grid of 0.01 in t."""

import numpy as np
import pytest

import icldyn as ic
from icldyn.studies import mainali2025 as study

STEP = 0.0101  # of the grid, and its rounding


@pytest.fixture(scope="module")
def measures():
    return study.exact_measures()


def test_effective_ranks_start_full_dip_and_recover(measures):
    ranks = measures["effective_rank"]
    _, dips, _ = study._exact_events(measures)
    np.testing.assert_allclose(ranks[0], [4, 3, 2], rtol=1e-12)
    np.testing.assert_allclose(ranks.min(axis=0), [1.58, 1.38, 1.23], atol=5e-3)
    np.testing.assert_allclose(dips, [0.30, 1.07, 4.06], atol=STEP)
    np.testing.assert_allclose(ranks[-1], [3.73, 2.89, 1.97], atol=5e-3)


def test_the_dip_of_er_k_is_the_escape_of_mode_k_plus_1(measures):
    escapes, dips, _ = study._exact_events(measures)
    np.testing.assert_allclose(escapes, [0.24, 1.06, 4.60, 19.78], atol=5e-3)
    np.testing.assert_allclose(dips, escapes[:3], rtol=0.3)
    assert (np.abs(dips[:, None] - escapes[None]).argmin(axis=1) == [0, 1, 2]).all()  # and of no other


def test_the_loss_falls_fastest_once_for_every_mode(measures):
    _, _, peaks = study._exact_events(measures)
    np.testing.assert_allclose(peaks, [0.22, 0.98, 4.25, 18.39], atol=STEP)


@pytest.mark.parametrize(
    ("ridge", "wanted"),
    [
        (0, (0.999, 0.882, 0.729, 0.644, 0.125, 0.113)),
        (1, (0.990, 0.785, 0.650, 0.295, 0.015, 0.014)),  # the notes' 0.79 and 0.30 were rounded twice
        (2, (0.909, 0.579, 0.329, 0.046, 0.002, 0.001)),
    ],
)
def test_the_ridge_distance_falls_mode_by_mode_to_a_floor(measures, ridge, wanted):
    at = np.searchsorted(measures.t, np.array([0, 2, 5, 10, 20, 60]) - 1e-9)
    np.testing.assert_allclose(measures["ridge_distance"][at, ridge], wanted, atol=5.1e-4)  # half of the last place


def test_the_distance_by_projectors_is_0_at_all_times():
    s, N = study.EXACT["s"], study.EXACT["N"]
    for t in (0.0, 5.0):
        q = np.sqrt(np.asarray(ic.logistic.strength(np.array([t]), np.full(4, study.EXACT["a0"]), s, N))[0])
        assert ic.subspace.spans_all(np.diag(q))
        with pytest.raises(ic.BadArgument, match="spans all 4"):
            ic.subspace.distance(np.diag(q), np.diag(s))


def test_ranks_and_distance_are_those_of_matrices(measures):
    """The closed forms on modes against an SVD, and a solve, of q_1 in a turned basis."""
    s, N = study.EXACT["s"], study.EXACT["N"]
    a = np.asarray(ic.logistic.strength(np.array([2.0]), np.full(4, study.EXACT["a0"]), s, N))[0]
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    q, q_inf = (U @ np.diag(np.sqrt(x)) @ U.T for x in (a, np.asarray(ic.logistic.final_strength(s, N))))
    np.testing.assert_allclose([ic.spectra.effective_rank(q, k) for k in range(3)], measures["effective_rank"][200])
    for lam, found in zip(study.RIDGES, measures["ridge_distance"][200], strict=True):
        left = q_inf @ (np.eye(4) - q.T @ np.linalg.solve(q @ q.T + lam * np.eye(4), q))
        assert np.linalg.norm(left) / np.linalg.norm(q_inf) == pytest.approx(found, rel=1e-10)
