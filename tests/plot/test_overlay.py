import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import icldyn as ic
from tests.test_trajectory import make


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def theory():
    run = make()
    return ic.Trajectory({"a": run["a"][0]}, {"a": ("time", "mode")}, {"t": (("time",), run.t)})


def test_seeds_are_a_median_with_a_band_and_theory_is_dashed_on_top():
    ax = ic.overlay(make(), {"flow": theory(), "closed form": theory()}, "a", labels=["first", "second"])
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    dashed = [line for line in ax.lines if line.get_linestyle() != "-"]
    assert len(solid) == 2 and len(ax.collections) == 2 and len(dashed) == 4
    np.testing.assert_array_equal(solid[1].get_ydata(), np.median(make()["a"], 0)[:, 1])
    np.testing.assert_array_equal(dashed[0].get_ydata(), make()["a"][0, :, 0])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", "second", "flow", "closed form"]
    assert ax.get_legend().get_title().get_text() == "4 seeds, 5%–95% band"


def test_diverged_seeds_are_counted_in_the_legend():
    run = make()
    run["a"][1, 2] = np.nan
    ax = ic.overlay(run, {}, "a")
    assert ax.get_legend().get_title().get_text() == "3 of 4 seeds, 5%–95% band"


def test_the_house_style_stays_inside_its_context():
    before = plt.rcParams["axes.spines.top"]
    with ic.style():
        assert plt.rcParams["axes.spines.top"] is False
    assert plt.rcParams["axes.spines.top"] == before


def test_a_saved_figure_keeps_the_colours_of_the_style_that_it_was_drawn_in(tmp_path):
    with ic.style():
        figure, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, 1], [0, 1], color="C0", linewidth=9)
    with ic.RunFolder.create(tmp_path / "run", say=str) as run:
        (path,) = run.save_figures({"line": figure})
    pixels = plt.imread(path)[..., :3].reshape(-1, 3)
    house = matplotlib.colors.to_rgb("#0072B2")
    assert (np.abs(pixels - house).max(1) < 0.01).sum() > 100  # and not the first colour of matplotlib
