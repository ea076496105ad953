import numpy as np
import pytest

import icldyn as ic
from icldyn.theory import modular_features as gromov


def drawn(p, N, seed):
    rng = np.random.default_rng(seed)
    return gromov.weights(p, gromov.cycled(p, N), *rng.uniform(0, 2 * np.pi, (2, N)))


@pytest.mark.parametrize(("p", "N"), [(53, 208), (97, 192)])
def test_the_closed_form_answers_every_pair(p, N):
    # of three draws at most a few pairs in thousands are wrong: the accuracy is 1 to the three digits it is quoted with
    assert np.mean([gromov.accuracy(drawn(p, N, seed)) for seed in range(3)]) >= 0.9995


@pytest.mark.parametrize(
    ("p", "N", "wanted"),
    [
        (11, 5, 0.240),
        (11, 20, 0.755),
        (11, 80, 1.0),
        (23, 11, 0.367),
        (23, 44, 0.950),
        (53, 26, 0.660),
        (53, 52, 0.907),
    ],
)
def test_accuracy_grows_with_the_number_of_neurons(p, N, wanted):
    found = [gromov.accuracy(drawn(p, N, seed)) for seed in range(8 if p < 50 else 3)]
    # the quoted means are of 3 draws, whose spread is about that of ours
    assert abs(np.mean(found) - wanted) < 3 * np.std(found) / 3**0.5 + 1e-3


def test_outputs_are_those_of_a_loop_over_pairs():
    held = drawn(7, 9, 0)
    f = gromov.outputs(held)
    for n in range(7):
        for m in range(7):
            wanted = sum((held["A"][n, k] + held["B"][m, k]) ** 2 * held["W"][k] for k in range(9))
            np.testing.assert_allclose(f[n, m], wanted, rtol=1e-12)


def test_phases_average_out_to_the_mean_outputs():
    p, N = 7, 30_000
    frequency, rng = gromov.cycled(p, N), np.random.default_rng(0)
    f = gromov.outputs(gromov.weights(p, frequency, *rng.uniform(0, 2 * np.pi, (2, N))))
    wanted = gromov.mean_outputs(p, frequency)
    n, m = np.indices((p, p))
    np.testing.assert_allclose(wanted[n, m, (n + m) % p], N / 2, rtol=1e-12)
    np.testing.assert_allclose(wanted[n, m, (n + m + 1) % p], -N / 2 / (p - 1), rtol=1e-12)
    np.testing.assert_allclose(f / N, wanted / N, atol=5 * (2 / N) ** 0.5)  # 5 standard errors: a term is below 4


def test_a_gaussian_column_has_the_participation_said():
    A = np.random.default_rng(0).normal(size=(31, 20_000))
    power = np.abs(np.fft.rfft(A, axis=0)[1:]) ** 2
    found = ((power / power.sum(0)) ** 2).sum(0).mean()
    np.testing.assert_allclose(found, gromov.random_participation(31), rtol=1e-2)  # 5 standard errors
    assert gromov.random_participation(31) == 0.125


def test_bad_arguments_are_refused():
    with pytest.raises(ic.BadArgument, match="`p` must be odd, but is 10"):
        gromov.cycled(10, 4)
    with pytest.raises(ic.BadArgument, match="`phi2` must have shape"):
        gromov.weights(7, [1, 2], [0, 0], [0])
