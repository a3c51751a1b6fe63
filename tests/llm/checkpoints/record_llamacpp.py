"""Records what llama.cpp computes with the files that we write: `python -m
tests.llm.checkpoints.record_llamacpp`.

It needs llama-cpp-python, which brings llama.cpp. `llamacpp_logits.npz` holds for each case the logits of a
few tokens, with a cache of float32 and without flash attention, and a checksum of the file that gave them.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

from infini.io import gguf
from infini.llm.checkpoints import gguf as checkpoints
from tests.llm.checkpoints import gguf_models

RECORDED = Path(__file__).with_name("llamacpp_logits.npz")
TOKENS = tuple(int(t) for t in np.random.default_rng(5).integers(3, 96, 16))
CASES = {
    "llama F32": ("llama, wide", "F32"),
    "llama F16": ("llama, wide", "F16"),
    "llama Q8_0": ("llama, wide", "Q8_0"),
    "llama Q4_0": ("llama, wide", "Q4_0"),
    "llama 3 F32": ("llama 3", "F32"),
    "qwen2 F32": ("qwen2, wide", "F32"),
    "qwen2 Q5_1": ("qwen2, wide", "Q5_1"),
    "qwen3 F32": ("qwen3, wide", "F32"),
    "qwen3 Q4_1": ("qwen3, wide", "Q4_1"),
    "mixtral F32": ("mixtral", "F32"),
    "minicpm F32": ("minicpm", "F32"),
    "qwen3 moe F32": ("qwen3 moe", "F32"),
    "gemma2 F32": ("gemma2", "F32"),
    "phi3, long F32": ("phi3, long", "F32"),
    "gpt2 F32": ("gpt2", "F32"),
    "deepseek v2 F32": ("deepseek v2", "F32"),
    "deepseek v3 F32": ("deepseek v3", "F32"),
}

# What llama.cpp makes of `mixtral F32`: rows that 256 does not divide, so every type has blocks of 32 there.
QUANTIZED = {
    "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15,
}  # fmt: skip


def write(case: str, path: Path) -> Path:
    """The file of a case."""
    kind, type = CASES[case]
    metadata, tensors = checkpoints.write_model(
        gguf_models.config(kind), gguf_models.tensors(kind), type=type
    )
    gguf.write(path, {**metadata, "tokenizer.ggml.model": "no_vocab"}, tensors)
    return path


def checksum(path: Path) -> np.ndarray:
    """What tells that a file is the one that was recorded."""
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8)


def logits(path: Path) -> np.ndarray:
    """What llama.cpp computes for `TOKENS`."""
    import llama_cpp.llama_cpp as llama

    options = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for place, token in enumerate(TOKENS):
        batch.token[place], batch.pos[place] = token, place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = 1
    if llama.llama_decode(context, batch) != 0:
        raise SystemExit(f"llama.cpp does not run {path}")
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = [
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, place), (size,)).copy()
        for place in range(len(TOKENS))
    ]
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.stack(rows)


def blocks(path: Path) -> np.ndarray:
    """What tells that the tensors of a file are those that were recorded."""
    found = hashlib.sha256()
    for name, x in sorted(gguf.read(path).tensors.items()):
        found.update(f"{name} {x.type} {x.shape}".encode())
        found.update(x.data.tobytes())
    return np.frombuffer(found.digest(), np.uint8)


def quantized(source: Path, target: Path, type: str) -> Path:
    """A file that llama.cpp quantised."""
    import llama_cpp.llama_cpp as llama

    options = llama.llama_model_quantize_default_params()
    options.ftype = QUANTIZED[type]
    options.nthread = 1
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), options) != 0:
        raise SystemExit(f"llama.cpp does not quantise to {type}")
    return target


def main() -> None:
    """Record all cases."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source = write("mixtral F32", Path(folder) / "source.gguf")
        for type in QUANTIZED:
            made = quantized(source, Path(folder) / "made.gguf", type)
            found[f"quantized {type}"] = blocks(made)
            print(type, made.stat().st_size)
        for case in CASES:
            path = write(case, Path(folder) / "model.gguf")
            found[case], found[f"{case}: file"] = logits(path), checksum(path)
            print(case, np.abs(found[case]).max())
    np.savez_compressed(RECORDED, **found)


if __name__ == "__main__":
    main()
