"""The loop of an engine, one turn at a time: schedule, run, sample, emit.

Not safe from several threads: one thread calls `add`, `abort` and `step`. What goes wrong with one request
ends that request; what goes wrong with a step ends the requests of that step; the loop goes on.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from infini.core import errors, events
from infini.llm.engine.batches import Prepared
from infini.llm.engine.jobs import Completion, Job, logprobs_of, prompt_logprobs_of
from infini.llm.engine.outputs import (
    ITERATION_TOKEN_BUCKETS,
    EngineStats,
    FinishReason,
    RequestOutput,
)
from infini.llm.engine.proposals import Proposer
from infini.llm.engine.requests import Request
from infini.llm.engine.runner import Choose, ModelRunner, StepTokens
from infini.llm.engine.scheduler import Scheduled, Scheduler, Step
from infini.llm.sampling import kernels, speculative
from infini.llm.sampling.state import Row
from infini.llm.text.tokenizer import Tokenizer


class EngineCore:
    """Jobs, the scheduler and the runner.

    Args:
        scheduler: decides.
        runner: computes.
        tokenizer: for texts of logprobs; None without.
        proposer: proposes tokens; None without speculation.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        *,
        tokenizer: Tokenizer | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self.scheduler, self.runner, self.proposer = scheduler, runner, proposer
        self._tokenizer = tokenizer
        self._jobs: dict[str, Job] = {}
        self._owners: dict[Request, tuple[Job, Completion]] = {}
        self._arrivals = itertools.count()
        self.acceptance = speculative.AcceptanceStatistics()
        self._finished: Counter[FinishReason] = Counter()
        self.rejected: Counter[str] = Counter()
        self._iterations = [0] * (len(ITERATION_TOKEN_BUCKETS) + 1)
        self._num_steps = self._prompt_tokens = self._cached_tokens = self._generated = 0
        self._schedule_s = self._emit_s = 0.0

    @property
    def has_requests(self) -> bool:
        """Whether there is something to do."""
        return self.scheduler.has_requests

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those that have not ended."""
        return tuple(self._jobs.values())

    def add(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            QueueFullError: the queue has no place.
            ValueMismatchError: another job of this name runs.
        """
        if job.request_id in self._jobs:
            raise errors.ValueMismatchError(
                "a request of this name runs already", got=repr(job.request_id), fix="use another request_id"
            )
        try:
            self.scheduler.check_queue(len(job.completions))
        except errors.InfiniError:
            self.rejected["queue_full"] += 1
            raise
        self._jobs[job.request_id] = job
        for completion in job.completions:
            completion.request.arrival = next(self._arrivals)
            self._owners[completion.request] = (job, completion)
            self.scheduler.add(completion.request)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a job; its last output, or None when there is no such job."""
        job = self._jobs.get(request_id)
        if job is None:
            return None
        for completion in job.completions:
            if completion.finish_reason is None:
                try:
                    completion.end("abort")
                except Exception as error:  # noqa: BLE001  # its text, perhaps; it ends nevertheless
                    self._fail_one(job, completion, error)
                else:
                    self._leave(job, completion)
        return job.output()

    def step(self) -> list[RequestOutput]:
        """One turn: outputs of the jobs that have news, in the form each asked for."""
        begin = time.perf_counter()
        step = self.scheduler.schedule()
        self._schedule_s += time.perf_counter() - begin
        if not step.scheduled:
            return []
        self._count(step)
        owners = [self._owners[item.request] for item in step.scheduled]
        self._mark_scheduled(owners)
        try:
            scheduled, prepared, found = self._run(step.scheduled, owners)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not end the loop
            return self._fail(owners, error)
        except BaseException:  # interrupted: blocks count as computed that are not
            self._lose_cache()
            raise
        begin = time.perf_counter()
        going_on: list[Completion] = []
        places = zip(scheduled, owners, prepared.starts, prepared.wanted, strict=True)
        for item, (job, completion), start, row in places:
            try:
                self._take_over(item, job, completion, found, start, row)
            except Exception as error:  # noqa: BLE001  # one bad request must not end the others
                self._fail_one(job, completion, error)
            if item.makes_token and completion.finish_reason is None:
                going_on.append(completion)
        proposing_s = self._propose(going_on)
        outputs = self._outputs(job for job, _ in owners)
        self._emit_s += time.perf_counter() - begin - proposing_s
        return outputs

    def reject(self, reason: str) -> None:
        """Count a request that was refused before it was added."""
        self.rejected[reason] += 1

    def reset_prefix_cache(self) -> bool:
        """Forget what blocks hold; False while requests hold blocks."""
        if self.scheduler.running:
            return False
        self.scheduler.pool.forget_all()
        return True

    def stats(self) -> EngineStats:
        """Counts since the beginning, and the state now."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            block_size=pool.block_size,
            kv_cache_usage=pool.usage,
            num_steps=self._num_steps,
            prompt_tokens=self._prompt_tokens,
            prompt_tokens_cached=self._cached_tokens,
            generation_tokens=self._generated,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_preemptions=scheduler.num_preemptions,
            finished=dict(self._finished),
            rejected=dict(self.rejected),
            iteration_tokens=tuple(self._iterations),
            spec_num_drafts=self.acceptance.num_drafts,
            spec_num_draft_tokens=self.acceptance.num_draft_tokens,
            spec_num_accepted_tokens=self.acceptance.num_accepted_tokens,
            spec_accepted_per_position=tuple(self.acceptance.num_accepted_per_position),
            schedule_s=self._schedule_s,
            prepare_s=self.runner.prepare_s,
            run_s=self.runner.run_s,
            propose_s=0.0 if self.proposer is None else self.proposer.run_s,
            emit_s=self._emit_s,
        )

    # --- a step --------------------------------------------------------------------------------------------

    def _run(
        self, scheduled: Sequence[Scheduled], owners: Sequence[tuple[Job, Completion]]
    ) -> tuple[Sequence[Scheduled], Prepared, StepTokens]:
        scheduled, choose = self._completed(scheduled, owners)
        prepared = self.runner.prepare(scheduled)
        rows: list[Row] = []
        drafts: list[list[int]] = []
        wants_hidden = False
        for item, (_, completion) in zip(scheduled, owners, strict=True):
            if item.makes_token:
                rows.append(completion.row)
                drafts.append(item.request.spec_token_ids)
            request = item.request
            wants_hidden |= request.wants_prompt_logprobs and item.start < request.num_prompt_tokens - 1
        has_drafts = any(drafts)
        found = self.runner.run(
            prepared,
            rows,
            drafts=drafts if has_drafts else None,
            wants_hidden=wants_hidden,
            choose=choose if has_drafts else None,
        )
        return scheduled, prepared, found

    def _mark_scheduled(self, owners: Iterable[tuple[Job, Completion]]) -> None:
        now = time.monotonic()
        for job, _ in owners:
            if job.first_scheduled_time is None:
                job.first_scheduled_time = now

    def _take_over(
        self,
        item: Scheduled,
        job: Job,
        completion: Completion,
        found: StepTokens,
        start: int,
        row: int,
    ) -> None:
        """What a step gave to a request, whose tokens begin at `start` and rows of logits at `row`."""
        request = item.request
        if request.wants_prompt_logprobs and found.hidden is not None:
            self._describe_prompt(item, job, found, start)
        if not item.makes_token:
            return
        assert found.sampled is not None
        drawn = found.sampled.tokens[row : row + item.num_spec + 1].tolist()
        num_accepted = speculative.num_matching(request.spec_token_ids, drawn)
        self.acceptance.observe(item.num_spec, num_accepted)
        kept: list[int] = []
        for place, token in enumerate(drawn[: num_accepted + 1]):
            if token == kernels.NONE:
                raise errors.ValueMismatchError(
                    "there is no token to choose",
                    got="settings that forbid every token, or a model whose logits are no numbers",
                    fix="allow more tokens; where the settings allow some, see to the weights of the model",
                )
            kept.append(token)
            if completion.logprobs is not None:
                count = job.params.logprobs or 0
                told = logprobs_of(found.sampled, row + place, count, self._tokenizer)
                completion.logprobs.append(told)
                completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + told[token].logprob
            if completion.push(token, job.params):
                break
        if request.num_output_tokens == 0:
            self._prompt_tokens += request.num_prompt_tokens
            self._cached_tokens += max(request.num_cached_tokens, 0)
        self._generated += len(kept)
        now = time.monotonic()
        job.first_token_time = now if job.first_token_time is None else job.first_token_time
        job.last_token_time = now
        self.scheduler.append(request, kept, num_rejected=item.num_spec - num_accepted)
        if completion.finish_reason is not None:
            self._leave(job, completion)

    def _describe_prompt(self, item: Scheduled, job: Job, found: StepTokens, first: int) -> None:
        """Logprobs of the prompt's tokens whose place before was in the step."""
        assert job.prompt_logprobs is not None and found.hidden is not None
        prompt = item.request.prompt_token_ids
        known = len(job.prompt_logprobs)  # computed again after a preemption: what is told is told
        begin, end = max(item.start + 1, known), min(item.start + item.num_tokens + 1, len(prompt))
        if begin >= end:
            return
        at = first + begin - 1 - item.start
        sampled = self.runner.describe_prompt(found.hidden[at : at + end - begin], prompt[begin:end])
        count = job.params.prompt_logprobs or 0
        job.prompt_logprobs += prompt_logprobs_of(sampled, count, self._tokenizer)

    def _propose(self, completions: list[Completion]) -> float:
        """Places for proposals in the next step; the seconds that it took."""
        if self.proposer is None:
            return 0.0
        begin = time.perf_counter()
        try:
            for completion in completions:
                request = completion.request
                count = request.max_tokens - request.num_output_tokens - 1
                request.spec_token_ids = self.proposer.reserve(completion, count)
        except Exception as error:  # noqa: BLE001  # answers need no proposals
            self._stop_proposing(error)
        return time.perf_counter() - begin

    def _completed(
        self, scheduled: Sequence[Scheduled], owners: Sequence[tuple[Job, Completion]]
    ) -> tuple[Sequence[Scheduled], Choose | None]:
        """A step with its proposals named, those taken out that there are not; and how tokens are chosen."""
        counts, choose = [0] * len(scheduled), None
        if self.proposer is not None:
            try:
                counts, choose = self.proposer.complete(scheduled, [each for _, each in owners])
            except Exception as error:  # noqa: BLE001  # answers need no proposals
                self._stop_proposing(error)
        withdraw = self.scheduler.withdraw
        return [withdraw(item, count) for item, count in zip(scheduled, counts, strict=True)], choose

    def _stop_proposing(self, error: Exception) -> None:
        self.proposer = None
        for request in self.scheduler.running:
            if request.num_computed_tokens <= request.num_tokens:  # not in a step that is about to run
                request.spec_token_ids = []
        events.emit("proposals-failed", f"no more tokens are proposed: {_message(error)}", level="error")

    def _outputs(self, jobs: Iterable[Job]) -> list[RequestOutput]:
        found = []
        for job in dict.fromkeys(jobs):
            is_wanted = job.is_finished or (
                job.kind != "final" and any(completion.has_news for completion in job.completions)
            )
            if is_wanted:
                found.append(job.output())
        return found

    # --- ends ----------------------------------------------------------------------------------------------

    def _leave(self, job: Job, completion: Completion) -> None:
        """A completion has ended: nothing of it stays behind."""
        reason = completion.finish_reason
        assert reason is not None
        self.scheduler.finish(completion.request, reason)
        self.runner.forget(completion.request)
        if self.proposer is not None:
            self.proposer.forget(completion)
        del self._owners[completion.request]
        self._finished[reason] += 1
        if job.is_finished:
            job.finished_time = time.monotonic()
            del self._jobs[job.request_id]

    def _fail_one(self, job: Job, completion: Completion, error: Exception) -> None:
        if completion.finish_reason is None:
            completion.error = _message(error)
            completion.end("error")
        if completion.request in self._owners:
            self._leave(job, completion)

    def _fail(self, owners: Sequence[tuple[Job, Completion]], error: Exception) -> list[RequestOutput]:
        """A step failed: those end whose settings make it fail, or all where nobody's do. The cache may be
        lost, so the others compute theirs again.
        """
        at_fault = [owner for owner in owners if not self.runner.can_sample(owner[1].row)]
        for job, completion in at_fault or owners:
            self._fail_one(job, completion, error)
        self._lose_cache()
        return self._outputs(job for job, _ in owners)

    def _lose_cache(self) -> None:
        self.scheduler.lose_all_blocks()
        self.runner.reset_cache()
        if self.proposer is not None:
            self.proposer.reset()

    def _count(self, step: Step) -> None:
        self._num_steps += 1
        self._iterations[bisect.bisect_left(ITERATION_TOKEN_BUCKETS, step.num_tokens)] += 1


def _message(error: Exception) -> str:
    return error.what if isinstance(error, errors.InfiniError) else f"{type(error).__name__}: {error}"
