"""`infini gguf`, on a small model with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infini.cli import app
from infini.io import gguf, hugging_face
from infini.io.tensors import write_tensors
from infini.llm.text import tokenizer as tokenizer_
from tests.llm.checkpoints import gguf_models
from tests.llm.text import vocabularies

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["gguf", *(str(argument) for argument in arguments)])


def _ok(*arguments: object) -> str:
    found = _run(*arguments)
    assert found.exit_code == 0, found.output
    return found.stdout


def _flat(found: Result) -> str:
    """Output without the frames and line breaks of tables and panels."""
    return " ".join(
        "".join(
            letter if letter.isprintable() and letter not in "│┃" else " " for letter in found.output
        ).split()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in Hugging Face's layout."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    path.mkdir()
    inner = vocabularies.byte_level()
    size = 4 + max(inner.get_vocab_size(), vocabularies.sentencepiece().get_vocab_size())
    tensors = dict(gguf_models.tensors("llama, wide"))
    rng = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((size, 256)).astype(np.float32)
    config = {**gguf_models.config("llama, wide"), "vocab_size": size}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(inner.to_str())
    stated = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    write_tensors(path / "model.safetensors", tensors, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """The same model in GGUF."""
    path = folder.with_name("tiny.gguf")
    _ok("convert", folder, path)
    return path


def test_a_folder_becomes_a_file(folder: Path, file: Path):
    found = gguf.read(file)
    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["general.name"] == "tiny"
    assert found.metadata["tokenizer.ggml.model"] == "gpt2"
    assert found.metadata["tokenizer.ggml.pre"] == "qwen2"
    assert found.metadata["tokenizer.chat_template"] == TEMPLATE
    assert {x.type.name for x in found.tensors.values()} == {"F32"}


def test_the_tokenizer_of_the_file_is_that_of_the_folder(folder: Path, file: Path):
    own, other = tokenizer_.from_folder(folder), tokenizer_.from_gguf(gguf.read(file).metadata)
    for text in vocabularies.TRICKY:
        assert other.encode(text) == own.encode(text)
    assert (other.bos_id, other.eos_id) == (own.bos_id, own.eos_id)


def test_further_tokens_that_end_an_answer_are_kept(folder: Path, tmp_path: Path):
    for own in folder.iterdir():
        (tmp_path / own.name).write_bytes(own.read_bytes())
    inner = tokenizer_.from_folder(folder)
    ends = [inner.eos_id, inner.token_id("<tool_call>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    _ok("convert", tmp_path, tmp_path / "a.gguf")
    found = tokenizer_.from_gguf(gguf.read(tmp_path / "a.gguf").metadata)
    assert set(tokenizer_.from_folder(tmp_path).eos_ids) <= set(found.eos_ids)


def test_a_tokenizer_of_sentencepiece_goes_through_a_file(folder: Path, tmp_path: Path):
    inner = vocabularies.sentencepiece()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    _ok("convert", tmp_path, tmp_path / "a.gguf")
    found = gguf.read(tmp_path / "a.gguf").metadata
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.add_bos_token"]) == ("llama", True)
    other = tokenizer_.from_gguf(found)
    for text in vocabularies.TRICKY:
        assert other.encode(text) == inner.encode(text).ids


def test_a_file_becomes_the_folder_that_it_was(folder: Path, file: Path, tmp_path: Path):
    _ok("convert", file, tmp_path / "back")
    found, expected = hugging_face.read_model(tmp_path / "back"), hugging_face.read_model(folder)
    assert found.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        np.testing.assert_array_equal(found.tensors[name], expected.tensors[name])
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == TEMPLATE
    own, other = tokenizer_.from_folder(folder), tokenizer_.from_folder(tmp_path / "back")
    assert other.encode("It isn't 12345") == own.encode("It isn't 12345")


def test_a_folder_of_several_files_is_written_file_by_file(file: Path, tmp_path: Path):
    from infini.llm.checkpoints import gguf as own

    own.to_folder(file, tmp_path / "back", dtype="bfloat16", max_shard_bytes=500_000)
    names = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    found = hugging_face.read_model(tmp_path / "back").tensors
    assert len(found) == len(gguf.read(file).tensors)
    assert str(found["model.norm.weight"].dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("type", "types"),
    [
        ("F16", {"F16", "F32"}),
        ("q4_0", {"Q4_0", "Q6_K", "F32"}),
        ("Q8_0", {"Q8_0", "F32"}),
        ("Q4_K", {"Q4_K", "Q6_K", "F32"}),
        ("Q6_K", {"Q6_K", "F32"}),
    ],
)  # fmt: skip
def test_a_model_is_quantised(file: Path, tmp_path: Path, type: str, types: set[str]):
    _ok("quantize", file, tmp_path / "q.gguf", type)
    assert {x.type.name for x in gguf.read(tmp_path / "q.gguf").tensors.values()} == types


def test_converting_to_few_bits_is_converting_and_quantising(folder: Path, file: Path, tmp_path: Path):
    _ok("convert", folder, tmp_path / "a.gguf", "--type", "Q4_K_M")
    _ok("quantize", file, tmp_path / "b.gguf", "Q4_K_M")
    assert _run("diff", tmp_path / "a.gguf", tmp_path / "b.gguf").exit_code == 0


def test_types_of_the_ends_can_be_chosen(file: Path, tmp_path: Path):
    _ok(
        "quantize",
        file,
        tmp_path / "q.gguf",
        "Q4_0",
        "--output-tensor-type",
        "f16",
        "--token-embedding-type",
        "q8_0",
    )
    found = gguf.read(tmp_path / "q.gguf").tensors
    assert (found["output.weight"].type.name, found["token_embd.weight"].type.name) == ("F16", "Q8_0")


def test_pure_gives_all_matrices_one_type(file: Path, tmp_path: Path):
    _ok("quantize", file, tmp_path / "q.gguf", "Q5_K", "--pure")
    found = {x.type.name for x in gguf.read(tmp_path / "q.gguf").tensors.values() if len(x.shape) > 1}
    assert found == {"Q5_K"}


def test_what_is_quantised_is_not_quantised_again_unasked(file: Path, tmp_path: Path):
    _ok("quantize", file, tmp_path / "q.gguf", "Q8_0")
    found = _run("quantize", tmp_path / "q.gguf", tmp_path / "r.gguf", "Q4_0")
    assert found.exit_code == 1
    assert "quantised already" in _flat(found)
    assert not (tmp_path / "r.gguf").exists()
    _ok("quantize", tmp_path / "q.gguf", tmp_path / "r.gguf", "Q4_0", "--allow-requantize")


def test_an_unknown_type_names_those_there_are(file: Path, tmp_path: Path):
    found = _run("quantize", file, tmp_path / "q.gguf", "Q9")
    assert found.exit_code == 1
    assert "Q4_K_M" in _flat(found)


def test_numbers_that_are_not_finite_are_not_quantised(file: Path, tmp_path: Path):
    model = gguf.read(file)
    broken = model.tensors["output.weight"].numpy().copy()
    broken[0, 0] = np.nan
    tensors = [
        x if x.name != "output.weight" else gguf.tensor(x.name, broken, "F32") for x in model.tensors.values()
    ]
    gguf.write(tmp_path / "nan.gguf", model.metadata, tensors)
    found = _run("quantize", tmp_path / "nan.gguf", tmp_path / "q.gguf", "Q4_0")
    assert found.exit_code == 1
    assert "output.weight has NaN" in _flat(found)
    assert _run("verify", tmp_path / "nan.gguf").exit_code == 1


def test_show_lists_metadata_and_tensors(file: Path):
    text = _ok("show", file, "-m", "llama.*", "-t", "blk.0.attn_?.weight")
    assert "llama.context_length" in text
    assert "general.name" not in text
    assert "blk.0.attn_q.weight" in text
    assert "blk.1" not in text


def test_show_cuts_long_lists(file: Path):
    few = json.loads(_ok("show", file, "--json", "-n", "3"))["metadata"]["tokenizer.ggml.tokens"]["value"]
    every = json.loads(_ok("show", file, "--json", "-n", "all"))["metadata"]["tokenizer.ggml.tokens"]["value"]
    assert (few, len(every)) == (every[:3], len(gguf.read(file).metadata["tokenizer.ggml.tokens"]))


def test_show_gives_the_numbers_of_a_tensor(file: Path):
    found = json.loads(_ok("show", file, "--data", "output_norm.weight", "--json", "-n", "2"))
    numbers = gguf.read(file).tensors["output_norm.weight"].numpy()
    assert found["first"] == pytest.approx(numbers[:2].tolist(), rel=1e-5)
    assert found["max"] == pytest.approx(float(numbers.max()))
    assert "output_norm.weight" in _flat(_run("show", file, "--data", "output_nor"))


def test_show_takes_patterns_and_counts_a_model_once(file: Path, tmp_path: Path):
    _ok("split", file, "-t", "8", "-o", tmp_path)
    found = json.loads(_ok("show", tmp_path / "*.gguf", "--json"))
    assert len(found["files"]) == 3
    assert _run("show", tmp_path / "*.nothing").exit_code == 1


def test_split_and_merge_give_the_file_back(file: Path, tmp_path: Path):
    report = json.loads(_ok("split", file, "-s", "400k", "-o", tmp_path, "--json"))
    first = report["files"][0]["path"]
    assert first.endswith(f"tiny-00001-of-{len(report['files']):05}.gguf")
    assert _ok("merge", first, "-o", tmp_path / "m.gguf") == f"{tmp_path / 'm.gguf'}\n"
    assert (tmp_path / "m.gguf").read_bytes() == file.read_bytes()


def test_the_first_file_can_be_left_without_tensors(file: Path, tmp_path: Path):
    _ok("split", file, "-t", "100", "--no-tensor-first", "-o", tmp_path)
    headers = gguf.read(tmp_path / "tiny-00001-of-00002.gguf").headers
    assert [len(header.tensors) for header in headers] == [0, len(gguf.read(file).tensors)]


def test_split_needs_a_limit(file: Path):
    assert "--max-bytes" in _flat(_run("split", file))
    assert "such as" in _flat(_run("split", file, "-s", "many"))


def test_metadata_are_set_and_removed(file: Path, tmp_path: Path):
    target = tmp_path / "m.gguf"
    _ok(
        "set-meta",
        file,
        "general.name=new name",
        "llama.context_length=128",
        "a.b=7",
        "a.c:u16=7",
        "a.d=[1.5, 2]",
        "a.e:str=8",
        "a.f:i8[]=[1]",
        "-r",
        "general.type",
        "-o",
        target,
    )
    found = gguf.read(target).metadata.fields
    assert found["general.name"].data == "new name"
    assert (found["llama.context_length"].data, found["llama.context_length"].kind.name) == (128, "UINT32")
    kinds = {key: found[key].type_name for key in ("a.b", "a.c", "a.d", "a.e", "a.f")}
    assert kinds == {
        "a.b": "uint32", "a.c": "uint16", "a.d": "array of float32", "a.e": "string", "a.f": "array of int8",
    }  # fmt: skip
    assert "general.type" not in found
    tensors = gguf.read(target).tensors
    np.testing.assert_array_equal(
        tensors["output.weight"].data, gguf.read(file).tensors["output.weight"].data
    )


def test_metadata_are_changed_in_place(file: Path, tmp_path: Path):
    copy = tmp_path / "c.gguf"
    copy.write_bytes(file.read_bytes())
    _ok("set-meta", copy, "general.name=other")
    assert gguf.read(copy).metadata["general.name"] == "other"
    found = _run("diff", file, copy)
    assert found.exit_code == 1
    assert "general.name" in found.stdout


def test_what_dump_prints_set_meta_takes(file: Path, tmp_path: Path):
    (tmp_path / "meta.json").write_text(_ok("dump", file, "-t", ""))
    gguf.write(tmp_path / "bare.gguf", {}, gguf.read(file).tensors.values())
    _ok("set-meta", tmp_path / "bare.gguf", "--from", tmp_path / "meta.json")
    assert (tmp_path / "bare.gguf").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "change",
    ["general.name", "llama.context_length=long", "x:uint3=1", "x:uint8=300", "llama.context_length=-4"],
)
def test_values_that_do_not_fit_change_nothing(file: Path, tmp_path: Path, change: str):
    found = _run("set-meta", file, change, "-o", tmp_path / "m.gguf")
    assert found.exit_code == 1
    assert not (tmp_path / "m.gguf").exists()


def test_equal_files_have_no_differences(file: Path):
    found = _run("diff", file, file, "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout) == []


def test_differences_are_filtered(file: Path, tmp_path: Path):
    _ok("quantize", file, tmp_path / "q.gguf", "Q8_0")
    found = json.loads(
        _run("diff", file, tmp_path / "q.gguf", "--json", "-t", "output.weight", "-m", "").stdout
    )
    assert [own["name"] for own in found] == ["output.weight"]
    assert 0 < found[0]["rms"] < 0.01


def test_a_sound_file_verifies(file: Path):
    assert json.loads(_ok("verify", file, "--json")) == {str(file): []}


def test_a_cut_file_does_not_verify(file: Path, tmp_path: Path):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    found = _run("verify", file, tmp_path / "*.gguf", "--json")
    assert found.exit_code == 1
    reports = json.loads(found.stdout)
    assert reports[str(file)] == []
    assert "cut.gguf is damaged" in reports[str(tmp_path / "cut.gguf")][0]["what"]


def test_a_folder_without_a_model_is_an_error(tmp_path: Path):
    found = _run("convert", tmp_path, tmp_path / "a.gguf")
    assert found.exit_code == 1
    assert "config.json" in _flat(found)


def test_a_folder_is_not_written_over_a_folder(folder: Path, tmp_path: Path):
    assert "name a file" in _flat(_run("convert", folder, tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    found = _run("convert", folder.with_name("tiny.gguf"), tmp_path)
    assert found.exit_code == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_model_without_one_of_its_weights_does_not_verify(file: Path, tmp_path: Path):
    model = gguf.read(file)
    kept = [x for x in model.tensors.values() if x.name != "blk.1.ffn_up.weight"]
    gguf.write(tmp_path / "m.gguf", model.metadata, kept)
    found = _run("verify", tmp_path / "m.gguf", "--json")
    assert found.exit_code == 1
    assert "mlp.up_proj" in found.stdout
