r"""Softmax attention on a dictionary of tokens, after Huang, Cheng and Liang (2023, arXiv 2310.05249).

A prompt holds N labelled tokens, each one of K orthonormal features v_k with probability p_k, and a query of the same law;
y = <w, x> with E w w^T = I. One head answers yhat = sum_i softmax_i(x_i^T Q x_q) y_i, the query not among its keys, and
1/2 E (yhat - <w, x_q>)^2 is descended in Q from 0. With n ~ Multinomial(N, p), A_k = v_k^T Q v_k and B_{k,n} = v_n^T Q v_k,
B_{k,k} = A_k, a query v_k is answered with attention a_n on all tokens v_n, and -dL/dQ has in its coordinates, T = sum_n a_n^2,

    a_n = n_n e^{B_{k,n}} / sum_j n_j e^{B_{k,j}},    L = sum_k p_k L_k,    L_k = 1/2 E[ 1 - 2 a_k + T ],
    dB_{k,n}/dt = p_k E[ a_n (T - a_k - a_n + 1[n = k]) ],    conserved: A_k + sum_{n != k} B_{k,n} = 0,

for any p, N and K: Q stays in the span of the v_n v_k^T, queries decouple, and a step of gradient descent is B + eta dB/dt.

Tokens of equal probability keep equal B_{k,n}, so a query is followed by groups of them (`Query`): given the count R of a group
of m tokens, E sum n_n^2 = R + R (R - 1) / m, and the expectation is a sum over the counts of groups. The first group is the
query itself. Functions of b (..., G), one B for each group, are numpy for numpy arguments and traced for traced ones.

[derived] but for the model; the 1/2, E w w^T = I, Q(0) = 0, the value 1 and the mask of the query are assumed, as the paper's
text was not at hand. t = eta x steps.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import checks

LEAST = 1e-20  # probability of counts that are left out
MOST = 10**7  # counts that are looked at


class Query(NamedTuple):
    """What decides how a query of one token is learned. Make one with `query` or its special cases."""

    q: ArrayLike  # (): probability of the query's token
    sizes: ArrayLike  # (G,): tokens in each group, 1 in the first
    counts: ArrayLike  # (C, G): tokens of each group in a prompt; their shares for N = infinity
    squares: ArrayLike  # (C, G): E sum_n n_n^2 over the tokens of a group, given its count
    weights: ArrayLike  # (C,): probabilities


def query(p: ArrayLike, sizes: ArrayLike | None = None, N: int | None = None) -> Query:
    """A query of the first token, of groups of `sizes` tokens (1 by default) of probability p each; N=None is infinity.

    Raises:
        icldyn.BadArgument: for probabilities that do not add up to 1, a first group of several tokens, or too many counts.
    """
    p = checks.array("p", p, ndim=1)
    sizes = np.ones(p.size) if sizes is None else checks.array("sizes", sizes, shape=p.shape)
    shares = p * sizes
    if p.size < 2 or (p <= 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise checks.refuse("p", "hold at least two positive probabilities that add up to 1", p.tolist())
    if sizes[0] != 1 or (sizes < 1).any() or (sizes % 1).any():
        raise checks.refuse("sizes", "be whole numbers of tokens, 1 in the first group", sizes.tolist())
    if N is None:
        counts, weights = shares[None], np.ones(1)
        return Query(p[0], sizes, counts, counts**2 / sizes, weights)
    counts, weights = _multinomial(checks.integer("N", N, 1, 10**6), shares)
    return Query(p[0], sizes, counts, counts + counts * (counts - 1) / sizes, weights)


def _multinomial(N: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (C, G) and their probabilities (C,), one binomial after another; the least likely are left out."""
    from scipy.special import gammaln

    counts, logs, r = np.zeros((1, 0)), np.zeros(1), np.arange(N + 1.0)
    for g, share in enumerate(shares[:-1]):
        if len(logs) * len(r) > MOST:
            raise checks.refuse("N", f"leave at most {MOST} counts of the groups", N)
        s, left = share / shares[g:].sum(), N - counts.sum(1, keepdims=True)  # (C, 1)
        rest = np.maximum(left - r, 0)
        more = gammaln(left + 1) - gammaln(r + 1) - gammaln(rest + 1) + r * np.log(s) + rest * np.log1p(-s)
        total = np.where(r <= left, logs[:, None] + more, -np.inf)
        row, drawn = np.nonzero(total > np.log(LEAST))
        counts, logs = np.column_stack([counts[row], drawn]), total[row, drawn]
    weights = np.exp(logs)
    return np.column_stack([counts, N - counts.sum(1)]), weights / weights.sum()


def balanced(K: int, N: int | None = None) -> Query:
    """Any query of K tokens of probability 1/K: b = (A, B)."""
    K = checks.integer("K", K, 2)
    return query(np.full(2, 1 / K), [1, K - 1], N)


def underrepresented(K: int, alpha: float, N: int | None = None) -> Query:
    """A query k >= 2 where token 1 has probability alpha and the others p = (1 - alpha) / (K - 1): b = (A, B_1, b)."""
    K, alpha = checks.integer("K", K, 3), checks.real("alpha", alpha, above=0, most=1 - 1e-9)
    p = (1 - alpha) / (K - 1)
    return query([p, alpha, p], [1, 1, K - 2], N)


def dominant(K: int, alpha: float, N: int | None = None) -> Query:
    """The query of token 1 of probability alpha, the others equal: b = (A, b)."""
    K, alpha = checks.integer("K", K, 2), checks.real("alpha", alpha, above=0, most=1 - 1e-9)
    return query([alpha, (1 - alpha) / (K - 1)], [1, K - 1], N)


def _attended(b: Any, law: Query) -> tuple[Any, Any]:
    """Attention on each group and the sum of its squares over the group's tokens, each (..., C, G)."""
    e = b.__array_namespace__().exp(b - b.max(-1, keepdims=True))[..., None, :]
    e = e / (law.counts * e).sum(-1, keepdims=True)
    return law.counts * e, law.squares * e**2


def attention(b: Any, law: Query) -> Any:
    """E of the attention on each group, (..., G); the first is the paper's Attn_k."""
    return law.weights @ _attended(b, law)[0]


def loss(b: Any, law: Query) -> Any:
    """L_k = 1/2 E[ 1 - 2 a_k + T ] = 1/2 E[ (1 - a_k)^2 + sum_{n != k} a_n^2 ], (...)."""
    a, squares = _attended(b, law)
    return 0.5 * (1 - 2 * a[..., 0] + squares.sum(-1)) @ law.weights


def rate(b: Any, law: Query) -> Any:
    """db/dt (..., G): q E[ a_g (T - a_k + 1[g = 1]) - squares_g ] / m_g."""
    a, squares = _attended(b, law)
    drive = (squares.sum(-1) - a[..., 0])[..., None] + np.eye(1, a.shape[-1])
    return law.q / law.sizes * (law.weights @ (a * drive - squares))


def descent(law: Query, eta: float, steps: ArrayLike) -> np.ndarray:
    """b (T, G) after each of these ascending numbers of steps b <- b + eta db/dt, from 0: gradient descent, exactly."""
    b, done, out = np.zeros(len(law.sizes)), 0, []
    for wanted in np.asarray(steps, int):
        for _ in range(wanted - done):
            b = b + eta * rate(b, law)
        out.append(b)
        done = max(done, wanted)
    return np.array(out)


def time_to(a: ArrayLike, K: int, q: float | None = None) -> np.ndarray:
    """When the flow at N = infinity has attention a on a query of probability q (1/K by default), the others equal.

    da/dt = c a^2 (1 - a)^3 from a = q, so t = (F(a) - F(q)) / c, c = q (K / (K - 1))^2,
    F(a) = 3 ln(a / (1 - a)) - 1/a + 2/(1 - a) + 1/(2 (1 - a)^2).
    """
    a = np.asarray(a, float)
    return _time(np.log(a) - np.log1p(-a), K, q)


def _time(z: Any, K: int, q: float | None) -> Any:
    """`time_to` by the logit z of a: 1/a = 1 + e^-z and 1/(1 - a) = 1 + e^z."""
    q = 1 / K if q is None else q
    first = np.log(q / (1 - q))
    F = [3 * z - np.exp(-z) + 2 * np.exp(z) + (1 + np.exp(z)) ** 2 / 2 for z in (z, first)]
    return (F[0] - F[1]) / (q * (K / (K - 1)) ** 2)


def attention_at(t: ArrayLike, K: int, q: float | None = None) -> np.ndarray:
    """The attention a(t) of `time_to`, by bisection of its logit, (T,); L = K (1 - a)^2 / (2 (K - 1))."""
    t, q = np.asarray(t, float), 1 / K if q is None else q
    low, high = np.full(t.shape, np.log(q / (1 - q))), np.full(t.shape, 40.0)
    for _ in range(80):
        middle = (low + high) / 2
        late = _time(middle, K, q) > t
        low, high = np.where(late, low, middle), np.where(late, middle, high)
    return 1 / (1 + np.exp(-low))


def limit_loss(a: ArrayLike, K: int) -> np.ndarray:
    """L_k at N = infinity at attention a, the others equal: K (1 - a)^2 / (2 (K - 1)); late (K - 1) / (4 t) for q = 1/K."""
    return K / (2 * (K - 1)) * (1 - np.asarray(a)) ** 2


def floor(K: int, N: int) -> float:
    """L*_k of balanced tokens, left by prompts without the query's: (1 - 1/K)^N (1 + 1/N + (1 - 1/N) / (K - 1)) / 2."""
    return 0.5 * (1 - 1 / K) ** N * (1 + 1 / N + (1 - 1 / N) / (K - 1))


def phases(law: Query, eps: float = 0.01) -> dict[str, tuple[float, np.ndarray]]:
    """t and b (3,) where the flow of an underrepresented query passes the ends of its phases.

    "switch" of the leading influence, dA/dt = -dB_1/dt; "crossing", x = z, for the attention x on the query's token and z on
    token 1; "half", x = 1/2; "done", (1 - x)^2 = eps. As K -> infinity at N = infinity, with s = t / K^2: s -> 1/(3 (1 - alpha))
    at the switch, x = 1 / (K (1 - (1 - alpha) s)) around it, s -> 1/(1 - alpha) at the crossing and the half.
    """
    from scipy.integrate import solve_ivp

    events = {
        "switch": lambda t, b: rate(b, law)[:2].sum(),
        "crossing": lambda t, b: attention(b, law) @ [1, -1, 0],
        "half": lambda t, b: attention(b, law)[0] - 0.5,
        "done": lambda t, b: attention(b, law)[0] - 1 + eps**0.5,
    }
    events["done"].terminal = True
    settings = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12, "events": list(events.values())}
    found = solve_ivp(lambda t, b: rate(b, law), (0, 1 / (law.q**2 * eps)), np.zeros(3), **settings)
    passed = zip(events, found.t_events, found.y_events, strict=True)
    return {name: (float(t[0]), b[0]) for name, t, b in passed if len(t)}
