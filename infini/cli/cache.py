"""`infini cache info` and `infini cache clear`: what earlier runs compiled and left on disk."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infini.cli import output
from infini.compiler import disk_cache
from infini.core import config, errors

app = typer.Typer(help="What earlier runs compiled and left on disk.", no_args_is_help=True)
_MIB = 1 << 20


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the folder, its entries and their size."""
    found = {kind: disk_cache.usage(kind) for kind in disk_cache.KINDS}
    total = sum(usage.num_bytes for usage in found.values())
    limit = config.get("cache_mib")
    if as_json:
        entries = {
            kind: {"num_entries": usage.num_entries, "num_bytes": usage.num_bytes}
            for kind, usage in found.items()
        }
        report = {
            "folder": str(disk_cache.root()),
            "is_used": not config.get("no_cache"),
            "num_bytes": total,
            "limit_bytes": limit * _MIB,
            "kinds": entries,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    rows = [
        (kind, str(usage.num_entries), _mib(usage.num_bytes), disk_cache.KINDS[kind])
        for kind, usage in found.items()
    ]
    is_used = "" if not config.get("no_cache") else ", not used: INFINI_NO_CACHE is set"
    output.show_table(str(disk_cache.root()), rows, header=("kind", "entries", "size", "what it is"))
    output.say(f"{_mib(total)} of at most {limit} MiB{is_used}")


@app.command()
def clear(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="Kinds to remove; all when none is named.")
    ] = None,
) -> None:
    """Remove what is kept; it is compiled again when it is needed."""
    unknown = [kind for kind in kinds or () if kind not in disk_cache.KINDS]
    if unknown:
        raise errors.ValueMismatchError(
            "there is nothing of this kind on disk", got=unknown[0], expected=", ".join(disk_cache.KINDS)
        )
    freed = disk_cache.clear(tuple(kinds) if kinds else tuple(disk_cache.KINDS))
    output.say(f"{_mib(freed)} removed")


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:.1f} MiB"
