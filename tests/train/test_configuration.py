"""The configuration of a run: TOML and assignments in, commented TOML out, mistakes named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from infini.core import errors
from infini.train import configuration, gpt, options, rotary, settings, step
from infini.train.configuration import Configuration

DEFAULT = Configuration()


def _read(tmp_path: Path, text: str) -> Configuration:
    (tmp_path / "run.toml").write_text(text)
    return configuration.read(tmp_path / "run.toml")


def test_what_is_written_is_read_back() -> None:
    changed = options.override(
        DEFAULT,
        [
            "run.steps=7", "optimizer.max_norm=none", "data.paths=['a \"b\" é', 'c\\d']", "model.head_dim=6",
            "model.full_layers=[0, 2]", "model.rope_scaling.kind=yarn", "precision.compute=bfloat16",
        ],
    )  # fmt: skip
    text = options.to_toml(changed)
    assert options.build(Configuration, tomllib.loads(text), "a file") == changed


def test_every_option_is_explained_on_one_line() -> None:
    lines = options.to_toml(DEFAULT).splitlines()
    for name in options.names(Configuration):
        [line] = [
            line for line in lines if line.removeprefix("# ").startswith(f"{name.rpartition('.')[2]} =")
            and _section(lines, line) == name.rpartition(".")[0]
        ]  # fmt: skip
        assert "  # " in line or line.count("#") > 1, line
    assert max(map(len, lines)) <= 110


def _section(lines: list[str], line: str) -> str:
    return next(other for other in reversed(lines[: lines.index(line) + 1]) if other.startswith("["))[1:-1]


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    found = _read(tmp_path, "[run]\nsteps = 5\n[optimizer]\nlearning_rate = 1\n")
    assert found == dataclasses.replace(
        DEFAULT,
        run=dataclasses.replace(DEFAULT.run, steps=5),
        optimizer=dataclasses.replace(DEFAULT.optimizer, learning_rate=1.0),
    )
    assert isinstance(found.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("[optimizer]\nlearning_rat = 1", "optimizer.learning_rat", "optimizer.learning_rate"),
        ("learning_rate = 1", "learning_rate", "optimizer.learning_rate"),
        ("[optim]\nlearning_rate = 1", "optim.learning_rate", "optimizer.learning_rate"),
        ("[run]\nbatchsize = 1", "run.batchsize", "run.batch_size"),
        ("[model.rope]\nfactor = 1", "model.rope.factor", "model.rope_scaling.factor"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_one(
    tmp_path: Path, text: str, unknown: str, nearest: str
) -> None:
    with pytest.raises(errors.ValueMismatchError) as caught:
        _read(tmp_path, text)
    assert caught.value.what == f"there is no option {unknown}"
    assert caught.value.fix is not None and f"did you mean {nearest}?" in caught.value.fix
    assert caught.value.got is not None and "run.toml" in caught.value.got


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("run.steps=0", "a whole number at least 1"),
        ("run.steps=2.5", "a whole number at least 1"),
        ("run.steps=true", "a whole number at least 1"),
        ("optimizer.learning_rate=-1", "a number above 0"),
        ("optimizer.learning_rate=fast", "a number above 0"),
        ("optimizer.b1=1.0", "a number at least 0 and below 1"),
        ("data.held_out_share=none", "a number above 0 and below 1"),
        ("data.order=sorted", 'one of "shuffled", "sequential", "random"'),
        ("data.paths=text", "a list of texts"),
        ("data.paths=[1]", "a list of texts"),
        ("model.full_layers=['a']", "a list of numbers"),
        ("model.tie_embeddings=1", "true or false"),
        ("data.text_field=3", "a text"),
        ("precision.compute=float16", 'one of "float32", "bfloat16"'),
    ],
)
def test_a_wrong_value_is_an_error_in_four_parts(assignment: str, expected: str) -> None:
    name, _, value = assignment.partition("=")
    with pytest.raises(errors.ValueMismatchError) as caught:
        options.override(DEFAULT, [assignment])
    assert caught.value.what.startswith(f"{name} cannot be")
    assert caught.value.got is not None and value.strip("'") in caught.value.got.replace(
        "True", "true"
    ).replace("None", "none")
    assert caught.value.expected is not None and caught.value.expected.startswith(expected)
    assert caught.value.fix


@pytest.mark.parametrize(
    "assignment", ["run.steps", "steps=3", "run=3", "run.steps.more=3", "model.rope_scaling=1"]
)
def test_an_assignment_that_names_no_option_is_an_error(assignment: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=r"there is no option|takes a name and a value"):
        options.override(DEFAULT, [assignment])


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), (b"a = ", "is not TOML"), (b"\xff", "cannot be read")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.ValueMismatchError, match=words):
        configuration.read(path)


def test_a_section_must_be_a_table(tmp_path: Path) -> None:
    with pytest.raises(errors.ValueMismatchError, match="run cannot be 3"):
        _read(tmp_path, "run = 3")


def test_defaults_are_those_of_what_they_configure() -> None:
    assert DEFAULT.model.to_gpt() == gpt.Config()
    assert DEFAULT.settings() == settings.Settings(budget_s=90.0, order="shuffled")


def test_every_field_of_the_model_is_an_option() -> None:
    own = {field.name for field in dataclasses.fields(configuration.Model)}
    assert own - {"start_from"} == {field.name for field in dataclasses.fields(gpt.Config)}
    assert {field.name for field in dataclasses.fields(configuration.RopeScaling)} == {
        field.name for field in dataclasses.fields(rotary.Scaling)
    }


def test_sizes_of_a_model_become_options() -> None:
    config = gpt.Config(
        num_layers=7, head_dim=80, rope_scaling=rotary.Scaling("linear", 2.0), full_layers=(1,)
    )
    assert DEFAULT.model.with_sizes(config).to_gpt() == config


def test_every_setting_can_be_reached() -> None:
    changed = options.override(
        DEFAULT,
        [
            "optimizer.learning_rate=1", "optimizer.weight_decay=2", "optimizer.decay_embeddings=false",
            "optimizer.b1=0.1", "optimizer.b2=0.2", "optimizer.eps=3", "optimizer.max_norm=4",
            "schedule.kind=linear", "schedule.warmup_steps=5", "schedule.final_share=0.5", "run.steps=6",
            "run.batch_size=8", "run.length=9", "run.accumulate=2", "run.seed=11", "run.evaluate_every=12",
            "run.evaluation_windows=13", "run.checkpoint_every=14", "precision.compute=bfloat16",
            "precision.rematerialize=true", "data.order=sequential",
        ],
    )  # fmt: skip
    assert changed.settings() == settings.Settings(
        num_steps=6, batch_size=8, length=9, learning_rate=1.0, warmup_steps=5, final_share=0.5,
        hyper=step.Hyperparameters(2.0, 0.1, 0.2, 4.0, 3.0, False), seed=11, num_evaluation_windows=13,
        schedule="linear", computation=step.Computation("bfloat16", 2, True), order="sequential",
        evaluate_every=12, checkpoint_every=14,
    )  # fmt: skip


@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (1000, 40)])
def test_a_short_run_rises_in_a_fifth_of_its_steps(steps: int, warmup: int) -> None:
    assert options.override(DEFAULT, [f"run.steps={steps}"]).settings().warmup_steps == warmup


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["run.steps=1", "run.seconds=1"], "either a number of steps or a time"),
        (["run.accumulate=3"], "do not divide the batch"),
    ],
)
def test_options_that_do_not_go_together_are_an_error(assignments: list[str], words: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match=words):
        options.override(DEFAULT, assignments).settings()


def test_a_resumed_run_keeps_what_it_is() -> None:
    for free in ("run.checkpoint_every=5", "run.keep_checkpoints=9", "precision.saved=bfloat16"):
        assert configuration.check_resume(DEFAULT, options.override(DEFAULT, [free])) == []
    [note] = configuration.check_resume(DEFAULT, options.override(DEFAULT, ["optimizer.learning_rate=1"]))
    assert note == "optimizer.learning_rate changes from 0.0015 to 1.0"
    for fixed in (
        "run.seed=1",
        "run.batch_size=8",
        "model.num_layers=2",
        "data.order=random",
        "precision.compute=bfloat16",
    ):
        with pytest.raises(errors.ValueMismatchError, match="cannot change when a run is resumed"):
            configuration.check_resume(DEFAULT, options.override(DEFAULT, [fixed]))


def test_experts_get_rows_with_a_capacity_and_tokens_without() -> None:
    dispatches = {
        options.override(DEFAULT, changes).settings().layout.dispatch: changes
        for changes in (
            [],
            ["model.capacity_factor=1.25"],
            ["mesh.dispatch=all_gather", "model.capacity_factor=2"],
        )
    }
    assert dispatches["all_to_all"] == ["model.capacity_factor=1.25"]
    assert options.override(DEFAULT, ["mesh.dispatch=all_to_all"]).settings().layout.dispatch == "all_to_all"
