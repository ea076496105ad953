import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

import icldyn as ic
from icldyn.tasks.markov import dirichlet, markov

ALPHA = 0.1


@pytest.mark.parametrize("alpha", [ALPHA, 1.0, 3.0])
def test_entries_of_a_row_have_the_beta_law_of_a_dirichlet(alpha):
    rows = np.asarray(dirichlet(jax.random.key(0), jnp.asarray(alpha), (4000, 5)))
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-12)
    law = stats.beta(alpha, 4 * alpha)
    for column in rows.T:
        assert stats.kstest(np.clip(column, 1e-300, 1 - 1e-15), law.cdf).pvalue > 1e-3


def test_transitions_are_those_of_the_matrix_and_start_near_its_stationary_law():
    task, rng = markov(4, 30, alpha=1.0), np.random.default_rng(0)
    P = rng.dirichlet(np.ones(4), size=4)
    x = np.asarray(task.walk(jax.random.key(0), jnp.asarray(np.broadcast_to(P, (20_000, 4, 4)))))
    first = np.linalg.matrix_power(P, 16).mean(0)
    assert stats.chisquare(np.bincount(x[:, 0], minlength=4), 20_000 * first).pvalue > 1e-3
    moves = np.zeros((4, 4))
    np.add.at(moves, (x[:, :-1].ravel(), x[:, 1:].ravel()), 1)
    for i in range(4):
        assert stats.chisquare(moves[i], moves[i].sum() * P[i]).pvalue > 1e-3


def test_every_sequence_has_a_chain_of_its_own():
    """Equal tokens two steps apart: E sum_i pi_i (P^2)_ii, estimated with numpy's Dirichlet."""
    x = np.asarray(markov(8, 48, alpha=ALPHA).sample(jax.random.key(2), 4000))
    assert x.shape == (4000, 49) and set(np.unique(x)) == set(range(8))
    P = np.random.default_rng(0).dirichlet(ALPHA * np.ones(8), size=(4000, 8))
    wanted = np.einsum("bi,bij,bji->b", np.linalg.matrix_power(P, 16).mean(1), P, P)
    found = (x[:, :-2] == x[:, 2:]).mean(1)
    # two samples of the same size: the scatter of the reference counts as much as that of the sequences
    assert abs(oracles.z_score(found - wanted, 0.0)) < 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 1}, "`k` must be at least 2, but is 1"),
        ({"T": 0}, "`T` must be at least 1, but is 0"),
        ({"alpha": 0.0}, "`alpha` must be positive and finite, but is 0.0"),
    ],
)
def test_what_is_no_chain_is_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        markov(**({"k": 3, "T": 4, "alpha": 1.0} | settings))
