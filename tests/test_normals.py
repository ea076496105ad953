import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from icldyn.normals import GENERATORS, _normal, _threefry, normals, words


@pytest.mark.parametrize("generator", GENERATORS)
def test_numbers_are_normal_and_independent_within_and_across_keys(generator):
    keys = jax.random.split(jax.random.key(0), 50)
    x = np.asarray(jax.vmap(lambda k: normals(k, (18, 33), jnp.float32, generator))(keys)).reshape(
        50, -1
    )  # an odd batch
    assert x.dtype == np.float32 and np.isfinite(x).all() and np.abs(x).max() < 5.5
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    for moment, wanted in ((1, 0), (2, 1), (3, 0), (4, 3)):
        error = np.std(x.astype(float) ** moment) / np.sqrt(x.size)
        assert abs((x.astype(float) ** moment).mean() - wanted) < 4 * error
    within = np.corrcoef(x.T)[np.triu_indices(x.shape[1], 1)]  # 50 keys: entries of one key, pairwise
    assert abs(within.mean()) < 4 * within.std() / np.sqrt(within.size)
    half = x.shape[1] // 2  # the two words of a hash stand half the array apart
    assert abs(np.mean(x[:, :half] * x[:, half : 2 * half])) < 4 / np.sqrt(50 * half)
    across = np.corrcoef(x)[np.triu_indices(50, 1)]
    assert np.abs(across).max() < 5 / np.sqrt(x.shape[1])
    assert len(np.unique(x)) > 0.99 * x.size  # of 29,700 draws from 8 million grid points


def test_a_key_gives_the_same_numbers_alone_and_mapped():
    keys = jax.random.split(jax.random.key(1), 5)
    mapped = jax.vmap(lambda k: normals(k, (7, 8), jnp.float32))(keys)
    for k in range(5):
        np.testing.assert_array_equal(mapped[k], normals(jax.random.clone(keys[k]), (7, 8), jnp.float32))


def test_float64_is_the_stock_generator():
    one = normals(jax.random.key(2), (5, 4), jnp.float64)
    np.testing.assert_array_equal(one, jax.random.normal(jax.random.key(2), (5, 4), jnp.float64))


def test_every_word_gives_its_normal_number_to_single_precision():
    """All 2^23 numbers that can come out, against the inverse error function in double precision; bound of the docstring."""
    grid = np.arange(2**23, dtype=np.uint32)
    found = np.asarray(jax.jit(_normal)(grid << 9), float)
    low = np.nextafter(np.float32(-1), np.float32(0))
    u = np.maximum(low, grid.astype(np.float32) / np.float32(2**23) * (np.float32(1) - low) + low).astype(float)
    wanted = np.sqrt(2) * special.erfinv(u)
    assert (np.abs(found - wanted) <= 5e-7 * np.abs(wanted)).all()
    assert (np.diff(found) >= -1e-6).all()  # monotone to single precision: the order of the uniform numbers


def test_the_hash_is_that_of_jax():
    key, counts = jax.random.key_data(jax.random.key(7)), jnp.arange(10, dtype=jnp.uint32)
    one, other = _threefry(key, counts[:5], counts[5:])
    np.testing.assert_array_equal(np.concatenate([one, other]), threefry_2x32(key, counts))


def test_words_are_uniform_in_every_bit_and_differ_across_the_two_of_a_hash():
    drawn = np.asarray(words(jax.random.key(3), (301, 100)))  # an odd number of rows
    assert drawn.shape == (301, 100) and drawn.dtype == np.uint32
    bits = (drawn.reshape(-1, 1) >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / drawn.size**0.5  # standard errors
    assert np.abs(np.corrcoef(bits.T)[np.triu_indices(32, 1)]).max() < 5 / drawn.size**0.5
    assert len(np.unique(drawn)) > 0.99 * drawn.size
