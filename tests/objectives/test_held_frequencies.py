import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import icldyn as ic
from icldyn.engine.descend import descend, optimiser_factory
from icldyn.engine.optimisers import HELD
from icldyn.measures import fourier
from icldyn.objectives import held_frequencies

P, K = 11, 2
OBJECTIVE = ic.modular_pairs(ic.modular(P, fraction=0.5), ic.modular_transformer(P, d=4, H=1, d_head=2, d_mlp=3))


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
    params = {"W_E": rng.normal(size=(P + 1, 4)), "w": rng.normal(size=3)}
    shapes = {name: w.shape for name, w in params.items()} | {"first": (), "inside": (), "shuffle": (P,), "order": ()}
    slopes = [{name: rng.normal(size=shape) * (name not in HELD) for name, shape in shapes.items()} for _ in range(12)]
    return jax.tree.map(jnp.asarray, (params, slopes))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("side", ["inside", "outside"])
def test_from_its_first_step_on_the_embedding_keeps_to_the_subspace(drawn, side, shuffled):
    params, slopes = drawn
    start = held_frequencies.arm(OBJECTIVE, first=3, inside=side == "inside", shuffled=shuffled)
    params |= {name: a for name, a in jax.jit(start)(jax.random.key(0), jnp.asarray(1.0)).items() if name in HELD}
    make = functools.partial(held_frequencies.holding, inner=optax.sgd, count=K)
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


def test_an_arm_has_the_start_of_its_seed_and_a_shuffle_of_its_own():
    starts = [
        jax.jit(held_frequencies.arm(OBJECTIVE, first=3, inside=True, shuffled=shuffled))(key, jnp.asarray(1.0))
        for shuffled, key in ((False, jax.random.key(0)), (True, jax.random.key(0)), (True, jax.random.key(1)))
    ]
    plain = jax.jit(OBJECTIVE.start)(jax.random.key(0), jnp.asarray(1.0))
    assert all(np.array_equal(start[name], plain[name]) for start in starts[:2] for name in plain)
    own, random, another = (np.asarray(start["shuffle"]) for start in starts)
    assert np.array_equal(own, np.arange(P)) and np.array_equal(np.sort(random), own)
    assert not np.array_equal(random, own) and not np.array_equal(random, another)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ic.BadArgument, match="`count` must be at least 1, but is 0"):
        held_frequencies.holding(jnp.float64(1), inner=optax.sgd, count=0)
    with pytest.raises(ic.BadArgument, match="`first` must be at least 0, but is -1"):
        held_frequencies.arm(OBJECTIVE, first=-1, inside=True)
