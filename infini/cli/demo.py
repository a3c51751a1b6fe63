"""`infini demo`: a language model from nothing in a few minutes, on text that every Python brings along. At
the end it writes, and answers one call over HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from infini.cli import generate, output, served, serving, training
from infini.llm.engine.llm import LLM
from infini.llm.sampling.params import SamplingParams
from infini.train import options, runs
from infini.train.configuration import Configuration

# Windows that start anywhere: with few seconds the text is seen once, and no window is like another.
CONFIGURATION: Final = options.override(Configuration(), ["data.order=random"])
PROMPT: Final = "    def __init__(self, name"


def command(
    out: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("demo-model"),
    seconds: Annotated[float, typer.Option(help="Seconds of training.")] = 90.0,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue at the end.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to continue it by.", min=1)] = 128,
) -> None:
    """Train a small language model on Python's standard library, let it write Python, and serve it."""
    chosen = options.override(CONFIGURATION, [f"run.seconds={seconds}"])
    result = training.run(chosen, runs.Places.of_model(out))
    if result.outcome.stopped_by == "interrupt":
        output.console(stderr=True).print(
            f"interrupted after {result.outcome.num_steps} steps; what there is was saved"
        )
    # Read back what was written: the text below comes from the folder, not from memory.
    engine = LLM(out, max_num_seqs=1, enforce_eager=True)
    output.console(stderr=True).rule("the model continues a prompt")
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=max_new_tokens, seed=0)
    generate.continue_prompt(engine, prompt, params)
    engine.close()
    _serve(out, prompt)
    output.say(f'again: infini generate {out} -p "import "\n       infini serve {out}')


def _serve(model: Path, prompt: str) -> None:
    """One chat completion over HTTP, where the packages of the server are installed."""
    missing = serving.missing_packages()
    if missing:
        output.say(f'not served: no {", ".join(missing)}; pip install "infini[llm]" brings them')
        return
    output.console(stderr=True).rule("the model answers over HTTP")
    answer = served.ask_once(model, prompt, max_tokens=48)
    output.say(f"infini serve {model}\nPOST {answer.url}/v1/chat/completions")
    output.stream(answer.text + "\n")
    output.say(f"{answer.num_tokens} tokens; the server has ended with status {answer.status}")
