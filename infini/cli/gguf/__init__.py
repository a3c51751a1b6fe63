"""`infini gguf`: looking into GGUF files, and making them of each other and of model folders."""

from __future__ import annotations

import typer

from infini.cli.gguf import check, convert, rewrite, show

app = typer.Typer(help="Look into GGUF files, convert them and quantise them.", no_args_is_help=True)
app.command("show")(show.show)
app.command("dump")(show.dump)
app.command("split")(rewrite.split)
app.command("merge")(rewrite.merge)
app.command("convert")(convert.convert)
app.command("quantize")(convert.quantize)
app.command("diff")(check.diff)
app.command("set-meta")(rewrite.set_meta)
app.command("verify")(check.verify)
