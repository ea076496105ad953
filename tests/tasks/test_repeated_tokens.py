import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.repeated_tokens import repeated_tokens


def test_random_tokens_come_again_after_a_start_token():
    task = repeated_tokens(9, period=25, repeats=4)
    x = np.asarray(task.sample(jax.random.key(0), 200))
    assert x.shape == (200, task.T + 1) == (200, 101) and (x[:, 0] == 9).all()
    said = x[:, 1:].reshape(200, 4, 25)
    assert (said == said[:, :1]).all() and said.min() == 0 and said.max() == 8
    # 5000 tokens: a share of 1/9 has a standard error of 4.4e-3
    assert np.abs(np.bincount(said[:, 0].ravel(), minlength=9) / 5000 - 1 / 9).max() < 0.02


def test_the_start_token_can_be_left_out():
    task = repeated_tokens(9, period=3, repeats=2, started=False)
    x = np.asarray(task.sample(jax.random.key(0), 5))
    assert x.shape == (5, task.T + 1) == (5, 6) and x.max() < 9


def test_what_is_not_repeated_is_refused():
    with pytest.raises(ic.BadArgument, match="`repeats` must be at least 2, but is 1"):
        repeated_tokens(9, repeats=1)
