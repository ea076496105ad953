import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icldyn import checks


@given(st.one_of(st.none(), st.text(), st.booleans(), st.floats(), st.integers(max_value=0), st.lists(st.integers())))
def test_integer_takes_nothing_but_integers_large_enough(value):
    with pytest.raises(checks.BadArgument, match="Argument `n` must be"):
        checks.integer("n", value, 1)


@given(
    st.one_of(st.none(), st.text(), st.booleans(), st.floats(max_value=0), st.just(float("nan")), st.just(float("inf")))
)
def test_real_above_zero_takes_nothing_but_positive_finite_numbers(value):
    with pytest.raises(checks.BadArgument, match="Argument `x` must be"):
        checks.real("x", value, above=0)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_real_keeps_good_numbers(value):
    assert checks.real("x", value, above=0) == value
    assert checks.real("x", np.float64(value), least=0) == value


def test_gather_reports_every_fault_at_once():
    with pytest.raises(checks.BadArgument) as caught:
        checks.gather(
            lambda: checks.integer("a", 0, 1), lambda: checks.real("b", 1.0), lambda: checks.real("c", -1.0, least=0)
        )
    assert str(caught.value).splitlines() == [
        "Argument `a` must be at least 1, but is 0.",
        "Argument `c` must be finite and not negative, but is -1.0.",
    ]


def test_a_near_miss_is_named():
    with pytest.raises(
        checks.BadArgument, match=r"must be one of linear, log, but is 'linaer' \(did you mean 'linear'\?\)"
    ):
        checks.one_of("spacing", "linaer", ("linear", "log"))
