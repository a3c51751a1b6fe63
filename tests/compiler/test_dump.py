"""Files that the knob `dump` asks for: one folder per program, with an index that leads to all of them."""

from __future__ import annotations

import re

import numpy as np
import pytest

import infini
import infini.numpy as inp
from infini.compiler import dump, pipeline
from infini.compiler.triton import texts
from infini.core import errors, execute, text
from tests.compiler.programs import f32, program_of

X = np.ones((16, 32), np.float32)


def loss(x, w):
    hidden = inp.tanh(x @ w) * 1.0
    return (hidden / hidden.sum(-1, keepdims=True)).sum()


@pytest.fixture
def dumped(tmp_path):
    """Compile `loss` with the knob set; the files by their path in its folder."""

    def run(*names):
        execute.clear_caches()
        with infini.config(dump=",".join(names), dump_dir=str(tmp_path)):
            infini.jit(infini.grad(loss, 1)).lower(X, X.T.copy()).compile()
        (folder,) = tmp_path.glob("loss.*")
        return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}

    return run


def test_all_writes_every_stage_and_the_index_names_every_file(dumped):
    files = dumped("all")
    index = files.pop("index.md")
    assert set(re.findall(r"\]\(([^)]+)\)", index)) == set(files)
    suffixes = {re.sub(r".*\.", ".", name) for name in files}
    assert suffixes == {".ir", ".tile", ".ll", ".s", ".py"}
    assert all(f"| {name} |" in index for name in ("traced", "simplify", "fuse")) and "unchanged" in index


def test_programs_of_passes_are_read_back(dumped):
    files = {name: content for name, content in dumped("all").items() if name.endswith(".ir")}
    programs = {name: text.parse(content) for name, content in files.items()}
    names = sorted(programs)
    assert names[0] == "00.traced.ir" and names[-1].endswith("fuse.ir")
    assert len({program.fingerprint for program in programs.values()}) == len(programs)


def test_kernels_have_the_users_lines_as_comments(dumped):
    files = dumped("kernels", "llvm", "assembly")
    kernels = {name: content for name, content in files.items() if name.startswith("kernels/")}
    marks = {".tile": "# ", ".ll": "; ", ".s": ("# ", "// ")}
    for name, content in kernels.items():
        head = content.splitlines()[:6]
        assert any(
            "test_dump.py:" in line and line.startswith(marks[name[name.rindex(".") :]]) for line in head
        )
    tanh = next(content for name, content in kernels.items() if name.endswith(".tile") and "tanh" in content)
    assert "hidden = inp.tanh(x @ w) * 1.0" in tanh and "  grid (" in tanh and "  load " in tanh
    assert not any(name.endswith(".ir") for name in files)


def test_triton_writes_what_a_gpu_would_get(dumped):
    files = dumped("triton")
    index = files.pop("index.md")
    assert files and all(name.startswith("triton/") and f"({name})" in index for name in files)
    text = "\n".join(files.values())
    assert "def matmul(x_ptr, w_ptr" in text and "@triton.jit" in text
    assert re.search(r"# test_dump.py:\d+: hidden = inp.tanh\(x @ w\) \* 1.0", text)


def test_a_program_without_a_route_on_gpus_says_so():
    program = infini.jit(lambda x: inp.linalg.eigh(x)[0]).trace(inp.ones((4, 4))).program
    ((name, text),) = texts.of_program(program).items()
    assert (
        name == "00.refused" and "eigh" in text and all(line.startswith("# ") for line in text.splitlines())
    )


def test_a_program_for_the_cpu_shows_its_text_for_a_gpu():
    compiled = infini.jit(loss).lower(X, X.T.copy()).compile()
    text = compiled.as_text("triton")
    assert text.startswith("# launched with") and "def matmul(x_ptr, w_ptr" in text


def test_one_pass_is_written_before_and_after(tmp_path):
    with infini.config(dump="simplify", dump_dir=str(tmp_path)):
        pipeline.run(program_of(lambda x: x * 1.0 + 2.0, f32(4)), pipeline.basis_route, backend="test")
    (folder,) = tmp_path.iterdir()
    before, after = sorted(folder.glob("*.ir"))
    assert before.name == "00.traced.ir" and after.name.endswith(".simplify.ir")
    assert "mul(" in before.read_text() and "mul(" not in after.read_text()


def test_a_folder_is_replaced_as_a_whole(tmp_path, dumped):
    dumped("all")
    again = dumped("fuse")
    assert set(again) == {"index.md", *(n for n in again if n.endswith(".ir"))} and len(again) == 3
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_unknown_stage_is_named(tmp_path):
    with (
        infini.config(dump="fusion", dump_dir=str(tmp_path)),
        pytest.warns(errors.InfiniWarning, match="names fusion; there are all, .*fuse"),
    ):
        pipeline.run(program_of(lambda x: x + 2.0, f32(4)), pipeline.basis_route, backend="test")


def test_nothing_is_kept_without_the_knob():
    assert dump.recorder() is None
