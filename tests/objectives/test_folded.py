import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import icldyn as ic
from icldyn.models import heads

S = np.array([[0.5, 0.1, 0.0], [0.1, 0.3, 0.05], [0.0, 0.05, 0.2]])
SW = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, -0.1], [0.0, -0.1, 0.6]])
D, N, BATCH, REPEATS = 3, 7, 500, 400
MODELS = {
    "zero blocks": ic.merged(D, 2),
    "all blocks": ic.separate(D, 2, 2, zero_blocks=False),
    "all blocks, masked query": ic.merged(D, 2, zero_blocks=False, query_attends_itself=False),
}


def task(rho=0.0, pool=None):
    return ic.linear_regression(N, Sigma=S, family="scalar", Sigma_w=SW, rho=rho, pool=pool)


def weights(model):
    return heads.gaussian(model)(jax.random.key(0), np.float64(1.5))


def losses_and_gradients(objective, params, repeats=REPEATS):
    draw = jax.jit(jax.vmap(jax.value_and_grad(objective.loss), (None, 0)))
    loss, grads = draw(params, jax.random.split(jax.random.key(1), repeats))
    return np.asarray(loss), np.concatenate([np.asarray(g).reshape(repeats, -1) for g in jax.tree.leaves(grads)], 1)


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_without_prompts_loss_and_gradient_have_the_population_values_as_mean(name, rho):
    model = MODELS[name]
    exact, params = ic.population(task(rho), model), weights(model)
    wanted, slope = jax.value_and_grad(exact.loss)(params, None)
    slope = np.concatenate([np.ravel(g) for g in jax.tree.leaves(slope)])
    loss, grads = losses_and_gradients(ic.statistics(task(rho), model, BATCH), params)
    assert abs(loss.mean() - wanted) < 4.5 * loss.std() / REPEATS**0.5  # standard errors, of up to 30 numbers
    assert (np.abs(grads.mean(0) - slope) < 4.5 * grads.std(0) / REPEATS**0.5).all()


@pytest.mark.parametrize("name", ["zero blocks", "all blocks"])
def test_without_prompts_the_batch_loss_has_the_law_of_sampled_prompts(name):
    """Batches of 1 prompt, so that nothing is averaged away."""
    model, params = MODELS[name], weights(MODELS[name])
    drawn = [losses_and_gradients(make(task(0.3), model, 1), params, 20_000)[0] for make in (ic.statistics, ic.sampled)]
    assert stats.ks_2samp(*drawn).pvalue > 1e-3


def test_a_pool_of_tasks_is_drawn_without_prompts_too():
    model, pool = MODELS["zero blocks"], np.random.default_rng(3).normal(size=(5, 1, D))
    params = weights(model)
    loss, _ = losses_and_gradients(ic.statistics(task(0.3, pool), model, BATCH), params)
    assert abs(loss.mean() - ic.population(task(0.3, pool), model).loss(params)) < 4 * loss.std() / REPEATS**0.5


@pytest.mark.parametrize("name", MODELS)
def test_a_shared_stream_has_the_same_losses_and_gradients_prompt_for_prompt(name):
    model, params, key = MODELS[name], weights(MODELS[name]), jax.random.key(4)
    own, shared = (ic.statistics(task(0.3), model, 64, data=data) for data in ("own", "shared"))
    a, b = (jax.value_and_grad(o.loss)(params, jax.random.clone(key)) for o in (own, shared))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)  # sums in another order


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_fixed_data_set_has_the_loss_and_gradient_of_its_prompts(name, divide):
    model, params = MODELS[name], weights(MODELS[name])
    x, y, x_q, y_q = task(0.3).sample(jax.random.key(5), 1500)  # more than one chunk

    def by_prompts(params):
        return jnp.mean((y_q - (1 if divide else N) * model.apply(params, x, y, x_q)) ** 2) / 2

    fixed = ic.dataset(model, x, y[..., 0], x_q, y_q[:, 0], divide_by_length=divide)
    a, b = jax.value_and_grad(by_prompts)(params), jax.value_and_grad(fixed.loss)(params)
    for wanted, got in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11)  # sums in another order
    few = ic.dataset(model, x[:9], y[:9, :, 0], x_q[:9], y_q[:9, 0])  # fewer prompts than weights: a singular matrix
    wanted = jnp.mean((y_q[:9] - model.apply(params, x[:9], y[:9], x_q[:9])) ** 2) / 2
    assert float(few.loss(params)) == pytest.approx(float(wanted), rel=1e-8)


def test_seeds_of_a_shared_stream_see_the_same_batches_and_seeds_of_their_own_do_not():
    model = MODELS["zero blocks"]
    init = heads.given(model, v=np.ones(2), U=np.ones((2, D, D)))
    spread = {}
    for data in ("own", "shared"):
        settings = {"seeds": 9, "lr": 0.05, "steps": 20, "records": 3, "dtype": "float64"}
        run = ic.ensemble(ic.statistics(task(), model, 32, data=data), init, **settings)
        spread[data] = run["loss"][:, -1].std()
    assert spread["shared"] == 0 and spread["own"] > 1e-3


def test_what_cannot_be_drawn_is_refused():
    short = ic.linear_regression(3, Sigma=S, family="scalar")
    with pytest.raises(ic.BadArgument, match="`N` must be at least 5 .* but is 3; use `sampled`"):
        ic.statistics(short, MODELS["all blocks"], 8)
    with pytest.raises(ic.BadArgument, match="`data` must be 'own' for this model"):
        ic.statistics(ic.linear_regression(9, S.diagonal()), ic.linear_attention(D), 8, data="shared")
    with pytest.raises(ic.BadArgument, match="must have no pool"):
        ic.population(task(pool=4), MODELS["all blocks"])
    with pytest.raises(ic.BadArgument, match="`y` must have shape"):
        ic.dataset(MODELS["zero blocks"], np.ones((2, 4, D)), np.ones((2, 3)), np.ones((2, D)), np.ones(2))
