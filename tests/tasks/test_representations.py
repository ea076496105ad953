import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.representations import KINDS, _represented, representations


@pytest.mark.parametrize("f", KINDS)
@pytest.mark.parametrize("unit", [False, True])
def test_representations_have_mean_square_one_and_tokens_their_length(f, unit):
    law = representations(5, K=400, d=40, m=30, tau=0.1, f=f, unit=unit)
    held = law.dictionary(jax.random.key(3), np.float32)
    length2 = np.square(np.asarray(held["V"])).sum(0)
    if unit:
        np.testing.assert_allclose(length2, 1, rtol=1e-5)  # float32
    else:
        assert abs(length2.mean() / 40 - 1) < 0.05  # standard error sqrt(2 / (40 400)) = 1.1 %
    # lengths of tokens and overlaps of directions vary by 1/sqrt(d) = 16 %, an "mlp" by its own weights as well
    assert abs(np.square(held["z"]).mean() - 1) < 0.15 and held["z"].shape == (30, 400)


def test_equal_tokens_have_equal_representations_but_in_a_lookup_table():
    v = np.random.default_rng(0).normal(size=(8, 3))[:, [0, 1, 0, 2]]
    for f in KINDS:
        z = np.asarray(_represented(f, jax.random.key(0), v, 6))
        assert np.array_equal(z[:, 0], z[:, 2]) == (f != "lookup") and not np.allclose(z[:, 0], z[:, 1])


def test_labels_have_the_second_moment_of_a_noisy_linear_task():
    """E y y^T = z^T z + m tau I; the noise of one task has variance tau |lambda|^2."""
    law, batch = representations(3, K=7, d=4, m=5, tau=0.4), 200_000
    z = law.dictionary(jax.random.key(1), np.float64)["z"]
    y = np.asarray(law.labels(jax.random.key(2), z, batch))
    wanted = np.asarray(z.T @ z) + 5 * 0.4 * np.eye(7)
    # standard error of a product of two labels is about its scale over sqrt(batch); labels have kurtosis above 3
    np.testing.assert_allclose(y.T @ y / batch, wanted, atol=6 * wanted.max() / batch**0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"N": 0}, "`N` must be at least 1, but is 0"),
        ({"N": 7}, "`N` must be at most 6, but is 7"),
        ({"tau": -0.1}, "`tau` must be finite and not negative, but is -0.1"),
        ({"f": "mpl"}, "`f` must be one of .*mlp"),
    ],
)
def test_what_is_no_dictionary_is_refused(settings, sentence):
    with pytest.raises(ic.BadArgument, match=sentence):
        representations(**({"N": 3, "K": 7, "d": 4, "m": 2, "tau": 0.1} | settings))
