"""The openai client against `infini serve`. Run: infini serve MODEL, then: python examples/openai_client.py

Any client of OpenAI's API works: only its base_url is another one. A server that has keys gets one as
api_key; without keys the client still wants a text there. Needs the package openai.
"""

import argparse
import json

import openai

QUESTION = [{"role": "user", "content": "Name a city and the days to spend there."}]
TRIP = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "maximum": 30}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def answer(client, model):
    """One answer, whole: its text, why it ended, and what it used."""
    found = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=32, seed=1)
    choice = found.choices[0]
    print(f"{choice.message.content!r} ended by {choice.finish_reason}")
    print(f"{found.usage.prompt_tokens} tokens of the prompt, {found.usage.completion_tokens} of the answer")
    return found


def stream(client, model):
    """The same answer while it is made: the seed is the same."""
    pieces = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=32, seed=1, stream=True
    )
    text = ""
    for piece in pieces:
        text += piece.choices[0].delta.content or ""
        print(piece.choices[0].delta.content or "", end="", flush=True)
    print()
    return text


def likely_tokens(client, model):
    """What the model would have said with which probability, for the first tokens of an answer."""
    found = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=3, temperature=0, logprobs=True, top_logprobs=3
    )
    for token in found.choices[0].logprobs.content:
        print(repr(token.token), {other.token: round(other.logprob, 2) for other in token.top_logprobs})
    return found


def trip(client, model):
    """An answer in the form of a JSON schema. Every model keeps it: other tokens are never chosen."""
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP}}
    found = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=200, response_format=form
    )
    print(found.choices[0].message.content)
    return json.loads(found.choices[0].message.content)


def several(client, model):
    """Three continuations of a text, which need no chat template. Fields of vLLM go into extra_body."""
    found = client.completions.create(
        model=model, prompt="Once upon a time", n=3, max_tokens=16, extra_body={"min_p": 0.05}
    )
    for choice in found.choices:
        print(f"{choice.index}: {choice.text!r}")
    return found


def main(base_url="http://127.0.0.1:8000/v1", api_key="none"):
    """Ask for everything once; returns the trip."""
    with openai.OpenAI(base_url=base_url, api_key=api_key) as client:
        model = next(iter(client.models.list())).id
        print(f"the server has {model}")
        answer(client, model)
        stream(client, model)
        likely_tokens(client, model)
        several(client, model)
        found = trip(client, model)
        try:
            client.chat.completions.create(model=model, messages=QUESTION, temperature=9)
        except openai.BadRequestError as error:
            print(f"{error.param} is refused: {error.body['message']}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    options = parser.parse_args()
    main(options.base_url, options.api_key)
