"""`infini generate` and `infini batch` on a model folder; see `tests/cli/test_commands.py`, too."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner, Result

from infini.cli import app, batch
from infini.core import errors
from infini.llm import models
from tests.llm.engine.conftest import make_checkpoint, make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    checkpoint = make_checkpoint(scale=0.3)
    tensors = {}
    for weight in models.family_of(checkpoint.config_json).weights(checkpoint.config):
        node = checkpoint.params
        for key in weight.path:
            node = node[key]
        tensors[weight.names[0]] = np.asarray(node)
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(checkpoint.config_json))
    (path / "tokenizer.json").write_text(make_tokenizer().to_json())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return path


def run(*arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def test_generate_writes_the_prompt_and_what_follows(folder):
    result = run("generate", folder, "-p", "the quick", "-n", 8, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the quick")
    assert "tokens/s" in result.stderr
    alone = run("generate", folder, "-p", "the quick", "-n", 8, "--seed", 3, "--no-echo")
    assert "the quick" + alone.stdout == result.stdout


def test_generate_writes_json_for_programs(folder):
    common = ("generate", folder, "-n", 8, "--temp", 0, "--ignore-eos")
    plain = json.loads(run(*common, "-p", "the quick", "--json").stdout)
    assert len(plain["token_ids"]) == 8
    assert plain["finish_reason"] == "length"
    proposed = json.loads(
        run(*common, "-p", "-", "--json", "--spec-method", "ngram", typed="the quick").stdout
    )
    assert proposed["token_ids"] == plain["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--spec-method", "draft"], "--draft-model"),
        (["-ctk", "int3"], "kv_cache_dtype"),
        (["-c", "4096"], "max_model_len"),
        (["-q", "q9"], "quanti"),
    ],
)
def test_generate_names_what_is_wrong(folder, arguments, words):
    result = run("generate", folder, "-p", "x", *arguments)
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def call(name: str, **changes) -> str:
    body = {"prompt": "the quick", "max_tokens": 4, "model": "any"}
    line = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line | changes)


def test_batch_answers_every_line_and_goes_on_where_it_was(folder, tmp_path):
    lines = [
        call("a"),
        call(
            "b",
            url="/v1/chat/completions",
            body={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        ),
        call("c", body={"prompt": "x", "top_p": 7}),
        call("d", method="GET"),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines[:2]) + "\n\n")
    files = ("-np", 2, "-b", 32, "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    first = run("batch", folder, *files)
    assert first.exit_code == 0, first.output
    with (tmp_path / "out.jsonl").open("a") as out:
        out.write('{"custom_id": "c", "resp')  # the process was ended while it wrote
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    second = run("batch", "--model", folder, *files)
    assert "2 of 4 lines have answers" in second.stderr
    assert "2 lines answered, 2 of them with an error" in second.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = {answer["custom_id"]: answer for answer in answers}
    assert len(answers) == len(found) == 4
    assert found["a"]["response"]["body"]["usage"]["completion_tokens"] == 4
    assert found["b"]["response"]["body"]["object"] == "chat.completion"
    assert found["c"]["response"]["status_code"] == 400
    assert found["d"]["error"]["message"].startswith("method")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no JSON"), ("{}", "no custom_id"), (f"{call('a')}\n{call('a')}", "have one custom_id")],
)
def test_batch_names_what_is_wrong_with_a_file(text, words, tmp_path):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(errors.ValueMismatchError, match=words):
        batch.read_calls(tmp_path / "in.jsonl")


def test_batch_does_not_write_behind_what_is_no_answer(tmp_path):
    (tmp_path / "notes.txt").write_text("precious\n")
    with pytest.raises(errors.ValueMismatchError, match="no answer of a batch"):
        batch.read_done(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"url": "/v1/files"}, "url"), ({"body": 3}, "body"), ({"body": {"stream": True}}, "streamed")],
)
def test_batch_answers_wrong_lines_with_an_error(changes, words, tmp_path):
    (tmp_path / "in.jsonl").write_text(call("a", **changes))
    (found,) = batch.read_calls(tmp_path / "in.jsonl")
    assert words in found.error


def test_calls_have_ended_when_an_interrupt_closes_a_batch():
    ended = []

    class Client:
        async def post(self, url, json):
            try:
                await asyncio.sleep(json["seconds"])
            finally:
                await asyncio.sleep(0)  # giving back what a call holds takes a turn
                ended.append(json["seconds"])
            return httpx.Response(200, json={})

    async def interrupted():
        calls = [batch.Call(str(seconds), "/v1/completions", {"seconds": seconds}) for seconds in (0, 60, 61)]
        answers = batch._answers(Client(), calls, 3)
        first = await anext(answers)
        await answers.aclose()
        return first["custom_id"]

    assert asyncio.run(interrupted()) == "0"
    assert sorted(ended) == [0, 60, 61]
