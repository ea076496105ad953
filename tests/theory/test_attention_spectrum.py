import jax
import numpy as np
import pytest
from scipy import integrate, optimize

import icldyn as ic
from icldyn.theory import attention_manifold as manifold
from icldyn.theory import attention_spectrum as spectrum

D, L, SIGMA2 = 5, 40, 0.1
RATE = jax.jit(manifold.merged_rate)


def weights(omega, mu):
    return {"omega": np.array(omega, float)[:, None], "mu": np.array(mu, float)[:, None]}


def test_its_flow_is_that_of_he_et_al_with_the_factor_of_full_matrices():
    omega, mu, ratio = np.array([0.3, -0.2, 0.1]), np.array([0.5, 0.4, -0.3]), (1 + SIGMA2) / L
    E = np.exp(D * np.outer(omega, omega))
    dmu = omega - (np.outer(omega, omega) + ratio * E) @ mu
    domega = mu - (mu @ omega) * mu - D * ratio * (E * np.outer(mu, mu)) @ omega
    rate = RATE(spectrum.spectral(L, [D], SIGMA2), weights(omega, mu))
    np.testing.assert_allclose(rate["mu"][:, 0], dmu, rtol=1e-12)
    np.testing.assert_allclose(rate["omega"][:, 0], domega / D, rtol=1e-12)


def test_its_flow_is_that_of_chen_et_al_for_many_tasks():
    rng, d, phi = np.random.default_rng(0), np.array([3.0, 5.0]), 1 + np.array([0.1, 0.3])
    omega, mu = 0.3 * rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    E = np.exp(np.einsum("hj,kj,j->hk", omega, omega, d))
    pull = np.einsum("j,hj,kj->hk", phi, mu, mu)
    rate = RATE(spectrum.spectral(L, d, phi - 1), {"omega": omega, "mu": mu})
    for h in range(2):
        for i in range(2):
            dmu = omega[h, i] - sum((omega[h, i] * omega[k, i] + phi[i] / L * E[h, k]) * mu[k, i] for k in range(2))
            domega = mu[h, i] - mu[h, i] * mu[:, i] @ omega[:, i] - d[i] / L * (omega[:, i] * E[h] * pull[h]).sum()
            assert rate["mu"][h, i] == pytest.approx(dmu)  # half of theirs: the loss has the 1/2
            assert rate["omega"][h, i] == pytest.approx(domega / d[i])


@pytest.mark.parametrize(
    ("sizes", "omega", "mu", "first", "second"),
    [
        ((40, 5, 0.1), (0.13, -0.13), (3.45, -3.45), 0.2214, 0.2471),
        ((100, 5, 0.1), (0.13, -0.13), (3.45, -3.45), 0.1549, 0.1652),
        ((20, 5, 0.1), (0.13, -0.13), (3.45, -3.45), 0.3321, 0.3836),
        ((40, 5, 0.1), (5**-0.5,), (1.628,), 0.3721, 0.5737),
        ((200, 20, 0.1), (0.05, -0.05), (9.0, -9.0), 0.1991, 0.2042),
        ((200, 20, 0.1), (0.1,), (5.0,), 0.5179, 0.5230),
        ((400, 20, 0.5), (0.15, -0.1, 0.05), (2.0, -3.0, 1.0), 0.6549, 0.6579),
    ],
)
def test_both_closed_forms_have_the_values_of_the_notes(sizes, omega, mu, first, second):
    N, d, sigma2 = sizes
    at = weights(omega, mu)
    assert 2 * spectrum.spectral(N, [d], sigma2).loss(at) == pytest.approx(first, abs=6e-5)
    assert 2 * spectrum.corrected(N, d, sigma2).loss(at) == pytest.approx(second, abs=6e-5)


def test_the_corrected_form_is_far_closer_to_the_exact_loss():
    at, exact = weights((0.13, -0.13), (3.45, -3.45)), manifold.manifold(100, [5], sigma2=0.1, draws=1024)
    loss = exact.loss(at)
    assert abs(spectrum.corrected(100, 5, 0.1).loss(at) / loss - 1) < 0.01
    assert spectrum.spectral(100, [5], 0.1).loss(at) / loss - 1 < -0.05


def least(loss, heads):
    """The least of 2 loss over omega and mu of one head, or of two that mirror each other."""
    signs = np.array([1.0, -1.0])[:heads]
    f = jax.jit(lambda w, m: 2 * loss.loss({"omega": (w * signs)[:, None], "mu": (m * signs)[:, None]}))
    found = optimize.minimize(
        lambda p: float(f(*p)), (0.3, 2.0), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}
    )
    return found.fun, *found.x


def test_one_head_is_best_where_the_closed_form_says():
    omega, mu, loss = spectrum.single_head(L, D, SIGMA2)
    np.testing.assert_allclose((2 * loss, omega, mu), least(spectrum.spectral(L, [D], SIGMA2), 1), rtol=1e-5)
    np.testing.assert_allclose((2 * loss, mu), (0.372, 1.628), atol=6e-4)
    found = least(spectrum.corrected(L, D, SIGMA2), 1)
    np.testing.assert_allclose(found, (0.4708, 0.3363, 1.993), rtol=5e-4)


def test_two_heads_are_best_in_the_valley_of_weak_ones():
    gain, loss = spectrum.two_heads(L, D, SIGMA2)
    assert (gain, 2 * loss) == (pytest.approx(0.879, abs=6e-4), pytest.approx(0.2209, abs=6e-5))
    w = 1e-3
    at = weights((w, -w), (gain / (2 * w), -gain / (2 * w)))
    assert spectrum.spectral(L, [D], SIGMA2).loss(at) == pytest.approx(loss, rel=1e-4)
    m = optimize.minimize_scalar(
        lambda m: float(spectrum.corrected(L, D, SIGMA2).loss(weights((w, -w), (m, -m)))),
        bounds=(100, 900),
        method="bounded",
    )
    assert (2 * m.fun, 2 * m.x * w) == (pytest.approx(0.2455, abs=6e-5), pytest.approx(0.876, abs=1e-3))


def test_best_mu_leaves_no_slope():
    loss, omega = spectrum.spectral(L, (3, 4), (0.1, 0.2)), np.array([[0.2, -0.1], [-0.3, 0.15]])
    mu = spectrum.best_mu(loss, omega)
    assert np.abs(RATE(loss, {"omega": omega, "mu": mu})["mu"]).max() < 1e-12


def solved(loss, start, t):
    """omega and mu at times t, (T, H, I)."""
    shape = start["omega"].shape

    def field(_, y):
        moved = RATE(loss, {"omega": y[: y.size // 2].reshape(shape), "mu": y[y.size // 2 :].reshape(shape)})
        return np.concatenate([np.ravel(moved["omega"]), np.ravel(moved["mu"])])

    y0 = np.concatenate([start["omega"].ravel(), start["mu"].ravel()])
    y = integrate.solve_ivp(field, (0, t[-1]), y0, t_eval=t, rtol=1e-7, atol=1e-9).y.T
    return (part.reshape(-1, *shape) for part in np.split(y, 2, axis=1))


def test_the_published_flows_pass_the_numbers_of_the_notes():
    omega, mu = solved(spectrum.spectral(20, [5], 0.1), weights((0.02, -0.015), (0.03, -0.02)), [150.0])
    np.testing.assert_allclose(omega[0, :, 0], (0.262, -0.262), atol=6e-4)
    np.testing.assert_allclose(mu[0, :, 0], (1.480, -1.480), atol=6e-4)
    start = {"omega": np.full((3, 3), 0.01), "mu": 0.02 + 0.01 * np.eye(3)}
    omega, mu = solved(spectrum.spectral(40, (4, 4, 4), 0.1), start, [20.0, 40.0, 80.0])
    # the notes take explicit steps of 0.1
    np.testing.assert_allclose(omega[:, 0, 0], (0.561, 0.472, 0.359), rtol=8e-3)
    np.testing.assert_allclose(mu[:, 0, 0], (1.252, 1.611, 1.929), rtol=8e-3)


def test_the_warm_up_ends_where_weak_weights_run_away():
    d, scale, start, least = 3.0, 0.4, 1e-2, 0.05  # least: phi / N
    t = spectrum.warm_up(d, scale, start)

    def rate(_, y):
        return [2 * scale * y[0] * y[1] / d, 2 * y[1] * (y[0] - least * y[1])]

    y = integrate.solve_ivp(rate, (0, 0.9 * t), [(scale / d + least) * start, start], rtol=1e-9, atol=1e-14).y[:, -1]
    assert y[1] == pytest.approx(10 * start, rel=1e-5)  # 1/mu falls in proportion to the time left


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: spectrum.spectral(0, [3]), "`N` must be at least 1"),
        (lambda: spectrum.spectral(5, [0.5]), "`sizes` must be at least 1"),
        (lambda: spectrum.corrected(5, 3, -0.1), "`sigma2` must not be negative"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
