import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.word_attention import word_attention


def test_answers_are_those_of_the_paper_s_model_written_word_by_word():
    rng = np.random.default_rng(0)
    d, m, m1, L = 7, 5, 6, 4
    mu, _ = np.linalg.qr(rng.normal(size=(d, d)))  # orthonormal words, none along an axis
    W, W_V, W_K, W_Q = (rng.normal(size=shape) for shape in ((m1, m), (m, d), (m, d), (m, d)))
    a = rng.choice([-1.0, 1.0], size=m1)
    tokens = np.array([[0, 1, 2, 5], [0, 4, 2, 4], [6, 3, 2, 6]])
    wanted = np.zeros(3)
    for i, words in enumerate(tokens):
        X = mu[:, words]
        for l in range(L):  # noqa: E741
            score = X.T @ W_K.T @ W_Q @ X[:, l] / np.sqrt(m)
            wanted[i] += a @ W @ W_V @ X @ (np.exp(score) / np.exp(score).sum())
    model = word_attention(d, m, m1)
    params = {"w": W.T @ a / m1**0.5, "W_V": W_V @ mu, "W_K": W_K @ mu, "W_Q": W_Q @ mu}
    N = np.stack([np.bincount(words, minlength=d) for words in tokens]).astype(float)
    found = model.answers(model.values(params), model.scores(params), jnp.asarray(N))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ic.BadArgument, match="`m` must be at least 1, but is 0"):
        word_attention(5, 0, 3)
    with pytest.raises(ic.BadArgument, match="`d` must be at least 4, but is 3"):
        word_attention(3, 1, 3)
