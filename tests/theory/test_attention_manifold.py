import jax
import numpy as np
import pytest
from scipy import integrate

import icldyn as ic
from icldyn.objectives.prompts import Sampled
from icldyn.theory import attention_manifold as manifold
from icldyn.theory import attention_spectrum as spectrum

N, SIZES, SIGMA2 = 6, (2, 3), (0.2, 0.5)
OMEGA = np.array([[0.5, -0.1], [-0.3, 0.6]])
MU = np.array([[0.9, 0.2], [-0.7, 0.8]])


def one_task(omega, mu):
    return {"omega": np.array(omega, float)[:, None], "mu": np.array(mu, float)[:, None]}


def test_the_exact_loss_is_that_of_drawn_prompts():
    """Attention in full on 200,000 prompts of two tasks, in numpy."""
    rng, n, ends = np.random.default_rng(0), 200_000, (0, 2, 5)
    x, errors = rng.normal(size=(n, N + 1, 5)), np.zeros((2, n))
    y = np.zeros((n, N + 1, 2))
    for i, d in enumerate(SIZES):
        beta = rng.normal(size=(n, d)) / d**0.5
        noise = SIGMA2[i] ** 0.5 * rng.normal(size=(n, N + 1))
        y[..., i] = np.einsum("nld,nd->nl", x[..., ends[i] : ends[i + 1]], beta) + noise
    answers = 0.0
    for h in range(2):
        logits = np.einsum("nld,nd->nl", x[:, :-1], np.repeat(OMEGA[h], SIZES) * x[:, -1])
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        answers = answers + MU[h] * np.einsum("nl,nli->ni", weights, y[:, :-1])
    errors = 0.5 * (answers - y[:, -1]) ** 2
    exact = manifold.manifold(N, SIZES, sigma2=SIGMA2)
    found = exact.losses({"omega": OMEGA, "mu": MU})
    for i in range(2):
        error = errors[:, i].std() / n**0.5
        assert abs(errors[:, i].mean() - found[i]) < 4 * error + 1e-3  # of the prompts, and of the draws
    np.testing.assert_allclose(exact.loss({"omega": OMEGA, "mu": MU}), found.sum())


def slopes_of_the_full_model(model, init, batch=50_000):
    """Mean and standard error over 8 batches of -grad of the loss of drawn prompts, by autodiff."""
    task = ic.block_regression(N, ic.disjoint(SIZES), sigma2=SIGMA2)
    params = init(jax.random.key(0), np.float64(1.0))
    slope = jax.jit(jax.grad(Sampled(task, model, batch // 8).loss))
    each = [slope(params, key) for key in jax.random.split(jax.random.key(1), 8)]
    return jax.tree.map(lambda *g: (-np.mean(g, 0), np.std(g, 0) / 8**0.5), *each)


def assert_close(samples, wanted):
    mean, error = samples
    # eight standard errors of eight batches; the draws err by 1e-3
    assert (np.abs(mean - wanted) < 8 * error + 2e-3).all()


def test_merged_matrices_stay_on_the_manifold_and_move_by_the_merged_rate():
    model = ic.softmax_attention.softmax_attention(5, 2, O=2, query_attends_itself=False)
    blocks = ic.disjoint(SIZES)
    found = slopes_of_the_full_model(model, ic.softmax_attention.manifold(model, blocks, OMEGA, MU))
    exact = manifold.manifold(N, SIZES, sigma2=SIGMA2)
    rate = jax.jit(manifold.merged_rate)(exact, {"omega": OMEGA, "mu": MU})
    wanted = ic.softmax_attention.manifold_weights(model, blocks, *map(np.asarray, (rate["omega"], rate["mu"])))
    for name, samples in found.items():
        assert_close(samples, wanted[name])


def test_keys_queries_values_and_outputs_move_by_the_separate_rate():
    scale = 0.4
    settings = {"O": 2, "scale": scale, "values_apart": True, "query_attends_itself": False}
    model, blocks = ic.softmax_attention.softmax_attention(5, 2, 7, **settings), ic.disjoint(SIZES)
    keys, values = np.abs(OMEGA) + 0.5, np.abs(MU)
    found = slopes_of_the_full_model(model, ic.softmax_attention.manifold(model, blocks, keys, values))
    exact = manifold.manifold(N, SIZES, sigma2=SIGMA2)
    start = {"k": keys, "q": keys, "o": values, "v": values}
    rate = jax.jit(manifold.separate_rate)(exact, scale, start)
    wanted = ic.softmax_attention.manifold_weights(model, blocks, np.asarray(rate["k"]), np.asarray(rate["o"]))
    for name, samples in found.items():
        assert_close(samples, wanted[name])


def test_the_separate_rate_conserves_two_differences_of_squares():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(2, 1)) for name in "kqov"}
    rate = jax.jit(manifold.separate_rate)(manifold.manifold(4, [2], sigma2=0.1, draws=64), 0.6, weights)
    for a, b in (("k", "q"), ("o", "v")):
        np.testing.assert_allclose(weights[a] * rate[a], weights[b] * rate[b], rtol=1e-10)  # round-off
        assert np.abs(weights[a] * rate[a]).min() > 1e-3


def solved(loss, start, t):
    """omega and mu at times t, (T, H, I), by an ODE solver that is not the package's."""
    shape = start["omega"].shape
    rate = jax.jit(manifold.merged_rate)

    def field(_, y):
        moved = rate(loss, {"omega": y[: y.size // 2].reshape(shape), "mu": y[y.size // 2 :].reshape(shape)})
        return np.concatenate([np.ravel(moved["omega"]), np.ravel(moved["mu"])])

    y0 = np.concatenate([start["omega"].ravel(), start["mu"].ravel()])
    y = integrate.solve_ivp(field, (0, t[-1]), y0, t_eval=t, rtol=1e-5, atol=1e-7).y.T
    return (part.reshape(-1, *shape) for part in np.split(y, 2, axis=1))


def test_exact_losses_are_those_of_the_notes():
    exact = manifold.manifold(40, [5], sigma2=0.1)
    for omega, mu, wanted in (((0.13, -0.13), (3.45, -3.45), 0.2434), ((5**-0.5,), (1.628,), 0.4080)):
        assert 2 * exact.loss(one_task(omega, mu)) == pytest.approx(wanted, rel=4e-3)  # the notes' draws and ours


def test_the_exact_flow_of_two_heads_ends_as_in_the_notes():
    exact = manifold.manifold(20, [5], sigma2=0.1)
    omega, mu = solved(exact, one_task((0.02, -0.015), (0.03, -0.02)), [150.0])
    # the valley is flat: other draws move its end by 2%
    np.testing.assert_allclose(omega[0, :, 0], (0.309, -0.305), rtol=0.04)
    np.testing.assert_allclose(mu[0, :, 0], (1.318, -1.316), rtol=0.02)
    assert abs(mu.sum()) < 0.01


def test_the_exact_flow_of_three_tasks_passes_the_numbers_of_the_notes():
    exact = manifold.manifold(40, (4, 4, 4), sigma2=0.1, draws=1024)
    start = {"omega": np.full((3, 3), 0.01), "mu": 0.02 + 0.01 * np.eye(3)}
    t = 0.1 * np.array([0, 100, 200, 300, 400, 800, 1200])  # twice theirs
    omega, mu = solved(exact, start, t)
    ends = (np.einsum("thh->th", part)[[2, 4, 5]].mean(1) for part in (omega, mu))
    # the valley is flat, so that other scrambles of 1,024 draws move the last omega by 4%
    for found, wanted, rtol in zip(ends, ((0.626, 0.580, 0.363), (1.180, 1.429, 1.719)), (0.06, 0.025), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=rtol)
    losses = [2 * exact.loss({"omega": omega[k], "mu": mu[k]}) for k in (0, 1, 3, 6)]
    np.testing.assert_allclose(losses, (3.27, 1.70, 1.06, 0.84), rtol=0.015)
    assert mu[2, 0, 1] > 0 > mu[3, 0, 1]  # it changes sign near step 230


def test_endless_contexts_make_attention_linear():
    exact, weights = manifold.manifold(20_000, [3], sigma2=0.1, draws=64), one_task((0.2, -0.1), (2.0, -1.0))
    s = 0.5
    assert 2 * exact.loss(weights) == pytest.approx(1.1 - 2 * s + s**2, abs=2e-3)  # O(1/N)


def test_two_weak_heads_of_opposite_sign_are_debiased_descent():
    w, eta = 1e-3, 0.7
    exact = manifold.manifold(10, [3], sigma2=0.1, draws=1024)
    loss = exact.loss(one_task((w, -w), (eta / (2 * w), -eta / (2 * w))))
    assert loss == pytest.approx(ic.context_regression.debiased_loss(eta, 10, 3, 0.1), rel=3e-3)  # 1,024 draws


def test_weak_weights_grow_at_the_rate_one_over_root_d():
    d, e = 4, 1e-4
    rate = jax.jit(manifold.merged_rate)(manifold.manifold(20_000, [d], draws=64), one_task((e / d**0.5,), (e,)))
    np.testing.assert_allclose(rate["mu"][0, 0] / e, d**-0.5, rtol=1e-2)
    np.testing.assert_allclose(rate["omega"][0, 0] / (e / d**0.5), d**-0.5, rtol=1e-2)


def test_any_loss_of_omega_and_mu_takes_the_place_of_the_exact_one():
    weights = one_task((0.1, -0.2), (0.5, 0.4))
    rate = jax.jit(manifold.merged_rate)(spectrum.spectral(10, [3], 0.1), weights)
    assert rate["omega"].shape == (2, 1) and np.isfinite(rate["mu"]).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: manifold.manifold(0, [2]), "`N` must be at least 1"),
        (lambda: manifold.manifold(5, []), "`sizes` must hold at least one number"),
        (lambda: manifold.manifold(5, [2, 0]), "`sizes[1]` must be at least 1"),
        (lambda: manifold.manifold(5, [2], sigma2=-1.0), "`sigma2` must not be negative"),
        (lambda: manifold.manifold(5, [2], draws=100), "`draws` must be a power of 2"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
