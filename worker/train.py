"""The training child: `python -m worker.train JOB_ID ATTEMPT`, started and watched by worker/supervisor.py.

It writes fenced metrics, samples and checkpoints, and the terminal state `succeeded`. SIGTERM: checkpoint what is
not saved at the next step boundary, exit 75. A failure that has a name: error.json, exit 70. All else shows in the
exit code.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.lifeline import die_with_parent

die_with_parent()  # before the slow imports: an orphan must not keep the GPU

import structlog  # noqa: E402
import torch  # noqa: E402

from jobs.errors import LeaseLost  # noqa: E402
from jobs.files import LocalFiles  # noqa: E402
from jobs.ports import Files, Store  # noqa: E402
from jobs.settings import Settings  # noqa: E402
from jobs.spec import Job, NewEvent, Sample  # noqa: E402
from jobs.sql_store import open_store  # noqa: E402
from jobs.states import Status  # noqa: E402
from rlhf_core.checkpoint import read_checkpoint, verify_checkpoint, write_checkpoint  # noqa: E402
from rlhf_core.errors import CheckpointError, RLHFError  # noqa: E402
from rlhf_core.evaluation import Evaluation, paired_difference, summarise  # noqa: E402
from rlhf_core.models import LoraPolicy, new_lora_policy  # noqa: E402
from rlhf_core.ppo import StepResult, TrainState, fresh_state, train  # noqa: E402
from rlhf_core.rewards import make_reward  # noqa: E402

EXIT_FAILED, EXIT_STOPPED = 70, 75
log = structlog.get_logger()


class Stopped(BaseException):
    """SIGTERM came while there was nothing to save."""


class Stop:
    """SIGTERM's handler: at once while nothing is unsaved, else a request that is read at step boundaries."""

    requested = False
    unsaved = False

    def request(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.requested = True
        if not self.unsaved:
            raise Stopped


class TrainingRun:
    """One attempt at one job."""

    def __init__(self, store: Store, files: Files, job: Job, folder: Path, device: str) -> None:
        self.store, self.files, self.job, self.folder, self.device = store, files, job, folder, device
        self.config = job.spec.config

    def run(self, stop: Stop) -> int:
        """Train to the end or to the next step boundary after SIGTERM; returns the exit code."""
        self.store.set_phase(self.job.id, self.job.attempt, "loading")
        policy, state = self._policy_and_state()
        resolved = self.job.resolved
        prompts = read_prompts(self.config.data.prompts, resolved.get("prompts_file"))
        eval_prompts = read_prompts(self.config.data.eval_prompts, resolved.get("eval_prompts_file"))
        reward = make_reward(self.config.reward)
        phase = "evaluation" if state.step == 0 and eval_prompts else "training"
        self.store.set_phase(self.job.id, self.job.attempt, phase)

        for step in train(
            policy, state, self.config, prompts=prompts, eval_prompts=eval_prompts, reward=reward
        ):
            stop.unsaved = step.step > 0
            self._record(step)
            last = step.step == self.config.optimization.steps
            if stop.requested and not last:
                self._save(policy, state, f"step-{state.step}")
                return EXIT_STOPPED
            if not last and step.step and step.step % self.config.checkpoint.every_steps == 0:
                self._save(policy, state, f"step-{state.step}")
                stop.unsaved = False
        final = self._save(policy, state, "final")
        self._succeed(final, state.baseline, state.latest)
        return 0

    def _policy_and_state(self) -> tuple[LoraPolicy, TrainState]:
        """From the last checkpoint that verifies, else from the base."""
        source = self.job.resolved["model"]["path"]
        for checkpoint in reversed(self.store.list_checkpoints(self.job.id)):
            try:
                verify_checkpoint(Path(checkpoint.path), checkpoint.sha256)
                restored = read_checkpoint(
                    Path(checkpoint.path), self.config, source=source, device=self.device
                )
            except CheckpointError as error:
                self._event("checkpoint.corrupt", str(error), level="warning")
                continue
            self._event("job.resumed_from", f"resumed from {checkpoint.name}", step=checkpoint.step)
            return restored
        policy = new_lora_policy(source, self.config.model.lora, seed=self.config.seed, device=self.device)
        return policy, fresh_state(policy, self.config)

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
            self.store.set_phase(self.job.id, self.job.attempt, "training")
            return
        self.store.record_step(
            self.job.id,
            self.job.attempt,
            step=step.step,
            metrics=step.metrics,
            timings=step.timings,
            samples=samples,
        )
        log.info("step", step=step.step, reward=step.metrics["reward/mean"], kl=step.metrics["kl/sequence"])

    def _save(self, policy: LoraPolicy, state: TrainState, name: str) -> dict[str, Any]:
        """Files first, durable and renamed; then the fenced row; then the old ones go."""
        partial, final = self.folder / f"{name}.partial", self.folder / name
        self.files.remove_folder(partial)
        partial.mkdir(parents=True)
        digest = write_checkpoint(partial, policy, state)
        size = sum(path.stat().st_size for path in partial.iterdir())
        self.files.publish_folder(partial, final)
        row = self.store.record_checkpoint(
            self.job.id,
            self.job.attempt,
            name=name,
            step=state.step,
            path=str(final.resolve()),
            sha256=digest,
            size=size,
        )
        self._retire_old()
        return {"checkpoint_id": row.id, "path": row.path}

    def _retire_old(self) -> None:
        steps = [c for c in self.store.list_checkpoints(self.job.id) if c.name != "final"]
        old = steps[: -self.config.checkpoint.keep_last]
        if old:
            self.store.drop_checkpoints(self.job.id, self.job.attempt, [c.name for c in old])
            for checkpoint in old:
                self.files.remove_folder(Path(checkpoint.path))

    def _succeed(self, final: dict[str, Any], before: Evaluation | None, after: Evaluation | None) -> None:
        result: dict[str, Any] = {"model": f"{self.job.id}@final", **final, "evaluation": None}
        if before is not None and after is not None:
            result["evaluation"] = {
                "before": summarise(before),
                "after": summarise(after),
                "reward_difference": paired_difference(before, after),
            }
        self.store.finish(self.job.id, self.job.attempt, Status.SUCCEEDED, result=result)

    def _event(self, type_: str, message: str, *, level: str = "info", **data: Any) -> None:
        self.store.add_event(
            self.job.id, self.job.attempt, NewEvent(type=type_, message=message, level=level, data=data)
        )


def samples_of(evaluation: Evaluation, step: int) -> list[Sample]:
    """The held-out completions as rows."""
    return [
        Sample(
            step=step,
            kind="eval",
            index=i,
            prompt=prompt,
            completion=completion,
            data={"reward": score, "length": float(length)},
        )
        for i, (prompt, completion, score, length) in enumerate(zip(*evaluation, strict=True))
    ]


def read_prompts(inline: tuple[str, ...] | None, file: str | None) -> list[str]:
    """Prompts from the config, or from the field `prompt` of a JSONL file.

    Raises:
        DatasetError: the file cannot be read, or a line has no prompt.
    """
    if inline is not None:
        return list(inline)
    if file is None:
        return []
    try:
        lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [json.loads(line)["prompt"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{Path(file).name}: {type(error).__name__}: {error}") from error
    if not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise DatasetError(f"{Path(file).name}: every line needs a field `prompt` with text")
    return prompts


class DatasetError(RLHFError):
    """A prompts file cannot be used."""

    code = "dataset_error"


def main() -> int:
    """Parse, run, and turn a known failure into error.json."""
    job_id, attempt = sys.argv[1], int(sys.argv[2])
    settings = Settings()
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.request)
    folder = settings.artifacts / job_id / str(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(settings)
    job = store.get_job(job_id)
    if job.attempt != attempt:
        return EXIT_STOPPED
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = TrainingRun(store, LocalFiles(), job, folder, device)
    try:
        return run.run(stop)
    except Stopped:
        return EXIT_STOPPED
    except LeaseLost:
        log.warning("lease lost: another attempt owns the job")
        return EXIT_STOPPED
    except RLHFError as error:
        failure = {"code": error.code, "detail": str(error), "hint": HINTS.get(error.code), "step": None}
        (folder / "error.json").write_text(json.dumps(failure))
        log.error("failed", code=error.code, detail=str(error))
        return EXIT_FAILED


HINTS = {
    "nan_loss": "Lower optimization.learning_rate, or check the reward for extreme values.",
    "input_too_long": "Shorten the prompts or lower rollout.max_new_tokens.",
    "model_load_failed": "The model must be a folder with safetensors weights and a fast tokenizer.",
    "dataset_error": "One JSON object a line, with a text field `prompt`.",
    "reward_error": "The reward must return one finite number for each completion.",
}

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code = main()
    sys.stdout.flush()
    os._exit(code)  # nothing is left to save; atexit handlers of libraries must not change the code
