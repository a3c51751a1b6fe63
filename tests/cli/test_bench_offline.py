"""`infini bench` and `infini eval` on a tiny model, as their user runs them."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from typer.testing import CliRunner

from infini.cli.app import app
from tests.llm.engine.conftest import TEXT, make_checkpoint, write_folder


def run(*arguments: object):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("bench") / "model", make_checkpoint(1))


def test_latency_prints_the_lines_of_vllm_and_writes_its_keys(folder, tmp_path):
    file = tmp_path / "latency.json"
    sizes = [
        "--input-len",
        5,
        "--output-len",
        3,
        "--batch-size",
        2,
        "--num-iters",
        3,
        "--num-iters-warmup",
        1,
    ]
    printed = run("bench", "latency", folder, *sizes, "--output-json", file)
    assert re.search(r"^Avg latency: \d+\.\d+ seconds$", printed, re.MULTILINE)
    percentiles = re.findall(r"^(\d+)% percentile latency: ", printed, re.MULTILINE)
    assert percentiles == ["10", "25", "50", "75", "90", "99"]
    found = json.loads(file.read_text())
    assert len(found["latencies"]) == 3
    assert found["percentiles"].keys() == {"10", "25", "50", "75", "90", "99"}
    assert found["versions"]["infini"]


def test_throughput_counts_the_tokens_asked_for(folder):
    sizes = ["--num-prompts", 6, "--input-len", 9, "--output-len", 4]
    found = json.loads(run("bench", "throughput", folder, *sizes, "--json"))
    assert (found["total_prompt_tokens"], found["total_output_tokens"]) == (54, 24)
    assert found["tokens_per_second"] == pytest.approx(78 / found["elapsed_time"])


def test_throughput_takes_a_file_of_prompts(folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "output_tokens": 2}) for text in TEXT))
    printed = run("bench", "throughput", folder, "--dataset-name", "custom", "--dataset-path", file)
    assert "Total num output tokens:  6" in printed
    assert re.search(r"^Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, ", printed)


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads(run("bench", "decode", folder, "-p", 16, "-n", 4, "-d", "0,8", "-r", 2, "-o", "json"))


def test_decode_measures_what_llama_bench_does(measured):
    assert [row["test"] for row in measured] == ["pp16", "tg4", "pp16 @ d8", "tg4 @ d8"]
    for row in measured:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        count = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"][0] == pytest.approx(count / row["samples_ns"][0] * 1e9, rel=1e-3)


def test_decode_tells_the_model_and_the_share_of_the_bandwidth(measured):
    prompt, tokens = measured[:2]
    checkpoint = make_checkpoint(1)
    num_params = sum(leaf.size for leaf in _leaves(checkpoint.params))
    assert prompt["model_n_params"] == num_params
    assert prompt["model_size"] == 4 * num_params
    assert prompt["model_type"].startswith("llama ") and prompt["model_type"].endswith(" F32")
    assert prompt["bandwidth_share"] is None
    assert tokens["bandwidth_share"] > 0


def _leaves(node):
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _leaves(child)
    else:
        yield node


@pytest.mark.parametrize("form", ["md", "csv", "jsonl"])
def test_decode_writes_every_form(folder, form):
    printed = run("bench", "decode", folder, "-p", 0, "-n", 2, "-pg", "4,2", "-r", 1, "-o", form)
    if form == "md":
        header, _, first, second = printed.splitlines()
        assert [cell.strip() for cell in header.split("|")[1:8]] == [
            *("model", "size", "params", "backend", "threads", "test", "t/s")
        ]
        assert "tg2" in first and "pp4+tg2" in second
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(printed)))
        assert [row["test"] for row in rows] == ["tg2", "pp4+tg2"]
    else:
        assert [json.loads(line)["n_gen"] for line in printed.splitlines()] == [2, 2]


def test_batched_prints_the_table_of_llama_cpp(folder):
    printed = run("bench", "batched", folder, "-npp", 8, "-ntg", 2, "-npl", "1,3")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert rows[0] == [*("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")]
    assert [row[:4] for row in rows[2:]] == [["8", "2", "1", "10"], ["8", "2", "3", "30"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "-p", "0", "-n", "0"], "nothing to measure"),
        (["decode", "-p", "many"], "'many'"),
        (["decode", "-pg", "4"], "PROMPT,TOKENS"),
        (["throughput", "--dataset-name", "sharegpt"], "--dataset-path"),
    ],
)
def test_what_is_wrong_is_named(folder, arguments, words):
    name, *options = arguments
    done = CliRunner().invoke(app, ["bench", name, str(folder), *options])
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())


def test_perplexity_of_a_text(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(TEXT))
    found = json.loads(run("eval", "ppl", folder, file, "--context", 16, "--json"))
    assert found["num_tokens"] > 20
    assert 20 < found["perplexity"] < 20000  # a random model of 320 tokens
    assert f"perplexity {found['perplexity']:.4f}" in run("eval", "ppl", folder, file, "--context", 16)


def test_windows_are_no_longer_than_the_model(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(TEXT))
    longest = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert json.loads(run("eval", "ppl", folder, file, "--json"))["context"] == min(512, longest - 1)


def test_choices_are_counted_by_subject(folder, tmp_path):
    file, answers = tmp_path / "q.jsonl", tmp_path / "answers.csv"
    lines = [
        {"question": "one", "choices": ["two", "six"], "answer": n % 2, "subject": "ab"[n > 1]}
        for n in range(4)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = json.loads(run("eval", "choices", folder, file, "--output-csv", answers, "--json"))
    # Equal questions have equal answers, and each answer is right once per subject.
    assert found == {"accuracy": 0.5, "num_questions": 4, "subjects": {"a": 0.5, "b": 0.5}}
    rows = list(csv.DictReader(io.StringIO(answers.read_text())))
    assert len({row["chosen"] for row in rows}) == 1
    assert "all" in run("eval", "choices", folder, file)
