"""`AsyncLLM`: streams, aborts at any point, a full queue, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading

import pytest

from infini.core import errors
from infini.llm.engine import requests
from infini.llm.engine.async_llm import AsyncLLM
from infini.llm.sampling.params import SamplingParams
from infini.llm.text.detokenizer import Incremental
from tests.llm.engine.conftest import OPTIONS, prompts

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(checkpoint, tokenizer):
    made = AsyncLLM(checkpoint, tokenizer=tokenizer, max_num_queued_reqs=64, **OPTIONS)
    yield made
    asyncio.run(made.shutdown())


async def all_of(stream):
    return [output async for output in stream]


async def until_idle(engine):
    """Commands are obeyed between steps."""
    for _ in range(1000):
        stats = engine.stats()
        if stats.num_free_blocks == stats.num_blocks and not stats.num_running + stats.num_waiting:
            return
        await asyncio.sleep(0.005)
    pytest.fail("blocks are held by nobody's requests")


def test_a_stream_ends_with_what_generate_gives(engine, llm):
    async def run():
        return await asyncio.gather(*(all_of(engine.generate(prompt, GREEDY)) for prompt in prompts(6)))

    found = asyncio.run(run())
    expected = llm.generate(prompts(6), GREEDY)
    for outputs, plain in zip(found, expected, strict=True):
        assert outputs[-1].finished
        assert outputs[-1].outputs == plain.outputs
        assert not any(output.finished for output in outputs[:-1])


def test_deltas_together_are_the_whole(engine, llm):
    async def run():
        params = SamplingParams(n=2, seed=5, max_tokens=10, logprobs=1, ignore_eos=True)
        whole = (await all_of(engine.generate([5, 6, 7], params, output_kind="final")))[-1]
        parts = await all_of(engine.generate([5, 6, 7], params, output_kind="delta"))
        return whole, parts

    whole, parts = asyncio.run(run())
    for completion in whole.outputs:
        own = [one for part in parts for one in part.outputs if one.index == completion.index]
        assert "".join(one.text for one in own) == completion.text
        assert [token for one in own for token in one.token_ids] == completion.token_ids
        assert [entry for one in own for entry in one.logprobs] == completion.logprobs
        assert [one.finish_reason for one in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == "length"


def test_final_comes_once(engine):
    outputs = asyncio.run(all_of(engine.generate([5, 6], GREEDY, output_kind="final")))
    assert [output.finished for output in outputs] == [True]


def test_what_is_wrong_is_raised_by_start(engine):
    async def run():
        with pytest.raises(errors.ValueMismatchError, match="does not know"):
            await engine.generate([5, 4000], GREEDY).start()
        while not engine.stats().rejected.get("invalid"):  # counted by the loop
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_two_requests_of_one_name_are_refused(engine):
    async def run():
        long = dataclasses.replace(GREEDY, max_tokens=100)
        first = engine.generate([5, 6], long, request_id="twin")
        await first.start()
        with pytest.raises(errors.ValueMismatchError, match="runs already"):
            await engine.generate([5, 6], long, request_id="twin").start()
        assert (await all_of(first))[-1].finished

    asyncio.run(run())


def test_a_full_queue_refuses(checkpoint):
    engine = AsyncLLM(checkpoint, max_num_queued_reqs=2, enforce_eager=True, **OPTIONS)

    async def run():
        streams = [engine.generate([5, 6], GREEDY) for _ in range(12)]
        started = await asyncio.gather(*(stream.start() for stream in streams), return_exceptions=True)
        refused = [one for one in started if one is not None]
        assert refused
        assert all(isinstance(one, requests.QueueFullError) for one in refused)
        for stream, one in zip(streams, started, strict=True):
            if one is None:
                assert (await all_of(stream))[-1].finished
        assert engine.stats().rejected == {"queue_full": len(refused)}
        await engine.shutdown()

    asyncio.run(run())


def test_abort_ends_a_stream_with_its_last_output(engine):
    async def run():
        stream = engine.generate([5, 6], dataclasses.replace(GREEDY, max_tokens=120), request_id="mine")
        first = await anext(stream)
        await engine.abort("mine")
        rest = await all_of(stream)
        await engine.abort("mine")  # it is gone: nothing happens
        await until_idle(engine)
        return first, rest

    first, rest = asyncio.run(run())
    assert not first.finished
    assert rest[-1].outputs[0].finish_reason == "abort"


def test_leaving_at_any_point_returns_all_blocks(engine):
    chance = random.Random(0)

    async def client(number):
        params = dataclasses.replace(GREEDY, max_tokens=60, n=1)
        stream = engine.generate(prompts(8)[number % 8], params)
        how = number % 4
        if how == 0:  # never reads
            await stream.start()
            return
        async for output in stream:
            if len(output.outputs[0].token_ids) >= chance.randrange(1, 30):
                break
        if how == 1:
            await stream.aclose()
            await stream.aclose()

    async def cancelled(number):
        task = asyncio.create_task(all_of(engine.generate(prompts(8)[number % 8], GREEDY)))
        await asyncio.sleep(chance.random() * 0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def run():
        await asyncio.gather(*(client(n) for n in range(24)), *(cancelled(n) for n in range(8)))
        await until_idle(engine)

    asyncio.run(run())
    assert not engine._mailboxes


def test_a_loop_that_ends_takes_its_requests_with_it(engine):
    async def begin():
        stream = engine.generate([5, 6], dataclasses.replace(GREEDY, max_tokens=120))
        await stream.start()
        return stream

    kept = asyncio.run(begin())
    asyncio.run(until_idle(engine))
    assert not engine._mailboxes
    del kept


def test_a_slow_reader_gets_fewer_and_larger_outputs(engine):
    async def run():
        stream = engine.generate([5, 6], GREEDY, output_kind="delta")
        await stream.start()
        await until_idle(engine)
        return await all_of(stream)

    outputs = asyncio.run(run())
    assert [len(output.outputs[0].token_ids) for output in outputs] == [12]


def test_draining_lets_requests_finish_and_takes_no_more(checkpoint):
    engine = AsyncLLM(checkpoint, enforce_eager=True, **OPTIONS)

    async def run():
        assert engine.is_ready
        stream = engine.generate([5, 6], GREEDY)
        await stream.start()
        ending = asyncio.create_task(engine.shutdown(drain_s=30))
        await asyncio.sleep(0)
        assert not engine.is_ready
        with pytest.raises(requests.EngineDeadError, match=r"shutting down|has ended"):
            await engine.generate([5, 6], GREEDY).start()
        outputs = await all_of(stream)
        await ending
        return outputs

    assert asyncio.run(run())[-1].outputs[0].finish_reason == "length"
    with pytest.raises(requests.EngineDeadError, match="has ended"):
        engine.check_health()


def test_shutdown_without_draining_aborts(checkpoint):
    engine = AsyncLLM(checkpoint, enforce_eager=True, **OPTIONS)

    async def run():
        stream = engine.generate([5, 6], dataclasses.replace(GREEDY, max_tokens=120))
        await anext(stream)
        await engine.shutdown()
        return await all_of(stream)

    outputs = asyncio.run(run())
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_when_the_loop_dies_everybody_is_told(checkpoint, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda info: None)
    engine = AsyncLLM(checkpoint, enforce_eager=True, **OPTIONS)

    def die():
        raise SystemError("a bug")

    monkeypatch.setattr(engine._core, "step", die)

    async def run():
        with pytest.raises(requests.EngineDeadError):
            await all_of(engine.generate([5, 6], GREEDY))
        with pytest.raises(requests.EngineDeadError):
            engine.check_health()
        assert not engine.is_ready
        assert not engine.stats().is_healthy
        with pytest.raises(requests.EngineDeadError):
            await engine.generate([5, 6], GREEDY).start()

    asyncio.run(run())


def test_when_nothing_can_be_ended_everybody_is_told(checkpoint, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda info: None)
    engine = AsyncLLM(checkpoint, enforce_eager=True, **OPTIONS)

    def die():
        engine._core._owners.clear()  # nothing fits together any more
        raise SystemError("a bug")

    monkeypatch.setattr(engine._core, "step", die)

    async def run():
        streams = [all_of(engine.generate([5, 6], GREEDY)) for _ in range(3)]
        for told in await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 30):
            assert isinstance(told, requests.EngineDeadError)

    asyncio.run(run())
    with pytest.raises(requests.EngineDeadError, match="SystemError: a bug"):
        engine.check_health()


def test_a_command_that_fails_tells_its_caller_and_not_the_others(checkpoint, monkeypatch):
    engine = AsyncLLM(checkpoint, enforce_eager=True, **OPTIONS)

    def fail():
        raise SystemError("a bug")

    async def run():
        stream = engine.generate([5, 6], GREEDY)
        await stream.start()
        monkeypatch.setattr(engine._core, "reset_prefix_cache", fail)
        with pytest.raises(SystemError, match="a bug"):
            await asyncio.wait_for(engine.reset_prefix_cache(), 30)
        outputs = await all_of(stream)
        await engine.shutdown()
        return outputs

    assert asyncio.run(run())[-1].outputs[0].finish_reason == "length"


def test_a_request_whose_text_fails_is_ended_by_abort(checkpoint, tokenizer, monkeypatch):
    engine = AsyncLLM(checkpoint, tokenizer=tokenizer, enforce_eager=True, **OPTIONS)

    def fail(self):
        raise SystemError("a bug")

    async def run():
        stream = engine.generate([5, 6], dataclasses.replace(GREEDY, max_tokens=120))
        await anext(stream)
        with monkeypatch.context() as patch:
            patch.setattr(Incremental, "finish", fail)
            await asyncio.wait_for(engine.abort(stream.request_id), 30)
        last = (await all_of(stream))[-1]
        engine.check_health()
        await engine.shutdown()
        return last

    assert asyncio.run(run()).outputs[0].finish_reason == "error"
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
