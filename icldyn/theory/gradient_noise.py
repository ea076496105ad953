"""Covariance of the gradient of a single prompt, in closed form: what SGD adds to gradient flow.

A step of SGD with rate lr and B prompts is -lr (grad L + noise / sqrt B), and the noise has the covariance Sigma_g of one
prompt's gradient, here of l = 1/2 |y_q - yhat_q|^2 with a noiseless query label. The query's own term never enters.

- `answer_noise`: scalar tasks w ~ N(0, Sw), yhat = h^T A x_q, in the entries of A; by the chain rule in any weights that A is
  made of, J^T Sigma_g J with J = dA / dweights. Label noise rho.
- `modes_noise`: vector tasks that share the eigenbasis, aligned modes yhat_a = p_a l_a (C q x)_a, in (p, q).

Both need moments up to the fourth in the context. Source: derived for this project; hold for every N >= 1.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .null_blocks import modes_loss
from .one_layer import descent


def answer_noise(A: Array, S: Array, N: ArrayLike, Sw: Array | None = None, rho: ArrayLike = 0.0) -> Array:
    """Sigma_g (D, D, D, D), the covariance of dl/dA_ak and dl/dA_cl.

    dl/dA = -(b.x) h x^T with b = w - A^T h, and x_q is independent of b and h, so by Isserlis' theorem

        E[dl/dA_ak dl/dA_cl] = T_acij (S_ij S_kl + 2 S_ik S_jl),    T_acij = E[h_a h_c b_i b_j].
    """
    Sw = jnp.eye(S.shape[0], dtype=S.dtype) if Sw is None else Sw
    hhww, hhhw, hhhh = _context_moments(S, N, Sw, rho)
    one = jnp.einsum("acmj,mi->acij", hhhw, A)
    T = hhww - one - one.swapaxes(2, 3) + jnp.einsum("acmn,mi,nj->acij", hhhh, A, A)
    second = jnp.einsum("acij,ij,kl->akcl", T, S, S) + 2 * jnp.einsum("acij,ik,jl->akcl", T, S, S)
    mean = descent(A, S, N, Sw, rho)
    return second - jnp.einsum("ak,cl->akcl", mean, mean)


def _context_moments(S: Array, N: ArrayLike, Sw: Array, rho: ArrayLike) -> tuple[Array, Array, Array]:
    """E[h_a h_c w_i w_j], E[h_a h_c h_m w_j] and E[h_a h_c h_m h_n], (D, D, D, D) each.

    Given the task, with u = S w, v = w^T S w + rho and k = chi^2_N / N, h has mean k u and covariance k (v S - u u^T) / N, so

        E[hh]   = (1 + 1/N) uu + (v/N) S
        E[hhh]  = (k3 - 3 k2/N) uuu + (k2/N) v [u S]_3
        E[hhhh] = (k4 - 6 k3/N + 3 k2/N^2) uuuu + (k3/N - k2/N^2) v [u u S]_6 + (k2/N^2) v^2 [S S]_3

    with k_j = E k^j and [...]_j the sum over the j ways to hand out the indices; then w ~ N(0, Sw).
    """
    k2 = 1 + 2 / N
    k3 = k2 * (1 + 4 / N)
    k4 = k3 * (1 + 6 / N)
    tr = jnp.trace(Sw @ S)
    wwww = _pairs(Sw)
    vww = (tr + rho) * Sw + 2 * Sw @ S @ Sw
    vv = (tr + rho) ** 2 + 2 * jnp.trace(Sw @ S @ Sw @ S)
    vuw, vuu = S @ vww, S @ vww @ S
    uuww = jnp.einsum("pqij,pa,qc->acij", wwww, S, S)
    uuuw = jnp.einsum("acij,im->acmj", uuww, S)
    uuuu = jnp.einsum("acmj,jn->acmn", uuuw, S)
    vuwS = jnp.einsum("aj,cm->acmj", vuw, S)
    vuwS = vuwS + jnp.einsum("cj,am->acmj", vuw, S) + jnp.einsum("mj,ac->acmj", vuw, S)
    hhww = (1 + 1 / N) * uuww + jnp.einsum("ac,ij->acij", S, vww) / N
    hhhw = (k3 - 3 * k2 / N) * uuuw + k2 / N * vuwS
    hhhh = (k4 - 6 * k3 / N + 3 * k2 / N**2) * uuuu + (k3 / N - k2 / N**2) * _crossed(vuu, S)
    return hhww, hhhw, hhhh + k2 / N**2 * vv * _pairs(S)


def _pairs(S: Array) -> Array:
    """[S S]_3: E[x_a x_b x_c x_d] of x ~ N(0, S)."""
    SS = jnp.einsum("ab,cd->abcd", S, S)
    return SS + SS.transpose(0, 2, 1, 3) + SS.transpose(0, 2, 3, 1)


def _crossed(V: Array, S: Array) -> Array:
    """[V S]_6, V and S symmetric."""
    return _pairs(V + S) - _pairs(V) - _pairs(S)


def modes_noise(p: Array, q: Array, s: Array, N: ArrayLike) -> Array:
    """Sigma_g (2D, 2D) in the modes (p, q) of `null_blocks.modes_loss`, shared eigenbasis, rho = 0.

    It is the mixed derivative of the two-point function of the loss: d/dm d/dm'^T (R(m, m') - L(m) L(m')) at m' = m = (p, q),

        R(m, m') = E[l(m) l(m')] = 1/4 sum_ac (1 + 2 delta_ac) E[e_a^2 e'_c^2],    e_a = x_a - p_a (C q x)_a,

    since l(m) = 1/2 sum_a l_a^2 e_a^2 with l ~ N(0, I).

    Off the diagonal and in the null blocks the noise has no covariance with it: both are odd under a change of sign of an
    eigenvector, or of y, and diagonal weights are even.
    """

    def covariance(m: Array, other: Array) -> Array:
        (p, q), (p2, q2) = jnp.split(m, 2), jnp.split(other, 2)
        return _two_point(p, q, p2, q2, s, N) - modes_loss(p, q, s, N) * modes_loss(p2, q2, s, N)

    m = jnp.concatenate([p, q])
    return jax.jacfwd(jax.grad(covariance), 1)(m, m)


def _two_point(p: Array, q: Array, p2: Array, q2: Array, s: Array, N: ArrayLike) -> Array:
    """R(m, m') = E[l(m) l(m')], by expanding the squares e_a^2 e'_c^2 in powers i of p_a and j of p'_c."""
    powers, at_a, at_c, equal, others, signs, counts = _expansion()
    V = _power(s, 6)[powers[:, 0]] * _power(q, 2)[powers[:, 1]] * _power(q2, 2)[powers[:, 2]]  # (triples, D)
    sums = jnp.concatenate([V.sum(1), jnp.ones(1, V.dtype)])
    left, right = V[at_a] * _power(p, 2)[signs[:, 1]], V[at_c] * _power(p2, 2)[signs[:, 2]]  # (terms, D)
    same = jnp.sum(left * right, axis=1)
    both = jnp.where(equal, 3 * same, left.sum(1) * right.sum(1) + 2 * same)
    shares = counts.astype(V.dtype) @ (1 / jnp.asarray(N, V.dtype)) ** jnp.arange(4, dtype=V.dtype)
    return jnp.sum(signs[:, 0].astype(V.dtype) * shares * both * jnp.prod(sums[others], axis=1)) / 4


def _power(x: Array, most: int) -> Array:
    """x^0, x^1 ... x^most, stacked."""
    return jnp.stack([x**k for k in range(most + 1)])


@functools.cache
def _expansion() -> tuple[np.ndarray, ...]:
    """The terms of all `_monomial` as arrays.

    Distinct triples (.., 3); of every term, which triple stands at a, which at c, whether c = a, which are summed over (the
    last entry of the sums is 1), its (factor, i, j), and how often each power of 1/N occurs.
    """
    terms = [((i, j), *term) for i in range(3) for j in range(3) for term in _monomial(i, j).items()]
    triples = [(0, 0, 0), *{t: None for _, (a, c, o), _ in terms for t in (a, *([c] if c else []), *o)}]
    place = {triple: k for k, triple in enumerate(triples)}
    others = np.full((len(terms), 4), len(triples))
    counts = np.zeros((len(terms), 4), int)
    for row, (_, (_, _, summed), found) in enumerate(terms):
        others[row, : len(summed)] = [place[t] for t in summed]
        for power, count in found.items():
            counts[row, power] = count
    at_a, at_c = ([place[key[k] or (0, 0, 0)] for _, key, _ in terms] for k in range(2))
    factors = [((1, -2, 1)[i] * (1, -2, 1)[j], i, j) for (i, j), _, _ in terms]
    equal = np.array([key[1] is None for _, key, _ in terms])
    return np.array(triples), np.array(at_a), np.array(at_c), equal, others, np.array(factors), counts


def _monomial(i: int, j: int) -> dict[tuple, Counter]:
    """E[x_a^(2-i) x_c^(2-j) (C q x)_a^i (C q' x)_c^j] by Isserlis' theorem, C = (1/N) sum_n x_n x_n^T, Sigma = diag(s).

    Every way to pair the x's, and the indices of the C's, sets letters equal and gives 1/N for every sample fewer than C's.
    Returned is a sum of products, {(at a, at c, others): {power of 1/N: count}}: a triple (k, m, n) stands for s^k q^m q'^n at
    the letter a or c (None where c = a), and summed over for the other letters.
    """
    b, d = ["b", "B"][:i], ["d", "D"][:j]
    queries = [*"a" * (2 - i), *b, *"c" * (2 - j), *d]
    slots = [index for letter in b for index in ("a", letter)] + [index for letter in d for index in ("c", letter)]
    found: dict[tuple, Counter] = {}
    for x_pairs in _pairings(list(range(4))):
        for C_pairs in _pairings(list(range(len(slots)))):
            pairs = [(queries[k], queries[m]) for k, m in x_pairs] + [(slots[k], slots[m]) for k, m in C_pairs]
            blocks = _joined(["a", "c", *b, *d], pairs)
            samples = len(_joined(range(i + j), [(k // 2, m // 2) for k, m in C_pairs]))
            triples = {
                block: (sum(k in block for k, _ in pairs), len(block & {*b}), len(block & {*d})) for block in blocks
            }
            at_a, at_c = (next(block for block in blocks if letter in block) for letter in "ac")
            others = tuple(sorted(triples[block] for block in blocks - {at_a, at_c}))
            key = (triples[at_a], None if at_a == at_c else triples[at_c], others)
            found.setdefault(key, Counter())[i + j - samples] += 1
    return found


def _pairings(items: list) -> Iterator[list[tuple]]:
    """All ways to split a list into pairs."""
    if not items:
        yield []
        return
    first, *rest = items
    for k, other in enumerate(rest):
        for tail in _pairings(rest[:k] + rest[k + 1 :]):
            yield [(first, other), *tail]


def _joined(items: Iterable, pairs: Iterable[tuple]) -> set[frozenset]:
    """The items as blocks, those of a pair in one."""
    blocks = {item: frozenset([item]) for item in items}
    for one, other in pairs:
        both = blocks[one] | blocks[other]
        blocks |= dict.fromkeys(both, both)
    return set(blocks.values())
