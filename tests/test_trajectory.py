import numpy as np
import pytest

import icldyn as ic


def make(S=4, T=3):
    a = np.arange(S * T * 2, dtype=float).reshape(S, T, 2)
    return ic.Trajectory(
        {"a": a, "loss": a[..., 0]},
        {"a": ("seed", "time", "mode"), "loss": ("seed", "time")},
        {"t": (("time",), np.arange(T) / 2), "seed": (("seed",), np.arange(S))},
        {"lr": 0.1},
    )


def test_statistics_leave_out_exactly_the_seeds_that_diverged():
    run = make()
    run["a"][2, 1:, 1] = np.inf
    assert run.diverged == 1 and run.finite().tolist() == [True, True, False, True]
    kept = run["a"][[0, 1, 3]]
    np.testing.assert_allclose(run.mean("a"), kept.mean(0))
    np.testing.assert_allclose(run.standard_deviation("a"), kept.std(0, ddof=1))
    np.testing.assert_allclose(run.standard_error("a"), kept.std(0, ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(run.quantile("a", (0.25, 0.5)), np.quantile(kept, (0.25, 0.5), axis=0))
    np.testing.assert_allclose(run.mean("loss"), run["loss"][[0, 1, 3]].mean(0))


def test_with_every_seed_lost_statistics_are_nan_without_a_warning():
    run = make()
    run["a"][:] = np.nan
    assert np.isnan(run.mean("a")).all() and np.isnan(run.quantile("a", (0.5,))).all()
    assert np.isnan(run.standard_error("a")).all()


def test_xarray_and_back_keeps_everything():
    run = make()
    data = run.to_xarray()
    assert data["a"].dims == ("seed", "time", "mode") and float(data["t"][1]) == 0.5
    back = ic.Trajectory.from_xarray(data)
    assert back.dims == dict(run.dims) and back.attrs["lr"] == 0.1
    np.testing.assert_array_equal(back["a"], run["a"])
    np.testing.assert_array_equal(back.t, run.t)


def test_isel_drops_the_dimension_everywhere():
    one = make().isel(seed=2)
    assert one.dims["a"] == ("time", "mode") and one.num_seeds == 1
    np.testing.assert_array_equal(one["a"], make()["a"][2])


def test_an_unknown_value_is_named_with_those_there_are():
    with pytest.raises(ic.BadArgument, match="must be one of the recorded values a, loss, but is 'b'"):
        make()["b"]
