"""What the scheduler decides, case by case; `test_scheduler_properties.py` has what always holds."""

from __future__ import annotations

import pytest

from infini.core import errors
from infini.llm.engine import requests, scheduler
from tests.llm.engine.simulation import Simulation, continuation


def limits(**fields) -> scheduler.Limits:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 64}
    return scheduler.Limits(**(defaults | fields))


def counts(plan: scheduler.Step) -> dict[str, int]:
    return {item.request.request_id: item.num_tokens for item in plan.scheduled}


def prompt(length: int, first: int = 1) -> tuple[int, ...]:
    return tuple((first + n) % 50 for n in range(length))


def test_a_long_prompt_is_computed_in_pieces_of_the_budget():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(40), 2)
    assert [counts(run.step()) for _ in range(4)] == [{"r0": 16}, {"r0": 16}, {"r0": 8}, {"r0": 1}]


def test_requests_that_run_come_before_those_that_wait():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(3), 4)
    run.step()
    run.add(prompt(30), 2)
    assert counts(run.step()) == {"r0": 1, "r1": 15}


def test_the_threshold_leaves_room_for_others():
    run = Simulation(limits(long_prefill_token_threshold=6), 32, 4)
    run.add(prompt(20), 1)
    run.add(prompt(20, 9), 1)
    assert counts(run.step()) == {"r0": 6, "r1": 6}


def test_without_chunks_a_prompt_waits_for_a_step_with_room():
    run = Simulation(limits(enable_chunked_prefill=False), 32, 4)
    run.add(prompt(10), 2)
    run.add(prompt(10, 9), 2)
    assert [counts(run.step()) for _ in range(2)] == [{"r0": 10}, {"r0": 1, "r1": 10}]


def test_no_more_run_than_may():
    run = Simulation(limits(max_num_seqs=2), 32, 4)
    for _ in range(3):
        run.add(prompt(2), 3)
    assert list(counts(run.step())) == ["r0", "r1"]
    assert len(run.scheduler.waiting) == 1


def test_out_of_blocks_the_newest_gives_its_own_back_and_nobody_is_admitted():
    run = Simulation(limits(), 4, 4)
    run.add(prompt(8), 6)
    run.add(prompt(8, 20), 6)
    run.step()
    run.add(prompt(2, 40), 1)
    plan = run.step()
    assert counts(plan) == {"r0": 1}
    assert [request.request_id for request in plan.preempted] == ["r1"]
    assert [request.request_id for request in run.scheduler.waiting] == ["r1", "r2"]


def test_a_preempted_request_goes_on_where_it_was():
    run = Simulation(limits(), 4, 4)
    first, second = run.add(prompt(8), 6), run.add(prompt(8, 20), 6)
    while run.scheduler.has_requests:
        run.step()
    assert second.num_preemptions == 1
    for request in (first, second):
        assert request.token_ids[8:] == continuation(request.prompt_token_ids, 6)


def test_by_priority_the_least_important_gives_its_blocks_back():
    run = Simulation(limits(policy="priority"), 4, 4)
    run.add(prompt(8), 6, priority=5)
    run.add(prompt(8, 20), 6, priority=1)
    run.step()
    plan = run.step()
    assert [request.request_id for request in plan.preempted] == ["r0"]
    assert counts(plan) == {"r1": 1}


def test_by_priority_the_most_important_is_admitted_first():
    run = Simulation(limits(policy="priority", max_num_seqs=1), 8, 4)
    run.add(prompt(4), 1, priority=2)
    run.add(prompt(4), 1, priority=-1)
    run.add(prompt(4), 1, priority=2)
    order = [next(iter(counts(run.step()))) for _ in range(3)]
    assert order == ["r1", "r0", "r2"]


def test_an_equal_beginning_is_computed_once_and_the_last_token_always():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(8), 1)
    run.step()
    second = run.add(prompt(8), 1)
    assert counts(run.step()) == {"r1": 4}
    assert second.num_cached_tokens == 4
    assert (run.scheduler.prefix_cache_queries, run.scheduler.prefix_cache_hits) == (16, 4)


def test_requests_of_one_step_share_the_blocks_of_their_common_prompt():
    run = Simulation(limits(), 32, 4)
    first, second = run.add(prompt(9), 3), run.add(prompt(9), 3)
    assert counts(run.step()) == {"r0": 9, "r1": 1}
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] is not second.blocks[2]


def test_another_salt_shares_nothing():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(8), 1, cache_salt="a")
    run.step()
    run.add(prompt(8), 1, cache_salt="b")
    assert counts(run.step()) == {"r1": 8}


def test_a_request_outside_the_cache_neither_takes_nor_gives():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(8), 1, is_cached=False)
    run.step()
    assert run.pool.num_known == 0


def test_prompt_logprobs_need_the_whole_prompt():
    run = Simulation(limits(), 32, 4)
    run.add(prompt(8), 1)
    run.step()
    run.add(prompt(8), 1, wants_prompt_logprobs=True)
    assert counts(run.step()) == {"r1": 8}


def test_proposals_are_dropped_before_anybody_loses_blocks():
    run = Simulation(limits(), 4, 4, num_spec=3)
    run.add(prompt(7), 9)
    run.add(prompt(7, 20), 2)
    run.step()  # both have two blocks, full but for one token; three proposals would need a third
    plan = run.step()
    assert plan.preempted == ()
    assert [item.num_spec for item in plan.scheduled] == [0, 0]


def test_a_step_with_proposals_makes_up_to_one_more_token_than_those():
    run = Simulation(limits(), 32, 4, num_spec=3)
    request = run.add(prompt(4), 12)
    run.step()
    run.step()
    assert request.num_output_tokens == 1 + 3  # of three proposals the third is wrong
    assert request.num_computed_tokens == request.num_tokens - 1


@pytest.mark.parametrize(
    ("length", "max_tokens", "message"),
    [(0, 1, "empty"), (60, 5, "max_model_len"), (40, 10, "key/value cache"), (3, 0, "at least 1")],
)
def test_what_can_never_run_is_refused(length, max_tokens, message):
    run = Simulation(limits(), 8, 4)
    with pytest.raises(errors.ValueMismatchError, match=message):
        run.add(prompt(length), max_tokens)
    assert not run.scheduler.has_requests


def test_what_just_fits_runs():
    run = Simulation(limits(), 8, 4)
    request = run.add(prompt(30), 3)  # 32 keys: the last token's are not needed
    while run.scheduler.has_requests:
        run.step()
    assert request.num_output_tokens == 3


def test_without_chunks_what_does_not_fit_into_a_step_is_refused():
    run = Simulation(limits(enable_chunked_prefill=False), 32, 4)
    with pytest.raises(errors.ValueMismatchError, match="chunked prefill"):
        run.add(prompt(17), 1)


def test_a_full_queue_refuses():
    run = Simulation(limits(max_num_queued_reqs=1), 8, 4)
    run.add(prompt(3), 1)
    with pytest.raises(requests.QueueFullError, match="max_num_queued_reqs"):
        run.add(prompt(3), 1)
