"""Prompts of several kinds in one training set: moments over tasks average, and with them the exact loss of any heads.

The answer of `models.heads` is linear in its folded weights, yhat = k . phi with phi = x_q (x) g and g the entries G_ab,
a <= b, of the context matrix. So 2L = E y^2 - 2 k . E[y phi] + k . E[phi phi^T] k, whose moments are linear in the law of
the tasks: a portion of prompts with one fixed task w_0 among prompts with random ones is exact. [derived]
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .moments import TaskMoments

OVER_TASKS = ("yy", "W", "Sz", "SzW", "SzSz")


def mixture(portions: Sequence[float], kinds: Sequence[TaskMoments]) -> TaskMoments:
    """The moments of tasks that are of kind j with probability portions[j]; S and N are shared."""
    average = {
        name: sum(p * np.asarray(getattr(kind, name)) for p, kind in zip(portions, kinds, strict=True))
        for name in OVER_TASKS
    }
    return dataclasses.replace(kinds[0], **average)


def feature_moments(tasks: TaskMoments, query_attends_itself: bool = True) -> tuple[np.ndarray, np.ndarray, float]:
    """E[phi phi^T] (n, n), E[y phi] (n,) and E y^2 of scalar tasks, n = D (D+1)(D+2)/2; phi_(k, ab) = x_qk G_ab, a <= b.

    G = W + z z^T / N, z = (x_q; 0), W Wishart given the task: E[W_ab W_cd] = Sz_ab Sz_cd + (Sz_ac Sz_bd + Sz_ad Sz_bc) / N.
    """
    S, Sz, N = np.asarray(tasks.S), np.asarray(tasks.Sz), float(tasks.N)
    D = len(S)
    SzSz = np.asarray(tasks.SzSz)
    WW = SzSz + (SzSz.transpose(0, 2, 1, 3) + SzSz.transpose(0, 2, 3, 1)) / N
    square = np.einsum("kl,abcd->kablcd", S, WW)
    cross = np.einsum("kc,abc->kab", S, np.asarray(tasks.SzW)[:, :, 0])
    if query_attends_itself:
        Z = np.zeros((D + 1, D + 1))
        Z[:D, :D] = S  # covariance of z
        four, six = _four(Z), _six(Z)
        own = np.einsum("ab,cdkl->kablcd", Sz, four[:, :, :D, :D])
        square += (own + own.transpose(0, 4, 5, 3, 1, 2)) / N + six[:D, :, :, :D] / N**2
        cross += np.einsum("c,abck->kab", np.asarray(tasks.W)[0], four[:, :, :D, :D]) / N
    a, b = np.triu_indices(D + 1)
    n = D * len(a)
    return square[:, a, b][:, :, :, a, b].reshape(n, n), cross[:, a, b].reshape(n), float(tasks.yy)


def _four(Z: np.ndarray) -> np.ndarray:
    """E[z_a z_b z_c z_d]."""
    pairs = np.einsum("ab,cd->abcd", Z, Z)
    return pairs + pairs.transpose(0, 2, 1, 3) + pairs.transpose(0, 2, 3, 1)


def _six(Z: np.ndarray) -> np.ndarray:
    """E[z_a z_b z_c z_d z_e z_f]: a with each of the others, times the fourth moment of what is left."""
    one = np.einsum("ab,cdef->abcdef", Z, _four(Z))
    return sum(np.moveaxis(one, 1, place) for place in range(1, 6))
