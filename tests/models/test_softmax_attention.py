import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icldyn import BadArgument
from icldyn.models.softmax_attention import softmax_attention, uniform

D, H, R, N, B = 3, 2, 2, 5, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def prompts(rng):
    return rng.normal(size=(B, N, D)), rng.normal(size=(B, N, 1)), rng.normal(size=(B, D))


def answers(V, M, x, y, x_q, attends=True):
    """The last entry of the query's row of sum_h softmax(Z M_h Z^T) Z V_h^T, one prompt at a time over all its tokens."""
    out = []
    for x_b, y_b, q_b in zip(x, y, x_q, strict=True):
        Z = np.concatenate([np.concatenate([x_b, y_b], axis=1), [[*q_b, 0.0]]])
        total = 0.0
        for V_h, M_h in zip(V, M, strict=True):
            logits = Z @ M_h @ Z.T
            seen = len(Z) if attends else len(Z) - 1
            weights = np.exp(logits[-1, :seen]) / np.exp(logits[-1, :seen]).sum()
            total += (weights @ Z[:seen] @ V_h.T)[-1]
        out.append(total)
    return np.array(out)[:, None]


@pytest.mark.parametrize("attends", [True, False])
def test_answers_are_those_of_full_attention_token_by_token(rng, attends):
    x, y, x_q = prompts(rng)
    V, M = rng.normal(size=(2, H, D + 1, D + 1))
    params = {"v": V[:, -1], "U": M[:, :D].swapaxes(1, 2)}
    found = jax.jit(softmax_attention(D, H, query_attends_itself=attends).apply)(params, x, y, x_q)
    np.testing.assert_allclose(found, answers(V, M, x, y, x_q, attends), rtol=1e-12)  # round-off


def test_separate_keys_and_queries_are_the_merged_matrix_that_they_multiply_to(rng):
    x, y, x_q = prompts(rng)
    K, Q, v = rng.normal(size=(H, R, D + 1)), rng.normal(size=(H, R, D)), rng.normal(size=(H, D + 1))
    U = np.stack([K[h].T @ Q[h] for h in range(H)])
    one = softmax_attention(D, H, R).apply({"v": v, "K": K, "Q": Q}, x, y, x_q)
    np.testing.assert_allclose(one, softmax_attention(D, H).apply({"v": v, "U": U}, x, y, x_q), rtol=1e-12)  # round-off


def test_weak_softmax_attention_is_linear_attention_on_centred_tokens(rng):
    """d yhat / d epsilon of U -> epsilon U at 0 is sum_h p_h^T Cov(z) U_h x_q, the covariance over the tokens seen."""
    x, y, x_q = prompts(rng)
    v, U = rng.normal(size=(H, D + 1)), rng.normal(size=(H, D + 1, D))
    model = softmax_attention(D, H)
    _, slope = jax.jvp(lambda e: model.apply({"v": v, "U": e * U}, x, y, x_q), (jnp.float64(0),), (jnp.float64(1),))
    for b in range(B):
        z = np.concatenate([np.concatenate([x[b], y[b]], axis=1), [[*x_q[b], 0.0]]])
        cov = np.cov(z.T, bias=True)
        assert np.isclose(slope[b, 0], sum(v[h] @ cov @ U[h] @ x_q[b] for h in range(H)), rtol=1e-10)  # round-off


def test_many_labels_and_factors_of_values_are_those_of_their_products(rng):
    x, x_q, y = rng.normal(size=(B, N, D)), rng.normal(size=(B, D)), rng.normal(size=(B, N, 2))
    n, scale = D + 2, 0.3
    K, Q, V, O = (rng.normal(size=(H, *shape)) for shape in ((R, n), (R, D), (n, n), (2, n)))  # noqa: E741
    model = softmax_attention(D, H, R, O=2, scale=scale, values_apart=True, query_attends_itself=False)
    found = model.apply({"K": K, "Q": Q, "V": V, "O": O}, x, y, x_q)
    for o in range(2):  # a label that no head reads may be any
        total = 0.0
        for h in range(H):
            logits = scale * np.concatenate([x, y], axis=2) @ K[h].T @ Q[h] @ x_q[:, :, None]
            weights = np.exp(logits[..., 0]) / np.exp(logits[..., 0]).sum(1, keepdims=True)
            total += np.einsum("bn,bna,a->b", weights, np.concatenate([x, y], axis=2), (O[h] @ V[h])[o])
        np.testing.assert_allclose(found[:, o], total, rtol=1e-12)  # round-off


def test_uniform_weights_fill_their_bound():
    model = softmax_attention(D, H, R, values_apart=True)
    params = uniform(model)(jax.random.key(0), np.float64(1.0))
    assert {name: w.shape for name, w in params.items()} == model.shapes
    largest = max(np.abs(w).max() for w in params.values())
    assert 0.45 < largest <= (D + 1) ** -0.5


def test_a_scale_of_merged_matrices_is_refused():
    with pytest.raises(BadArgument, match="Argument `scale` must be 1 for merged"):
        softmax_attention(D, H, scale=0.5)


def test_large_logits_do_not_overflow(rng):
    x, y, x_q = prompts(rng)
    params = {"v": np.ones((H, D + 1)), "U": 1e6 * rng.normal(size=(H, D + 1, D))}
    assert np.isfinite(softmax_attention(D, H).apply(params, x, y, x_q)).all()


@pytest.mark.parametrize(("sizes", "name"), [((0, 1), "D"), ((2, 0), "H"), ((2, 1, 0), "R"), ((2, 1.5), "H")])
def test_sizes_that_cannot_be_are_refused_by_name(sizes, name):
    with pytest.raises(BadArgument, match=f"Argument `{name}` must be"):
        softmax_attention(*sizes)
