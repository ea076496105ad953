import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icldyn.objectives import in_pieces


def of(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["A"]) ** 2) + jnp.sum(params["b"]) * jnp.mean(batch)


@pytest.mark.parametrize("pieces", [1, 2, 6])
def test_pieces_have_the_mean_and_the_gradient_of_the_whole(pieces):
    batch = jax.random.normal(jax.random.key(0), (6, 3))
    params = {"A": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    wanted, found = (
        jax.jit(jax.value_and_grad(f))(params)
        for f in (lambda p: of(p, batch), lambda p: in_pieces.mean_of_pieces(of, p, batch, pieces))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, wanted)  # round-off


def test_a_batch_is_cut_where_its_rows_leave_the_cache(monkeypatch):
    assert [in_pieces.pieces_of(batch, 64) for batch in (1, 4, 6, 64, 7)] == [1, 1, 1, 16, 7]
    assert in_pieces.pieces_of(5, 10**6) == 5
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert in_pieces.pieces_of(64, 64) == 1
