"""`mpirun -n 2 infini serve MODEL --tp 2`: one server, two processes, one end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import httpx
import pytest

from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from tests.llm.engine.conftest import OPTIONS, make_checkpoint, write_folder
from tests.parallel import jobs

PROMPT = [5, 6, 7, 8, 9]


def url_of(log) -> str:
    """What the server says about where it listens."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if "listening on http" in line:
                return next(word for word in line.split() if word.startswith("http"))
        time.sleep(0.05)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.mark.multi
def test_two_processes_serve_and_end_together(mpirun_path, tmp_path):
    folder = write_folder(tmp_path / "model", make_checkpoint(3))
    alone = LLM(folder, **OPTIONS)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    expected = alone.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].text
    options = ["--tp", "2", "--port", "0", "--max-num-seqs", "2", "--max-num-batched-tokens", "32"]
    command = [mpirun_path, "-n", "2", sys.executable, "-m", "infini", "serve", str(folder), *options]
    log = tmp_path / "log"
    with log.open("w") as file:
        job = subprocess.Popen(
            command, stdout=file, stderr=file, env=jobs.environment(INFINI_DEVICE="cpu"), cwd=jobs.ROOT
        )
    try:
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(url_of(log) + "/v1/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["text"] == expected
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 0, log.read_text()
    finally:
        job.kill()
        job.wait()
    words = log.read_text()
    assert words.count("Application startup complete.") == 1
    assert "collective-waits" not in words and "Traceback" not in words
