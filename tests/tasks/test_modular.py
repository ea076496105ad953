import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.modular import OPERATIONS, modular


def counted(pairs, p):
    """How often every pair stands in the rows, (p, p), by weight."""
    out = np.zeros((p, p))
    np.add.at(out, (np.asarray(pairs.a), np.asarray(pairs.b)), np.asarray(pairs.weight))
    return out


@pytest.mark.parametrize("split", ["unordered", "ordered"])
@pytest.mark.parametrize("p", [7, 10])
def test_every_pair_is_for_training_or_for_test_once(p, split):
    task = modular(p, fraction=0.6, split=split)
    order = task.order(jax.random.key(0), np.float64)
    train, test = counted(task.training(order), p), counted(task.test(order), p)
    assert np.array_equal(train + test, np.ones((p, p)))
    assert (np.array_equal(train, train.T)) == (split == "unordered")


@pytest.mark.parametrize(
    ("p", "fraction", "wanted"), [(53, 0.6, 1682), (53, 0.5, 1403), (31, 0.6, 572), (31, 0.75, 719)]
)
def test_as_many_pairs_train_as_quoted_up_to_the_diagonal(p, fraction, wanted):
    task = modular(p, fraction=fraction)
    assert task.train == int(fraction * p * (p + 1) / 2)
    sizes = [
        counted(task.training(task.order(jax.random.key(seed), np.float64)), p).sum() for seed in range(16)
    ]  # 2 train less the training pairs on the diagonal, which are hypergeometric
    diagonal = 2 * task.train - np.array(sizes)
    spread = (fraction * (1 - fraction) * p * (p - 1) / (p + 1)) ** 0.5
    assert abs(diagonal.mean() - fraction * p) < 4 * spread / 4  # 4 standard errors of 16 draws
    assert abs(2 * task.train - wanted - fraction * p) < 4 * spread


def test_an_ordered_split_of_a_third_is_that_of_nanda():
    assert modular(113, fraction=0.3, split="ordered").train == 3830


def test_splits_of_other_keys_differ_and_are_uniform():
    task = modular(5, fraction=0.4)
    keys = jax.random.split(jax.random.key(1), 4000)
    orders = np.asarray(jax.vmap(lambda k: task.order(k, np.float32))(keys))
    share = np.mean([np.isin(np.arange(15), o[: task.train]) for o in orders], axis=0)
    np.testing.assert_allclose(share, 0.4, atol=5 * (0.24 / 4000) ** 0.5)  # 5 standard errors


@pytest.mark.parametrize("operation", [*OPERATIONS, lambda a, b: 3 * a + b])
def test_answers_are_the_operation_in_whole_numbers(operation):
    p = 11
    pairs = modular(p, operation=operation).all_pairs(np.float64)
    by_hand = {
        "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "a^2+b^2": lambda a, b: a * a + b * b,
        "a^2+ab+b^2": lambda a, b: a * a + a * b + b * b, "a^3+ab": lambda a, b: a * a * a + a * b,
    }.get(operation, operation)  # fmt: skip
    wanted = [by_hand(a, b) % p for a in range(p) for b in range(p)]
    assert np.array_equal(pairs.answer, wanted)
    assert np.array_equal(pairs.a * p + pairs.b, np.arange(p**2))


def test_a_table_is_taken_as_it_is():
    table = np.random.default_rng(0).integers(0, 6, (6, 6))
    task = modular(6, operation=table)
    rows = task.training(task.order(jax.random.key(0), np.float32))
    assert np.array_equal(rows.answer, table[np.asarray(rows.a), np.asarray(rows.b)])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"p": 1}, "`p` must be at least 2, but is 1"),
        ({"operation": "plus"}, "`operation` must be one of"),
        ({"operation": np.full((7, 7), 7)}, "`operation` must hold whole answers from 0 to 6"),
        ({"operation": np.zeros((7, 6))}, "`operation` must have shape"),
        ({"fraction": 1.5}, "`fraction` must be positive and finite and at most 1, but is 1.5"),
        ({"fraction": 0.01}, "`fraction` must leave a pair to train on, of 28, but is 0.01"),
        ({"split": "symmetric"}, "`split` must be one of ordered, unordered"),
    ],
)
def test_tasks_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        modular(**{"p": 7} | settings)
