"""`LLM`: prompts in, outputs out."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc

import numpy as np
import pytest

from infini.core import errors
from infini.llm.engine import requests
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams, StructuredOutputsParams
from infini.testing import assert_max_traces
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, prompts

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def greedy(**fields) -> SamplingParams:
    return dataclasses.replace(GREEDY, **fields)


def tokens(outputs) -> list[list[int]]:
    return [completion.token_ids for output in outputs for completion in output.outputs]


def test_tokens_and_logprobs_are_the_models(llm, oracle):
    for output in llm.generate(prompts(6), greedy(logprobs=0)):
        oracle.check_greedy(output)


def test_outputs_come_in_the_order_of_the_prompts(llm):
    given = prompts(9)
    found = llm.generate(given, [greedy(max_tokens=1 + n) for n in range(9)])
    assert [output.prompt_token_ids for output in found] == given
    assert [len(output.outputs[0].token_ids) for output in found] == list(range(1, 10))


def test_text_is_the_tokens_decoded(llm, tokenizer):
    (output,) = llm.generate("the quick brown fox", greedy(ignore_eos=True))
    assert output.prompt == "the quick brown fox"
    assert output.prompt_token_ids == tokenizer.encode("the quick brown fox")
    ids = [token for token in output.outputs[0].token_ids if token < tokenizer.vocab_size]
    assert output.outputs[0].text == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "prompt",
    [
        "one two",
        {"prompt": "one two"},
        {"prompt_token_ids": [5, 6, 7]},
        [5, 6, 7],
        (5, 6, 7),
        np.array([5, 6, 7]),
        {"prompt_token_ids": np.array([5, 6, 7], np.int32)},
        np.array([[5, 6, 7]]),
        list(np.array([5, 6, 7])),
    ],
)
def test_forms_of_a_prompt(llm, prompt):
    (output,) = llm.generate(prompt, greedy(max_tokens=2))
    assert output.finished
    assert len(output.outputs[0].token_ids) == 2


def test_a_stream_tells_what_is_new(llm):
    (whole,) = llm.generate([5, 6, 7], greedy(ignore_eos=True))
    parts = list(llm.stream([5, 6, 7], greedy(ignore_eos=True)))
    assert [token for part in parts for token in part.outputs[0].token_ids] == whole.outputs[0].token_ids
    assert "".join(part.outputs[0].text for part in parts) == whole.outputs[0].text


def test_a_stream_may_be_left_and_others_run_beside_it(llm, oracle):
    stream = llm.stream([5, 6, 7], greedy(ignore_eos=True))
    first = next(stream)
    for output in llm.generate(prompts(2), GREEDY):
        oracle.check_greedy(output)
    rest = [token for part in stream for token in part.outputs[0].token_ids]
    assert len(first.outputs[0].token_ids + rest) == 12
    other = llm.stream([5, 6, 7], GREEDY)
    next(other)
    other.close()
    assert not llm.engine.core.has_requests
    assert not llm._inboxes


def test_calls_of_several_threads_share_the_steps(llm, oracle):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        for outputs in threads.map(lambda seed: llm.generate(prompts(4, seed=seed), GREEDY), range(3)):
            for output in outputs:
                oracle.check_greedy(output)


def test_ends_by_length(llm):
    (output,) = llm.generate([5, 6, 7], greedy(ignore_eos=True))
    assert output.outputs[0].finish_reason == "length"
    assert len(output.outputs[0].token_ids) == 12


def test_ends_at_a_stop_token(llm):
    (plain,) = llm.generate([5, 6, 7], greedy(ignore_eos=True))
    stop = plain.outputs[0].token_ids[4]
    (output,) = llm.generate([5, 6, 7], greedy(ignore_eos=True, stop_token_ids=[stop]))
    end = plain.outputs[0].token_ids.index(stop)
    assert output.outputs[0].token_ids == plain.outputs[0].token_ids[: end + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


def test_ends_at_a_stop_string_and_leaves_it_out(llm):
    (plain,) = llm.generate([5, 6, 7], greedy(ignore_eos=True))
    text = plain.outputs[0].text
    stop = text[5:7]
    (output,) = llm.generate([5, 6, 7], greedy(ignore_eos=True, stop=stop))
    assert output.outputs[0].text == text[: text.index(stop)]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)


def test_ends_at_the_end_token_of_the_model(checkpoint, llm):
    (plain,) = llm.generate([5, 6, 7], greedy(ignore_eos=True))
    end = plain.outputs[0].token_ids[3]
    ends = dataclasses.replace(checkpoint, generation_config={"eos_token_id": [end]})
    with_end = LLM(ends, enforce_eager=True, **OPTIONS)
    (output,) = with_end.generate([5, 6, 7], GREEDY)
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason is None
    assert (
        output.outputs[0].token_ids == plain.outputs[0].token_ids[: 1 + plain.outputs[0].token_ids.index(end)]
    )


def test_logprobs_are_of_the_token_and_of_the_likeliest(llm, oracle):
    (output,) = llm.generate([5, 6, 7], greedy(logprobs=3))
    first = output.outputs[0].logprobs[0]
    row = oracle.logprobs([5, 6, 7])[-1]
    assert list(first) == (-row).argsort()[:3].tolist()
    assert [entry.rank for entry in first.values()] == [1, 2, 3]
    assert output.outputs[0].cumulative_logprob == pytest.approx(
        sum(next(iter(entries.values())).logprob for entries in output.outputs[0].logprobs)
    )


def test_logprobs_of_the_prompt(llm, oracle):
    prompt = prompts(1)[0]
    llm.generate(prompt, GREEDY)  # its blocks are known: they have to be computed all the same
    (output,) = llm.generate(prompt, greedy(prompt_logprobs=2))
    expected = oracle.logprobs(prompt)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(prompt)
    for place, (told, token) in enumerate(zip(output.prompt_logprobs[1:], prompt[1:], strict=True)):
        assert told[token].logprob == pytest.approx(expected[place, token], abs=2e-4)


def test_n_completions_share_the_prompt_and_differ(llm):
    before = llm.stats()
    params = SamplingParams(n=3, max_tokens=8, seed=7, ignore_eos=True)
    (output,) = llm.generate(list(range(40, 73)), params)
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    assert llm.stats().prefix_cache_hits - before.prefix_cache_hits == 2 * 32


def test_n_completions_share_the_prompt_without_a_prefix_cache(checkpoint):
    llm = LLM(checkpoint, enable_prefix_caching=False, enforce_eager=True, **OPTIONS)
    params = SamplingParams(n=2, max_tokens=2, seed=7, ignore_eos=True)
    for _ in range(2):
        llm.generate(list(range(40, 57)), params)
    assert llm.stats().prefix_cache_hits == 2 * 16  # within each request, and not between them


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(llm):
    params = SamplingParams(seed=3, max_tokens=8, ignore_eos=True)
    alone = llm.generate([5, 6, 7], params)
    together = llm.generate([*prompts(4), [5, 6, 7]], [*[SamplingParams(max_tokens=9)] * 4, params])
    assert tokens(alone)[0] == tokens(together)[-1]


def test_the_prefix_cache_is_told_of_and_forgotten(llm):
    llm.reset_prefix_cache()
    prompt = list(range(100, 140))
    first, second = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 32)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def test_structured_output_has_the_form(llm):
    form = StructuredOutputsParams(choice=["one", "two"])
    (output,) = llm.generate("say", greedy(structured_outputs=form, max_tokens=20))
    assert output.outputs[0].text in ("one", "two")
    assert output.outputs[0].finish_reason == "stop"


def test_chat_renders_the_template(llm, tokenizer):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (output,) = llm.chat([{"role": "user", "content": "fox"}], GREEDY, chat_template=template)
    assert output.prompt == "user: fox\n"
    assert output.prompt_token_ids == tokenizer.encode("user: fox\n", add_special_tokens=False)


def test_defaults_are_those_of_the_checkpoint(checkpoint):
    stated = dataclasses.replace(checkpoint, generation_config={"temperature": 0.5, "top_k": 7})
    llm = LLM(stated, enforce_eager=True, **OPTIONS)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.5, top_k=7)


def test_defaults_that_are_too_long_end_where_the_model_does(checkpoint):
    stated = dataclasses.replace(checkpoint, generation_config={"max_new_tokens": 4096, "do_sample": False})
    (output,) = LLM(stated, enforce_eager=True, **OPTIONS).generate([5] * 120)
    assert len(output.outputs[0].token_ids) == 8


@pytest.mark.parametrize("stated", [{"temperature": 99}, {"eos_token_id": [2, "x"]}, {"eos_token_id": -1}])
def test_a_wrong_generation_config_is_named(checkpoint, stated):
    wrong = dataclasses.replace(checkpoint, generation_config=stated)
    with pytest.raises(errors.ValueMismatchError, match=r"generation_config\.json"):
        LLM(wrong, enforce_eager=True, **OPTIONS)


@pytest.mark.parametrize("wrong", [7, None, b"text", [5, "a"], {"prompt_token_ids": 7}])
def test_what_is_no_prompt_is_refused_and_named(llm, wrong):
    with pytest.raises(errors.ValueMismatchError, match="prompt"):
        llm.generate(wrong, GREEDY)


def test_what_is_no_setting_is_refused_and_named(llm):
    with pytest.raises(errors.ValueMismatchError, match="sampling_params are no SamplingParams"):
        llm.generate("text", {"temperature": 0})


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "empty"),
        ([5, 400], GREEDY, "does not know"),
        ([5, -1], GREEDY, "does not know"),
        ([5, "a"], GREEDY, "does not know"),
        ({"prompt": None}, GREEDY, "neither text nor ids"),
        (list(range(128)), GREEDY, "longer than the model"),
        (list(range(120)), GREEDY, "max_model_len"),
        ({"prompt": "a", "cache_salt": "x" * 200}, GREEDY, "cache_salt"),
    ],
)
def test_what_cannot_be_served_is_refused_and_named(llm, prompt, params, message):
    with pytest.raises(errors.ValueMismatchError, match=message):
        llm.generate([[5, 6], prompt] if prompt else [prompt], params)
    assert not llm.engine.core.has_requests


def test_without_a_tokenizer_ids_are_served_and_texts_refused(checkpoint):
    llm = LLM(checkpoint, enforce_eager=True, **OPTIONS)
    (output,) = llm.generate([5, 6], GREEDY)
    assert output.outputs[0].text == ""
    with pytest.raises(errors.ValueMismatchError, match="no tokenizer"):
        llm.generate("text", GREEDY)


def test_nothing_is_traced_after_the_engine_is_warm(llm):
    runner = llm.engine.core.runner
    many = dict.fromkeys(range(300), -1.0)
    mixture = [
        SamplingParams(max_tokens=3, repetition_penalty=1.1, logit_bias=many),
        GREEDY,
        SamplingParams(max_tokens=5, seed=1),
        SamplingParams(max_tokens=5, top_p=0.9, presence_penalty=1.0, logit_bias={3: 1.0}),
        SamplingParams(max_tokens=5, logprobs=3, typical_p=0.5),
        SamplingParams(max_tokens=5, prompt_logprobs=1, temperature=0.0),
    ]
    with (
        assert_max_traces(runner.forward, 0),
        assert_max_traces(runner.sample, 0),
        assert_max_traces(runner.describe, 0),
    ):
        for size in (1, 3, 5):
            llm.generate(prompts(6 * size, seed=size), mixture * size)


def test_a_closed_engine_says_so(checkpoint):
    llm = LLM(checkpoint, enforce_eager=True, **OPTIONS)
    llm.close()
    with pytest.raises(requests.EngineDeadError, match="closed"):
        llm.generate([5], GREEDY)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"block_size": 20}, "multiple of 16"),
        ({"max_model_len": 4096}, "max_model_len"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype"),
        ({"enable_chunked_prefill": False}, "chunked prefill"),
        ({"num_gpu_blocks_override": 2, "max_model_len": 128}, "too small"),
        ({"tensor_parallel_size": 2}, "fewer devices"),
        ({"speculative_config": {"method": "magic"}}, "method"),
        ({"speculative_config": {"tokens": 3}}, "speculative_config"),
    ],
)
def test_options_that_cannot_be_are_refused_and_named(checkpoint, option, message):
    with pytest.raises(errors.ValueMismatchError, match=message):
        LLM(checkpoint, enforce_eager=True, **(OPTIONS | option))


def test_a_small_cache_shortens_what_can_be_asked(checkpoint):
    options = OPTIONS | {"num_gpu_blocks_override": 3}
    assert LLM(checkpoint, enforce_eager=True, **options).max_model_len == 48


def test_the_arithmetic_of_the_cache_is_told(checkpoint, capsys):
    LLM(checkpoint, verbose=True, enforce_eager=True, **OPTIONS)
    told = capsys.readouterr().err
    assert "Available KV cache memory: 4.00 MiB" in told
    assert "CPU KV cache size: 1,024 tokens (64 blocks of 16 tokens at 256 bytes = 0.25 MiB)" in told
    assert "Maximum concurrency for 128 tokens per request: 8.00x" in told


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(checkpoint, oracle, monkeypatch):
    llm = LLM(checkpoint, enforce_eager=True, **OPTIONS)
    runner = llm.engine.core.runner
    run = runner.run

    def fail(prepared, rows, **options):
        run(prepared, rows, **options)
        runner._cache = None  # a donated cache is lost when a program fails
        monkeypatch.setattr(runner, "run", run)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "run", fail)
    outputs = llm.generate(prompts(6), GREEDY)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    failed = [output for output in outputs if output.outputs[0].finish_reason == "error"]
    assert 0 < len(failed) < len(reasons)
    assert failed[0].outputs[0].error == "RuntimeError: out of memory"
    for output in outputs:
        oracle.check_greedy(output)
    assert llm.engine.core.scheduler.pool.num_free == llm.stats().num_blocks


def test_a_request_whose_settings_fail_does_not_end_the_others(llm, oracle, monkeypatch):
    core = llm.engine.core
    add = core.add

    def sabotaged(job):
        if job.prompt_token_ids == [9, 9]:
            job.completions[0].row.scales = "none"
        add(job)

    monkeypatch.setattr(core, "add", sabotaged)
    outputs = llm.generate([[5, 6], [9, 9], [7, 8]], GREEDY)
    assert [output.outputs[0].finish_reason == "error" for output in outputs] == [False, True, False]
    for output in (outputs[0], outputs[2]):
        oracle.check_greedy(output)


def test_a_request_whose_text_fails_does_not_end_the_others(llm, oracle, monkeypatch):
    core = llm.engine.core
    add = core.add

    def sabotaged(job):
        if job.prompt_token_ids == [9, 9]:
            job.completions[0].row.push = None  # type: ignore[method-assign]
        add(job)

    monkeypatch.setattr(core, "add", sabotaged)
    outputs = llm.generate([[5, 6], [9, 9], [7, 8]], GREEDY)
    assert [output.outputs[0].finish_reason == "error" for output in outputs] == [False, True, False]
    oracle.check_greedy(outputs[0])


def test_settings_that_forbid_every_token_end_their_own_request(llm, oracle):
    only = SamplingParams(allowed_token_ids=[5], stop_token_ids=[5], min_tokens=2, max_tokens=4)
    outputs = llm.generate([[5, 6], [7, 8]], [only, GREEDY])
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "no token to choose" in outputs[0].outputs[0].error
    oracle.check_greedy(outputs[1])


def test_weights_that_are_no_numbers_make_no_tokens():
    checkpoint = make_checkpoint()
    checkpoint.params["norm"] = checkpoint.params["norm"] * float("nan")
    (output,) = LLM(checkpoint, enforce_eager=True, **OPTIONS).generate([[5, 6]], GREEDY)
    assert output.outputs[0].finish_reason == "error" and output.outputs[0].token_ids == []


def test_a_form_that_can_not_be_followed_to_its_end_is_told(llm, oracle):
    # The library compiles it, and gives up when the first letter is there.
    form = StructuredOutputsParams(regex="(a?){500}a{500}")
    outputs = llm.generate([[5, 6], [7, 8]], [SamplingParams(max_tokens=8, structured_outputs=form), GREEDY])
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "cannot be followed any further" in outputs[0].outputs[0].error
    oracle.check_greedy(outputs[1])


def test_prompts_are_continued_while_a_stream_is_read(llm):
    (plain,) = llm.generate([5, 6, 7], GREEDY)
    told = []
    for output in llm.stream([5, 6, 7], GREEDY):
        told += output.outputs[0].token_ids
        assert llm.generate([5, 6, 7], GREEDY)[0].outputs == plain.outputs
    assert told == plain.outputs[0].token_ids


def test_a_stream_that_is_left_open_is_in_nobodys_way(llm):
    stream = llm.stream([5, 6], GREEDY)
    next(stream)
    assert len(llm.generate([[5, 6], [7, 8]], GREEDY)) == 2
    stream.close()
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_several_threads_generate_at_a_time(llm):
    (plain,) = llm.generate([5, 6, 7], GREEDY)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: llm.generate([5, 6, 7], GREEDY, use_tqdm=False)[0], range(8)))
    assert all(output.outputs == plain.outputs for output in found)
    assert not llm.engine.core.jobs


def test_an_interrupt_leaves_nothing_behind(llm, oracle, monkeypatch):
    runner = llm.engine.core.runner

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompts(3), GREEDY)
    assert llm.stats().num_free_blocks == llm.stats().num_blocks
    for output in llm.generate(prompts(3), GREEDY):  # no block counts as computed
        oracle.check_greedy(output)


def test_a_step_updates_the_cache_in_place_and_copies_none_of_it(llm):
    runner = llm.engine.core.runner
    for size in (1, 32):
        batch = runner.builder.empty(size)
        memory = runner.forward.lower(runner._cache, batch).compile().memory_analysis()
        assert memory.alias_size_in_bytes == runner.cache_nbytes
        assert memory.temp_size_in_bytes < runner.cache_nbytes / 2


def test_memory_does_not_grow_with_the_number_of_requests(llm):
    params = SamplingParams(max_tokens=2, temperature=0.0)

    def run(count):
        for first in range(0, count, 40):
            llm.generate([[n % 300, first % 300, 7] for n in range(40)], params)
        gc.collect()
        return len(gc.get_objects())

    before = run(200)
    assert run(600) - before < 200


def test_nothing_is_kept_of_requests_that_have_ended(llm):
    core = llm.engine.core
    for seed in range(3):
        llm.generate(prompts(8, seed=seed), GREEDY)
    assert not core.jobs
    assert not core._owners
    assert not core.runner.builder._rows
    assert len(core.runner.builder._free_rows) == OPTIONS["max_num_seqs"]


def test_another_seed_of_the_engine_gives_other_tokens(checkpoint, llm):
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    engines = [LLM(make_checkpoint(), enforce_eager=True, seed=seed, **OPTIONS) for seed in (1, 1, 2)]
    first, second, third = (tokens(engine.generate([5, 6], params)) for engine in engines)
    assert first == second != third
