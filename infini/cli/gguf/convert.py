"""`infini gguf convert` and `infini gguf quantize`: GGUF files of model folders, folders of GGUF files, and
models in fewer bits.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from infini.cli.gguf import common
from infini.core import errors
from infini.io import gguf

OutputType = Annotated[
    str | None, typer.Option("--output-tensor-type", help="Type of output.weight, the projection to logits.")
]
EmbeddingType = Annotated[
    str | None,
    typer.Option("--token-embedding-type", help="Type of token_embd.weight, the table of embeddings."),
]


def convert(  # noqa: PLR0913, PLR0917  # typer passes them by name
    source: Annotated[Path, typer.Argument(help="A model folder in Hugging Face's layout, or a GGUF file.")],
    target: Annotated[Path, typer.Argument(help="The GGUF file, or the folder, to write.")],
    type: Annotated[
        str,
        typer.Option(
            "--type",
            help="Folder to file: F32, F16, BF16, Q8_0, Q4_K_M ...; file to folder: float32, float16 or "
            "bfloat16. `auto` keeps what there is.",
        ),
    ] = "auto",
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the file; the folder's when absent.")
    ] = None,
    output_type: OutputType = None,
    embedding_type: EmbeddingType = None,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Write no tokenizer into the file.")
    ] = False,
    max_tensors: common.MaxTensors = None,
    max_bytes: common.MaxBytes = None,
    no_tensor_first: common.NoTensorFirst = False,
    as_json: common.AsJson = False,
) -> None:
    """Make a GGUF file of a model folder, or a model folder of a GGUF file."""
    from infini.llm.checkpoints import gguf as models

    start = time.perf_counter()
    if source.is_file():
        with common.bar("converting") as bar:
            models.to_folder(source, target, dtype=type, on_progress=bar)
        common.report(sorted(target.iterdir()), as_json, seconds=round(time.perf_counter() - start, 1))
        return
    if target.is_dir():
        raise errors.ValueMismatchError(
            "a folder is converted to a file, and this is a folder",
            got=str(target),
            fix=f"name a file: {target / source.name}.gguf",
        )
    with common.bar("converting") as bar:
        paths = models.to_file(
            source,
            target,
            type=type,
            name=name,
            output=output_type,
            embeddings=embedding_type,
            has_tokenizer=not no_tokenizer,
            shards=common.shards_of(max_bytes, max_tensors, no_tensor_first),
            on_progress=bar,
        )
    common.report(paths, as_json, seconds=round(time.perf_counter() - start, 1))


def quantize(  # noqa: PLR0913, PLR0917  # typer passes them by name
    source: Annotated[
        Path, typer.Argument(help="A GGUF file in F32, F16 or BF16, or one of several of a model.")
    ],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    type: Annotated[
        str,
        typer.Argument(
            help="F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K_S, Q4_K_M (= Q4_K), Q5_K_S, Q5_K_M or Q6_K."
        ),
    ],
    output_type: OutputType = None,
    embedding_type: EmbeddingType = None,
    pure: Annotated[bool, typer.Option("--pure", help="Give all matrices the same type.")] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a model that is quantised already.")
    ] = False,
    max_tensors: common.MaxTensors = None,
    max_bytes: common.MaxBytes = None,
    no_tensor_first: common.NoTensorFirst = False,
    as_json: common.AsJson = False,
) -> None:
    """Store a model in fewer bits.

    Which tensor gets which type is llama.cpp's choice for the same name.
    """
    from infini.llm.checkpoints import gguf as models

    start = time.perf_counter()
    model = gguf.read(source)
    fields, tensors = models.quantized(
        model,
        type,
        output=output_type,
        embeddings=embedding_type,
        is_pure=pure,
        may_requantize=allow_requantize,
    )
    with common.bar("quantising") as bar:
        paths = gguf.write(
            target,
            fields,
            tensors,
            shards=common.shards_of(max_bytes, max_tensors, no_tensor_first),
            on_progress=bar,
        )
    before, after = model.nbytes, sum(x.nbytes for x in tensors)
    common.report(
        paths, as_json, seconds=round(time.perf_counter() - start, 1), share=f"{after / max(before, 1):.0%}"
    )
