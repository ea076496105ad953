import numpy as np
import pytest
from scipy.optimize import minimize

import icldyn as ic
from icldyn.theory import word_space as ws


@pytest.mark.parametrize(("counts", "L"), [((3, 1, 1, 1), 4), ((6, 2, 3, 1), 4), ((30, 10, 10, 10), 5)])
def test_the_largest_margin_is_that_of_the_sentences_written_out(counts, L):
    rows, used = [], 3
    for kind, count in enumerate(counts):
        for _ in range(count):
            row = np.zeros(200)
            row[:3] = ws.WORDS[kind]
            more = L - ws.WORDS[kind].sum()
            row[used : used + more] = 1
            used += more
            rows.append(row)
    N, y = np.array(rows), np.repeat(ws.LABELS, counts)
    found = ws.margin(counts, L)
    np.testing.assert_allclose(ws.margin_values(found), ws.largest_margin(N)[:3], rtol=1e-9)
    A = y[:, None] * N
    H = A @ A.T
    dual = minimize(
        lambda a: a @ H @ a / 2 - a.sum(),
        np.full(len(y), 0.1),
        jac=lambda a: H @ a - 1,
        bounds=[(0, None)] * len(y),
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000},
    )
    wanted = np.add.reduceat(dual.x, np.cumsum((0, *counts[:-1])))
    np.testing.assert_allclose(found, wanted, atol=2e-5)  # of the optimiser


def test_many_sentences_have_the_paper_s_signs_and_a_ratio_of_three_halves_and_few_do_not():
    alpha = ws.margin((3 * 10**6, 10**6, 10**6, 10**6), 5)
    np.testing.assert_allclose(ws.margin_values(alpha), [2, 2, -3], rtol=1e-4)  # 1 / n
    assert ws.balance(alpha)[1] == pytest.approx(1.5, rel=1e-4) and ws.balance(alpha)[0] == pytest.approx(0, abs=1e-12)
    G = ws.margin_values(ws.margin((6, 2, 2, 2), 5))
    assert G[0] + G[2] > 0  # irrelevant words answer instead


def test_types_without_sentences_are_refused():
    with pytest.raises(ic.BadArgument, match="`counts` must be at least 1 for every type"):
        ws.margin((3, 1, 1, 0), 4)
