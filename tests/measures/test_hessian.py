import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import icldyn as ic
from icldyn.measures import hessian

P, WIDTH = 11, 16  # modular addition by a quadratic network of 3 x 11 x 16 = 528 parameters


def network():
    """((A[a] + B[b])^2) W on 39 of the 66 unordered pairs, with their mirrors; mean square over pairs and outputs."""
    pairs = np.array([(a, b) for a in range(P) for b in range(a, P)])
    kept = pairs[np.random.default_rng(0).permutation(len(pairs))[: int(0.6 * len(pairs))]]
    a, b = np.unique(np.concatenate([kept, kept[:, ::-1]]), axis=0).T
    shapes = {"A": (P, WIDTH), "B": (P, WIDTH), "W": (WIDTH, P)}
    keys = jax.random.split(jax.random.key(0), 3)
    std = 0.5 / (2 * WIDTH) ** (1 / 3)
    params = {n: std * jax.random.normal(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}
    target = jax.nn.one_hot((a + b) % P, P, dtype=float)
    return params, lambda w: jnp.mean(((w["A"][a] + w["B"][b]) ** 2 @ w["W"] - target) ** 2)


@functools.cache
def dense():
    params, loss = network()
    w, unravel = ravel_pytree(params)
    H = np.asarray(jax.hessian(lambda w: loss(unravel(w)))(w))
    return H, np.linalg.eigvalsh(H)


def test_thirty_products_find_the_ends_of_a_spectrum_of_528():
    params, loss = network()
    _, eigenvalues = dense()
    ritz = hessian.ritz_values(loss, params, jax.random.key(1), 30)
    assert eigenvalues.size == 528 and ritz.shape == (30,)
    assert ritz[-1] == pytest.approx(eigenvalues[-1], rel=1e-6)
    assert ritz[0] == pytest.approx(eigenvalues[0], rel=1e-3)  # the lower end is crowded
    assert 0.02 < eigenvalues[-1] < 0.04 and -0.02 < eigenvalues[0] < -0.005  # near those of nonlinear.md 5.3


def test_a_product_is_that_of_the_dense_matrix():
    params, loss = network()
    H, _ = dense()
    w, unravel = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(2), w.shape)
    np.testing.assert_allclose(ravel_pytree(hessian.product(loss, params, unravel(v)))[0], H @ v, atol=1e-12)


def test_random_signs_find_the_trace_within_their_error():
    params, loss = network()
    H, _ = dense()
    found = hessian.trace(loss, params, jax.random.key(3), 200)
    assert abs(found.mean - np.trace(H)) < 4 * found.standard_error
    exact = np.sqrt(2 * (np.sum(H**2) - np.sum(np.diag(H) ** 2)) / 200)  # of signs: only what is off the diagonal
    assert found.standard_error == pytest.approx(exact, rel=0.2)


def test_all_eigenvalues_come_once_there_are_as_many_products_as_parameters():
    h = np.array([-2.0, 0.5, 0.5, 3.0, 7.0])  # a double one: Lanczos ends early and goes on from a new direction
    U = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    H = jnp.asarray(U @ np.diag(h) @ U.T)
    ritz = hessian.ritz_values(lambda w: w @ H @ w / 2, jnp.ones(5), jax.random.key(4), 30)
    np.testing.assert_allclose(ritz, h, atol=1e-10)


def test_ritz_values_map_over_checkpoints_and_refuse_no_products():
    scales = jnp.array([1.0, 2.0])
    found = jax.vmap(lambda c: hessian.ritz_values(lambda w: c * jnp.sum(w**4), jnp.ones(3), jax.random.key(5), 2))(
        scales
    )
    np.testing.assert_allclose(found[:, -1], [12, 24], rtol=1e-10)
    with pytest.raises(ic.BadArgument, match="Argument `products` must be at least 1, but is 0"):
        hessian.ritz_values(jnp.sum, jnp.ones(3), jax.random.key(6), 0)
