import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import which_mode


@pytest.mark.parametrize("model", [ic.merged(4, 3), ic.separate(4, 3, 2)])
def test_heads_add_up_to_the_modes_of_the_answer(model):
    rng = np.random.default_rng(0)
    U = jnp.asarray(np.linalg.qr(rng.normal(size=(4, 4)))[0])
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in model.shapes.items()}
    np.testing.assert_allclose(which_mode.strength(U, params), jnp.diagonal(U.T @ model.matrix(params) @ U), rtol=1e-12)
    for h, one in enumerate(which_mode.by_head(U, params)):
        alone = params | {"v": params["v"] * jnp.asarray(np.arange(3) == h, float)}
        np.testing.assert_allclose(one, jnp.diagonal(U.T @ model.matrix(alone) @ U), rtol=1e-12)
    assert float(which_mode.share(params).sum()) == pytest.approx(1)


def test_a_crossing_lies_between_its_records_and_is_never_where_the_level_is_not_reached():
    t = np.array([0.0, 1.0, 3.0])
    loss = np.array([[4.0, 3.0, 1.0], [4.0, 4.0, 3.5], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(which_mode.crossing(t, loss, 2.5), [1.5, np.inf, 0])


def test_drops_are_counted_and_ripples_are_not():
    t = np.linspace(0, 100, 401)

    def fall(*times):
        return sum(1 / (1 + np.exp(t - when)) for when in times)

    curves = np.stack([fall(30), fall(20, 60), fall(15, 45, 80) + 1e-3 * np.sin(t)])
    np.testing.assert_array_equal(which_mode.drops(t, curves), [1, 2, 3])


def test_plateaus_lie_before_between_and_after_the_drops():
    t = np.linspace(0, 100, 401)
    loss = 2 / (1 + np.exp(t - 20)) + 1 / (1 + np.exp(t - 60))
    places = which_mode.plateaus(t, loss)
    np.testing.assert_allclose(loss[places], [3, 1, 0], atol=1e-6)
    np.testing.assert_allclose(t[places][1], 40, atol=1)
