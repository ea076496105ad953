import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic

U = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
MODEL = ic.linear_attention(3)


def value(name, params, wanted=None):
    return ic.modes.measures(U, wanted)[name](params)


def test_measures_of_an_aligned_start_are_what_it_was_built_from():
    p, q = np.array([0.5, 1.0, 2.0]), np.array([1.0, 3.0, 0.1])
    params = ic.aligned(MODEL, U, p=p, q=q)(None, jnp.float64(1.0))
    np.testing.assert_allclose(value("p", params), p, rtol=1e-12)
    np.testing.assert_allclose(value("q", params), q, rtol=1e-12)
    np.testing.assert_allclose(value("strength", params), p * q, rtol=1e-12)
    np.testing.assert_allclose(value("norm_gap", params), (p**2 - q**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(value("p2_off_diagonal", params), 0, atol=1e-14)
    np.testing.assert_allclose(value("preconditioner_distance", params, p * q), 0, atol=1e-14)
    np.testing.assert_allclose(value("null_block_share", params), 0, atol=1e-14)


def test_isotropic_weights_have_the_share_of_chance_off_the_diagonal():
    many = jax.vmap(ic.gaussian(MODEL), (0, None))(jax.random.split(jax.random.key(0), 20_000), jnp.float64(1.0))
    shares = jax.vmap(ic.modes.measures(U)["q1_off_diagonal"])(many)
    assert np.mean(shares) == pytest.approx(2 / 3, abs=5e-3)  # 1 - 1/D; sampling error of 20k draws
    assert np.mean(jax.vmap(ic.modes.measures(U)["null_block_share"])(many)) == pytest.approx(0.5, abs=5e-3)


def test_norms_count_all_blocks_and_do_not_depend_on_the_basis():
    params = ic.gaussian(MODEL)(jax.random.key(1), jnp.float64(1.0))
    wanted = np.linalg.norm(params["W_P"]) ** 2 - np.linalg.norm(params["W_Q"]) ** 2
    np.testing.assert_allclose(value("norm_gap", params), wanted, rtol=1e-12)
    p1, p2, q1, q2 = (np.linalg.norm(b) ** 2 for b in MODEL.blocks(params))
    np.testing.assert_allclose(value("null_block_share", params), (p1 + q2) / (p1 + p2 + q1 + q2), rtol=1e-12)


def test_the_distance_is_relative_and_counts_off_diagonal_entries():
    p2, q1 = np.random.default_rng(1).normal(size=(2, 3, 3))
    zero = jnp.zeros((3, 3))
    params = ic.from_blocks(zero, jnp.asarray(p2), jnp.asarray(q1), zero)
    wanted = np.array([1.0, 2.0, 3.0])
    expected = np.linalg.norm(U.T @ p2 @ q1 @ U - np.diag(wanted)) / np.linalg.norm(wanted)
    np.testing.assert_allclose(value("preconditioner_distance", params, wanted), expected, rtol=1e-12)
