import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.quadratic_mlp import quadratic_mlp


def test_it_is_a_network_of_squares_on_one_hot_inputs():
    net = quadratic_mlp(5, 8)
    params = net.init(jax.random.key(0), jnp.float64(1))
    a, b = (jnp.asarray(c.ravel()) for c in np.indices((5, 5)))
    x = np.concatenate([np.eye(5)[a], np.eye(5)[b]], axis=1)  # (25, 10)
    first = np.concatenate([params["A"], params["B"]])
    np.testing.assert_allclose(net.apply(params, a, b), (x @ first) ** 2 @ np.asarray(params["W"]), rtol=1e-12)


def test_initial_weights_have_the_spread_of_doshi():
    params = quadratic_mlp(53, 256).init(jax.random.key(0), jnp.float32(1))
    for w in params.values():
        np.testing.assert_allclose(np.std(w), 0.0625, rtol=5 / w.size**0.5)  # 0.5 / (2 x 256)^(1/3); 7 standard errors


def test_a_network_without_neurons_is_refused():
    with pytest.raises(ic.BadArgument, match="`N` must be at least 1, but is 0"):
        quadratic_mlp(5, 0)
