"""One attempt at one job: from the base or the last checkpoint to the end, or to SIGTERM."""

from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import torch

from jobs.spec import Checkpoint, Event, Job, NewEvent, Sample
from jobs.states import Status
from jobs.store import Store
from rlhf_core.audit import audit, require_passed
from rlhf_core.checkpoint import Generators, seed_generators
from rlhf_core.classifier import Classifiers
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.evaluation import Evaluation, paired_difference, summarise
from rlhf_core.held_out import lacks_baseline
from rlhf_core.policies import Policy, new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.rewards import Endpoints, make_reward
from rlhf_core.update import TrainState, fresh_state
from worker.failures import EXIT_STOPPED
from worker.saves import FINAL, Restored, Saves
from worker.scorer.sources import AllowedSources
from worker.texts import texts_of

EVENTS_PER_PAGE = 1000
log = structlog.get_logger()


class Stopped(BaseException):
    """SIGTERM came at a moment at which the run can end at once."""


class Stop:
    """SIGTERM's handler: at once where nothing is lost by it, else a request that is read at step boundaries."""

    requested = False
    unsaved = False  # steps were completed that no checkpoint holds
    state: TrainState | None = None

    def request(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        first, self.requested = not self.requested, True
        if first and (not self.unsaved or (self.state is not None and self.state.intact)):
            raise Stopped

    def defer(self) -> None:
        """From now on only remember the request."""
        self.unsaved, self.state = True, None


class TrainingRun:
    """One attempt at one job."""

    def __init__(
        self,
        store: Store,
        job: Job,
        folder: Path,
        device: str,
        endpoints: Endpoints | None = None,
        *,
        sources: AllowedSources,
    ) -> None:
        self.store, self.job, self.device, self.endpoints = store, job, device, endpoints
        self._sources = sources
        self.config = job.ppo
        self.saves = Saves(store, job, folder, device)
        self.step: int | None = None  # the last one completed

    def run(self, stop: Stop) -> int:
        """Train to the end, or save and stop after SIGTERM; returns the exit code.

        Raises ScoringRefused if the model or a classifier is not where the API found it, below the roots.
        """
        self.saves.tidy()
        self.store.set_phase(self.job.id, self.job.attempt, "loading")
        self._sources.whole_model(self.job.resolved["model"]["path"])
        policy, state, final = self.saves.restore() or self._fresh()
        self.step, stop.state = state.step, state
        steps = self.config.optimization.steps
        log.info("run", attempt=self.job.attempt, done=state.step, steps=steps, device=self.device)
        if final is None:
            final = self._train(policy, state, stop)
        if final is None:
            return EXIT_STOPPED
        self._succeed(final, state)
        return 0

    def _fresh(self) -> Restored:
        seed_generators(self.config.seed)
        source = self.job.resolved["model"]["path"]
        policy = new_policy(source, self.config.model, seed=self.config.seed, device=self.device)
        return Restored(policy, fresh_state(policy, self.config))

    def _train(self, policy: Policy, state: TrainState, stop: Stop) -> Checkpoint | None:
        """The final checkpoint; None if the run was stopped before."""
        resolved = self.job.resolved
        data = self.config.data
        prompts = texts_of(resolved, "prompts_file", data.prompts)
        eval_prompts = texts_of(resolved, "eval_prompts_file", data.eval_prompts)
        ptx_texts = texts_of(resolved, "ptx_texts_file", data.ptx_texts, field="text")
        forget_other_baseline(state, eval_prompts, self.config.evaluation.best_of_n)
        self._tell_best_of_n(state)
        self._audit(policy, state, prompts)
        paths = {
            name: self._sources.whole_model(path) for name, path in resolved.get("classifiers", {}).items()
        }
        classifiers = Classifiers(paths, device=self.device)
        gold = self.config.evaluation.gold_reward
        steps = train(
            policy,
            state,
            self.config,
            prompts=prompts,
            eval_prompts=eval_prompts,
            reward=make_reward(self.config.reward, classifiers, self.endpoints),
            gold=None if gold is None else make_reward(gold, classifiers, self.endpoints),
            ptx_texts=ptx_texts,
            micro_batch=self._micro_batch(),
        )
        self._phase("evaluation" if lacks_baseline(state, self.config, eval_prompts) else "training")
        generators = Generators.now()
        try:
            for step in steps:
                stop.unsaved = step.step > 0
                if step.step == 0:
                    self._tell_best_of_n(state)
                self._record(step)
                last = step.step == self.config.optimization.steps
                due = step.step % self.config.checkpoint.every_steps == 0
                if step.step and not last and (due or stop.requested):
                    self.saves.save(policy, state, f"step-{state.step}")
                    if stop.requested:
                        return None
                    stop.unsaved = False
                generators = Generators.now()
        except Stopped:
            if stop.unsaved:  # the step under way has changed nothing yet but the generators
                stop.defer()
                generators.restore()
                self.saves.save(policy, state, f"step-{state.step}")
            return None
        stop.defer()
        return self.saves.save(policy, state, FINAL)

    def _audit(self, policy: Policy, state: TrainState, prompts: list[str]) -> None:
        """At the start of every attempt: it may be on another machine. The report is an event.

        A run that has begun is not ended by it: a stop must not change what becomes of a job.
        """
        self._phase("audit")
        checks = audit(policy, state.value_head, self.config, prompts, is_reference=state.step == 0)
        report = [check._asdict() | {"passed": check.passed} for check in checks]
        failed = sum(not check.passed for check in checks)
        self._event(
            "job.audited",
            f"{failed} of {len(checks)} checks failed." if failed else f"{len(checks)} checks passed.",
            level="warning" if failed else "info",
            checks=report,
        )
        if state.step == 0:
            require_passed(checks)

    def _record(self, step: StepResult) -> None:
        samples = [
            Sample(
                step=step.step, kind="rollout", index=i, prompt=s.prompt, completion=s.completion, data=s.data
            )
            for i, s in enumerate(step.samples)
        ]
        if step.evaluation is not None:
            samples += samples_of(step.evaluation, step.step)
        if step.step == 0:
            self.store.record_samples(self.job.id, self.job.attempt, samples)
            self._phase("training")
            return
        self.store.record_step(
            self.job.id,
            self.job.attempt,
            step=step.step,
            metrics=step.metrics,
            timings=step.timings,
            samples=samples,
        )
        self.step = step.step
        log.info("step", step=step.step, reward=step.metrics["reward/mean"], kl=step.metrics["kl/sequence"])

    def _tell_best_of_n(self, state: TrainState) -> None:
        """As an event, once per job: the frontier shows it while the job runs."""
        if not state.best_of_n or any(self._events("job.best_of_n")):
            return
        points, best = [point._asdict() for point in state.best_of_n], state.best_of_n[-1]
        message = f"Best of {best.n} by the reference: reward {best.reward:.4g}, without training."
        self._event("job.best_of_n", message, level="info", points=points)

    def _succeed(self, final: Checkpoint, state: TrainState) -> None:
        before, after = state.baseline, state.latest
        result: dict[str, Any] = {
            "model": f"{self.job.id}@{FINAL}",
            "checkpoint_id": final.id,
            "evaluation": None,
        }
        if before is not None and after is not None:
            result["evaluation"] = {
                "before": summarise(before),
                "after": summarise(after),
                "reward_difference": paired_difference(before, after),
            }
            if before.gold and after.gold:
                result["evaluation"]["gold_difference"] = paired_difference(before, after, of="gold")
            if state.best_of_n:
                result["evaluation"]["best_of_n"] = [point._asdict() for point in state.best_of_n]
        self.store.finish(self.job.id, self.job.attempt, Status.SUCCEEDED, result=result)

    def roll_back(self, error: NonFiniteLoss) -> bool:
        """Allow one replay of a step that failed, in case the hardware did: the run itself would repeat it.

        False if this step has been replayed before, by any attempt.
        """
        if any(event.data.get("step") == error.step for event in self._events("job.rolled_back")):
            return False
        message = f"{error}: once more from the last checkpoint, in case it was the hardware."
        self._warn("job.rolled_back", message, step=error.step, tensor=error.tensor)
        return True

    def halve_micro_batch(self) -> bool:
        """Let the next start work with half the sequences at a time; False if it was halved before."""
        whole = self.config.rollout.batch_size // self.config.optimization.minibatches
        if self._micro_batch() is not None or whole < 2:
            return False
        half = (whole + 1) // 2
        message = f"The GPU's memory was not enough: {half} sequences at a time instead of {whole}."
        self._warn("job.micro_batch_halved", message, micro_batch=half)
        return True

    def _micro_batch(self) -> int | None:
        halved = [int(event.data["micro_batch"]) for event in self._events("job.micro_batch_halved")]
        return halved[-1] if halved else None

    def _events(self, type_: str) -> Iterator[Event]:
        after = 0
        while page := self.store.list_events(self.job.id, after=after, limit=EVENTS_PER_PAGE):
            yield from (event for event in page if event.type == type_)
            after = page[-1].seq

    def _warn(self, type_: str, message: str, **data: Any) -> None:
        self._event(type_, message, level="warning", **data)

    def _event(self, type_: str, message: str, *, level: str, **data: Any) -> None:
        event = NewEvent(type=type_, message=message, level=level, data=data)
        self.store.add_event(self.job.id, self.job.attempt, event)

    def _phase(self, phase: str) -> None:
        self.store.set_phase(self.job.id, self.job.attempt, phase)


def forget_other_baseline(state: TrainState, eval_prompts: list[str], n: int | None) -> None:
    """A checkpoint of another job may have been evaluated on other prompts, or against the best of another n."""
    if state.baseline is not None and list(state.baseline.prompts) != eval_prompts:
        state.baseline, state.latest, state.best_of_n = None, None, ()
    if state.best_of_n and state.best_of_n[-1].n != n:
        state.best_of_n = ()


def samples_of(evaluation: Evaluation, step: int) -> list[Sample]:
    """The held-out completions as rows."""
    columns = {
        "reward": evaluation.scores,
        "length": evaluation.lengths,
        "gold": evaluation.gold,
        "kl": evaluation.kl,
    }
    return [
        Sample(
            step=step,
            kind="eval",
            index=i,
            prompt=prompt,
            completion=completion,
            data={name: float(column[i]) for name, column in columns.items() if column},
        )
        for i, (prompt, completion) in enumerate(zip(evaluation.prompts, evaluation.completions, strict=True))
    ]


def fixed_device() -> str:
    """The GPU with deterministic kernels wherever there are any, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.use_deterministic_algorithms(True, warn_only=True)
    return "cuda"
