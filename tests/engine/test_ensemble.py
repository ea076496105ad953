import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import icldyn as ic
from icldyn.engine import programs, train
from icldyn.struct import static, struct

TASK = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35])
MODEL = ic.linear_attention(4)
OBJECTIVE = ic.statistics(TASK, MODEL, 8)
INIT = ic.gaussian(MODEL)
MEASURES = ic.modes.measures(TASK.U)


def run(**settings):
    base = {"seeds": 24, "lr": 0.02, "steps": 40, "init_scale": 0.3, "measures": MEASURES, "records": 5, "block": 8}
    return ic.ensemble(OBJECTIVE, INIT, **(base | settings))


@pytest.fixture(scope="module")
def reference():
    return run()


def same(one, other, rows=slice(None)):
    return all(np.array_equal(one[name], other[name][rows], equal_nan=True) for name in one.values)


def test_a_seed_has_the_same_bits_alone_and_in_any_company(reference):
    assert same(run(seeds=1), reference, slice(0, 1))
    assert same(run(seeds=[17]), reference, slice(17, 18))
    assert same(run(seeds=[23, 3, 11]), reference, [23, 3, 11])
    assert np.array_equal(run(seeds=100)["strength"][:24], reference["strength"])


def test_cutting_time_differently_changes_no_bit(reference, monkeypatch):
    monkeypatch.setattr(train, "SECONDS_PER_CALL", 0)  # one step a call
    assert same(run(), reference)


def test_recording_more_often_changes_no_recorded_bit(reference):
    often = run(records=41)
    np.testing.assert_array_equal(often["strength"][:, ::10], reference["strength"])
    np.testing.assert_array_equal(often.coords["step"][1], np.arange(41))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_the_one_asked_for_whatever_the_flag(dtype):
    kept = {}
    for flag in (True, False):
        with jax.enable_x64(flag):
            kept[flag] = run(dtype=dtype, seeds=8)["strength"]
        assert kept[flag].dtype == dtype
    np.testing.assert_array_equal(kept[True], kept[False])


def test_float32_follows_float64(reference):
    # same draws up to their rounding (uniforms differ in float64), so only the law can agree: compare means over seeds
    one, other = run(seeds=200), run(seeds=200, dtype="float64")
    gap = np.abs(one.mean("loss") - other.mean("loss")) / (one.standard_error("loss") + other.standard_error("loss"))
    assert gap.max() < 4


def test_ensemble_is_the_plain_loop_of_sgd(reference):
    """The oracle: one seed, a Python loop, the gradient written out by autodiff of the same objective in float32."""
    from icldyn.engine.placing import placed

    with jax.numpy_dtype_promotion("standard"):
        objective = placed(OBJECTIVE, "float32")
        key_init, key_data = jax.random.split(jax.random.key(5, impl="threefry2x32"))
        w = placed(INIT(key_init, jnp.float32(0.3)), "float32")
        step = jax.jit(
            lambda w, i: jax.tree.map(
                lambda a, g: a - jnp.float32(0.02) * g, w, jax.grad(objective.loss)(w, jax.random.fold_in(key_data, i))
            )
        )
        for i in range(40):
            w = step(w, i)
        wanted = ic.modes.strength(jnp.eye(4, dtype=jnp.float32), w)
    np.testing.assert_allclose(reference["strength"][5, -1], wanted, rtol=2e-4)  # float32 over 40 steps


def test_swept_axes_equal_separate_runs():
    swept = run(lr=[0.01, 0.02], init_scale=[0.2, 0.3], seeds=8)
    assert swept.dims["strength"][:4] == ("lr", "init_scale", "seed", "time") and swept["strength"].shape[:4] == (
        2,
        2,
        8,
        5,
    )
    assert same(run(seeds=8), swept.isel(lr=1, init_scale=1))
    assert same(run(lr=0.01, init_scale=0.2, seeds=8), swept.isel(lr=0, init_scale=0))


def test_at_equal_time_every_rate_runs_its_own_number_of_steps():
    swept = run(lr=[0.04, 0.01], t_end=0.8, steps=None)
    np.testing.assert_array_equal(swept.coords["step"][1][:, -1], [20, 80])
    np.testing.assert_allclose(swept.t[:, -1], 0.8)
    assert same(run(lr=0.01, steps=80), swept.isel(lr=1))


def test_no_value_compiles_anew(reference):
    before = programs.advance()._cache_size()
    run(lr=0.3, init_scale=0.01, steps=77, seeds=40)
    run(lr=[0.1, 0.2], t_end=3.0, steps=None, spacing="log")
    other = ic.statistics(ic.linear_regression(300, [3.0, 0.7, 0.5, 0.1]), MODEL, 8)
    ic.ensemble(other, INIT, seeds=9, lr=0.01, steps=10, records=3, measures=ic.modes.measures(TASK.U), block=8)
    assert programs.advance()._cache_size() == before
    for N in (8, 30):  # a bound method of a pytree carries its arrays as arguments, too
        exact = ic.population(ic.linear_regression(N, TASK.s), MODEL)
        run(measures=MEASURES | {"loss": exact.loss}, steps=3, seeds=1)
    assert programs.advance()._cache_size() == before + 1


def test_a_method_of_an_ordinary_object_is_a_measure_too(reference):
    class Reader:
        def half(self, params):
            return ic.modes.strength(jnp.eye(4, dtype=params["W_P"].dtype), params) / 2

    halved = run(measures={"half": Reader().half})
    np.testing.assert_array_equal(halved["half"], reference["strength"] / 2)


def test_logarithmic_records_start_at_zero_and_end_at_the_end():
    steps = run(spacing="log", records=6, steps=10_000, seeds=1).coords["step"][1]
    np.testing.assert_array_equal(steps, [0, 1, 10, 100, 1000, 10_000])


def test_momentum_and_adam_are_optaxs():
    momentum = run(optimiser=functools.partial(optax.sgd, momentum=0.9), seeds=8)
    adam = run(optimiser=optax.adam, seeds=8)

    def loop(transform):
        key_init, key_data = jax.random.split(jax.random.key(2, impl="threefry2x32"))
        from icldyn.engine.placing import placed

        with jax.numpy_dtype_promotion("standard"):
            objective, w = placed(OBJECTIVE, "float32"), placed(INIT(key_init, jnp.float32(0.3)), "float32")
            state = transform.init(w)

            @jax.jit
            def step(w, state, i):
                updates, state = transform.update(
                    jax.grad(objective.loss)(w, jax.random.fold_in(key_data, i)), state, w
                )
                return optax.apply_updates(w, updates), state

            for i in range(40):
                w, state = step(w, state, i)
            return ic.modes.strength(jnp.eye(4, dtype=jnp.float32), w)

    np.testing.assert_allclose(momentum["strength"][2, -1], loop(optax.sgd(0.02, momentum=0.9)), rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(adam["strength"][2, -1], loop(optax.adam(0.02)), rtol=5e-3, atol=1e-4)
    assert not np.allclose(momentum["strength"], adam["strength"])


def test_an_equal_partial_is_an_equal_optimiser():
    run(optimiser=functools.partial(optax.sgd, momentum=0.9), seeds=8)
    before = programs.advance()._cache_size()
    run(optimiser=functools.partial(optax.sgd, momentum=0.9), seeds=8)
    assert programs.advance()._cache_size() == before


def test_a_seed_that_diverges_is_counted_and_the_others_keep_their_bits(reference):
    poisoned = ic.ensemble(
        Poisoned(OBJECTIVE, 4), Partial(_init_with_id, INIT), seeds=24, lr=0.02, steps=40, init_scale=0.3,
        measures={name: Partial(_inner, f) for name, f in MEASURES.items()}, records=5, block=8,
    )  # fmt: skip
    lost = np.arange(24) % 4 == 0
    assert poisoned.diverged == lost.sum() == 6
    np.testing.assert_array_equal(poisoned.finite(), ~lost)
    assert np.isfinite(poisoned["strength"]).all()  # frozen at the last finite state: here, the initial one
    np.testing.assert_array_equal(poisoned.coords["diverged_step"][1], np.where(lost, 0, -1))
    np.testing.assert_array_equal(poisoned["strength"][~lost], reference["strength"][~lost])
    kept = reference["strength"][~lost]
    np.testing.assert_allclose(poisoned.mean("strength"), kept.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(poisoned.quantile("strength", (0.5,))[0], np.median(kept, 0), rtol=1e-6)


@struct
class InTurn:
    """An objective whose seeds a CPU takes one after another."""

    whole: object
    in_turn: bool = static(default=True)

    def loss(self, params, key):
        return self.whole.loss(params, key)


def test_seeds_in_turn_are_those_side_by_side(reference):
    settings = {"measures": MEASURES, "records": 5, "block": 8, "init_scale": 0.3}
    one = ic.ensemble(InTurn(OBJECTIVE), INIT, seeds=[5, 9], lr=[0.02, 1e3], steps=40, **settings)
    np.testing.assert_allclose(one["strength"][0], reference["strength"][[5, 9]], rtol=1e-4)  # float32, 40 steps
    assert (one.coords["diverged_step"][1] == [[-1, -1], [0, 0]]).sum() >= 2 and one.diverged == 2


ASKED = []


@jax.custom_vjp
def noted(w):
    """w, whose slope is noted when it is asked for."""
    return w


def _noted(_, slope):
    def note(slope):
        ASKED.append(slope)
        return slope

    return (jax.pure_callback(note, jax.ShapeDtypeStruct(slope.shape, slope.dtype), slope),)


noted.defvjp(lambda w: (w, None), _noted)


@struct
class Noted(InTurn):
    """One that notes every gradient."""

    def loss(self, params, key):
        return self.whole.loss(params | {"W_P": noted(params["W_P"])}, key)


def test_lanes_without_a_seed_take_no_turn():
    ic.ensemble(Noted(OBJECTIVE), INIT, seeds=3, lr=0.02, steps=10, records=2, measures=MEASURES, block=8)
    assert len(ASKED) == 3 * 10  # of eight lanes


def test_a_learning_rate_far_too_high_is_data_not_an_exception():
    wild = run(lr=50.0, seeds=16)
    assert wild.diverged == 16
    assert np.isnan(wild.mean("strength")[-1]).all()


def test_training_on_the_exact_loss_approaches_gradient_flow_in_proportion_to_the_rate():
    exact = ic.population(TASK, MODEL)
    start = ic.initial_params(INIT, seeds=3, init_scale=0.3, dtype="float64")
    gaps = []
    for lr in (0.02, 0.01, 0.005):
        gd = ic.ensemble(
            exact,
            INIT,
            seeds=3,
            lr=lr,
            t_end=4.0,
            init_scale=0.3,
            measures=MEASURES,
            records=9,
            dtype="float64",
            block=8,
        )
        flow = ic.flow(ic.gradient_flow(exact), start, gd.t, measures=MEASURES, many=True)
        gaps.append(np.abs(gd["strength"] - flow["strength"]).max())
    np.testing.assert_allclose(np.log2(np.array(gaps[:-1]) / gaps[1:]), 1, atol=0.1)  # Euler is of order one


def test_weights_of_another_models_shape_are_refused_in_one_sentence():
    with pytest.raises(ic.BadArgument) as caught:
        ic.ensemble(OBJECTIVE, ic.gaussian(ic.linear_attention(3)), seeds=8, lr=0.1, steps=1)
    wanted = "Argument `init` must make `W_P` of shape (8, 8) for this model, but makes shape (6, 6)."
    assert str(caught.value) == wanted


def test_progress_shows_seed_steps_per_second(capsys):
    run(seeds=8, progress="here")
    assert "here: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -0.1}, "`lr` must be positive and finite, but is -0.1"),
        ({"lr": float("inf")}, "`lr` must be positive and finite, but is inf"),
        ({"lr": [0.1, float("nan")]}, "`lr` must be positive and finite, but is nan"),
        ({"lr": "fast"}, "`lr` must be a number, but is 'fast'"),
        ({"seeds": 0}, "`seeds` must be at least 1, but is 0"),
        ({"seeds": []}, "`seeds` must name at least one seed"),
        ({"seeds": [-1]}, "`seeds` must be at least 0, but is -1"),
        ({"steps": 0}, "`steps` must be at least 1, but is 0"),
        ({"steps": None}, "either argument `steps`"),
        ({"t_end": 1.0}, "either argument `steps`"),
        ({"init_scale": -1.0}, "`init_scale` must be finite and not negative"),
        ({"records": 1}, "`records` must be at least 2"),
        ({"spacing": "logarithmic"}, "`spacing` must be one of linear, log"),
        ({"dtype": "float16"}, "`dtype` must be one of float32, float64"),
        ({"block": 12}, "`block` must be a multiple of 8, but is 12"),
        ({"optimiser": optax.adam(0.1)}, "`optimiser` must be a function of the learning rate"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(settings, sentence):
    with pytest.raises(ic.BadArgument) as caught:
        run(**settings)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@struct
class Poisoned:
    """An objective that is NaN for the seeds whose number is a multiple of `every`."""

    inner: object
    every: int = static()

    def loss(self, params, key):
        bad = params["id"] % self.every == 0
        return self.inner.loss(params["w"], key) * jnp.where(bad, jnp.nan, 1.0).astype(params["w"]["W_P"].dtype)


def _init_with_id(init, key, scale):
    ids = jnp.stack(
        [jax.random.key_data(jax.random.split(jax.random.key(i, impl="threefry2x32"))[0]) for i in range(24)]
    )
    number = jnp.argmax(jnp.all(ids == jax.random.key_data(key)[None], axis=1))
    return {"w": init(jax.random.clone(key), scale), "id": number.astype(scale.dtype)}


def _inner(measure, params):
    return measure(params["w"])
