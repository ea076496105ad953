"""Settings of the studies of softmax attention that cannot run are refused by name."""

import dataclasses

import pytest

import icldyn as ic
from icldyn.study import study

BAD = {
    "he2025_multihead": {
        "seeds": 7, "flows": 1, "adam_seeds": 1, "instance_seeds": -1, "H": (2, 4), "d": 0, "L": 1, "sigma2": 0.0,
        "lrs": (0.02, 0.05), "batch": 0, "t_end": 0.5, "t_end_starts": 0.5, "spread": 0.5, "adam_lr": 0.0, "adam_batch": 0,
        "adam_steps": 10, "tasks_H": (5, 3), "tasks_seeds": 1, "tasks_L": 1, "draws": 100, "lengths": (20, 10),
    },
    "chen2024_multitask": {
        "seeds": 7, "flows": 1, "warm_seeds": 1, "instance_seeds": -1, "instance_batch": 0, "dx": 1, "dy": 1, "L": 1,
        "sigma2": -0.1, "lrs": (0.05,), "batch": 0, "t_end": 0.5, "spread": 0.0, "warm_starts": (0.1,), "warm_lr": 0.0,
        "draws": 100,
    },
}  # fmt: skip
NAMED = {"t_end": "lrs", "t_end_starts": "lrs"}  # too short for the rate, which is named first


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, bad in BAD.items() for field in bad])
def test_a_bad_setting_is_named(name, field):
    paper = study(name)
    assert set(BAD[name]) == {f.name for f in dataclasses.fields(paper.scales["smoke"])}
    with pytest.raises(ic.BadArgument) as error:
        paper.check(dataclasses.replace(paper.scales["smoke"], **{field: BAD[name][field]}))
    assert str(error.value).startswith(f"Argument `{NAMED.get(field, field)}")


@pytest.mark.parametrize("name", BAD)
def test_every_scale_is_accepted(name):
    paper = study(name)
    for config in paper.scales.values():
        paper.check(config)
