import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models import head_lanes

S = 5
MODELS = {
    "merged, zero blocks": ic.merged(3, 2),
    "merged, all blocks": ic.merged(3, 2, zero_blocks=False),
    "separate, zero blocks": ic.separate(3, 2, 2),
    "separate, all blocks": ic.separate(3, 2, 2, zero_blocks=False),
}


def weights(model):
    keys = jax.random.split(jax.random.key(0), S)
    first = jax.vmap(lambda k: ic.heads.gaussian(model)(k, jnp.float64(0.7)))(keys)
    return first, jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), first)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_seeds_in_the_last_axis_fold_as_they_do_alone(model):
    first, last = weights(model)
    kernels = jax.vmap(model.kernel)(first)
    np.testing.assert_allclose(head_lanes.fold_lanes(model, last), kernels.T, rtol=1e-12)  # (n, D, S)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("at_once", [256, 1])
def test_the_way_back_is_the_transpose_of_the_derivative(model, at_once, monkeypatch):
    monkeypatch.setattr(head_lanes, "WRITTEN_OUT", at_once)
    _, last = weights(model)
    k, back = jax.vjp(lambda w: head_lanes.fold_lanes(model, w), last)
    slope = jax.random.normal(jax.random.key(1), k.shape)
    (wanted,), found = back(slope), head_lanes.unfold_lanes(model, last, slope)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", ["dataset", "shared", "shared, rotated"])
def test_slopes_of_all_seeds_are_the_gradients_of_each(model, kind):
    U = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] if kind == "shared, rotated" else None
    task = ic.linear_regression(9, [1.0, 0.7, 0.4], U=U, family="scalar", rho=0.1)
    if kind == "dataset":
        x, y, x_q, y_q = (np.asarray(a, float) for a in task.sample(jax.random.key(0), 40))
        objective = ic.dataset(model, x, y[..., 0], x_q, y_q[:, 0])
    else:
        objective = ic.statistics(task, model, 6, data="shared")
        assert objective.aligned == (kind == "shared")
    first, last = weights(model)
    key = jax.random.key(3)
    wanted = jax.vmap(jax.grad(objective.loss), (0, None))(first, key)
    found = objective.slopes(last, jax.random.clone(key))
    for name in wanted:
        np.testing.assert_allclose(jnp.moveaxis(found[name], -1, 0), wanted[name], rtol=1e-9, atol=1e-12)
