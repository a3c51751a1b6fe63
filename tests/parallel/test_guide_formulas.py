"""The formulas of docs/parallel.md: what a training step of a small GPT with Adam holds and sends under each
recipe, as predicted and as counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import infini as inf
from infini import optim, parallel, random
from infini.core import tree
from infini.parallel import recipes
from infini.sharding import Collectives, P, make_mesh
from infini.testing import count_collectives, predicted
from infini.train import gpt, step as step_

# So many tokens that moving weights is cheaper than moving activations, as in every step of real size.
B, T, LAYERS, WIDTH, VOCABULARY, EXPERTS, CHOSEN = 8, 32, 2, 16, 64, 8, 2
TOKENS = B * T
ACTIVATIONS = 4 * TOKENS * WIDTH  # bytes of (B, T, M)
SCALAR = 4
DENSE = gpt.Config(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_layers=LAYERS, num_heads=8,
    num_kv_heads=8, head_dim=4,
)  # fmt: skip
SPARSE = gpt.Config(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_layers=LAYERS, num_heads=8,
    num_kv_heads=8, head_dim=4, num_experts=EXPERTS, experts_per_token=CHOSEN, capacity_factor=1.0,
)  # fmt: skip
DROPLESS = dataclasses.replace(SPARSE, capacity_factor=None)
SHARED = dataclasses.replace(DENSE, num_kv_heads=4)  # two heads of queries read one of keys
QUERIES, KEYS, ROWS = 4 * TOKENS * 8 * 4, 4 * TOKENS * 4 * 4, 4 * TOKENS * 8  # bytes of a layer
OPTIMIZER = optim.adam(1e-2)


def step(params: Any, state: Any, windows: Any, *, config: gpt.Config, num_parts: int = 1) -> tuple[Any, ...]:
    how = step_.Computation(num_parts=num_parts)
    loss, gradients = step_.loss_and_gradients(params, windows, config, how)
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optim.apply_updates(params, updates), state, loss


@dataclass(frozen=True)
class Planned:
    """A step under a recipe: what the partitioner made of it, and what is whole in it, in bytes."""

    shown: parallel.explain.Explanation
    run: Callable[[], Any]
    weights: int
    of: dict[str, int]
    batch: int

    def sent(self) -> float:
        """Bytes that a device sends in rings."""
        return sum(c.wire_bytes * (c.times or 1) for c in self.shown.collectives)

    def calls(self) -> Counter[str]:
        """Operands of collectives, by name: messages, if none were joined."""
        found: Counter[str] = Counter()
        for c in self.shown.collectives:
            found[c.name] += c.num_operands
        return found

    def given(self, name: str) -> int:
        """Bytes that a device gives to a kind of collective."""
        return sum(c.nbytes * (c.times or 1) for c in self.shown.collectives if c.name == name)


@pytest.fixture(autouse=True)
def devices() -> Any:
    with inf.config(device="reference", cpu_devices=8):
        yield


@functools.cache
def planned(
    make: Callable[[], recipes.Recipe],
    sizes: tuple[tuple[str, int], ...],
    config: gpt.Config = DENSE,
    num_parts: int = 1,
    window_bytes: int = 0,  # as if every weight were larger than a window
) -> Planned:
    recipe = make()
    mesh = make_mesh(tuple(size for _, size in sizes), tuple(name for name, _ in sizes))
    params = gpt.init(random.PRNGKey(0), config)
    state = OPTIMIZER.init(params)
    windows = np.zeros((B * num_parts, T + 1), np.int32)
    specs = recipe.params(params, mesh), recipe.optimizer(state, mesh)
    run = inf.shard(
        functools.partial(step, config=config, num_parts=num_parts),
        mesh=mesh,
        in_specs=(*specs, recipe.of_batch()),
        out_specs=(*specs, P()),
        named=recipe.of_names() | recipe.of_sums(params, mesh),
        strategies=recipe.strategies,
        collectives=Collectives(window_bytes=window_bytes),
    )
    shown = parallel.explain_sharding(run, params, state, windows)
    nbytes: dict[str, int] = {}

    def note(path: tuple[Any, ...], leaf: Any) -> None:
        nbytes[tree.keystr(path, simple=True, separator="/")] = leaf.nbytes

    tree.map_with_path(note, params)
    return Planned(shown, lambda: run(params, state, windows), sum(nbytes.values()), nbytes, windows.nbytes)


gathered = functools.partial(recipes.experts, dispatch="all_gather")
FOUR = (("dp", 4),)
SHARE = 3 / 4  # (n - 1) / n
PARTS = 2
CASES: dict[str, tuple[Any, ...]] = {
    "data": (recipes.data, FOUR),
    "zero1": (recipes.zero1, FOUR),
    "zero1 in parts": (recipes.zero1, FOUR, DENSE, PARTS),
    "zero2": (recipes.zero2, FOUR, DENSE, PARTS),
    "zero3": (recipes.zero3, FOUR),
    "tensor": (recipes.tensor, (("tp", 4),)),
    "sequence": (lambda: recipes.product(recipes.tensor(), recipes.sequence()), (("tp", 4),)),
    "experts": (recipes.experts, (("ep", 4),), SPARSE),
    "experts gathered": (gathered, (("ep", 4),), SPARSE),
    "dropless experts gathered": (gathered, (("ep", 4),), DROPLESS),
    "dropless data": (recipes.data, FOUR, DROPLESS),
    "context by gather": (lambda: recipes.context(form="gather"), (("cp", 4),), SHARED),
    "context by ring": (lambda: recipes.context(form="ring"), (("cp", 4),), SHARED),
    "context by all_to_all": (lambda: recipes.context(form="all_to_all"), (("cp", 4),), SHARED),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_predicted_is_counted(name: str) -> None:
    found = planned(*CASES[name])
    with count_collectives() as counts:
        found.run()
    assert counts == predicted(found.shown.found)


# --- memory -----------------------------------------------------------------------------------------


def at_rest(found: Planned) -> float:
    """Bytes of weights and moments on each device, in those of all weights; the batch and Adam's count of
    steps left out.
    """
    batch_parts = found.shown.found.mesh.size if found.shown.found.in_specs[-1] else 1
    return (found.shown.memory["arguments"] - found.batch / batch_parts - SCALAR) / found.weights


@pytest.mark.parametrize(
    ("name", "times"), [("data", 3), ("zero1", 1 + 2 / 4), ("zero2", 1 + 2 / 4), ("zero3", 3 / 4)]
)
def test_memory_at_rest_of_what_splits_the_batch(name: str, times: float) -> None:
    assert at_rest(planned(*CASES[name])) == times


@pytest.mark.parametrize(
    ("name", "part"),
    [("tensor", "proj|embed|lm_head"), ("sequence", "proj|embed|lm_head"), ("experts", "experts/")],
)
def test_memory_at_rest_of_what_splits_the_model(name: str, part: str) -> None:
    found = planned(*CASES[name])
    split = sum(n for path, n in found.of.items() if any(word in path for word in part.split("|")))
    assert at_rest(found) * found.weights == 3 * (split / 4 + found.weights - split)


# --- communication ----------------------------------------------------------------------------------


def test_data_sends_gradients_twice() -> None:
    found = planned(*CASES["data"])
    assert found.calls() == {"psum": len(found.of) + 1}
    assert found.sent() == 2 * SHARE * (found.weights + SCALAR)


def test_zero1_sends_as_much_in_two_halves() -> None:
    found = planned(*CASES["zero1"])
    assert found.calls() == {"psum_scatter": len(found.of), "all_gather": len(found.of), "psum": 1}
    assert found.given("psum_scatter") == found.weights
    assert found.given("all_gather") == found.weights / 4
    assert found.sent() == 2 * SHARE * (found.weights + SCALAR)


def test_zero1_in_parts_sends_as_much() -> None:
    assert planned(*CASES["zero1 in parts"]).sent() == planned(*CASES["zero1"]).sent()


def test_zero2_sends_the_gradients_of_every_part() -> None:
    found = planned(*CASES["zero2"])
    assert found.given("psum_scatter") == PARTS * found.weights
    assert found.sent() == SHARE * ((PARTS + 1) * found.weights + 2 * SCALAR)


def test_zero3_sends_weights_three_times_but_for_the_table() -> None:
    """The backward pass of a look-up reads no table."""
    found = planned(*CASES["zero3"])
    assert found.calls() == {"all_gather": 2 * len(found.of) - 1, "psum_scatter": len(found.of), "psum": 1}
    table = found.of["embed_tokens"]
    assert found.sent() == SHARE * (3 * found.weights - table + 2 * SCALAR)


def test_zero3_keeps_what_fits_a_window_and_sends_weights_twice() -> None:
    found = planned(*CASES["zero3"], window_bytes=Collectives().window_bytes)
    assert found.calls() == {"all_gather": len(found.of), "psum_scatter": len(found.of), "psum": 1}
    assert found.sent() == SHARE * (2 * found.weights + 2 * SCALAR)


def test_zero3_keeps_the_layers_that_come_back_first() -> None:
    table = planned(*CASES["zero3"]).of["lm_head"]
    found = planned(*CASES["zero3"], window_bytes=table)
    assert found.calls()["all_gather"] == 2 * len(found.of) - 2


def test_tensor_sends_four_sums_of_activations_per_layer() -> None:
    """And one forwards for the embedding and one backwards for the logits; in the loss a maximum and a sum
    over the vocabulary for each token, and the loss.
    """
    found = planned(*CASES["tensor"])
    assert found.calls() == {"psum": 4 * LAYERS + 2 + 1 + 1, "pmax": 1}
    assert found.given("psum") == (4 * LAYERS + 2) * ACTIVATIONS + 4 * TOKENS + SCALAR
    assert found.given("pmax") == 4 * TOKENS
    assert found.sent() == 2 * SHARE * ((4 * LAYERS + 2) * ACTIVATIONS + 2 * 4 * TOKENS + SCALAR)


def test_sequences_are_gathered_and_scattered_four_times_each_per_layer() -> None:
    """And once each for the logits; the table is gathered for the look-up and its gradient is scattered. In
    the backward pass of attention the output projection is gathered, and rows of heads are exchanged.
    """
    found = planned(*CASES["sequence"])
    projections, table = 4 * WIDTH * 32, found.of["embed_tokens"]
    heads = 4 * TOKENS * 32 / 4  # of a device
    norms = sum(n for path, n in found.of.items() if "norm" in path)
    assert found.given("psum_scatter") == (4 * LAYERS + 1) * ACTIVATIONS + table
    assert found.given("all_gather") == ((4 * LAYERS + 1) * ACTIVATIONS + table + LAYERS * projections) / 4
    assert found.given("all_to_all") == LAYERS * heads
    assert found.given("psum") == 4 * TOKENS + norms + SCALAR
    halves = (8 * LAYERS + 2) * ACTIVATIONS + 2 * table + LAYERS * (projections + heads)
    assert found.sent() == SHARE * (halves + 2 * (2 * 4 * TOKENS + norms + SCALAR))


def sums_beside(found: Planned) -> int:
    """Bytes that are summed besides those of experts: other gradients, the loss, and for each expert its
    share of choices, for the loss that balances.
    """
    kept = sum(n for path, n in found.of.items() if "experts/" not in path)
    return kept + 4 * EXPERTS + SCALAR


def test_experts_send_their_rows_twice_forwards_and_twice_backwards() -> None:
    found = planned(*CASES["experts"])
    rows = 4 * TOKENS * CHOSEN * WIDTH  # at capacity_factor 1, all sequences
    assert found.calls()["all_to_all"] == 4 * LAYERS
    assert found.given("all_to_all") == 4 * LAYERS * rows / 4
    assert found.given("psum") == sums_beside(found)
    assert found.sent() == SHARE * (4 * LAYERS * rows / 4 + 2 * sums_beside(found))


@pytest.mark.parametrize("name", ["experts gathered", "dropless experts gathered"])
def test_gathered_experts_send_tokens_instead_of_rows(name: str) -> None:
    """Tokens, with the number and weight of each choice, go to all; results and the gradients of tokens and
    weights are scattered. With or without a capacity.
    """
    found = planned(*CASES[name])
    of_choices = 4 * TOKENS * CHOSEN
    calls = found.calls()
    assert (calls["all_gather"], calls["psum_scatter"]) == (4 * LAYERS, 3 * LAYERS)
    assert "all_to_all" not in calls
    assert found.given("all_gather") == LAYERS * (2 * ACTIVATIONS + 2 * of_choices) / 4
    assert found.given("psum_scatter") == LAYERS * (2 * ACTIVATIONS + of_choices)
    assert found.given("psum") == sums_beside(found)
    assert found.sent() == SHARE * (4 * LAYERS * (ACTIVATIONS + 3 * TOKENS * CHOSEN) + 2 * sums_beside(found))


def test_gathering_sends_less_when_choices_are_more_than_devices() -> None:
    many = dataclasses.replace(SPARSE, experts_per_token=4)
    for devices, is_less in ((2, True), (8, False)):
        one, other = (planned(make, (("ep", devices),), many).sent() for make in (gathered, recipes.experts))
        assert (one < other) == is_less


def test_experts_without_a_capacity_are_split_with_the_batch() -> None:
    """Each device sorts its own tokens: gradients are all that is sent."""
    found = planned(*CASES["dropless data"])
    assert found.sent() == 2 * SHARE * (found.weights + 4 * EXPERTS + SCALAR)


def sent_for_attention(name: str) -> float:
    """What a context sends beside the sums of gradients and of the loss."""
    found = planned(*CASES[name])
    assert found.given("psum") == found.weights + SCALAR
    return found.sent() - 2 * SHARE * (found.weights + SCALAR)


def test_a_context_that_gathers_sends_keys_and_values_three_times() -> None:
    """Forwards, backwards, and their gradients."""
    found = planned(*CASES["context by gather"])
    calls = found.calls()
    assert (calls["all_gather"], calls["psum_scatter"]) == (4 * LAYERS, 2 * LAYERS)
    assert sent_for_attention("context by gather") == SHARE * 6 * LAYERS * KEYS


def test_keys_that_have_room_are_gathered_once() -> None:
    found = planned(*CASES["context by gather"], window_bytes=Collectives().window_bytes)
    assert found.calls()["all_gather"] == 2 * LAYERS
    assert found.sent() == 2 * SHARE * (found.weights + SCALAR) + SHARE * 4 * LAYERS * KEYS


def test_a_ring_sends_as_much_in_steps() -> None:
    """(n - 1) steps of keys and values forwards, and backwards of these and of their gradients."""
    assert planned(*CASES["context by ring"]).calls()["ppermute"] == 3 * (2 + 4) * LAYERS
    assert sent_for_attention("context by ring") == SHARE * 6 * LAYERS * KEYS


def test_a_context_by_exchanges_sends_queries_keys_and_results_twice() -> None:
    """Queries, keys, values and results, and their gradients; and a number per row and head."""
    assert planned(*CASES["context by all_to_all"]).calls()["all_to_all"] == (4 + 5) * LAYERS
    exchanged = 4 * QUERIES + 4 * KEYS + ROWS
    assert sent_for_attention("context by all_to_all") == SHARE * LAYERS * exchanged / 4


@pytest.mark.parametrize("form", ["gather", "ring", "all_to_all"])
def test_a_context_keeps_all_weights(form: str) -> None:
    assert at_rest(planned(*CASES[f"context by {form}"])) == 3


def test_a_product_sends_the_sums_of_its_recipes_for_what_the_others_leave() -> None:
    """Each device has half of the tokens for `tensor`, and for `data` half of the weights but the norms."""
    found = planned(lambda: recipes.product(recipes.tensor(), recipes.data()), (("dp", 2), ("tp", 2)))
    over: Counter[tuple[str, ...]] = Counter()
    for c in found.shown.collectives:
        over[tuple(sorted(c.axes))] += c.nbytes
    norms = sum(n for path, n in found.of.items() if "norm" in path)
    assert over["dp",] == (found.weights - norms) / 2 + norms + SCALAR
    assert over["tp",] == (4 * LAYERS + 2) * ACTIVATIONS / 2 + 2 * 4 * TOKENS / 2 + SCALAR
    assert over.keys() == {("dp",), ("tp",)}  # the loss travels with both
