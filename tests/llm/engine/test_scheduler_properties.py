"""What always holds of the scheduler, with random arrivals, lengths, priorities, aborts and tiny caches.

The numbers are those of a list of nine invariants; 5, 6 and 9 are shown on a model in `test_invariants.py`,
5 and 6 here as well, on one that only remembers tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis
from hypothesis import strategies as st

from infini.llm.engine import requests, scheduler
from tests.llm.engine.simulation import Simulation, continuation


@dataclass(frozen=True)
class Arrival:
    """A request, and when it comes and is given up."""

    step: int
    prompt: tuple[int, ...]
    max_tokens: int
    priority: int
    abort_step: int | None
    salt: str


@st.composite
def arrivals(draw) -> list[Arrival]:
    shared = draw(st.lists(st.integers(0, 3), min_size=24, max_size=24))
    made = []
    for _ in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, 24))
        own = draw(st.lists(st.integers(0, 49), max_size=4))
        made.append(
            Arrival(
                draw(st.integers(0, 20)),
                tuple((shared[:length] + own)[:24]),
                draw(st.integers(1, 8)),
                draw(st.integers(-1, 1)),
                draw(st.none() | st.integers(0, 30)),
                draw(st.sampled_from(["", "", "", "other"])),
            )
        )
    return sorted(made, key=lambda arrival: arrival.step)


@st.composite
def simulations(draw, policy: str | None = None) -> Simulation:
    block_size = draw(st.sampled_from([2, 4, 8]))
    longest = -(-31 // block_size)
    limits = scheduler.Limits(
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.sampled_from([1, 3, 8, 40])),
        max_model_len=32,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 2, 5])),
        policy=policy or draw(st.sampled_from(["fcfs", "priority"])),
    )
    num_blocks = draw(st.integers(longest, longest + 6))
    return Simulation(limits, num_blocks, block_size, num_spec=draw(st.sampled_from([0, 0, 1, 4])))


def run_all(run: Simulation, todo: list[Arrival], *, may_abort: bool = True) -> list[requests.Request]:
    """Let requests come, be given up and run to their end; fails where they never would."""
    added: list[tuple[Arrival, requests.Request]] = []
    coming, step = list(todo), 0
    while coming or run.scheduler.has_requests:
        while coming and coming[0].step <= step:
            arrival = coming.pop(0)
            request = run.add(
                arrival.prompt, arrival.max_tokens, priority=arrival.priority, cache_salt=arrival.salt
            )
            added.append((arrival, request))
        for arrival, request in added:
            if may_abort and arrival.abort_step is not None and arrival.abort_step <= step:
                run.scheduler.finish(request, "abort")
        run.step()
        step += 1
        assert step < 5000, "it never ends"
    return [request for _, request in added]


@hypothesis.given(simulations(), arrivals())
def test_1_2_blocks_and_budgets_add_up_at_every_step(run, todo):
    run_all(run, todo)  # every step checks


@hypothesis.given(simulations(), arrivals())
def test_3_every_admitted_request_finishes(run, todo):
    made = run_all(run, todo, may_abort=False)
    assert all(request.finish_reason == "length" for request in made)
    assert all(request.num_output_tokens == request.max_tokens for request in made)


@hypothesis.given(simulations(), arrivals(), st.integers(1, 80), st.integers(1, 80))
def test_4_what_can_never_fit_is_refused_and_not_queued(run, todo, length, max_tokens):
    fits = length + max_tokens <= 32 and length + max_tokens - 1 <= run.num_blocks * run.block_size
    refused = False
    try:
        run.add(tuple(n % 50 for n in range(length)), max_tokens)
    except ValueError:
        refused = True
    assert refused == (not fits)
    assert len(run.scheduler.waiting) == fits


@hypothesis.given(simulations(), arrivals())
def test_5_6_tokens_depend_on_no_preemption_no_chunk_no_cache_and_no_proposal(run, todo):
    for request in run_all(run, todo, may_abort=False):
        assert request.token_ids[request.num_prompt_tokens :] == continuation(
            request.prompt_token_ids, request.max_tokens
        )


@hypothesis.given(simulations(policy="fcfs"), arrivals())
def test_7_the_oldest_request_runs_in_every_step(run, todo):
    for arrival in todo:
        run.add(arrival.prompt, arrival.max_tokens)
    while run.scheduler.has_requests:
        oldest = min((*run.scheduler.running, *run.scheduler.waiting), key=lambda request: request.arrival)
        plan = run.step()
        assert plan.scheduled[0].request is oldest
        arrivals_run = [request.arrival for request in run.scheduler.running]
        assert arrivals_run == sorted(arrivals_run)
        assert all(
            running.arrival < waiting.arrival
            for running in run.scheduler.running
            for waiting in run.scheduler.waiting
        )


@hypothesis.given(simulations(), arrivals(), st.integers(0, 40))
def test_8_an_abort_at_any_point_returns_all_blocks(run, todo, num_steps):
    for arrival in todo:
        run.add(arrival.prompt, arrival.max_tokens, priority=arrival.priority)
    for _ in range(num_steps):
        run.step()
    for request in run.requests:
        run.scheduler.finish(request, "abort")
        run.check_blocks()
    assert run.pool.num_free == run.pool.num_blocks
    assert not run.scheduler.has_requests
