"""`infini bench serve` as its user runs it, against a server whose answers are known."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infini.cli.app import app
from tests.llm.benchmarks import stub as stub_


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(scope="module")
def stub():
    with stub_.serving(stub_.Stub(first_s=0.0, gap_s=0.0)) as found:
        yield found


def serve(stub, *arguments: str):
    fixed = ["--base-url", stub.url, "--num-prompts", "5", "--input-len", "7", "--output-len", "3"]
    return run("serve", *fixed, *arguments)


def test_serve_prints_the_report_to_standard_output(stub):
    done = serve(stub, "--metric-percentiles", "50,90", "--percentile-metrics", "ttft,e2el")
    assert done.exit_code == 0, done.output
    assert "Successful requests:                     5" in done.stdout
    assert "Total input tokens:                      35" in done.stdout
    assert "Total generated tokens:                  15" in done.stdout
    assert "P90 E2EL (ms):" in done.stdout and "ITL" not in done.stdout


def test_serve_writes_its_result_as_json(stub, tmp_path):
    options = ["--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json", "--json"]
    done = serve(stub, "--goodput", "ttft:60000", *options)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "r.json").read_text())
    assert printed["output_lens"] == [3] * 5
    assert printed["request_goodput"] == pytest.approx(printed["request_throughput"])


def test_serve_passes_more_fields_on(stub):
    done = serve(stub, "--extra-body", '{"top_p": 0.5}', "--ignore-eos", "--temperature", "0.7")
    assert done.exit_code == 0, done.output
    body = stub.bodies[-1]
    assert (body["top_p"], body["ignore_eos"], body["temperature"]) == (0.5, True, 0.7)
    assert len(body["prompt"]) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--goodput", "speed:3"], "ttft:MS"),
        (["--metric-percentiles", "101"], "0 to 100"),
        (["--percentile-metrics", "ttft,ttfx"], "'ttfx'"),
        (["--extra-body", "[1]"], "no object"),
        (["--backend", "openai-chat"], "--tokenizer"),
        (["--dataset-name", "sharegpt"], "--dataset-path"),
        (["--request-rate", "0"], "request_rate"),
    ],
)
def test_serve_names_what_is_wrong_with_an_option(stub, arguments, words):
    done = serve(stub, *arguments)
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())


def test_serve_without_a_server_says_how_to_start_one():
    done = run("serve", "--port", "9", "--num-prompts", "1")
    assert done.exit_code == 1
    assert "infini serve MODEL" in " ".join(done.stderr.split())
