import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import icldyn as ic
from icldyn.models.modular_transformer import modular_transformer
from icldyn.models.quadratic_mlp import quadratic_mlp
from icldyn.objectives.modular_pairs import ERRORS, errors, modular_pairs
from icldyn.tasks.modular import modular

MODELS = {"mlp": quadratic_mlp(7, 5), "transformer": modular_transformer(7, d=8, H=2, d_head=3, d_mlp=6)}


def sets_of(objective, order):
    """Training and test pairs as Python sets, read from the order of the units."""
    upper = [(a, b) for a in range(7) for b in range(a, 7)]
    units = [upper[int(u)] for u in order]
    both = [{(a, b) for a, b in part} | {(b, a) for a, b in part} for part in (units[: objective.task.train], units)]
    return both[0], both[1] - both[0]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("model", MODELS)
def test_losses_and_accuracies_are_means_over_the_set_of_pairs(model, error):
    objective = modular_pairs(modular(7, fraction=0.6), MODELS[model], error)
    params = objective.start(jax.random.key(0), jnp.float64(2))
    f = np.asarray(objective.logits(params))
    for pairs, loss, accuracy in zip(
        sets_of(objective, params["order"]),
        (objective.loss, objective.test_loss),
        (objective.train_accuracy, objective.test_accuracy),
        strict=True,
    ):
        right = [f[a, b].argmax() == (a + b) % 7 for a, b in pairs]
        single = [
            -log_softmax(f[a, b])[(a + b) % 7]
            if error == "cross-entropy"
            else np.mean((f[a, b] - np.eye(7)[(a + b) % 7]) ** 2)
            for a, b in pairs
        ]
        np.testing.assert_allclose(loss(params), np.mean(single), rtol=1e-10)
        np.testing.assert_allclose(accuracy(params), np.mean(right), rtol=1e-12)


def test_the_split_is_held_and_no_gradient_moves_it():
    objective = modular_pairs(modular(7), MODELS["mlp"], "squared")
    params = objective.start(jax.random.key(0), jnp.float64(1))
    slope = jax.grad(objective.loss)(params)
    assert not np.asarray(slope["order"]).any() and np.asarray(slope["A"]).any()


def test_the_error_of_a_sure_answer_keeps_its_digits_in_float32():
    f = jnp.asarray([[30.0, 0.0, -1.0], [0.0, 3.0, 200.0]], jnp.float32)
    found = errors(f, jnp.asarray([0, 1]), "cross-entropy")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [np.log1p(np.exp(-30) + np.exp(-31)), 197.0], rtol=1e-5)  # 24 bits
    slope = jax.grad(lambda f: jnp.sum(errors(f, jnp.asarray([0, 1]), "cross-entropy")))(f)
    wanted = np.exp(np.array([[-30, -31], [-200, 0]]) - [[0], [np.log1p(np.exp(-197))]])
    np.testing.assert_allclose(slope, [[-wanted[0].sum(), *wanted[0]], [wanted[1, 0], -1, 1]], rtol=1e-5, atol=1e-38)


def test_model_and_task_must_have_the_same_tokens():
    with pytest.raises(ic.BadArgument, match="`model` must have the task's p = 5, but is 7"):
        modular_pairs(modular(5), MODELS["mlp"])
    with pytest.raises(ic.BadArgument, match="`error` must be one of cross-entropy, squared"):
        modular_pairs(modular(7), MODELS["mlp"], "mse")
