"""What a run is made of, as one tree of options: the file that `infini train --config` reads, and that every
run leaves in its folder.
"""
# ruff: noqa: RUF009  # `option` and `section` make fields of dataclasses

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infini.core import errors
from infini.data.batches import Order
from infini.data.documents import Invalid
from infini.data.tokens import TOKENIZER_BYTES
from infini.parallel import recipes
from infini.train import gpt, layouts, options, rotary, settings as settings_, step
from infini.train.options import option, section

DEFAULT_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """As `rotary.Scaling`."""

    kind: rotary.Kind = option("default", "default, linear, dynamic, llama3 or yarn")
    factor: float = option(1.0, "how many times longer texts may be", least=1)
    original_length: int = option(0, "longest text of the first training, for llama3 and yarn", least=0)
    low_factor: float = option(1.0, "llama3: where waves are long enough to be stretched", above=0)
    high_factor: float = option(4.0, "llama3: where waves are short enough to stay", above=0)
    beta_fast: float = option(32.0, "yarn: turns above which waves stay", above=0)
    beta_slow: float = option(1.0, "yarn: turns below which waves are stretched", above=0)
    is_truncated: bool = option(True, "yarn: whether the ends of the ramp are whole numbers")
    attention_factor: float = option(1.0, "yarn: factor of cosines and sines", above=0)


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of the model, and where it starts from."""

    start_from: str | None = option(
        None, "model folder whose sizes, weights and tokenizer the run starts from"
    )
    vocab_size: int = option(4096, "tokens of the tokenizer that is trained on the text", least=1)
    hidden_size: int = option(256, "width", least=1)
    intermediate_size: int = option(768, "width of the feed-forward layer", least=1)
    num_layers: int = option(4, "blocks", least=1)
    num_heads: int = option(4, "query heads", least=1)
    num_kv_heads: int = option(2, "key-value heads, a divisor of num_heads", least=1)
    head_dim: int | None = option(None, "width of a head, even; none: hidden_size / num_heads", least=2)
    max_length: int = option(512, "longest sequence the model is made for", least=1)
    rope_theta: float = option(10000.0, "base of the rotary frequencies", above=1)
    norm_epsilon: float = option(1e-5, "added to the mean square in RMSNorm", above=0)
    tie_embeddings: bool = option(False, "whether the output projection is the embedding table")
    qkv_bias: bool = option(False, "biases of the projections to queries, keys and values")
    output_bias: bool = option(False, "bias of the projection after attention")
    mlp_bias: bool = option(False, "biases of the feed-forward layer")
    qk_norm: bool = option(False, "RMSNorm of every query and key")
    sliding_window: int | None = option(None, "tokens that a token looks back at; none: all", least=1)
    full_layers: tuple[int, ...] = option((), "blocks that look at all tokens although there is a window")
    num_experts: int = option(0, "feed-forward layers of a block, among which a router chooses", least=0)
    experts_per_token: int = option(2, "experts that compute a token", least=1)
    is_router_normalized: bool = option(True, "whether the weights of a token's experts sum to 1")
    capacity_factor: float | None = option(
        None, "places of an expert in a sequence, times an equal share; none: no limit", above=0
    )
    balance_weight: float = option(0.01, "weight of the loss that keeps experts equally busy", least=0)
    rope_scaling: RopeScaling = section(RopeScaling, "Rotary embeddings for texts longer than before.")

    def to_gpt(self, vocab_size: int | None = None) -> gpt.Config:
        """The sizes as the model takes them.

        Args:
            vocab_size: number of tokens that the tokenizer turned out to have.
        """
        values = {
            name: getattr(self, name)
            for name in gpt.Config.__dataclass_fields__
            if name not in ("head_dim", "rope_scaling", "vocab_size")
        }
        return gpt.Config(
            **values,
            vocab_size=self.vocab_size if vocab_size is None else vocab_size,
            head_dim=self.head_dim if self.head_dim is not None else self.hidden_size // self.num_heads,
            rope_scaling=rotary.Scaling(**dataclasses.asdict(self.rope_scaling)),
        )

    def with_sizes(self, config: gpt.Config) -> Model:
        """This section with the sizes of a model. What experts leave out is a matter of the run."""
        values = {name: getattr(config, name) for name in gpt.Config.__dataclass_fields__}
        values["capacity_factor"] = self.capacity_factor
        scaling = RopeScaling(**dataclasses.asdict(config.rope_scaling))
        return Model(start_from=self.start_from, **values | {"rope_scaling": scaling})


@dataclass(frozen=True, slots=True)
class Data:
    """Text, tokens, and the order they come in."""

    paths: tuple[str, ...] = option((), "files, folders and patterns; none: the Python standard library")
    text_field: str = option("text", "field of a .jsonl line that has the text")
    invalid_text: Invalid = option("error", "bytes that are not UTF-8: error, replace, or skip the file")
    max_bytes: int | None = option(None, "no file is begun after so many bytes", least=1)
    held_out_share: float = option(
        0.04, "share of the text that is measured on and never trained on", above=0, below=1
    )
    tokenizer: str | None = option(
        None, "tokenizer.json or its folder; none: a tokenizer is trained on the text"
    )
    tokenizer_bytes: int = option(TOKENIZER_BYTES, "about how much text a tokenizer is trained on", least=1)
    order: Order = option(
        "shuffled", "windows of text: shuffled in every epoch, sequential, or random places"
    )
    cache: str | None = option(None, "folder of tokenised texts; none: the user's cache folder")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """AdamW."""

    learning_rate: float = option(1.5e-3, "its highest value", above=0)
    weight_decay: float = option(0.1, "decay of matrices per step, times the learning rate", least=0)
    decay_embeddings: bool = option(True, "whether the embedding tables decay, too")
    b1: float = option(0.9, "decay of the running mean of gradients", least=0, below=1)
    b2: float = option(0.95, "decay of the running mean of their squares", least=0, below=1)
    eps: float = option(1e-8, "added to the root of that mean", above=0)
    max_norm: float | None = option(
        1.0, "gradients are scaled down to this norm; none: they are not", above=0
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over the run."""

    kind: settings_.ScheduleKind = option("cosine", "cosine, linear or constant after the rise")
    warmup_steps: int | None = option(
        None, "steps of the rise; none: 40, at most a fifth of the steps", least=0
    )
    final_share: float = option(0.05, "share of the highest rate that is left at the end", least=0, most=1)


@dataclass(frozen=True, slots=True)
class Run:
    """How long, how much at once, and what is kept."""

    steps: int | None = option(None, "number of steps", least=1)
    seconds: float | None = option(
        None, "seconds of training instead of steps; 90 when neither is given", above=0
    )
    batch_size: int = option(4, "sequences per step", least=1)
    length: int = option(256, "tokens per sequence", least=1)
    accumulate: int = option(
        1, "parts a step is computed in, to save memory; a divisor of batch_size", least=1
    )
    seed: int = option(0, "seed of the parameters and of the order of the text", least=0)
    evaluate_every: int | None = option(
        None, "steps between measurements on held-out text; none: at the ends", least=1
    )
    evaluation_windows: int = option(32, "sequences of held-out text to measure on", least=1)
    checkpoint_every: int = option(100, "steps between checkpoints", least=1)
    keep_checkpoints: int = option(3, "newest checkpoints that are kept", least=1)


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtypes, and memory against time. Parameters and the optimizer's state are always float32."""

    compute: step.ComputeDtype = option(
        "float32", "dtype of the forward and backward pass: float32 or bfloat16"
    )
    rematerialize: bool = option(False, "compute each block again in the backward pass instead of keeping it")
    saved: Literal["float32", "bfloat16"] = option("float32", "dtype of the weights in the model folder")


@dataclass(frozen=True, slots=True)
class Mesh:
    """How several devices share the run: sizes whose product is their number."""

    dp: int | None = option(None, "parts of the batch; none: what other axes leave of the devices", least=1)
    tp: int = option(1, "parts of the weights of every layer", least=1)
    ep: int = option(1, "parts of the experts, and of the batch", least=1)
    zero: Literal[0, 1, 2, 3] = option(
        0, "dp splits, too: 1 the optimizer's state, 2 sums of gradients, 3 the parameters"
    )
    sequence: bool = option(False, "tp splits what lies between layers by tokens")
    dispatch: Literal["auto", "all_to_all", "all_gather"] = option(
        "auto", "how tokens come to experts elsewhere; auto: all_to_all with a capacity"
    )
    cp: int = option(1, "parts of every sequence", least=1)
    attention: recipes.Form | None = option(
        None, "how parts read other keys: ring, gather or all_to_all; none: the cheapest way"
    )
    pp: int = option(1, "places of a pipeline, each with as many of the layers", least=1)
    schedule: layouts.ScheduleName = option("1f1b", "order of its passes: gpipe, 1f1b or interleaved")
    virtual_stages: int | None = option(
        None, "stages at each place; none: 2 when interleaved, else 1", least=1
    )
    microbatches: int | None = option(
        None, "parts of a batch that go through it; none: run.accumulate, or about 4 times pp", least=1
    )

    @property
    def microbatch_options(self) -> tuple[object, ...]:
        """What decides the number of microbatches, besides the batch."""
        return self.pp, self.microbatches, self.schedule == "interleaved"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All options of a run."""

    model: Model = section(Model, "Sizes of the model, and where it starts from.")
    data: Data = section(Data, "Text, tokens, and the order they come in.")
    optimizer: Optimizer = section(Optimizer, "AdamW.")
    schedule: Schedule = section(Schedule, "The learning rate over the run.")
    run: Run = section(Run, "How long, how much at once, and what is kept.")
    precision: Precision = section(Precision, "Dtypes, and memory against time.")
    mesh: Mesh = section(Mesh, "How several devices share the run: sizes whose product is their number.")

    def _layout(self) -> layouts.Layout:
        dispatch = self.mesh.dispatch
        if dispatch == "auto":
            dispatch = "all_gather" if self.model.capacity_factor is None else "all_to_all"
        return layouts.Layout(**dataclasses.asdict(self.mesh) | {"dispatch": dispatch})

    def settings(self) -> settings_.Settings:
        """How to train, as the loop takes it.

        Raises:
            ValueMismatchError: options do not go together.
        """
        run, optimizer, schedule = self.run, self.optimizer, self.schedule
        is_endless = run.steps is None and run.seconds is None
        warmup = schedule.warmup_steps
        if warmup is None:
            warmup = 40 if run.steps is None else min(40, run.steps // 5)
        return settings_.Settings(
            num_steps=run.steps,
            budget_s=DEFAULT_SECONDS if is_endless else run.seconds,
            batch_size=run.batch_size,
            length=run.length,
            learning_rate=optimizer.learning_rate,
            schedule=schedule.kind,
            warmup_steps=warmup,
            final_share=schedule.final_share,
            hyper=step.Hyperparameters(
                weight_decay=optimizer.weight_decay,
                decay_embeddings=optimizer.decay_embeddings,
                b1=optimizer.b1,
                b2=optimizer.b2,
                eps=optimizer.eps,
                max_norm=optimizer.max_norm,
            ),
            computation=step.Computation(
                dtype=self.precision.compute,
                num_parts=run.accumulate,
                is_checkpointed=self.precision.rematerialize,
            ),
            order=self.data.order,
            seed=run.seed,
            num_evaluation_windows=run.evaluation_windows,
            evaluate_every=run.evaluate_every,
            checkpoint_every=run.checkpoint_every,
            layout=self._layout(),
        )


# What may be other when a run is resumed: these say what is kept, not what a step computes.
FREE_ON_RESUME = (
    "run.evaluate_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "precision.saved",
    "data.cache",
    # A checkpoint is read on any mesh.
    "mesh.dp",
    "mesh.tp",
    "mesh.ep",
    "mesh.zero",
    "mesh.sequence",
    "mesh.cp",
    "mesh.attention",
    "mesh.pp",
    "mesh.schedule",
    "mesh.virtual_stages",
    "mesh.microbatches",
    "mesh.dispatch",
)
# These may be other too, and make it another run from there on.
ALTERING_ON_RESUME = ("optimizer.", "schedule.", "run.steps", "run.seconds")


def read(path: Path) -> Configuration:
    """A configuration from a TOML file.

    Raises:
        ValueMismatchError: the file is not there or not TOML, has an unknown key, or a wrong value.
    """
    return options.read_file(Configuration, path)


def changes(before: Configuration, after: Configuration) -> dict[str, tuple[object, object]]:
    """Options that differ, by full name: the value before and the value after."""
    old, new = options.flat(before), options.flat(after)
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def check_resume(before: Configuration, after: Configuration) -> list[str]:
    """What differs between the configuration of a run and the one to resume it with.

    Returns:
        A sentence for each option whose change makes it another run from there on.

    Raises:
        ValueMismatchError: one differs that decides what the run is.
    """
    notes = []
    for name, (old, new) in changes(before, after).items():
        if name in FREE_ON_RESUME:
            continue
        if not name.startswith(ALTERING_ON_RESUME):
            raise errors.ValueMismatchError(
                f"{name} cannot change when a run is resumed",
                got=f"{new!r}; the run was started with {old!r}",
                expected="the value of the run's own config.toml",
                fix=f"leave {name} as it was, or start another run with another --out",
            )
        notes.append(f"{name} changes from {old!r} to {new!r}")
    # With run.accumulate the microbatches are its parts, with a pipeline and without.
    has_other_parts = before.mesh.microbatch_options != after.mesh.microbatch_options
    if after.model.num_experts and after.run.accumulate == 1 and has_other_parts:
        notes.append("the loss that balances experts is taken over other parts of a batch")
    return notes
