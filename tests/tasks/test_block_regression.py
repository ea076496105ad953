import jax
import numpy as np
import pytest

import icldyn as ic


def test_labels_read_their_own_blocks_with_their_own_noise():
    B, blocks = 40_000, ((0, 1), (1, 2, 3))  # they share a coordinate
    task = ic.block_regression(5, blocks, sigma2=(0.0, 0.4), size=(1.0, 0.5))
    assert (task.D, task.O) == (4, 2)
    x, y, x_q, y_q = map(np.asarray, jax.jit(task.sample, static_argnums=1)(jax.random.key(0), B))
    assert x.shape == (B, 5, 4) and y.shape == (B, 5, 2) and x_q.shape == (B, 4) and y_q.shape == (B, 2)
    known = np.linalg.lstsq(x[0][:, :2], y[0, :, 0], rcond=None)[0]  # without noise, on these coordinates alone
    np.testing.assert_allclose(x[0][:, :2] @ known, y[0, :, 0], atol=1e-12)
    np.testing.assert_allclose(x_q[0, :2] @ known, y_q[0, 0], atol=1e-12)
    for labels in (y[:, 0], y_q):  # of variance size^2 d + sigma2
        np.testing.assert_allclose(labels.var(0), (2.0, 1.15), rtol=0.05)  # sampling error of 40,000, heavy tails
    cross = np.mean(y[:, 0, 1] * y_q[:, 1] * np.sum(x[:, 0, 1:] * x_q[:, 1:], axis=1))
    assert cross == pytest.approx(0.25 * 3, rel=0.1)  # E (beta.x)(beta.x_q) x.x_q = size^2 d: the noise is not shared


def test_prompts_last_are_the_same_prompts():
    task = ic.block_regression(3, ic.disjoint((2, 1)), sigma2=0.1)
    z, x_q, y_q = task.prompts_last(jax.random.key(2), 4)
    prompts = task.sample(jax.random.key(2), 4)
    np.testing.assert_array_equal(z, np.concatenate([prompts.x, prompts.y], axis=2).T)
    np.testing.assert_array_equal(x_q, prompts.x_q.T)
    np.testing.assert_array_equal(y_q, prompts.y_q.T)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ic.block_regression(0, ((0,),)), "`N` must be at least 1"),
        (lambda: ic.block_regression(3, ((0, 2),)), "`blocks` must hold blocks of different coordinates"),
        (lambda: ic.block_regression(3, ((0, 0),)), "`blocks` must hold blocks of different coordinates"),
        (lambda: ic.block_regression(3, ((0,),), sigma2=-1.0), "`sigma2` must not be negative"),
        (lambda: ic.block_regression(3, ((0,),), size=(1.0, 2.0)), "`size` must have shape (1,)"),
        (lambda: ic.disjoint((2, 0)), "`sizes[1]` must be at least 1"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
