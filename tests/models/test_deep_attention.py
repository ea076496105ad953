import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icldyn as ic
from icldyn.tasks.inputs import inputs

deep = ic.deep_attention
MODELS = {
    "full": deep.full(3, 3),
    "full, one layer": deep.full(3, 1),
    "full, looped, two outputs": deep.full(3, 2, 2, looped=True),
    "sparse": deep.sparse(3, 3),
    "sparse, one layer, two outputs": deep.sparse(3, 1, 2),
}


def weights(model, scale=0.4, seed=0):
    return deep.gaussian(model)(jax.random.key(seed), jnp.float64(scale))


def prompts(model, B=3, N=5):
    key_x, key_y, key_q = jax.random.split(jax.random.key(1), 3)
    shapes = ((B, N, model.D), (B, N, model.O), (B, model.D))
    return tuple(jax.random.normal(k, s) for k, s in zip((key_x, key_y, key_q), shapes, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_minus_the_label_slot_of_the_query_after_all_layers(name):
    model = MODELS[name]
    params, (x, y, x_q) = weights(model), prompts(model)
    Z = jnp.concatenate([x, y], axis=2)
    query = jnp.concatenate([x_q, jnp.zeros((3, model.O))], axis=1)
    Z = jnp.concatenate([Z, query[:, None]], axis=1).swapaxes(1, 2)
    wanted = jax.jit(jax.vmap(lambda Z: -model.forward(params, Z)[model.D :, -1]))(Z)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x, y, x_q), wanted, rtol=1e-10, atol=1e-12)


def explicit(x, y, x_q, eta, gamma, S):
    """L preconditioned steps from w = 0 on what is left of the labels, inputs and query transformed after each."""
    x, y, x_q, answer = x.copy(), y.copy(), x_q.copy(), 0.0
    for e, g in zip(eta, gamma, strict=True):
        w = e * S @ (x.T @ y) / len(x)
        C = x.T @ x / len(x)
        answer += w @ x_q
        y = y - x @ w
        moved = np.eye(len(w)) - g * C @ S
        x, x_q = x @ moved.T, moved @ x_q
    return answer


@pytest.mark.parametrize("make", [deep.full, deep.sparse])
@pytest.mark.parametrize("gamma", [(0.0, 0.0, 0.0), (0.3, -0.2, 0.5)])
def test_the_construction_takes_explicit_steps_of_descent(make, gamma):
    model = make(3, 3)
    x, y, x_q = prompts(model)
    eta, S = (0.5, 0.8, 0.3), np.diag([1.0, 2.0, 0.5]) + 0.1
    params = deep.gradient_descent(model, eta, gamma, S)(jax.random.key(0), jnp.float64(1))
    wanted = [explicit(*(np.asarray(a) for a in (x[b], y[b, :, 0], x_q[b])), eta, gamma, S) for b in range(3)]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x, y, x_q)[:, 0], wanted, rtol=1e-12)


def test_without_transforming_the_steps_are_gradients_of_the_squared_error_of_the_context():
    model = deep.full(3, 3)
    x, y, x_q = prompts(model)
    squares = lambda w: jnp.mean((y[0, :, 0] - x[0] @ w) ** 2) / 2  # noqa: E731
    slope, w = jax.jit(jax.grad(squares)), jnp.zeros(3)
    for eta in (0.2, 0.1, 0.3):
        w = w - eta * slope(w)
    params = deep.gradient_descent(model, (0.2, 0.1, 0.3))(jax.random.key(0), jnp.float64(1))
    np.testing.assert_allclose(jax.jit(model.apply)(params, x, y, x_q)[0, 0], w @ x_q[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["full", "sparse"])
def test_the_written_out_products_have_the_derivatives_of_the_definition(name):
    model = MODELS[name]
    params, (x, y, x_q) = weights(model), prompts(model)

    def by_definition(params):
        Z = jnp.concatenate([jnp.concatenate([x[0], y[0]], axis=1), jnp.append(x_q[0], jnp.zeros(1))[None]]).T
        return model.forward(params, Z)[3, -1]

    found = jax.jit(jax.grad(lambda w: -model.apply(w, x, y, x_q)[0, 0]))(params)
    wanted = jax.jit(jax.grad(by_definition))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_basis_of_tasks_and_all_queries_give_the_mean_loss_of_sampled_prompts():
    root = np.array([[1.0, 0.0], [0.4, 0.6]])
    Sigma_w = np.array([[1.0, 0.3], [0.3, 0.5]])
    params = deep.gradient_descent(deep.sparse(2, 2), 0.4, 0.2)(jax.random.key(0), jnp.float64(1))
    one = inputs(6, root, Sigma_w=Sigma_w)
    all_tasks = inputs(6, root, Sigma_w=Sigma_w, basis=True)
    objectives = (
        ic.sampled(one, deep.sparse(2, 2), 400_000),
        deep.averaged(one, deep.sparse(2, 2), 100_000),
        deep.averaged(all_tasks, deep.sparse(2, 2, 2), 50_000),
    )
    plain, averaged, basis = (jax.jit(o.loss)(params, jax.random.key(k)) for k, o in enumerate(objectives))
    # a squared error has a standard deviation of about 3 means: relative errors 5e-3 and 6e-3; over contexts alone, 5e-3
    assert plain == pytest.approx(float(basis), rel=0.03)
    assert averaged == pytest.approx(float(basis), rel=0.03)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: deep.full(0, 1), "`D` must be at least 1, but is 0"),
        (lambda: deep.sparse(3, 0), "`L` must be at least 1, but is 0"),
        (
            lambda: deep.given(deep.sparse(2, 1), A=np.ones((1, 2, 2))),
            "`B` must have shape (1, 2, 2), but has shape ()",
        ),
        (lambda: deep.gradient_descent(deep.full(2, 3), (1.0, 2.0)), "`eta` must have shape (3,), but has shape (2,)"),
        (lambda: deep.averaged(inputs(4, np.eye(2)), deep.full(3, 1), 8), "the task's D = 2 and O = 1, but has D = 3"),
        (lambda: deep.averaged(inputs(4, np.eye(2)), deep.full(2, 1), 0), "`batch` must be at least 1, but is 0"),
    ],
)
def test_a_bad_argument_is_named_in_one_sentence(call, sentence):
    with pytest.raises(ic.BadArgument) as caught:
        call()
    assert sentence in str(caught.value)
