import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

import icldyn as ic
from icldyn.theory import dictionary_attention as exact

P, N, D = np.array([0.5, 0.3, 0.2]), 5, 4
K = P.size
V = np.linalg.qr(np.random.default_rng(0).normal(size=(D, K)))[0]  # orthonormal features in its columns
TOKENS = np.array([*itertools.product(range(K), repeat=N)])  # every prompt, (243, N)


def full_loss(Q):
    """1/2 E (yhat - y_q)^2 = 1/2 E |sum_i softmax_i x_i - x_q|^2 over every prompt and query, token by token."""
    x = jnp.asarray(V.T[TOKENS])  # (243, N, D)
    a = jax.nn.softmax(jnp.einsum("bnd,de,ek->bnk", x, Q, V), axis=1)
    apart = jnp.einsum("bnk,bnd->bkd", a, x) - V.T[None]
    return 0.5 * jnp.einsum("b,k,bkd->", jnp.asarray(P[TOKENS].prod(1)), jnp.asarray(P), apart**2)


def order(k):
    """The tokens with the query's first."""
    return [k, *(n for n in range(K) if n != k)]


LAWS = [exact.query(P[order(k)], N=N) for k in range(K)]


def test_loss_and_gradient_are_those_of_all_prompts_token_by_token():
    B = np.random.default_rng(1).normal(size=(K, K))
    loss, grad = jax.value_and_grad(full_loss)(jnp.asarray(V @ B @ V.T))
    np.testing.assert_allclose(sum(P[k] * exact.loss(B[order(k), k], LAWS[k]) for k in range(K)), loss, rtol=1e-12)
    rates = np.zeros((K, K))
    for k in range(K):
        rates[order(k), k] = exact.rate(B[order(k), k], LAWS[k])
    np.testing.assert_allclose(-V @ rates @ V.T, grad, atol=1e-14)  # also: nothing outside the span of the features


def test_gradient_descent_on_the_whole_matrix_is_the_recursion():
    step = jax.jit(lambda Q: Q - 3.0 * jax.grad(full_loss)(Q))
    Q = jnp.zeros((D, D))
    for _ in range(400):
        Q = step(Q)
    for k in range(K):
        B = (V.T @ Q @ V)[order(k), k]
        np.testing.assert_allclose(exact.descent(LAWS[k], 3.0, [400])[0], B, atol=1e-12)  # round-off of 400 steps


GROUPED = {
    "balanced": (exact.balanced(4, N), np.full(4, 1 / 4), [0, 1, 1, 1]),
    "underrepresented": (exact.underrepresented(4, 0.4, N), np.array([0.2, 0.4, 0.2, 0.2]), [0, 1, 2, 2]),
    "dominant": (exact.dominant(4, 0.4, N), np.array([0.4, 0.2, 0.2, 0.2]), [0, 1, 1, 1]),
}


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_equal_tokens_move_as_each_of_them(name):
    law, p, group = GROUPED[name]
    alone, steps = exact.query(p, N=N), [0, 1, 30, 300]
    b, each = exact.descent(law, 2.0, steps), exact.descent(alone, 2.0, steps)
    np.testing.assert_allclose(b[:, group], each, atol=1e-12)  # round-off
    np.testing.assert_allclose(exact.loss(b, law), exact.loss(each, alone), rtol=1e-12)
    shares = exact.attention(each, alone)
    grouped = [shares[:, np.equal(group, g)].sum(1) for g in range(b.shape[1])]
    np.testing.assert_allclose(exact.attention(b, law).T, grouped, rtol=1e-12)


@pytest.mark.parametrize("length", [7, None])
def test_the_rate_is_minus_the_gradient_of_the_loss_and_adds_up_to_zero(length):
    law = exact.underrepresented(9, 0.35, length)
    b = np.array([0.7, -1.1, 0.3])
    slope = jax.grad(lambda b: exact.loss(b, law))(jnp.asarray(b))  # by all m tokens of a group at once
    found = exact.rate(b, law)
    np.testing.assert_allclose(found, -law.q * slope / law.sizes, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(exact.rate)(jnp.asarray(b), law), found, rtol=1e-12)  # traced as well
    assert abs(found @ law.sizes) < 1e-15


def test_balanced_tokens_follow_one_number_summed_over_a_binomial():
    size, length, delta = 6, 11, 1.3
    r = np.arange(length + 1)
    M = length - r
    Z = r * np.exp(delta) + M
    a, S = r * np.exp(delta) / Z, (M + M * (M - 1) / (size - 1)) / Z**2
    pmf, law = stats.binom.pmf(r, length, 1 / size), exact.balanced(size, length)
    b = delta * np.array([size - 1, -1]) / size
    rate = exact.rate(b, law)
    np.testing.assert_allclose(rate[0] - rate[1], pmf @ (a * ((1 - a) ** 2 + S)) / (size - 1), rtol=1e-12)
    np.testing.assert_allclose(exact.loss(b, law), pmf @ ((1 - a) ** 2 + S) / 2, rtol=1e-12)


def test_endless_prompts_show_the_probabilities_themselves():
    B = np.random.default_rng(2).normal(size=K)
    a = P * np.exp(B) / (P @ np.exp(B))
    S = (a**2).sum() - a[0] ** 2
    wanted = P[0] * a * (S - a - a[0] * (1 - a[0]))
    wanted[0] = P[0] * a[0] * ((1 - a[0]) ** 2 + S)
    limit = exact.query(P)
    np.testing.assert_allclose(exact.rate(B, limit), wanted, rtol=1e-12)
    np.testing.assert_allclose(exact.rate(B, exact.query(P, N=2000)), wanted, rtol=0.01)  # corrections of order 1/N


@pytest.mark.parametrize(("size", "q"), [(10, None), (50, None), (200, None), (20, 0.4)])
def test_the_closed_form_solves_its_ode(size, q):
    law = exact.balanced(size) if q is None else exact.dominant(size, q)
    t = np.geomspace(0.1, 40, 7) * size**2
    settings = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    ode = solve_ivp(lambda t, b: exact.rate(b, law), (0, t[-1]), np.zeros(2), t_eval=t, **settings)
    a = exact.attention(ode.y.T, law)[:, 0]
    np.testing.assert_allclose(exact.attention_at(t, size, q), a, rtol=1e-8)  # of the solver
    np.testing.assert_allclose(exact.time_to(a, size, q), t, rtol=1e-8)
    np.testing.assert_allclose(exact.limit_loss(a, size), exact.loss(ode.y.T, law), rtol=1e-10)


def test_balanced_times_are_those_of_the_notes():
    sizes = np.array([10, 50, 200, 1000])
    np.testing.assert_allclose(exact.time_to(0.5, sizes) / sizes**2, [1.438, 1.212, 1.076, 1.020], atol=5e-4)  # digits
    further = (exact.time_to(0.9, sizes) - exact.time_to(0.5, sizes)) / (sizes / 0.02)  # (1 - a)^2 = 0.01
    np.testing.assert_allclose(further[[0, -1]], [1.16, 1.43], atol=5e-3)
    assert exact.time_to(0.5, 20) == pytest.approx(544.6, abs=0.05)
    for length, by_entries, by_attention in ((200, 558, 564), (2000, 548, 548), (20000, 546, 546)):
        law = exact.balanced(20, length)
        b = exact.descent(law, 2.0, np.arange(290))
        assert 2 * np.argmax(b[:, 0] - b[:, 1] >= np.log(19)) == by_entries  # a = 1/2 where counts are as expected
        assert 2 * np.argmax(exact.attention(b, law)[:, 0] >= 0.5) == by_attention  # E a = 1/2


def test_late_loss_falls_as_one_over_time():
    for size in (10, 200):
        t = 1e6 * size**2
        assert 4 * t * exact.limit_loss(exact.attention_at(t, size), size) / (size - 1) == pytest.approx(1, rel=3e-3)


def test_the_floor_is_what_strong_weights_leave():
    wanted = sum(  # of every prompt without the query's token, its counts by hand
        stats.multinomial.pmf(n, 5, [1 / 3] * 3) * 0.5 * (1 + (np.array(n) ** 2).sum() / 25)
        for n in itertools.product(range(6), repeat=3)
        if sum(n) == 5 and n[0] == 0
    )
    assert exact.floor(3, 5) == pytest.approx(wanted, rel=1e-12) == pytest.approx(0.105350, abs=5e-7)
    strong = 200 * np.array([2, -1]) / 3
    assert exact.loss(strong, exact.balanced(3, 5)) == pytest.approx(wanted, rel=1e-12)


def test_the_dominant_query_is_done_at_the_times_of_the_notes():
    for eps, factor in ((1e-2, 1.43), (1e-4, 1.04)):
        assert exact.time_to(1 - eps**0.5, 1000, 0.5) * eps == pytest.approx(factor, abs=5e-3)  # over 1/(2 alpha eps)


@pytest.mark.parametrize(("alpha", "times"), [(0.5, (0.722, 2.01, 2.07)), (0.3, (0.512, 1.43, 1.48))])
def test_phases_of_the_underrepresented_query_are_those_of_the_notes(alpha, times):
    size = 3000
    law = exact.underrepresented(size, alpha)
    passed = exact.phases(law)
    found = [passed[name][0] / size**2 for name in ("switch", "crossing", "half")]
    np.testing.assert_allclose(found, times, atol=5e-3)
    assert found[0] == pytest.approx(times[0], abs=1e-3)
    fourth = (passed["done"][0] - passed["half"][0]) / (size / (2 * 0.01 * (1 - alpha)))
    assert fourth == pytest.approx(1.4, abs=0.03)
    assert passed["half"][1][0] / np.log(size) == pytest.approx(1, abs=2e-3)
    if alpha == 0.5:
        assert passed["switch"][1][1] / np.log(size) == pytest.approx(-0.47, abs=5e-3)

    s = np.array([0.01, 0.1, 0.3, 0.5, 0.7, 10.0])
    ode = solve_ivp(
        lambda t, b: exact.rate(b, law),
        (0, s[-1] * size**2),
        np.zeros(3),
        method="DOP853",
        t_eval=s * size**2,
        rtol=1e-9,
        atol=1e-11,
    )
    b = ode.y.T
    x, z, _ = exact.attention(b, law).T
    fall = (z * np.sqrt(2 * law.q * ode.t))[:5]
    assert (fall > 1).all() and (fall < 1.33).all()  # -> 1 as K -> infinity
    np.testing.assert_allclose(x[1:4] * size * (1 - (1 - alpha) * s[1:4]), 1, atol=0.08)  # the same
    np.testing.assert_allclose(exact.loss(b, law)[1:5], 0.5, atol=3e-3)
    assert (np.diff(b[:, 1]) < 0).all()  # B_1 has no minimum
    if alpha == 0.5:
        assert b[-1, 1] / np.log(size) == pytest.approx(-0.56, abs=5e-3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: exact.query([0.5, 0.4]), "`p` must hold at least two positive probabilities that add up to 1"),
        (lambda: exact.query([1.0]), "`p` must hold at least two positive probabilities"),
        (lambda: exact.query([0.25, 0.25], [2, 2]), "`sizes` must be whole numbers of tokens, 1 in the first group"),
        (lambda: exact.query([0.1] * 10, N=200), "`N` must leave at most"),
        (lambda: exact.balanced(1), "`K` must be at least 2, but is 1"),
        (lambda: exact.underrepresented(2, 0.5), "`K` must be at least 3, but is 2"),
        (lambda: exact.dominant(5, 1.0), "`alpha` must be"),
        (lambda: exact.balanced(5, 0), "`N` must be at least 1, but is 0"),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(ic.BadArgument) as error:
        call()
    assert sentence in str(error.value)
