import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.inputs import inputs

ROOT = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])


@pytest.mark.parametrize(("law", "kurtosis"), [("uniform", 1.8), ("normal", 3.0)])
def test_inputs_have_their_covariance_and_kurtosis(law, kurtosis):
    task = inputs(4, ROOT, law=law)
    x, y, x_q, y_q = jax.jit(task.sample, static_argnums=1)(jax.random.key(0), 100_000)
    assert (x.shape, y.shape, x_q.shape, y_q.shape) == ((100_000, 4, 3), (100_000, 4, 1), (100_000, 3), (100_000, 1))
    u = np.linalg.solve(ROOT, np.asarray(x).reshape(-1, 3).T)
    np.testing.assert_allclose(u @ u.T / u.shape[1], np.eye(3), atol=0.01)  # 400k inputs: about 5 standard errors
    np.testing.assert_allclose((u**4).mean(1), kurtosis, rtol=0.03)
    w = np.linalg.solve(np.asarray(x[:, :3]), np.asarray(y[:, :3]))[..., 0]
    np.testing.assert_allclose(
        np.asarray(y_q)[:, 0], (w * np.asarray(x_q)).sum(1), rtol=1e-4, atol=1e-5
    )  # solved for w


@pytest.mark.parametrize("N", [3, 200])
def test_few_pairs_stand_for_many_normal_ones(N):
    P = 100_000
    x, y, W = jax.jit(inputs(N, ROOT, Sigma_w=np.diag([1.0, 2.0, 3.0])).contexts, static_argnums=1)(
        jax.random.key(1), P
    )
    assert x.shape == (3, 3, P)
    np.testing.assert_allclose(y[:, 0], jnp.einsum("dp,ndp->np", W[0], x), rtol=1e-9, atol=1e-12)
    C = np.einsum("nip,njp->pij", x, x) / 3
    Sigma = ROOT @ ROOT.T
    np.testing.assert_allclose(C.mean(0), Sigma, atol=5 * np.abs(Sigma).max() * (2 / N / P) ** 0.5 + 1e-9)
    for M in (np.eye(3), np.diag([1.0, -2.0, 0.5])):
        squares = np.einsum("pij,jk,pkl,li->p", C, M, C, M)  # E tr C M C M of a Wishart matrix
        wanted = np.trace(Sigma @ M @ Sigma @ M) * (1 + 1 / N) + np.trace(Sigma @ M) ** 2 / N
        assert abs(squares.mean() - wanted) < 5 * squares.std() / P**0.5
    np.testing.assert_allclose(np.cov(W[0]), np.diag([1.0, 2.0, 3.0]), atol=0.06)  # 5 standard errors of the largest


def test_a_basis_of_tasks_is_a_square_root_of_their_covariance():
    Sigma_w = np.array([[1.0, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 2.0]])
    task = inputs(4, ROOT, Sigma_w=Sigma_w, basis=True)
    x, y, W = jax.jit(task.contexts, static_argnums=1)(jax.random.key(2), 2)
    np.testing.assert_allclose(W[..., 0].T @ W[..., 0], Sigma_w, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(y, jnp.einsum("odp,ndp->nop", W, x), rtol=1e-12, atol=1e-14)
    assert task.O == 3


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: inputs(0, ROOT), "`N` must be at least 1, but is 0"),
        (lambda: inputs(3, np.ones((2, 3))), "`root` must have shape (2, 2), but has shape (2, 3)"),
        (lambda: inputs(3, ROOT, law="cauchy"), "`law` must be one of normal, uniform, but is 'cauchy'"),
        (lambda: inputs(3, ROOT, Sigma_w=np.eye(2)), "`Sigma_w` must have shape (3, 3), but has shape (2, 2)"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(call, sentence):
    with pytest.raises(ic.BadArgument) as caught:
        call()
    assert sentence in str(caught.value)
