import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.models.token_attention import token_attention


def test_answers_are_those_of_the_paper_s_attention_written_token_by_token():
    rng = np.random.default_rng(0)
    d, K, N, H, B = 6, 9, 4, 5, 3
    V, Q, w, y = (rng.normal(size=shape) for shape in ((d, K), (H, d, d), (H, K), (B, N)))
    wanted = np.zeros((B, K))
    for k in range(K):
        for h in range(H):
            scores = [V[:, i] @ Q[h] @ V[:, k] for i in range(N)]
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted[:, k] += w[h, k] * sum(y[:, i] * weights[i] for i in range(N))
    found = token_attention(d, K, N, H).apply(
        {"Q": jnp.asarray(Q), "w": jnp.asarray(w)}, jnp.asarray(V), jnp.asarray(y)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ic.BadArgument, match="`H` must be at least 1, but is 0"):
        token_attention(3, 5, 2, 0)
    with pytest.raises(ic.BadArgument, match="`N` must be at most 5, but is 6"):
        token_attention(3, 5, 6)
