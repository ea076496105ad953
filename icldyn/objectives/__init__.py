"""Where task, model and theory meet: what is minimised. `loss(params, key) -> scalar`, always 1/2 E |y_q - yhat_q|^2.

- `sampled`: B prompts drawn number by number; cost grows with N.
- `statistics`: the same law of the batch loss without prompts; cost independent of N.
- `dataset`: a fixed set of prompts, reduced once to sufficient statistics; cost independent of their number and of N.
- `population`: the exact expectation; ignores its key.
- `attended.attended`: prompts for softmax attention, with its gradient by hand.

An objective is a pytree: what may be swept (spectrum, noise, and N wherever it is not a shape) is a leaf, so that a new
value runs the program already compiled. One whose `shared` is true gets the same key in every seed: one stream of data.
One whose `lanes_last` is true has `slopes(params, key)`, the gradients of many seeds in the last axis. One whose `narrow` is
true runs faster on a CPU with the vectors that the compiler takes by itself, one whose `in_turn` is true with one seed after
another.
"""

from typing import Any, Protocol, runtime_checkable

from jax import Array
from numpy.typing import ArrayLike

from .. import checks
from ..models.heads import Heads
from ..models.label_head import LabelHead
from ..models.linear_attention import LinearAttention
from ..normals import GENERATORS
from ..tasks.dictionary import Dictionary
from ..tasks.linear_regression import LinearRegression
from .counted import Counted
from .expected import HeadsPopulation, Population, heads_population, layer_population
from .folded import Folded, Quadratic, folded_statistics, sufficient_statistics
from .prompts import Sampled
from .wishart import Statistics, wishart_statistics


@runtime_checkable
class Objective(Protocol):
    """Anything with `loss(params, key) -> scalar` that is a pytree."""

    def loss(self, params: Any, key: Array) -> Array:
        """The loss that one step descends."""
        ...


def sampled(task: Any, model: Any, batch: int) -> Sampled:
    """SGD's usual objective: `batch` fresh prompts a step, of any task with `sample(key, B)` and any model with `apply`.

    Raises:
        icldyn.BadArgument: if the batch is below 1 or task and model differ in size.
    """
    _match(task, model)
    return Sampled(task, model, checks.integer("batch", batch, 1))


def statistics(
    task: LinearRegression | Dictionary,
    model: LinearAttention | Heads | LabelHead,
    batch: int,
    generator: str = "both_words",
    data: str = "own",
) -> Statistics | Folded | Counted:
    """The same law of SGD as `sampled`, without prompts: the context statistics are drawn exactly.

    Random numbers and operations a prompt do not depend on N: O((D + O)^2) numbers, and for heads with zero blocks, which
    need the vector h alone, 3 D + 1. A label head on a dictionary sees counts of tokens.

    Args:
        task: the law of the prompts; scalar tasks for `Heads`, a dictionary for `LabelHead`.
        model: one linear layer, heads on scalar tasks, or a label head on a dictionary.
        batch: prompts a step.
        generator: "stock" draws normals with `jax.random.normal`, "both_words" faster (`icldyn.normals`); the law is the
            same, the numbers are not.
        data: "own" draws new prompts for every seed; "shared" one stream for all of them (common random numbers: seeds then
            differ in their initial weights alone and are not independent), which costs far less a seed. Heads only.

    Raises:
        icldyn.BadArgument: as `sampled`, and if N is too small for the factorisation (use `sampled` there).
    """
    _match(task, model)
    batch, generator = checks.integer("batch", batch, 1), checks.one_of("generator", generator, GENERATORS)
    shared = checks.one_of("data", data, ("own", "shared")) == "shared"
    if isinstance(task, Dictionary) != isinstance(model, LabelHead):
        kind = "a dictionary" if isinstance(model, LabelHead) else "linear regression"
        raise checks.refuse("task", f"be {kind} for this model", task)
    if isinstance(model, Heads):
        return folded_statistics(task, model, batch, generator, shared)
    if shared:
        raise checks.BadArgument("Argument `data` must be 'own' for this model, but is 'shared': only heads share it.")
    if isinstance(model, LabelHead):
        return Counted(task, model, batch, generator)
    return wishart_statistics(task, model, batch, generator)


def population(task: LinearRegression, model: LinearAttention | Heads) -> Population | HeadsPopulation:
    """The exact loss at any weights, for gradient flow and as a measure.

    Raises:
        icldyn.BadArgument: if task and model differ in size, or a pool of tasks is asked for heads.
    """
    _match(task, model)
    return heads_population(task, model) if isinstance(model, Heads) else layer_population(task, model)


def dataset(
    model: Heads, x: ArrayLike, y: ArrayLike, x_q: ArrayLike, y_q: ArrayLike, *, divide_by_length: bool = True
) -> Quadratic:
    """Full-batch training on P fixed prompts, exactly, at a cost a step that depends on neither P nor N.

    The answer is linear in the folded weights of the heads, so the mean loss is a quadratic in them; its matrix and vector
    are summed over the prompts once, in float64.

    Args:
        model: heads on scalar tasks.
        x: (P, N, D) inputs of the contexts.
        y: (P, N) their labels.
        x_q: (P, D) queries.
        y_q: (P,) what is to be answered.
        divide_by_length: whether context sums are divided by N, as everywhere in icldyn; some public code does not.

    Raises:
        icldyn.BadArgument: if an array has another shape, or holds numbers that are not finite.
    """
    D = model.D
    x = checks.array("x", x, shape=(None, None, D))
    P, N = x.shape[:2]
    if not P or not N:
        raise checks.BadArgument(f"Argument `x` must hold at least one prompt of at least one pair, but is {x.shape}.")
    y, x_q = checks.array("y", y, shape=(P, N)), checks.array("x_q", x_q, shape=(P, D))
    return sufficient_statistics(model, x, y, x_q, checks.array("y_q", y_q, shape=(P,)), N if divide_by_length else 1)


def _match(task: Any, model: Any) -> None:
    if (task.D, task.O) != (model.D, model.O):
        raise checks.BadArgument(
            f"Argument `model` must have the task's D = {task.D} and O = {task.O}, but has D = {model.D} and O = {model.O}."
        )
