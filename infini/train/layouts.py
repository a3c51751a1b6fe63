"""How the devices of a run are arranged: sizes of the axes of a mesh, what each splits, and how batches go
through a pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from infini.core import errors, events
from infini.parallel import recipes
from infini.train import stages

ScheduleName: TypeAlias = Literal["gpipe", "1f1b", "interleaved"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the devices of a run are arranged, and what each axis splits.

    Args:
        dp: parts of the batch; None for what the other axes leave of the devices.
        tp: parts of the weights of every layer.
        ep: parts of the experts, and of the batch.
        zero: what `dp` splits besides the batch: 0 nothing, 1 the optimizer's state, 2 sums of gradients as
            well, 3 the parameters, too.
        sequence: whether `tp` splits what lies between layers by tokens.
        cp: parts of every sequence.
        attention: how attention reads the keys of other parts; None for the cheapest way.
        pp: places of a pipeline along the layers.
        schedule: order of its passes.
        virtual_stages: stages at each place; None for two where they are interleaved, and one elsewhere.
        microbatches: parts of a batch that go through it one after the other; None for the parts of a
            step, or if there is one only for a number that keeps places from waiting.
        dispatch: how tokens come to experts of other devices; see `recipes.experts`.
    """

    dp: int | None = None
    tp: int = 1
    ep: int = 1
    zero: int = 0
    sequence: bool = False
    cp: int = 1
    attention: recipes.Form | None = None
    pp: int = 1
    schedule: ScheduleName = "1f1b"
    virtual_stages: int | None = None
    microbatches: int | None = None
    dispatch: Literal["all_to_all", "all_gather"] = "all_gather"

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        virtual = 2 if self.schedule == "interleaved" else 1
        return self.pp * (virtual if self.virtual_stages is None else self.virtual_stages)

    def check(self, num_layers: int, num_parts: int, batch_size: int) -> None:
        """Refuse a pipeline that does not fit a run.

        Args:
            num_layers: blocks of the model.
            num_parts: parts of a step.
            batch_size: sequences of a step.

        Raises:
            ValueMismatchError: stages do not divide the blocks, microbatches not the batch, or options do not
                go together.
        """
        self._say_unused()
        if self.pp == 1:
            given = {"virtual_stages": self.virtual_stages, "microbatches": self.microbatches}
            for name, value in given.items():
                if value is not None:
                    raise errors.ValueMismatchError(
                        f"mesh.{name} is for a pipeline, and this mesh has none",
                        got=f"mesh.{name} = {value}, mesh.pp = 1",
                        fix=f"set mesh.pp to 2 or more, or leave mesh.{name} out",
                    )
            return
        stages.check(num_layers, self.num_stages)
        if self.schedule == "1f1b" and self.num_stages != self.pp:
            raise errors.ValueMismatchError(
                "1f1b has one stage at each place of the pipeline",
                got=f"mesh.virtual_stages = {self.virtual_stages}",
                fix='set mesh.schedule to "interleaved", which is 1f1b with several',
            )
        if num_parts > 1 and self.microbatches not in (None, num_parts):
            raise errors.ValueMismatchError(
                "the parts of a step are the microbatches of its pipeline",
                got=f"run.accumulate = {num_parts}, mesh.microbatches = {self.microbatches}",
                expected="one number",
                fix="leave one of them out",
            )
        self.num_microbatches(num_parts, batch_size, (self.dp or 1) * self.ep)

    def _say_unused(self) -> None:
        """Say which options do nothing on this mesh. They may be those of a run that went on from another."""
        plain = Layout()
        for name, axis in {"sequence": "tp", "attention": "cp", "schedule": "pp"}.items():
            value = getattr(self, name)
            if value != getattr(plain, name) and getattr(self, axis) == 1:
                events.emit(
                    "mesh-option-unused",
                    f"mesh.{name} = {value} does nothing: it is about mesh.{axis}, which is 1",
                )

    def num_microbatches(self, num_parts: int, batch_size: int, num_groups: int) -> int:
        """Parts of a batch that go through the pipeline.

        Args:
            num_parts: parts of a step.
            batch_size: sequences of a step.
            num_groups: groups of devices that share the rows of a microbatch.

        Raises:
            ValueMismatchError: they do not divide the batch, or the places not their number.
        """
        rounds = self.pp if self.schedule == "interleaved" else 1
        possible = [
            count for count in range(rounds, batch_size + 1, rounds) if batch_size % (count * num_groups) == 0
        ]
        asked = self.microbatches or (num_parts if num_parts > 1 else None)
        if asked in possible or (asked is None and possible):
            return asked or max([n for n in possible if n <= 4 * self.pp] or possible[:1])
        said = f"{batch_size} sequences" + (f" in {asked} microbatches" if asked else "")
        said += f", each for {num_groups} groups of devices" if num_groups > 1 else ""
        said += f", {rounds} of which go round at a time" if rounds > 1 else ""
        raise errors.ValueMismatchError(
            "the microbatches of the pipeline do not divide the batch",
            got=said,
            expected=f"one of {', '.join(map(str, possible))} microbatches"
            if possible
            else f"a multiple of {rounds * num_groups} sequences",
            fix="change mesh.microbatches or run.batch_size" if possible else "change run.batch_size",
        )

    def axes(self, num_devices: int) -> dict[str, int]:
        """Sizes of the axes by name, those of size 1 left out; `dp` is there always.

        Raises:
            ValueMismatchError: they do not multiply to the number of devices.
        """
        others = self.pp * self.tp * self.ep * self.cp
        dp = max(1, num_devices // others) if self.dp is None else self.dp
        # Devices of a process lie side by side: in one stage, and those that say most to each other closest.
        sizes = {"pp": self.pp, "dp": dp, "ep": self.ep, "cp": self.cp, "tp": self.tp}
        if math.prod(sizes.values()) != num_devices:
            raise errors.ValueMismatchError(
                "the mesh does not have as many devices as there are",
                got=", ".join(f"{name} = {size}" for name, size in sizes.items()),
                expected=f"sizes whose product is {num_devices}",
                fix="change --mesh, or start so many processes: infini train --processes, mpirun -n",
            )
        return {name: size for name, size in sizes.items() if size > 1 or name == "dp"}

    def recipe(self, axes: Mapping[str, int]) -> recipes.Recipe:
        """What each axis splits. Recipes that know the model come first."""
        by_zero = {0: recipes.data, 1: recipes.zero1, 2: recipes.zero2, 3: recipes.zero3}
        found = []
        if "cp" in axes:  # before `sequence`, which splits its tokens further
            found.append(recipes.context("cp", self.attention))
        if "ep" in axes:
            found.append(recipes.experts("ep", dispatch=self.dispatch))
        if "tp" in axes:
            found.append(recipes.tensor("tp"))
            if self.sequence:
                found.append(recipes.sequence("tp"))
        return recipes.product(*found, by_zero[self.zero]("dp"))
