import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models import heads

D, N, B = 3, 6, 5
EVERY = [
    pytest.param(
        make(D, 2, **({"R": 2} if make is ic.separate else {}), zero_blocks=zero), id=f"{make.__name__}-{zero}"
    )
    for make in (ic.merged, ic.separate)
    for zero in (True, False)
]


def weights(model, seed=0):
    return heads.gaussian(model)(jax.random.key(seed), np.float64(1.0))


def full_attention(model, params, x, y, x_q):
    """The last label slot of sum_h V_h (Z Z^T / N) Q_h z_q, from the whole matrices of every head."""
    n = D + 1
    out = np.zeros(len(x))
    for h in range(model.H):
        p, Q = np.zeros(n), np.zeros((n, D))
        v = np.asarray(params["v"][h])
        if model.R is None:
            U = np.asarray(params["U"][h])
        else:
            U = np.asarray(params["K"][h]).T @ np.asarray(params["Q"][h])
        if model.zero_blocks:
            p[D], Q[:D] = v, U
        else:
            p, Q = v, U
        for b in range(len(x)):
            Z = np.concatenate([np.concatenate([x[b], y[b]], axis=1), np.append(x_q[b], 0.0)[None]])
            out[b] += p @ (Z.T @ Z / N) @ Q @ x_q[b]
    return out[:, None]


@pytest.mark.parametrize("model", EVERY)
def test_the_answer_is_that_of_full_attention_head_by_head(model):
    rng, params = np.random.default_rng(0), weights(model)
    x, y, x_q = rng.normal(size=(B, N, D)), rng.normal(size=(B, N, 1)), rng.normal(size=(B, D))
    wanted = full_attention(model, params, x, y, x_q)
    np.testing.assert_allclose(model.apply(params, *map(jnp.asarray, (x, y, x_q))), wanted, rtol=1e-12)  # round-off


@pytest.mark.parametrize("model", EVERY)
def test_the_kernel_answers_from_what_it_takes_of_a_context(model):
    rng, params = np.random.default_rng(1), weights(model)
    x, y, x_q = rng.normal(size=(B, N, D)), rng.normal(size=(B, N, 1)), rng.normal(size=(B, D))
    Z = np.concatenate([np.concatenate([x, y], 2), np.concatenate([x_q, np.zeros((B, 1))], 1)[:, None]], 1)
    G = np.einsum("bna,bnc->bac", Z, Z) / N
    g = G[:, D, :D] if model.zero_blocks else G[:, *np.triu_indices(D + 1)]
    wanted = np.einsum("bk,ki,bi->b", x_q, model.kernel(params), g)
    got = model.apply(params, *map(jnp.asarray, (x, y, x_q)))[:, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)  # round-off


@pytest.mark.parametrize("model", EVERY)
def test_gradient_flow_conserves_what_conserved_says(model):
    task = ic.linear_regression(N, [0.5, 0.3, 0.2], family="scalar", rho=0.1)
    loss, params = ic.population(task, model).loss, weights(model, 2)
    grads = jax.grad(loss)(params, None)
    _, slopes = jax.jvp(heads.conserved, (params,), (grads,))
    for name, slope in slopes.items():
        assert np.abs(slope).max() < 1e-12, name  # round-off of numbers of order 1
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0.01  # and something moves


def test_the_scale_of_a_gaussian_start_is_the_root_mean_square_norm_of_each_head():
    model = ic.separate(8, 4, 3)
    params = jax.vmap(lambda k: heads.gaussian(model)(k, np.float64(0.3)))(jax.random.split(jax.random.key(0), 4000))
    for name, w in params.items():
        norm = np.mean(np.sum(np.asarray(w).reshape(4000, 4, -1) ** 2, axis=2))
        assert norm == pytest.approx(0.09, rel=0.05), name  # 16,000 heads: 1.1% for the scalar v_h


def test_bad_sizes_and_weights_are_refused():
    with pytest.raises(ic.BadArgument, match="Argument `H` must be at least 1, but is 0"):
        ic.merged(3, 0)
    with pytest.raises(ic.BadArgument, match="Argument `R` must be at most 3, but is 4"):
        ic.separate(3, 1, 4)
    with pytest.raises(ic.BadArgument, match="must be v, U, but is v"):
        heads.given(ic.merged(3), v=np.ones(1))
    with pytest.raises(ic.BadArgument, match="`U` must have shape"):
        heads.given(ic.merged(3), v=np.ones(1), U=np.ones((1, 2, 3)))
