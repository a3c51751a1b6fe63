"""Which tensor gets which type: as in the files that llama-quantize made of the same models in November
2026.
"""

from __future__ import annotations

import numpy as np
import pytest

from infini.core import errors
from infini.io import gguf
from infini.llm.checkpoints.gguf import quantizing
from tests.llm.checkpoints import record_llamacpp


def _model(*, layers=9, feed_forward=512, experts=0, is_tied=False, is_fused=False):
    """Tensors without numbers, and metadata."""
    parts = {"attn_norm": (256,), "attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256),
             "attn_output": (256, 256), "ffn_norm": (256,), "ffn_gate": (feed_forward, 256),
             "ffn_up": (feed_forward, 256), "ffn_down": (256, feed_forward)}  # fmt: skip
    if is_fused:
        parts = {name: shape for name, shape in parts.items() if name not in ("attn_q", "attn_k", "attn_v")}
        parts["attn_qkv"] = (512, 256)
    if experts:
        parts = {(f"{n}_exps" if n in ("ffn_gate", "ffn_up", "ffn_down") else n): s for n, s in parts.items()}
        parts = {n: ((experts, *s) if n.endswith("_exps") else s) for n, s in parts.items()}
        parts["ffn_gate_inp"] = (experts, 256)
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in parts.items()}
    ends = {"token_embd.weight": (128, 256), "output_norm.weight": (256,)}
    if not is_tied:
        ends["output.weight"] = (128, 256)
    f32 = gguf.type_of("F32")
    metadata = {
        "general.architecture": gguf.value_of("llama"),
        "llama.block_count": gguf.value_of(layers),
        "llama.expert_count": gguf.value_of(experts),
    }
    empty = lambda: np.zeros(0, np.uint8)  # noqa: E731
    tensors = [gguf.GGUFTensor(name, f32, shape, empty) for name, shape in (ends | shapes).items()]
    return gguf.Metadata(metadata), tensors


PLAIN, TIED, ODD = _model(), _model(is_tied=True), _model(feed_forward=544)
MIXTRAL, FUSED = _model(layers=5, experts=8), _model(is_fused=True)
MORE = "0 3 6 7 8"
CASES = {
    "Q4_0": (PLAIN, "Q4_0", {"Q6_K": "output"}),
    "Q8_0": (PLAIN, "Q8_0", {}),
    "F16": (PLAIN, "F16", {}),
    "Q4_K_S": (PLAIN, "Q4_K_S", {"Q5_K": "0.ffn_down 0.attn_v 1.attn_v 2.attn_v 3.attn_v", "Q6_K": "output"}),
    "Q4_K_M": (PLAIN, "Q4_K_M", {"Q6_K": f"output ffn_down:{MORE} attn_v:{MORE}"}),
    "Q4_K is Q4_K_M": (PLAIN, "Q4_K", {"Q6_K": f"output ffn_down:{MORE} attn_v:{MORE}"}),
    "Q5_K_M": (PLAIN, "Q5_K_M", {"Q6_K": f"output ffn_down:{MORE} attn_v:{MORE}"}),
    "tied Q4_K_M": (TIED, "Q4_K_M", {"Q6_K": f"token_embd ffn_down:{MORE} attn_v:{MORE}"}),
    "rows of 544, Q4_K_M": (
        ODD,
        "Q4_K_M",
        {"Q6_K": f"output attn_v:{MORE}", "Q8_0": f"ffn_down:{MORE}", "Q5_0": "ffn_down:1 2 4 5"},
    ),
    "rows of 544, Q5_K_M": (
        ODD,
        "Q5_K_M",
        {"Q6_K": f"output attn_v:{MORE}", "Q8_0": f"ffn_down:{MORE}", "Q5_1": "ffn_down:1 2 4 5"},
    ),
    "eight experts, Q4_0": (MIXTRAL, "Q4_0", {"Q8_0": "attn_k:0 1 2 3 4 attn_v:0 1 2 3 4", "Q6_K": "output"}),
    "eight experts, Q4_K_M": (
        MIXTRAL,
        "Q4_K_M",
        {
            "Q8_0": "attn_k:0 1 2 3 4 attn_v:0 1 2 3 4",
            "Q5_K": "attn_output:0 1 2 3 4",
            "Q6_K": "output ffn_down_exps:2 4",
        },
    ),
    "fused, Q4_K_S": (FUSED, "Q4_K_S", {"Q5_K": "0.ffn_down attn_qkv:0 1 2 3", "Q6_K": "output"}),
    "fused, Q4_K_M": (FUSED, "Q4_K_M", {"Q6_K": f"output ffn_down:{MORE} attn_qkv:{MORE}"}),
}


def _names(text):
    """Names of tensors: `output`, `0.ffn_down`, or `ffn_down:0 3 6` for those of some blocks."""
    found, part = set(), ""
    for word in text.split():
        part, number = word.split(":") if ":" in word else (part, word)
        if number.isdigit():
            found.add(f"blk.{number}.{part}.weight")
        else:
            found.add(f"blk.{word}.weight" if word[0].isdigit() else f"{word}.weight")
    return found


@pytest.mark.parametrize("case", CASES)
def test_types_are_those_that_llama_quantize_chooses(case):
    (metadata, tensors), name, expected = CASES[case]
    mixture = quantizing.mixture_of(name)
    _, made = quantizing.choose(metadata, tensors, mixture)
    found = {}
    for x in made:
        is_matrix = len(x.shape) > 1 and "ffn_gate_inp" not in x.name
        assert is_matrix or x.type.name == "F32"
        if is_matrix and x.type.name != mixture.type:
            found.setdefault(x.type.name, set()).add(x.name)
    assert found == {type: _names(text) for type, text in expected.items()}


@pytest.mark.parametrize(
    ("name", "number"), [("Q4_0", 2), ("Q4_K_M", 15), ("Q5_K_S", 16), ("Q6_K", 18), ("BF16", 32)]
)
def test_the_file_says_what_it_is(name, number):
    fields, _ = quantizing.choose(*PLAIN, quantizing.mixture_of(name))
    assert fields["general.file_type"] == gguf.value_of(number)
    assert fields["general.quantization_version"] == gguf.value_of(2)


def test_an_unknown_mixture_names_those_there_are():
    with pytest.raises(errors.ValueMismatchError, match="Q4_K_M"):
        quantizing.mixture_of("Q4_X")


@pytest.mark.parametrize("type", record_llamacpp.QUANTIZED)
def test_a_model_becomes_the_tensors_that_llama_cpp_makes_of_it(type, tmp_path):
    source = record_llamacpp.write("mixtral F32", tmp_path / "source.gguf")
    gguf.write(tmp_path / "made.gguf", *quantizing.quantized(gguf.read(source), type))
    with np.load(record_llamacpp.RECORDED) as recorded:
        expected = recorded[f"quantized {type}"]
    np.testing.assert_array_equal(record_llamacpp.blocks(tmp_path / "made.gguf"), expected)
