import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import icldyn as ic
from icldyn.engine.descend import descend, optimiser_factory
from icldyn.engine.optimisers import HELD, adamw, steered, steering
from icldyn.measures import fourier

P, K = 11, 2


def trained(optimiser, num_steps, params, slopes):
    """Params after steps along given gradients, and the optimiser's state."""
    factory = optimiser_factory(optimiser)
    lr = jnp.float64(0.1)
    state = factory(lr).init(params)
    for k in range(num_steps):
        params, state = descend(factory, lr, slopes[k], params, state)
    return params, state


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    params = {"W_E": rng.normal(size=(P + 1, 4)), "w": rng.normal(size=3)} | steering(3, True, rng.permutation(P) * 1.0)
    slopes = [{name: rng.normal(size=w.shape) * (name not in HELD) for name, w in params.items()} for _ in range(12)]
    return jax.tree.map(jnp.asarray, (params, slopes))


def test_adamw_warms_up_and_decays_all_that_is_not_data(drawn):
    params, slopes = drawn
    found, _ = trained(functools.partial(adamw, weight_decay=0.5, warm_up=4), 12, params, slopes)
    wanted, m, v = np.asarray(params["w"]), np.zeros(3), np.zeros(3)
    for k in range(12):  # Loshchilov and Hutter's algorithm, with the betas of Nanda et al.
        g = np.asarray(slopes[k]["w"])
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        step = m / (1 - 0.9 ** (k + 1)) / (np.sqrt(v / (1 - 0.98 ** (k + 1))) + 1e-8)
        wanted = wanted - 0.1 * min(k / 4, 1) * (step + 0.5 * wanted)
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-10)
    assert np.array_equal(found["shuffle"], params["shuffle"])


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("side", ["inside", "outside"])
def test_from_its_first_step_on_the_embedding_keeps_to_the_subspace(drawn, side, shuffled):
    params, slopes = drawn
    params |= steering(3, side == "inside", params["shuffle"] if shuffled else jnp.arange(float(P)))
    make = functools.partial(steered, inner=optimiser_factory(optax.sgd), count=K)
    before, _ = trained(make, 3, params, slopes)
    plain, _ = trained(optax.sgd, 3, params, slopes)
    assert all(np.array_equal(before[name], plain[name]) for name in params)
    W = np.asarray(before["W_E"])[:P]
    power = np.abs(np.fft.rfft(W, axis=0)[1:]) ** 2
    chosen = np.sort(power.sum(1).argsort()[-K:]) + 1
    n = np.arange(P)
    if shuffled:
        n = np.asarray(params["shuffle"], int)
    waves = np.stack([f(2 * np.pi * k * n / P) for k in chosen for f in (np.cos, np.sin)], axis=1)  # (P, 2K)
    waves = np.concatenate([waves, np.ones((P, 1))], axis=1) if side == "inside" else waves
    Q = waves @ np.linalg.pinv(waves)
    Q = Q if side == "inside" else np.eye(P) - Q
    after, state = trained(make, 12, params, slopes)
    for k in range(3, 12):  # a projection and a step of plain descent commute
        W = Q @ (W - 0.1 * np.asarray(slopes[k]["W_E"])[:P])
    np.testing.assert_allclose(after["W_E"][:P], W, rtol=1e-9, atol=1e-11)
    free, _ = trained(optax.sgd, 12, params, slopes)
    np.testing.assert_allclose(after["W_E"][P], free["W_E"][P], rtol=1e-12)
    assert np.array_equal(np.flatnonzero(state.chosen) + 1, chosen)


def test_the_shuffled_subspace_overlaps_with_the_other_as_chance_has_it():
    rng = np.random.default_rng(0)
    Q = np.asarray(fourier.projector(jnp.asarray([0.0, 1, 1, 0, 0])))
    overlap = [np.trace(Q @ Q[p[:, None], p[None]]) for p in (rng.permutation(P) for _ in range(2000))]
    # two subspaces of dimension 4 without the constant, in R^10
    np.testing.assert_allclose(np.mean(overlap), 4 * 4 / 10, atol=5 * np.std(overlap) / 2000**0.5)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ic.BadArgument, match="`count` must be at least 1, but is 0"):
        steered(jnp.float64(1), inner=optax.sgd, count=0)
