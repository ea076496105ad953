import functools

import jax
import jax.numpy as jnp
import numpy as np

from icldyn.engine.descend import descend, optimiser_factory
from icldyn.engine.optimisers import HELD, adamw


def test_adamw_warms_up_and_decays_all_that_is_not_data():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=3)} | {name: rng.normal(size=4) for name in HELD}
    slopes = [{name: rng.normal(size=w.shape) * (name not in HELD) for name, w in params.items()} for _ in range(12)]
    found, slopes = jax.tree.map(jnp.asarray, (params, slopes))
    factory, lr = optimiser_factory(functools.partial(adamw, weight_decay=0.5, warm_up=4)), jnp.float64(0.1)
    state = factory(lr).init(found)
    for slope in slopes:
        found, state = descend(factory, lr, slope, found, state)
    wanted, m, v = np.asarray(params["w"]), np.zeros(3), np.zeros(3)
    for k in range(12):  # Loshchilov and Hutter's algorithm, with the betas of Nanda et al.
        g = np.asarray(slopes[k]["w"])
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        step = m / (1 - 0.9 ** (k + 1)) / (np.sqrt(v / (1 - 0.98 ** (k + 1))) + 1e-8)
        wanted = wanted - 0.1 * min(k / 4, 1) * (step + 0.5 * wanted)
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-10)
    assert all(np.array_equal(found[name], params[name]) for name in HELD)
