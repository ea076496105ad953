import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import head_coordinates as coordinates
from icldyn.models import softmax_attention as softmax

BLOCKS = ic.disjoint((2, 3))
OMEGA, MU = np.array([[0.5, -0.1], [-0.3, 0.6]]), np.array([[0.9, 0.2], [-0.7, 0.8]])


@pytest.mark.parametrize("apart", [False, True])
def test_weights_on_the_manifold_give_back_their_coordinates_and_leave_no_rest(apart):
    more = {"R": 7, "scale": 0.5, "values_apart": True} if apart else {}
    model = softmax.softmax_attention(5, 2, O=2, query_attends_itself=False, **more)
    params = softmax.manifold(model, BLOCKS, OMEGA, MU)(jax.random.key(0), np.float64(1.0))
    where = coordinates.indicator(BLOCKS)
    omega, mu = (0.5 * OMEGA**2, MU**2) if apart else (OMEGA, MU)  # each factor has them
    np.testing.assert_allclose(coordinates.omega(model, where, params), omega, rtol=1e-12)
    np.testing.assert_allclose(coordinates.mu(model, params), mu, rtol=1e-12)
    np.testing.assert_allclose(coordinates.rest(model, where, params), 0, atol=1e-7)  # the root of round-off


def test_the_rest_is_the_part_of_the_norm_off_the_manifold():
    model = softmax.softmax_attention(5, 1, O=2, query_attends_itself=False)
    params = softmax.manifold(model, BLOCKS, OMEGA[:1], MU[:1])(jax.random.key(0), np.float64(1.0))
    norm = np.sum(np.asarray(params["U"]) ** 2)
    params = params | {"U": np.array(params["U"])}
    params["U"][0, 0, 4] = norm**0.5
    found = coordinates.rest(model, coordinates.indicator(BLOCKS), params)
    np.testing.assert_allclose(found, (0.5**0.5, 0), atol=1e-7)


def test_random_starts_have_unit_size_in_the_coordinates_that_grow():
    model = softmax.softmax_attention(5, 4, O=2, query_attends_itself=False)
    where = coordinates.indicator(BLOCKS)

    def seen(key):
        params = softmax.random_manifold(model, BLOCKS)(key, np.float64(0.1))
        return (
            coordinates.omega(model, where, params),
            coordinates.mu(model, params),
            coordinates.rest(model, where, params),
        )

    omega, mu, rest = map(np.asarray, jax.jit(jax.vmap(seen))(jax.random.split(jax.random.key(3), 2000)))
    np.testing.assert_allclose(omega.std(0) * np.sqrt((2, 3)), 0.1, rtol=0.08)  # four standard errors of 2,000
    np.testing.assert_allclose(mu.std(0), 0.1, rtol=0.08)
    assert rest.max() < 1e-6


def test_a_value_at_other_times_is_linear_between_its_records():
    t, value = np.array([0.0, 1.0, 3.0]), np.array([[[0.0], [5.0]], [[2.0], [5.0]], [[2.0], [1.0]]])
    np.testing.assert_allclose(coordinates.at_times(t, value, np.array([0.5, 2.0])), [[[1.0], [5.0]], [[2.0], [3.0]]])


def test_the_gap_is_the_worse_of_both_coordinates_over_the_theory_s_largest():
    theory = {"omega": np.array([1.0, -2.0]), "mu": np.array([10.0, 0.0])}
    run = {"omega": np.array([1.0, -1.5]), "mu": np.array([10.0, 1.0])}
    assert coordinates.gap(run, theory) == 0.25
