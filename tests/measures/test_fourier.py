import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import icldyn as ic
from icldyn.measures import fourier
from icldyn.theory import modular_features as gromov

P, M = 11, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(P, P, P))


def explicit_part(logits, k):
    """C_k, with u_cos and u_sin as vectors of R^(p^2)."""
    a, b = np.indices((P, P)).reshape(2, -1)
    flat, out = logits.reshape(P * P, P), 0
    for wave in (np.cos, np.sin):
        u = wave(2 * np.pi * k * (a + b) / P)
        u = u / np.linalg.norm(u)
        out = out + np.outer(u, u @ flat)
    return out.reshape(P, P, P)


def test_the_basis_is_orthonormal():
    np.testing.assert_allclose(fourier.basis(P) @ fourier.basis(P).T, np.eye(P), atol=1e-14)


def test_power_is_that_of_the_fast_transform():
    W = RNG.normal(size=(P, 6))
    spectrum = np.abs(np.fft.rfft(W, axis=0, norm="ortho")[1:]) ** 2
    np.testing.assert_allclose(fourier.power(jnp.asarray(W)), 2 * spectrum.sum(1), rtol=1e-12)
    share = (spectrum / spectrum.sum(0)) ** 2
    np.testing.assert_allclose(fourier.inverse_participation(jnp.asarray(W)), share.sum(0), rtol=1e-12)


def test_a_gromov_network_has_one_frequency_a_neuron_and_all_of_its_variance():
    frequency = np.array([1, 2, 2, 2, 4, 4, 4, 5, 5])
    held = gromov.weights(P, frequency, *RNG.uniform(0, 2 * np.pi, (2, 9)))
    np.testing.assert_allclose(fourier.inverse_participation(jnp.asarray(held["A"])), 1, rtol=1e-12)
    shares = np.asarray(fourier.neuron_shares(jnp.asarray(held["A"][:, None] + held["B"][None])))
    np.testing.assert_allclose(shares[frequency - 1, np.arange(9)], 1, rtol=1e-12)
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-12)
    assert np.array_equal(fourier.key_frequencies(jnp.asarray(shares)), [0, 1, 0, 1, 0])


def test_phases_of_the_closed_form_add_up_and_random_ones_do_not():
    frequency = gromov.cycled(P, 4000)
    held = {k: jnp.asarray(v) for k, v in gromov.weights(P, frequency, *RNG.uniform(0, 2 * np.pi, (2, 4000))).items()}
    np.testing.assert_allclose(fourier.phase_alignment(**held), 1, rtol=1e-12)
    turned = gromov.weights(P, frequency, *RNG.uniform(0, 2 * np.pi, (2, 4000)))["W"]
    found = fourier.phase_alignment(held["A"], held["B"], jnp.asarray(turned))
    np.testing.assert_allclose(found, 0, atol=5 * (0.5 / 4000) ** 0.5)  # 5 standard errors
    mirrored = np.cos(2 * np.pi / P * np.arange(P) * frequency[:, None] + 1)  # all phases 1
    A = jnp.asarray(mirrored.T)
    np.testing.assert_allclose(fourier.phase_alignment(A, A, jnp.asarray(mirrored)), np.cos(1), rtol=1e-12)


def test_neuron_shares_are_those_of_the_two_dimensional_transform():
    neurons = RNG.normal(size=(P, P, 3)) + 4
    spectrum = np.abs(np.fft.fft2(neurons, axes=(0, 1))) ** 2
    spectrum[0, 0] = 0
    wanted = [
        spectrum[np.ix_([0, k, P - k], [0, k, P - k])].sum((0, 1)) / spectrum.sum((0, 1)) for k in range(1, M + 1)
    ]
    np.testing.assert_allclose(fourier.neuron_shares(jnp.asarray(neurons)), wanted, rtol=1e-10)
    assert np.array_equal(fourier.neuron_shares(jnp.ones((P, P, 2))), np.zeros((M, 2)))


def test_restricted_and_excluded_logits_are_those_of_the_definition():
    keys = np.array([0.0, 1, 0, 1, 0])
    part = explicit_part(LOGITS, 2) + explicit_part(LOGITS, 4)
    rest = LOGITS - part
    np.testing.assert_allclose(fourier.excluded(jnp.asarray(LOGITS), jnp.asarray(keys)), rest, atol=1e-12)
    wanted = part + rest.mean((0, 1))
    np.testing.assert_allclose(fourier.restricted(jnp.asarray(LOGITS), jnp.asarray(keys)), wanted, atol=1e-12)


def test_logits_of_the_sum_alone_are_restricted_to_themselves():
    held = gromov.weights(P, gromov.cycled(P, 400), *RNG.uniform(0, 2 * np.pi, (2, 400)))
    mean = gromov.mean_outputs(P, gromov.cycled(P, 400))
    every = jnp.ones(M)
    np.testing.assert_allclose(fourier.restricted(jnp.asarray(mean), every), mean, atol=1e-10)
    np.testing.assert_allclose(fourier.excluded(jnp.asarray(mean), every), 0 * mean, atol=1e-10)
    weight = jnp.ones((P, P))
    L = jnp.asarray(gromov.outputs(held)) / 10
    assert fourier.cross_entropy(fourier.restricted(L, every), weight) < fourier.cross_entropy(L, weight)
    assert fourier.cross_entropy(fourier.excluded(L, every), weight) > 1.5  # log 11 is 2.4: little is left


def test_cross_entropy_is_the_weighted_mean():
    weight = RNG.integers(0, 2, (P, P)).astype(float)
    single = -np.array([[log_softmax(LOGITS[a, b])[(a + b) % P] for b in range(P)] for a in range(P)])
    wanted = (weight * single).sum() / weight.sum()
    np.testing.assert_allclose(fourier.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(weight)), wanted, rtol=1e-12)


def test_gini_is_the_mean_difference_over_twice_the_mean():
    x = RNG.exponential(size=9)
    wanted = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    np.testing.assert_allclose(fourier.gini(jnp.asarray(x)), wanted, rtol=1e-12)
    assert fourier.gini(jnp.ones(5)) == 0
    np.testing.assert_allclose(fourier.gini(jnp.eye(5)[2]), 0.8)
    np.testing.assert_allclose(fourier.top_share(jnp.asarray(x), 2), np.sort(x)[-2:].sum() / x.sum(), rtol=1e-12)


def test_leading_frequencies_span_the_projector():
    chosen = fourier.leading(jnp.asarray([1.0, 5, 2, 0, 3]), 2)
    assert np.array_equal(chosen, [0, 1, 0, 0, 1])
    n = np.arange(P)
    waves = np.stack([f(2 * np.pi * k * n / P) for k in (2, 5) for f in (np.cos, np.sin)], axis=1)
    np.testing.assert_allclose(fourier.projector(chosen), waves @ np.linalg.pinv(waves), atol=1e-12)


def test_measures_vectorise_over_records():
    several = jnp.asarray(RNG.normal(size=(3, P, P, P)))
    keys = jnp.asarray([1.0, 0, 0, 1, 0])
    once = jax.vmap(fourier.excluded, (0, None))(several, keys)
    np.testing.assert_allclose(once[1], fourier.excluded(several[1], keys), rtol=1e-12)


def test_an_even_number_of_tokens_is_refused():
    with pytest.raises(ic.BadArgument, match="`p` must be odd, but is 8"):
        fourier.basis(8)
