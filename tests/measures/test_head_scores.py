import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icldyn.measures import head_scores as hs
from icldyn.tasks.markov import markov


def test_scores_are_those_of_the_definitions_written_out():
    rng = np.random.default_rng(0)
    A, x = rng.random((2, 4, 3, 7, 7)), rng.integers(0, 3, (4, 7))
    previous, induction = hs.head_scores(jnp.asarray(A), jnp.asarray(x))
    for layer in range(2):
        for h in range(3):
            wanted = np.mean([A[layer, b, h, t, t - 1] for b in range(4) for t in range(1, 7)])
            assert previous[layer, h] == pytest.approx(wanted)
            seen = [
                sum(A[layer, b, h, t, s] for s in range(1, t + 1) if x[b, s - 1] == x[b, t])
                for b in range(4)
                for t in range(7)
                if x[b, t] in x[b, :t]
            ]
            assert induction[layer, h] == pytest.approx(np.mean(seen))


def test_perfect_heads_score_one():
    x = jnp.asarray([[0, 1, 2, 0, 1, 2, 0, 1]])
    ahead = jnp.eye(8)[jnp.maximum(jnp.arange(8) - 1, 0)]
    assert hs.previous_token(ahead[None, None, None]) == 1
    after = jnp.eye(8)[jnp.maximum(jnp.arange(8) - 2, 0)]  # of period 3: what came after the copy 3 steps back
    assert hs.induction(after[None, None, None], x) == 1
    assert hs.induction(ahead[None, None, None], x) == 0


@pytest.mark.parametrize(
    ("k", "alpha", "T", "induction", "previous"), [(8, 0.1, 48, 0.336, 0.074), (3, 1.0, 64, 0.403, 0.059)]
)
def test_chance_levels_are_those_of_the_notes(k, alpha, T, induction, previous):
    x = markov(k, T - 1, alpha=alpha).sample(jax.random.key(0), 2000)
    found = hs.head_scores(hs.uniform_attention(x), x)[:, 0, 0]
    # the notes' own set has 2000 sequences: one scatters by about 0.15, so two means by 0.005
    assert abs(found[1] - induction) < 0.015
    assert abs(found[0] - previous) < 5e-4  # a sum: the last digit
    assert found[0] == pytest.approx(np.mean(1 / np.arange(2, T + 1)), rel=1e-6)


@pytest.mark.parametrize("d_head", [3, 8])
def test_the_core_has_the_eigenvalues_of_the_whole_circuit(d_head):
    rng, k, d = np.random.default_rng(0), 6, 9
    W_E, W_V, W_O, W_U = (rng.normal(size=s) for s in ((k, d), (2, d, d_head), (2, d_head, d), (d, k)))
    found = hs.copying(W_E, W_V, W_O, W_U)
    for h in range(2):
        values = np.linalg.eigvals(W_E @ W_V[h] @ W_O[h] @ W_U)
        real = sorted(values, key=abs)[::-1][: min(k, d_head)]
        assert found[h] == np.mean([v.real > 0 for v in real])


def test_a_head_that_copies_scores_one_and_one_that_forbids_scores_zero():
    W = np.random.default_rng(0).normal(size=(9, 3))
    W_E, W_U = np.eye(6, 9), np.eye(9, 6)
    assert hs.copying(W_E, W, W.T, W_U) == 1 and hs.copying(W_E, W, -W.T, W_U) == 0
