"""Frozen dataclasses that are pytrees: a field is a traced leaf, or `static()` where it is a shape or a choice."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A field that is part of the compiled program (a shape, a choice), not of its data: a new value compiles anew."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
def struct(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and register it as a pytree.

    Not by `jax.tree_util.register_dataclass`: by it, structures of two classes with fields of the same names are equal (jax
    0.10), and what was compiled for one is run for the other.
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    names: dict[bool, list[str]] = {True: [], False: []}  # static, or not
    for field in dataclasses.fields(made):
        names[bool(field.metadata.get("static"))].append(field.name)

    def flatten(one: T) -> tuple[list[Any], tuple]:
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(one, name)) for name in names[False]]
        return leaves, (made, *(getattr(one, name) for name in names[True]))

    def unflatten(fixed: tuple, leaves: Iterable[Any]) -> T:
        one = object.__new__(made)
        for name, value in zip(names[True] + names[False], (*fixed[1:], *leaves), strict=True):
            object.__setattr__(one, name, value)
        return one

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made
