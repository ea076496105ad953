import dataclasses

import jax
import numpy as np
import pytest

from icldyn.struct import static, struct


@struct
class Sum:
    """One of two classes with the same fields."""

    a: float
    n: int = static()


@struct
class Product:
    """The other."""

    a: float
    n: int = static()


def test_a_struct_is_frozen_and_its_fields_but_static_ones_are_leaves():
    one = Sum(np.ones(2), n=3)
    assert len(jax.tree.leaves(one)) == 1
    doubled = jax.tree.map(lambda a: 2 * a, one)
    assert type(doubled) is Sum and doubled.n == 3 and (doubled.a == 2).all()
    assert jax.tree_util.tree_flatten_with_path(one)[0][0][0] == (jax.tree_util.GetAttrKey("a"),)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.n = 4


def test_structures_differ_where_classes_or_static_fields_do():
    structures = [jax.tree.structure(one) for one in (Sum(1.0, 3), Product(1.0, 3), Sum(1.0, 4))]
    assert structures[0] == jax.tree.structure(Sum(2.0, 3))
    assert all(a != b for k, a in enumerate(structures) for b in structures[:k])
    called = jax.jit(lambda one: one.a + one.n if isinstance(one, Sum) else one.a * one.n)
    assert [float(called(one)) for one in (Sum(2.0, 3), Product(2.0, 3), Sum(2.0, 4))] == [5, 6, 6]
