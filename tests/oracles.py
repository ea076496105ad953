"""Independent routes, in numpy: prompts drawn one number at a time and answered by the full attention of the definition."""

import numpy as np


def random_covariance(rng, D):
    A = rng.normal(size=(D, 2 * D))
    return A @ A.T / (2 * D)


def prompt_losses(rng, *, P, Q, N, Sigma, rho, draw_tasks, num, attends, chunk=50_000):
    """1/2 |y_q - yhat_q|^2 of `num` prompts, yhat_q the label slot of W_P (Z Z^T / N) W_Q z_q."""
    D = Sigma.shape[0]
    O = P.shape[0]  # noqa: E741
    root = np.linalg.cholesky(Sigma)
    out = []
    for begin in range(0, num, chunk):
        B = min(chunk, num - begin)
        W = draw_tasks(rng, B)
        x = rng.normal(size=(B, N, D)) @ root.T
        x_q = rng.normal(size=(B, D)) @ root.T
        y = np.einsum("bod,bnd->bno", W, x) + np.sqrt(rho) * rng.normal(size=(B, N, O))
        z = np.concatenate([x, y], axis=2)
        G = np.einsum("bni,bnj->bij", z, z) / N
        if attends:
            z_q = np.concatenate([x_q, np.zeros((B, O))], axis=1)
            G += np.einsum("bi,bj->bij", z_q, z_q) / N
        yhat = np.einsum("oi,bij,jd,bd->bo", P, G, Q, x_q, optimize=True)
        y_q = np.einsum("bod,bd->bo", W, x_q)
        out.append(((y_q - yhat) ** 2).sum(1) / 2)
    return np.concatenate(out)


def z_score(samples, expected):
    """How many standard errors the mean of the samples lies from the expected value."""
    return (np.mean(samples) - expected) / (np.std(samples) / np.sqrt(len(samples)))


def pairings(indices):
    """All ways to split a list into pairs."""
    if not indices:
        yield []
        return
    first, rest = indices[0], indices[1:]
    for k, other in enumerate(rest):
        for tail in pairings(rest[:k] + rest[k + 1 :]):
            yield [(first, other), *tail]


def gaussian_moment(S, order):
    """E[x_a x_b ...] of the given even order as a tensor, from all pairings (Isserlis), x ~ N(0, S)."""
    letters = "abcdefgh"[:order]
    total = 0
    for pairs in pairings(list(letters)):
        spec = ",".join(a + b for a, b in pairs) + "->" + letters
        total = total + np.einsum(spec, *[S] * (order // 2))
    return total
