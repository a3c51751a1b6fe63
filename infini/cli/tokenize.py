"""`infini tokenize`: a text as tokens, and tokens as text."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from infini.cli import output
from infini.core import errors


def command(
    model: Annotated[str, typer.Argument(help="Model folder, GGUF file, tokenizer.json, or a pulled model.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Text, or ids with --decode. Without it, or for -, standard input is read."),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", "-d", help="Ids to text.")] = False,
    special: Annotated[
        bool, typer.Option(help="Add the tokens that stand around a text; show special tokens of ids.")
    ] = True,
    count: Annotated[bool, typer.Option("--count", help="Print the number of tokens alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Show the tokens of a text, or the text of ids."""
    from infini.llm import hub
    from infini.llm.text import tokenizer

    tokens = tokenizer.load(hub.place_of(model))
    given = sys.stdin.read() if not text or text == ["-"] else " ".join(text)
    if decode:
        ids = _ids(given)
        unknown = next((id for id in ids if id >= tokens.vocab_size), None)
        if unknown is not None:
            raise errors.ValueMismatchError(
                "there is no such token", got=str(unknown), expected=f"ids below {tokens.vocab_size}"
            )
        shown = tokens.decode(ids, skip_special_tokens=not special)
        typer.echo(json.dumps({"tokens": ids, "text": shown}, ensure_ascii=False) if as_json else shown)
        return
    ids = tokens.encode(given, add_special_tokens=special)
    if count and not as_json:
        typer.echo(len(ids))
        return
    texts = [tokens.token_bytes(id).decode("utf-8", "replace") for id in ids]
    if as_json:
        typer.echo(json.dumps({"count": len(ids), "tokens": ids, "token_strs": texts}, ensure_ascii=False))
        return
    for id in ids:
        output.stream(f"{id:>8}  {_shown(tokens.token_bytes(id))}\n")
    output.console(stderr=True).print(f"{len(ids)} tokens, {len(given.encode())} bytes")


def _shown(token: bytes) -> str:
    """A token in quotes; half a character as its bytes."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def _ids(text: str) -> list[int]:
    """Numbers, separated by spaces or commas, with or without brackets."""
    parts = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    wrong = next((part for part in parts if not part.isdigit()), None)
    if wrong is not None:
        raise errors.ValueMismatchError(
            "an id is no number", got=repr(wrong[:40]), expected="1 2 3, or [1, 2, 3]"
        )
    return [int(part) for part in parts]
