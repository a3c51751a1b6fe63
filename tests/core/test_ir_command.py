"""`python -m infini.core.ir`: faults and their neighbourhood, pages, comparisons, errors of the parser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infini.core import difference, errors, text
from infini.core.ir.__main__ import app

PROGRAM = """\
# a comment
program @main(%0: f32[2,3]) {
  %1: f32[] = const 2.5
  %2: f32[2,3] = neg(%0)                    # model.py:1
  %3: f32[2,3] = mul(%2, %1)                # model.py:2
  %4: f32[2,3] = exp(%3)                    # model.py:3
  %5: f32[2,3] = tanh(%4)                   # model.py:4
  %6: f32[2] = reduce_sum(%5) {axes=(-1,)}  # model.py:5 via fuse
  %7: f32[2] = sin(%6)                      # model.py:6
  %8: f32[2] = cos(%7)                      # model.py:7
  %9: f32[2] = abs(%8)                      # model.py:8
  %10: f32[2] = floor(%9)                   # model.py:9
  return %10
}
"""
WRONG = PROGRAM.replace("%6: f32[2] =", "%6: f32[3] =")


def write(folder, content, name="program.ir"):
    path = folder / name
    path.write_text(content)
    return path


def command(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def test_without_options_the_program_is_printed(tmp_path):
    done = command(write(tmp_path, PROGRAM))
    assert done.exit_code == 0 and text.parse(done.stdout) == text.parse(PROGRAM)


def test_standard_input_is_read():
    assert command("-", "--check", input=PROGRAM).stdout == "@main: 9 equations, well formed\n"


def test_a_fault_is_shown_with_three_equations_on_either_side_and_the_line(tmp_path):
    done = command(write(tmp_path, WRONG), "--check")
    shown = re.findall(r"^ *(?:--> )? *(%\d+): ", done.stderr, re.M)
    assert done.exit_code == 1
    assert shown == ["%3", "%4", "%5", "%6", "%7", "%8", "%9"]
    assert re.search(r"--> +%6: f32\[3\] = reduce_sum", done.stderr) and "model.py:5" in done.stderr
    assert "gives f32[2], the equation has f32[3]" in done.stderr


def test_the_page_stands_beside_the_file_and_names_lines_and_passes(tmp_path):
    path = write(tmp_path, PROGRAM)
    assert command(path, "--html").exit_code == 0
    page = (tmp_path / "program.ir.html").read_text()
    assert "made by reduce_sum" in page and "via fuse" in page and "model.py:5" in page
    assert "src=" not in page and "http" not in page, "the page needs nothing else"


def test_a_backend_that_computes_something_else_is_reported(tmp_path):
    # The null backend gives zeros.
    done = command(write(tmp_path, PROGRAM.replace("floor(%9)", "exp(%9)")), "--run", "--backend", "null")
    assert done.exit_code == 1 and "DIFFERENT" in done.stdout


def test_programs_that_differ_in_numbers_of_variables_alone_are_equal(tmp_path):
    other = re.sub(r"%(\d+)", lambda m: f"%{int(m[1]) + 100}", PROGRAM)
    done = command(write(tmp_path, PROGRAM), "--diff", write(tmp_path, other, "other.ir"))
    assert done.exit_code == 0 and "structurally equal" in done.stdout


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("tanh(%4)", "sin(%4)"), ["- %5 tanh", "+ %5 sin", "~ %6 reduce_sum", "~ %6 reduce_sum"]),
        (("tanh(%4)", "tanh(%3)"), ["~ %5 tanh", "~ %5 tanh"]),
        (("const 2.5", "const 3.5"), ["- %1 const", "+ %1 const", "~ %3 mul", "~ %3 mul"]),
        (("  return %10", "  return %9"), ["~ return", "~ return"]),
    ],
)
def test_differences_name_the_lines(change, expected):
    other = text.parse(PROGRAM.replace(*change))
    shown = difference.to_text(difference.compare(text.parse(PROGRAM), other))
    lines = [line for line in shown.splitlines() if line[0] in "-+~"]
    short = [re.sub(r"^(.) +(?:(%\d+): \S+ = )?(\w+).*", r"\1 \2 \3", x).replace("  ", " ") for x in lines]
    assert short == expected


def test_differences_inside_bodies_say_where():
    caller = 'program @main(%0: f32[2]) {\n  %1: f32[2] = call(%0) {body=@f, name="f"}\n  return %1\n}\n\n'
    body = "program @f(%0: f32[2]) {\n  %1: f32[2] = sin(%0)\n  return %1\n}"
    programs = [text.parse(caller + body), text.parse(caller + body.replace("sin", "cos"))]
    outer, inner = difference.compare(*programs)
    assert outer.path == "@main" and outer.rows[1].note == "attribute body"
    assert inner.path == "@main > call @f (0)" and inner.count == 3


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("exp(%3)", "exp(%9)"), 6, "%9 is used before it is defined"),
        (("exp(%3)", "explode(%3)"), 6, "no operation named 'explode'"),
        (("f32[2,3] = exp", "f33[2,3] = exp"), 6, "'f33[2,3]' is not an array type"),
        (("exp(%3)", "exp %3"), 6, "not an equation"),
        (("{axes=(-1,)}", "{axes}"), 8, "'axes' is not an attribute"),
        (("{axes=(-1,)}", "{axes=Access(a=1)}"), 8, "Access cannot be made"),
        (("const 2.5", "const [1, 2]"), 3, "not a constant of type f32[]"),
        (("%5: f32", "%4: f32"), 7, "%4 is defined twice"),
        (("  return %10\n", ""), 2, "no return line"),
        (("# a comment", "nonsense"), 1, "does not begin a program"),
        (("  return %10\n}", "  return %10"), 2, "is not closed"),
        (("  return %10\n}", "  return %10\n}\nprogram @f() {\n  return\n}"), 15, "nothing uses @f"),
    ],
)  # fmt: skip
def test_errors_of_the_parser_name_the_line_of_the_text(change, line, message):
    with pytest.raises(errors.ParseError) as raised:
        text.parse(PROGRAM.replace(*change), file="program.ir")
    assert raised.value.what.startswith(f"line {line}: ") and message in str(raised.value)
    assert str(raised.value.where) == f"program.ir:{line}"


def test_a_missing_file_is_named():
    done = command("nowhere.ir")
    assert done.exit_code == 2 and "nowhere.ir cannot be read" in done.stderr.replace("\n", " ")


def test_operations_that_are_not_loaded_with_infini_are_found():
    file = Path(__file__).resolve().parents[1] / "golden" / "programs" / "kernel.ir"
    code = "import sys; from infini.core import text; print(text.parse(sys.stdin.read()).equations[0].op)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=file.read_text(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "kernel\n"


def test_a_callback_of_another_process_is_a_named_error():
    file = Path(__file__).resolve().parents[1] / "golden" / "programs" / "effects.ir"
    other = file.read_text().replace("id=0", "id=999999999")
    done = command("-", "--run", input=other)
    assert done.exit_code == 1 and "'show' is not bound in this process" in done.stderr


def test_it_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "infini.core.ir", str(write(tmp_path, WRONG)), "--check"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 1 and "-->" in done.stderr and "Traceback" not in done.stderr
