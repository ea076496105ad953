import jax
import jax.numpy as jnp
import numpy as np

from icldyn.theory import moments as m
from tests.oracles import gaussian_moment, random_covariance

rng = np.random.default_rng(0)
S = random_covariance(rng, 3)
A, B = rng.normal(size=(2, 3, 3))


def test_quartic_is_the_sum_over_pairings():
    wanted = np.einsum("ab,cd,abcd->", A, B, gaussian_moment(S, 4))
    np.testing.assert_allclose(m.quartic(jnp.asarray(A), jnp.asarray(B), jnp.asarray(S)), wanted, rtol=1e-12)


def test_sextic_is_the_sum_over_pairings():
    symmetric = A + A.T
    wanted = np.einsum("ab,cd,ef,abcdef->", symmetric, B, B, gaussian_moment(S, 6))
    np.testing.assert_allclose(m.sextic(jnp.asarray(symmetric), jnp.asarray(B), jnp.asarray(S)), wanted, rtol=1e-12)


def test_wishart_sandwich_is_the_sum_over_pairings_of_two_context_tokens():
    # C = (1/N) sum x x^T: N(N-1) of the N^2 pairs of tokens are independent, N of them the same token
    N = 5
    same = np.einsum("bc,abcd->ad", A, gaussian_moment(S, 4))
    wanted = (N * (N - 1) * S @ A @ S + N * same) / N**2
    np.testing.assert_allclose(m.wishart_sandwich(jnp.asarray(A), jnp.asarray(S), N), wanted, rtol=1e-12)


def test_gaussian_task_moments_are_the_averages_over_a_cubature_of_the_gaussian():
    # three-point Gauss-Hermite has weights 1/6, 4/6, 1/6 at -sqrt 3, 0, sqrt 3: six equal points, exact to degree 5 in W
    O, D = 2, 3  # noqa: E741
    root = rng.normal(size=(O * D, O * D)) / 2
    nodes = np.sqrt(3) * np.array([-1, 0, 0, 0, 0, 1])
    grid = np.stack(np.meshgrid(*[nodes] * (O * D), indexing="ij"), -1).reshape(-1, O * D)
    exact = m.gaussian_task_moments(S, (root @ root.T).reshape(O, D, O, D), rho=0.3, N=7)
    pooled = m.pool_task_moments(S, (grid @ root.T).reshape(-1, O, D), rho=0.3, N=7)
    for name in ("yy", "W", "Sz", "SzW", "SzSz"):
        np.testing.assert_allclose(getattr(exact, name), getattr(pooled, name), atol=1e-11, err_msg=name)


def test_moments_are_traced_leaves():
    moments = m.gaussian_task_moments(S, np.eye(3)[None, :, None, :], 0.0, 4)
    assert len(jax.tree.leaves(moments)) == 7
