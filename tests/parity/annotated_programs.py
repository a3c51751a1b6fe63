"""Programs with placements for eight devices, written once for infini and JAX, and what JAX answers: digests
of results, and the collectives in its compiled text. `mesh_programs` asks it in a process of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infini import tree
from infini.core.mesh import AbstractMesh
from infini.parallel import recipes
from infini.perf import jax_twin
from infini.train import gpt, step
from tests.parity import compiled_text

BATCH, LENGTH, WIDTH, HIDDEN, HEADS, VOCABULARY, LAYERS = 16, 8, 32, 64, 8, 64, 4


@dataclass(frozen=True, slots=True)
class Built:
    """A function of a library with its arguments, and where they and the results are, as trees of `P`."""

    function: Any
    args: tuple[Any, ...]
    ins: tuple[Any, ...]
    outs: Any


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: a mesh, and the program that a library builds."""

    axes: dict[str, int]
    build: Callable[[Any], Built]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, scaled so that products keep their size."""
    rows = shape[-2] if len(shape) > 1 else 1
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * rows**-0.5).astype(np.float32)


def specs(lib: Any, names: Any) -> Any:
    """Trees of `P` from tuples of axes, the leaves of dictionaries and lists."""
    if isinstance(names, dict):
        return {key: specs(lib, item) for key, item in names.items()}
    return [specs(lib, item) for item in names] if isinstance(names, list) else lib.P(*names)


# --- layers -------------------------------------------------------------------------------------------


def mlp(lib: Any, w: Any, x: Any) -> Any:
    return lib.numpy.tanh(x @ w["up"] + w["bias"]) @ w["down"]


def attention(lib: Any, w: Any, x: Any) -> Any:
    """Causal attention of several heads, added to its input (B, T, M)."""
    n = lib.numpy
    query, key, value = (n.einsum("btm,hmd->bhtd", x, w[name]) for name in ("query", "key", "value"))
    scores = n.einsum("bhtd,bhsd->bhts", query, key) * query.shape[-1] ** -0.5
    scores = n.where(n.tril(n.ones(scores.shape[-2:], bool)), scores, -1e30)
    return x + n.einsum("bhts,bhsd,hdm->btm", lib.nn.softmax(scores, axis=-1), value, w["out"])


def layers(lib: Any, w: Any, x: Any) -> Any:
    """A scan over stacked layers."""

    def layer(x: Any, one: Any) -> Any:
        return x + mlp(lib, one, x), None

    return lib.lax.scan(layer, x, w)[0]


def word_loss(lib: Any, w: Any, tokens: Any) -> Any:
    """Cross-entropy of the next token, by an embedding and a product."""
    n = lib.numpy
    logits = w["embedding"][tokens[:, :-1]] @ w["head"].T
    shifted = logits - lib.lax.stop_gradient(logits.max(-1, keepdims=True))
    chosen = n.take_along_axis(shifted, tokens[:, 1:, None], -1)[..., 0]
    return n.mean(n.log(n.exp(shifted).sum(-1)) - chosen)


MLP = {"up": numbers(WIDTH, HIDDEN), "bias": numbers(HIDDEN), "down": numbers(HIDDEN, WIDTH)}
STACKED = {
    "up": numbers(LAYERS, WIDTH, HIDDEN), "bias": numbers(LAYERS, HIDDEN),
    "down": numbers(LAYERS, HIDDEN, WIDTH),
}  # fmt: skip
ATTENTION = {
    **{
        name: numbers(HEADS, WIDTH, WIDTH // HEADS, seed=i)
        for i, name in enumerate(("query", "key", "value"))
    },
    "out": numbers(HEADS, WIDTH // HEADS, WIDTH),
}
WORDS = {"embedding": numbers(VOCABULARY, WIDTH), "head": numbers(VOCABULARY, WIDTH, seed=1)}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)
# As in training there are more rows than a weight has; with few, moving these is the cheaper way.
ROWS, FEW_ROWS, SEQUENCES = numbers(64, WIDTH), numbers(BATCH, WIDTH), numbers(BATCH, LENGTH, WIDTH)


def forward(layer: Any, w: Any, x: Any, placed: Any, split: tuple[Any, ...]) -> Callable[[Any], Built]:
    """A layer, its weights placed so, its input and result split alike."""

    def build(lib: Any) -> Built:
        where = specs(lib, placed), lib.P(*split)
        return Built(functools.partial(layer, lib), (w, x), where, where[1])

    return build


def gradient(layer: Any, w: Any, x: Any, placed: Any, split: tuple[Any, ...]) -> Callable[[Any], Built]:
    """The mean square of its result, and the gradient where the weights are."""

    def build(lib: Any) -> Built:
        def loss(w: Any, x: Any) -> Any:
            found = layer(lib, w, x)
            return (found**2).mean() if found.ndim else found

        where = specs(lib, placed)
        return Built(lib.value_and_grad(loss), (w, x), (where, lib.P(*split)), (lib.P(), where))

    return build


def product(text: str, shapes: Sequence[tuple[int, ...]], ins: Any, out: Any) -> Callable[[Any], Built]:
    """A chain of products, one after another."""
    args = tuple(numbers(*shape, seed=i) for i, shape in enumerate(shapes))

    def build(lib: Any) -> Built:
        def chain(*xs: Any) -> Any:
            return functools.reduce(lambda a, b: a @ b, xs) if text == "@" else lib.numpy.einsum(text, *xs)

        return Built(chain, args, tuple(lib.P(*names) for names in ins), lib.P(*out))

    return build


# --- the model ----------------------------------------------------------------------------------------

CONFIG = gpt.Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=4
)
# A large epsilon: Adam's first step would be the signs of gradients that are roundings.
HYPER = step.Hyperparameters(eps=1e-3)


def train(axes: dict[str, int], recipe: recipes.Recipe) -> Callable[[Any], Built]:
    """One training step of the model under a recipe; the same source text on either side."""

    def build(lib: Any) -> Built:
        is_ours = lib.__name__ == "infini"
        own = step if is_ours else jax_twin.load("train.step")
        config = CONFIG if is_ours else jax_twin.load("train.gpt").Config(**_fields(CONFIG))
        hyper = HYPER if is_ours else own.Hyperparameters(**_fields(HYPER))
        options = {"config": config, "hyper": hyper}
        state = lib.jit(functools.partial(own.init_state, **options))(lib.random.PRNGKey(0))
        state = lib.tree.map(np.asarray, state)
        leaves, treedef = lib.tree.flatten(state)
        mesh = AbstractMesh(tuple(axes), tuple(axes.values()))
        placed = {
            "params": recipe.params(state["params"], mesh),
            "optimizer": recipe.optimizer(state["optimizer"], mesh),
        }
        found = [
            lib.P(*spec) for spec in tree.leaves(placed, is_leaf=lambda x: isinstance(x, recipes.placing.P))
        ]
        assert len(found) == len(leaves)
        where = lib.tree.unflatten(treedef, found)
        batch = lib.P(*recipe.of_batch())
        metrics = {"loss": lib.P(), "gradient_norm": lib.P()}
        return Built(
            functools.partial(own.step, **options),
            (state, TOKENS, np.float32(1e-2)),
            (where, batch, lib.P()),
            (where, metrics),
        )

    return build


def _fields(x: Any) -> dict[str, Any]:
    return {name: getattr(x, name) for name in type(x).__dataclass_fields__ if name != "rope_scaling"}


# --- the table ----------------------------------------------------------------------------------------

D, T, BOTH = {"dp": 8}, {"tp": 8}, {"dp": 2, "tp": 4}
XY = {"x": 2, "y": 4}
PLACED: dict[str, tuple[dict[str, int], Any, tuple[Any, ...]]] = {
    "dp": (D, {"up": (), "bias": (), "down": ()}, ("dp",)),
    "tp": (T, {"up": (None, "tp"), "bias": ("tp",), "down": ("tp",)}, ()),
    "dp x tp": (BOTH, {"up": (None, "tp"), "bias": ("tp",), "down": ("tp",)}, ("dp",)),
    "fsdp": (D, {"up": ("dp",), "bias": ("dp",), "down": ("dp",)}, ("dp",)),
    "fsdp x tp": (BOTH, {"up": ("dp", "tp"), "bias": ("tp",), "down": ("tp", "dp")}, ("dp",)),
}
HEADS_SPLIT = {"query": ("tp",), "key": ("tp",), "value": ("tp",), "out": ("tp",)}
HEADS_WHOLE = dict.fromkeys(HEADS_SPLIT, ())
RECIPES = {
    "data": (D, recipes.data()),
    "zero1": (D, recipes.zero1()),
    "zero3": (D, recipes.zero3()),
    "tensor": (T, recipes.tensor()),
    "tensor x data": (BOTH, recipes.product(recipes.tensor(), recipes.data())),
}
SQUARES = [(32, 32)] * 3


def table() -> dict[str, Case]:
    """All programs by name."""
    found: dict[str, Case] = {}
    for name, (axes, placed, split) in PLACED.items():
        found[f"MLP, {name}, forward"] = Case(axes, forward(mlp, MLP, ROWS, placed, split))
        found[f"MLP, {name}, gradient"] = Case(axes, gradient(mlp, MLP, ROWS, placed, split))
    for name, (axes, placed, split) in PLACED.items():
        stacked = {key: (None, *spec) for key, spec in placed.items()}
        found[f"scan over layers, {name}, gradient"] = Case(
            axes, gradient(layers, STACKED, ROWS, stacked, split)
        )
    for name in ("fsdp", "fsdp x tp"):
        axes, placed, split = PLACED[name]
        found[f"MLP of few rows, {name}, gradient"] = Case(axes, gradient(mlp, MLP, FEW_ROWS, placed, split))
        stacked = {key: (None, *spec) for key, spec in placed.items()}
        found[f"scan of few rows, {name}, gradient"] = Case(
            axes, gradient(layers, STACKED, FEW_ROWS, stacked, split)
        )
    for name, axes, placed, split in (
        ("heads", T, HEADS_SPLIT, ()),
        ("batch x heads", BOTH, HEADS_SPLIT, ("dp",)),
        ("tokens", T, HEADS_WHOLE, (None, "tp")),
    ):
        found[f"attention, {name}, forward"] = Case(
            axes, forward(attention, ATTENTION, SEQUENCES, placed, split)
        )
        found[f"attention, {name}, gradient"] = Case(
            axes, gradient(attention, ATTENTION, SEQUENCES, placed, split)
        )
    rows = {"embedding": ("tp",), "head": ("tp",)}
    found["words, vocabulary, gradient"] = Case(T, gradient(word_loss, WORDS, TOKENS, rows, ()))
    found["words, batch x vocabulary, gradient"] = Case(
        BOTH, gradient(word_loss, WORDS, TOKENS, rows, ("dp",))
    )
    for name, ins, out in (
        ("contracted once", ((None, "x"), ("x",)), ()),
        ("contracted, scattered", ((None, "x"), ("x",)), ("x",)),
        ("contracted over both", ((None, ("x", "y")), (("x", "y"),)), ()),
        ("blocks", (("x", "y"), ("y", "x")), ("x", "y")),
        ("blocks, turned", (("x", "y"), ("x", "y")), ("y", "x")),
        ("chain of three", (("x",), (None, "y"), ("y",)), ("x",)),
        ("chain to the other axis", (("x",), (), (None, "y")), ("y", "x")),
        ("rows to columns", ((("x", "y"),), ()), (None, ("x", "y"))),
        ("gathered result", (("x",), (None, "y")), ()),
    ):
        found[f"product, {name}"] = Case(XY, product("@", SQUARES[: len(ins)], ins, out))
    found["product, batched"] = Case(
        XY, product("bij,bjk->bik", [(8, 16, 16)] * 2, (("x", "y"), ("x", None, "y")), ("x", "y"))
    )
    for name, (axes, recipe) in RECIPES.items():
        found[f"GPT step, {name}"] = Case(axes, train(axes, recipe))
    return found


CASES = table()


# --- answers ------------------------------------------------------------------------------------------


def jitted(lib: Any, case: Case) -> tuple[Any, tuple[Any, ...]]:
    """The function over its mesh, and its arguments."""
    kinds = (lib.sharding.AxisType.Auto,) * len(case.axes)
    mesh = lib.make_mesh(tuple(case.axes.values()), tuple(case.axes), axis_types=kinds)
    built = case.build(lib)

    def placed(where: Any) -> Any:
        return lib.tree.map(
            lambda spec: lib.NamedSharding(mesh, spec), where, is_leaf=lambda x: isinstance(x, lib.P)
        )

    return lib.jit(
        built.function, in_shardings=placed(built.ins), out_shardings=placed(built.outs)
    ), built.args


def digest(result: Any) -> list[Any]:
    """A result in short: its shape, norm, products with three waves, each of which sees every element, and
    first elements.
    """
    flat = np.asarray(result, np.float64).reshape(-1)
    waves = [np.cos(np.arange(flat.size) * frequency) for frequency in (0.0, 0.7, 2.1)]
    products = [float(wave @ flat) / flat.size**0.5 for wave in waves]
    numbers = [float(np.linalg.norm(flat)), *products, *map(float, flat[:8])]
    return [list(np.shape(result)), [round(x, 10) for x in numbers]]


def ask(name: str) -> Callable[[Any], Any]:
    """What JAX answers: its results, and what stands in the compiled text."""

    def program(lib: Any) -> Any:
        run, args = jitted(lib, CASES[name])
        compiled = run.lower(*args).compile()
        made = compiled_text.collectives(compiled.as_text())
        return {
            "results": [digest(x) for x in lib.tree.leaves(run(*args))],
            "collectives": [[c.name, c.nbytes, c.num_members, c.times] for c in made],
        }

    return program


PROGRAMS = {name: ask(name) for name in CASES}
