"""What a recipe is: rules for arrays by the path of a leaf, and placements of batches and named values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from infini.core import errors, events, mesh as mesh_, tree
from infini.core.mesh import AbstractMesh, AxisEntry, P

Specs: TypeAlias = Any  # Any: a pytree of P
Kind: TypeAlias = Literal["params", "gradients", "optimizer"]
ALL: tuple[Kind, ...] = ("params", "gradients", "optimizer")
# What a step calls a gradient that it adds up over parts of a batch: this and the path of its parameter.
SUMS: Final = "sums/"
# Stands for the axes of the first dimension of a batch.
OF_BATCH: Final = ("*",)


@dataclass(frozen=True, slots=True)
class Rule:
    """One axis for one dimension of the arrays whose path matches.

    Args:
        axis: mesh axis.
        pattern: regular expression, searched in the path of a leaf, such as `layers/0/mlp/up_proj`.
        dimension: dimension that is split, counted from the end when negative; None for the first that the
            axis divides and nothing else splits. One that is given is split into parts of different sizes
            too, a vocabulary of 50257 for example, as long as little room stays empty.
        kinds: whether it holds for parameters, for their gradients where these are added up over parts of a
            batch, and for what the optimizer keeps.
    """

    axis: str
    pattern: str = ""
    dimension: int | None = None
    kinds: tuple[Kind, ...] = ALL

    def __post_init__(self) -> None:
        if not isinstance(self.axis, str):
            raise errors.TypeMismatchError(
                "a recipe splits over an axis of the mesh",
                got=repr(self.axis),
                expected="its name, such as 'dp'",
            )
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise errors.ValueMismatchError(
                f"the pattern of a rule is no regular expression: {error}",
                got=repr(self.pattern),
                expected=r"one for paths of weights, such as r'(q|k|v)_proj$'",
            ) from None

    def dimension_of(
        self, path: str, shape: Sequence[int], parts: Sequence[int], count: int, kind: Kind
    ) -> int | None:
        """The dimension of an array that the rule splits, which is in `parts` already; None for none."""
        if kind not in self.kinds or count == 1 or not re.search(self.pattern, path):
            return None
        if self.dimension is not None:
            found = self.dimension + len(shape) if self.dimension < 0 else self.dimension
            is_there = 0 <= found < len(shape)
            return found if is_there and mesh_.splits_well(shape[found], parts[found] * count) else None
        choices = [d for d in range(len(shape)) if parts[d] == 1]
        return next((d for d in choices if shape[d] and shape[d] % count == 0), None)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Placements of everything a training step holds. An array of which an axis would make parts that differ
    much stays whole there.

    Args:
        rules: for parameters and what the optimizer keeps, in order: a later rule splits what earlier ones
            left.
        batch: axes of each dimension of a batch, such as `(("dp",), ("cp",))`.
        named: axes of each dimension of the values that `checkpoint_name` gave a name; `OF_BATCH` for that of
            the sequences of a batch.
        whole: axes of the batch that split no sequences of a named value: it is gathered over them.
        unreduced: axes over which a named value stays terms of a sum.
        strategies: how operations are split, for `shard`.
    """

    rules: tuple[Rule, ...] = ()
    batch: tuple[tuple[str, ...], ...] = ()
    named: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    whole: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unreduced: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    strategies: Mapping[str, str] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the mesh that the recipe uses, in order."""
        dimensions = [*self.batch, *(d for placed in self.named.values() for d in placed if d != OF_BATCH)]
        return tuple(dict.fromkeys([r.axis for r in self.rules] + [a for d in dimensions for a in d]))

    def params(self, params: Any, mesh: Any) -> Specs:  # Any: a pytree of arrays or their types; a mesh
        """A tree of `P` for parameters.

        Raises:
            ValueMismatchError: the mesh lacks an axis.
        TypeMismatchError: a leaf is no array.
        """
        return self._placed(params, mesh, "params")

    def optimizer(self, state: Any, mesh: Any) -> Specs:  # Any: a pytree of arrays or their types; a mesh
        """A tree of `P` for the state of an optimizer, which has the paths of parameters inside.

        Raises:
            ValueMismatchError: the mesh lacks an axis.
        """
        return self._placed(state, mesh, "optimizer")

    def of_sums(self, params: Any, mesh: Any) -> dict[str, P]:  # Any: a pytree of arrays or types; a mesh
        """Placements of gradients that are added up over parts of a batch, by the names that a step gives
        them: `sums/` and the path of the parameter. Over axes that split rows or tokens and not the gradient
        each device has its own terms, which are added up when the last part is done. Gradients that lie as
        their parameters and what the optimizer keeps need no name.

        Args:
            params: the parameters.
            mesh: the mesh.

        Raises:
            ValueMismatchError: the mesh lacks an axis.

        Example:
            >>> import numpy as np
            >>> from infini.core.mesh import AbstractMesh
            >>> from infini.parallel import recipes
            >>> params, mesh = {"w": np.zeros((8, 2))}, AbstractMesh(("dp",), (2,))
            >>> recipes.zero1().of_sums(params, mesh), recipes.zero2().of_sums(params, mesh)
            ({'sums/w': P(unreduced={'dp'})}, {'sums/w': P('dp')})
        """
        abstract: AbstractMesh = getattr(mesh, "abstract", mesh)
        self._check(abstract)
        rows = {a for placed in (self.batch, *self.named.values()) for axes in placed for a in axes}
        rows.difference_update(OF_BATCH)
        found = {}
        for path, leaf in tree.leaves_with_path(params):
            name = tree.keystr(path, simple=True, separator="/")
            places = [self.place(name, leaf.shape, abstract, kind) for kind in ALL]
            if len(set(places)) > 1:
                own = places[ALL.index("gradients")]
                split = {axis for entry in own for axis in mesh_.entry_axes(entry)}
                found[SUMS + name] = P(*own, unreduced=rows - split)
        return found

    def of_batch(self, ndim: int = 2) -> P:
        """The placement of a batch with so many dimensions."""
        return P(*(_entry(axes) for axes in self.batch[:ndim]))

    def of_names(self) -> dict[str, P]:
        """Placements of named values. Where one has the sequences of the batch it has its axes, but for those
        that split another dimension of it, `whole` and `unreduced`.
        """
        rows = self.batch[0] if self.batch else ()
        found = {}
        for name, placed in self.named.items():
            waiting = self.unreduced.get(name, ())
            taken = {*itertools.chain(*placed), *waiting, *self.whole.get(name, ())}
            free = tuple(axis for axis in rows if axis not in taken)
            entries = (_entry(free if axes == OF_BATCH else axes) for axes in placed)
            found[name] = P(*entries, unreduced=waiting)
        return found

    def _placed(self, leaves: Any, mesh: Any, kind: Kind) -> Specs:  # Any: pytrees; a mesh
        abstract = getattr(mesh, "abstract", mesh)
        if not isinstance(abstract, AbstractMesh):
            raise errors.TypeMismatchError(
                "a recipe places arrays on a mesh",
                got=f"{mesh!r} of type {type(mesh).__name__}",
                expected="a Mesh",
                fix="make_mesh((4, 2), ('dp', 'tp'))",
            )
        self._check(abstract)
        paths = []

        def place(path: tuple[Any, ...], leaf: Any) -> P:
            paths.append(tree.keystr(path, simple=True, separator="/"))
            if not hasattr(leaf, "shape"):
                raise errors.TypeMismatchError(
                    "a recipe places arrays",
                    got=f"{type(leaf).__name__} at {paths[-1]!r}" if path else type(leaf).__name__,
                    expected="a tree of arrays, or of their types as eval_shape gives them",
                )
            return self.place(paths[-1], leaf.shape, abstract, kind)

        found = tree.map_with_path(place, leaves)
        if kind == "params":
            self._report_unused(paths, abstract)
        return found

    def _report_unused(self, paths: Sequence[str], mesh: AbstractMesh) -> None:
        """Say which axes find nothing to split, since no weight is called what their rules look for."""
        beside = {axis for axes in (*self.batch, *itertools.chain(*self.named.values())) for axis in axes}
        for axis in dict.fromkeys(rule.axis for rule in self.rules):
            patterns = [rule.pattern for rule in self.rules if rule.axis == axis]
            if mesh.shape[axis] == 1 or not paths:
                continue
            if not any(re.search(pattern, path) for pattern in patterns for path in paths):
                events.emit(
                    "recipe-unused",
                    f"no weight is split over {axis!r}: none has a name that the recipe knows. It looks "
                    f"for {' and '.join(map(repr, patterns))}, and the weights are called "
                    f"{', '.join(map(repr, paths[:4]))}{', ...' * (len(paths) > 4)}. Give it patterns for "
                    "these, such as tensor(columns=, rows=)",
                    level="info" if axis in beside else "warning",
                )

    def place(self, path: str, shape: Sequence[int], mesh: AbstractMesh, kind: Kind = "params") -> P:
        """The placement of one array.

        Args:
            path: where it is in its tree, such as `layers/0/mlp/up_proj`.
            shape: its shape.
            mesh: axes and their sizes.
            kind: whether it is a parameter, a sum of its gradients, or the optimizer's.
        """
        entries: list[tuple[str, ...]] = [()] * len(shape)
        parts = [1] * len(shape)
        for rule in self.rules:
            if any(rule.axis in entry for entry in entries):
                continue  # an axis splits an array once
            count = mesh.shape[rule.axis]
            found = rule.dimension_of(path, shape, parts, count, kind)
            if found is not None:
                entries[found] += (rule.axis,)
                parts[found] *= count
        return P(*mesh_.trim(tuple(map(_entry, entries))))

    def _check(self, mesh: AbstractMesh) -> None:
        missing = [axis for axis in self.axes if axis not in mesh.axis_names]
        if missing:
            raise errors.ValueMismatchError(
                f"the recipe splits over {', '.join(map(repr, missing))}, which the mesh lacks",
                got=f"a mesh with {', '.join(map(repr, mesh.axis_names))}",
                fix="name the axes of the recipe as those of the mesh",
            )


def product(*recipes: Recipe) -> Recipe:
    """Several recipes on one mesh. Rules hold in order: put those that know the model (`tensor`, `experts`)
    before those that take what is left (`zero3`), and `context` before `sequence`, which splits its tokens
    further.

    Raises:
        ValueMismatchError: two recipes ask for different strategies for one operation.

    Example:
        >>> from infini.core.mesh import AbstractMesh
        >>> from infini.parallel import recipes
        >>> both = recipes.product(recipes.tensor("tp"), recipes.zero3("dp"))
        >>> mesh = AbstractMesh(("dp", "tp"), (2, 2))
        >>> both.place("layers/0/mlp/up_proj", (64, 32), mesh), both.of_batch()
        (P('tp', 'dp'), P('dp'))
    """
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise errors.TypeMismatchError(
                "product joins recipes",
                got=f"{recipe!r} of type {type(recipe).__name__}",
                expected="recipes as arguments, one after the other",
                fix="product(tensor('tp'), data('dp'))",
            )
    named: dict[str, tuple[tuple[str, ...], ...]] = {}
    whole: dict[str, tuple[str, ...]] = {}
    unreduced: dict[str, tuple[str, ...]] = {}
    strategies: dict[str, str] = {}
    for recipe in recipes:
        for name, placed in recipe.named.items():
            named[name] = _joined(named.get(name, ()), placed)
        for found, given in ((whole, recipe.whole), (unreduced, recipe.unreduced)):
            for name, axes in given.items():
                found[name] = tuple(dict.fromkeys(found.get(name, ()) + axes))
        for op, strategy in recipe.strategies.items():
            if strategies.setdefault(op, strategy) != strategy:
                raise errors.ValueMismatchError(
                    f"two recipes ask for different strategies for {op}",
                    got=f"{strategies[op]!r} and {strategy!r}",
                    fix="ask for one of them, or for none, which takes the cheapest",
                )
    batch: tuple[tuple[str, ...], ...] = ()
    for recipe in reversed(recipes):
        # The axes of experts vary fastest: rows then go to them by one exchange over neighbours.
        batch = _joined(batch, recipe.batch)
    rules = tuple(rule for recipe in recipes for rule in recipe.rules)
    return Recipe(rules, batch, named, whole, unreduced, strategies)


def _joined(
    first: tuple[tuple[str, ...], ...], second: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    """Axes of both, dimension by dimension, each once."""
    pairs = itertools.zip_longest(first, second, fillvalue=())
    return tuple(tuple(dict.fromkeys(a + b)) for a, b in pairs)


def _entry(axes: tuple[str, ...]) -> AxisEntry:
    return None if not axes else axes[0] if len(axes) == 1 else axes
