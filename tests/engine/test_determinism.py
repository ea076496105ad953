"""A seed's trajectory: what changes no bit, and how far the rest goes."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.engine import blocks, programs, train
from icldyn.engine.ensemble import ensembles
from icldyn.engine.train import Options

TASK = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35])
MODEL = ic.linear_attention(4)
OBJECTIVES = {
    "statistics": ic.statistics(TASK, MODEL, 8),
    "sampled": ic.sampled(TASK, MODEL, 8),
    "population": ic.population(TASK, MODEL),
}
ONE_ROUNDING = {"float32": 2e-6, "float64": 5e-15}
"""How far another number of lanes in the program may carry a value within 200 steps, relative to the largest: sums over the
batch are vectorised by the layout of the whole program, so their last bit differs (measured: 6e-7 and 2e-15 at most)."""


def run(objective="statistics", **settings):
    base = {"seeds": 32, "lr": 0.02, "steps": 200, "init_scale": 0.3, "records": 3, "block": 8}
    measures = ic.modes.measures(TASK.U)
    return ic.ensemble(OBJECTIVES[objective], ic.gaussian(MODEL), measures=measures, **(base | settings))


def same(one, other, rows=slice(None)):
    return all(np.array_equal(one[name], other[name][rows], equal_nan=True) for name in one.values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_any_number_of_seeds_in_any_order_changes_no_bit(objective, dtype):
    many = run(objective, seeds=64, dtype=dtype)
    assert same(run(objective, seeds=1, dtype=dtype), many, slice(0, 1))
    assert same(run(objective, seeds=[40, 3, 17], dtype=dtype), many, [40, 3, 17])
    assert same(run(objective, seeds=range(37, 60), dtype=dtype), many, slice(37, 60))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_another_block_size_changes_the_last_digits_at_most(objective, dtype):
    small, large = run(objective, dtype=dtype), run(objective, dtype=dtype, block=32)
    for name in small.values:
        scale = np.abs(small[name]).max()
        np.testing.assert_allclose(large[name], small[name], rtol=0, atol=ONE_ROUNDING[dtype] * scale)


def test_experiments_trained_together_have_the_bits_of_each_alone():
    init, measures = ic.gaussian(MODEL), ic.modes.measures(TASK.U)
    settings = {"steps": 40, "records": 3, "block": 16, "measures": measures}
    few = {
        "a": ic.Experiment(OBJECTIVES["statistics"], init, seeds=5, lr=0.02, init_scale=0.3, **settings),
        "b": ic.Experiment(OBJECTIVES["statistics"], init, seeds=4, lr=[0.04, 0.01], init_scale=0.1, **settings),
        "c": ic.Experiment(OBJECTIVES["statistics"], ic.aligned(MODEL, p=0.2, q=0.3), seeds=3, lr=0.02, **settings),
        "d": ic.Experiment(OBJECTIVES["statistics"], ic.aligned(MODEL, p=0.4, q=0.1), seeds=2, lr=0.03, **settings),
    }
    together = ensembles(few, Options())
    held = [[(c.experiment, c.size) for c in block] for block in blocks.blocks_of(list(few.values()))]
    assert held == [[(0, 5), (1, 4), (1, 4)], [(2, 3), (3, 2)]]  # one program for each kind of initial weights
    for name, experiment in few.items():
        assert same(ensembles({name: experiment}, Options())[name], together[name])


def test_many_blocks_compile_once():
    run(seeds=8, steps=3)
    before = programs.advance()._cache_size(), programs.start._cache_size()
    run(seeds=80, steps=3)
    assert (programs.advance()._cache_size(), programs.start._cache_size()) == before


@pytest.fixture(scope="module")
def fixed_prompts():
    task, model = ic.linear_regression(9, [1.0, 0.6, 0.4], family="scalar"), ic.merged(3, 2, zero_blocks=False)
    x, y, x_q, y_q = (np.asarray(a, float) for a in task.sample(jax.random.key(0), 30))
    return ic.dataset(model, x, y[..., 0], x_q, y_q[:, 0]), ic.heads.gaussian(model)


def test_seeds_in_the_last_axis_keep_their_bits_in_any_order(fixed_prompts):
    settings = {"lr": 0.1, "steps": 70, "init_scale": 0.5, "records": 3, "block": 16}
    many = ic.ensemble(*fixed_prompts, seeds=48, **settings)
    assert same(ic.ensemble(*fixed_prompts, seeds=[40, 3, 17], **settings), many, [40, 3, 17])
    assert same(ic.ensemble(*fixed_prompts, seeds=range(21, 43), **settings), many, slice(21, 43))


@pytest.mark.parametrize("steps", [9, 200])
def test_a_seed_is_lost_at_the_very_step_at_which_it_is_alone(steps, fixed_prompts):
    """The engine looks for lost seeds now and then; here one after the other, step by step, looking every time."""
    objective, init = fixed_prompts
    settings = {"seeds": 24, "init_scale": 2.6, "dtype": "float64"}
    measures = {"v": lambda w: w["v"], "loss": lambda w: w["v"][0, 0]}  # the loss overflows before the weights do
    found = ic.ensemble(objective, init, lr=0.1, steps=steps, records=2, block=8, measures=measures, **settings)
    start, step = ic.initial_params(init, **settings), jax.jit(jax.grad(objective.loss))
    lost = np.full(24, -1)
    for seed in range(24):
        w = {name: np.asarray(a[seed]) for name, a in start.items()}
        for k in range(steps):
            new = {name: w[name] - 0.1 * np.asarray(g) for name, g in step(w).items()}
            if not all(np.isfinite(a).all() for a in new.values()):
                lost[seed] = k + 1
                break
            w = new
        np.testing.assert_allclose(found["v"][seed, -1], w["v"], rtol=1e-6)  # steps that overflow amplify round-off
    np.testing.assert_array_equal(found.coords["diverged_step"][1], lost)
    assert 2 < (lost >= 0).sum() < 24 and len(set(lost)) > 2


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_seeds_that_diverge_stay_at_their_last_finite_state_and_harm_no_other(share):
    """Some seeds start so large that they overflow on the way; the others are bit for bit what they are without them."""
    random = np.random.default_rng(0)
    lost = np.sort(random.choice(200, max(1, int(200 * share)), replace=False))
    scales = np.where(np.isin(np.arange(200), lost), random.uniform(4, 40, 200), 0.3)
    whole, calm = run_with_scales(scales), run_with_scales(np.full(200, 0.3))
    step = whole.coords["diverged_step"][1]
    assert set(np.flatnonzero(step >= 0)) == set(lost)
    kept = np.setdiff1d(np.arange(200), lost)
    for name in calm.values:
        assert np.array_equal(whole[name][kept], calm[name][kept])
    np.testing.assert_allclose(whole.mean("p"), calm["p"][kept].mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_array_equal(whole.quantile("p", (0.5,))[0], np.quantile(calm["p"][kept], (0.5,), axis=0)[0])
    assert whole.coverage == f"{200 - len(lost)} of 200 seeds" and whole.diverged == len(lost)
    counts = whole.diverged_by_record()
    np.testing.assert_array_equal(counts, [(step[lost] <= s).sum() for s in whole.coords["step"][1]])
    assert counts[0] == 0 and counts[-1] == len(lost)
    frozen = whole["p"][lost]
    assert np.isfinite(frozen).all()
    for row, at in zip(frozen, step[lost], strict=True):  # nothing moves after the step that failed
        after = row[whole.coords["step"][1] >= at]
        assert (after == after[0]).all()


def run_with_scales(scales):
    """200 seeds, each from its own scale of initial weights."""
    from jax.tree_util import Partial

    measures = {"p": Partial(ic.modes.p, np.eye(4))}
    settings = {"seeds": 200, "lr": 0.02, "steps": 60, "records": 13, "block": 8, "measures": measures}
    keys = np.stack(
        [jax.random.key_data(jax.random.split(jax.random.key(i, impl="threefry2x32"))[0]) for i in range(200)]
    )
    return ic.ensemble(OBJECTIVES["statistics"], Partial(_scaled, ic.gaussian(MODEL), keys, scales), **settings)


def _scaled(init, keys, scales, key, scale):
    import jax.numpy as jnp

    mine = jnp.argmax(jnp.all(keys == jax.random.key_data(key)[None], axis=1))
    return init(jax.random.clone(key), scale * jnp.asarray(scales)[mine].astype(scale.dtype))


# ---------------------------------------------------------------------- memory


def test_a_block_is_lowered_to_what_fits_in_memory_before_anything_is_trained(monkeypatch):
    told = []
    wanted = ic.Experiment(OBJECTIVES["statistics"], ic.gaussian(MODEL), seeds=64, lr=0.02, steps=20, records=3)
    whole = ensembles({"a": wanted}, Options(say=told.append))["a"]
    assert whole.attrs["block"] == 64 and told == []  # 1024 / batch would be 128
    budget = footprint(wanted, 64) / 3
    room = int(budget / train.SHARE_OF_MEMORY) * len(train.workers())
    monkeypatch.setattr(train, "memory", lambda device: room)
    fitted = ensembles({"a": wanted}, Options(say=told.append))["a"]
    assert footprint(wanted, fitted.attrs["block"]) <= budget < footprint(wanted, 2 * fitted.attrs["block"])
    assert told == [f"64 seeds at a time would not fit in 0.0 GB: {fitted.attrs['block']} seeds in a block."]
    assert ensembles({"a": sized(wanted, 64)}, Options(say=told.append))["a"].attrs["block"] == 64  # --block is obeyed


def footprint(experiment, block):
    e = sized(experiment, block)
    return programs.footprint(programs.Placer([e]).lanes(blocks.blocks_of([e])[0], jax.local_devices()[0]))


def sized(experiment, block):
    return dataclasses.replace(experiment, block=block)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
def test_out_of_memory_halves_the_block_and_goes_on():
    """For real: the process may take no more than 60% of what 64 seeds of 2,048 sampled prompts need."""
    code = (
        "import resource, jax, numpy as np, icldyn as ic\n"
        "from icldyn.engine import blocks, programs\n"
        "task, model = ic.linear_regression(128, [1., .7, .5, .35]), ic.linear_attention(4)\n"
        "settings = dict(lr=.01, steps=1, init_scale=.1, records=2)\n"
        "objective, init = ic.sampled(task, model, 2048), ic.gaussian(model)\n"
        "few = ic.ensemble(objective, init, seeds=8, block=8, **settings)\n"
        "e = ic.Experiment(objective, init, seeds=64, block=64, **settings)\n"
        "lanes = programs.Placer([e]).lanes(blocks.blocks_of([e])[0], jax.local_devices()[0])\n"
        "room = int(.6 * programs.footprint(lanes))\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + room,) * 2)\n"
        "many = ic.ensemble(objective, init, seeds=64, block=64, **settings)\n"
        "assert many.num_seeds == 64 and many.diverged == 0\n"
        "np.testing.assert_allclose(many['loss'][:8], few['loss'], rtol=2e-6)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "Out of memory: going on with 32 instead of 64 seeds at a time." in done.stderr


def test_seeds_that_never_fit_are_refused_in_a_sentence(monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    monkeypatch.setattr(programs, "advance", full)
    with pytest.raises(ic.BadArgument, match="small enough for 8 seeds to fit in memory, but they do not"):
        run(block=16)


def test_a_run_of_fixed_prompts_cut_anywhere_in_time_keeps_its_bits(fixed_prompts):
    """Several steps share the body of a loop there; records, and calls from the host, may begin at any of them."""
    settings = {"seeds": 16, "lr": 0.1, "steps": 70, "init_scale": 0.5, "block": 16}
    whole = ic.ensemble(*fixed_prompts, records=2, **settings)
    for records in (11, 71):  # every seventh step, every step
        cut = ic.ensemble(*fixed_prompts, records=records, **settings)
        np.testing.assert_array_equal(cut["loss"][:, -1], whole["loss"][:, -1])
