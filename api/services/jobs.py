"""What a client can do with jobs, from creation to deletion. Every call sees only the owner's jobs."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from api.errors import AdapterNotTrainable, CheckpointMismatch, InvalidCursor
from api.services.analysis import RunAnalysis
from api.services.classifiers import classifier_paths
from api.services.dry_run import DryRun, dry_run
from api.services.job_files import JobFiles
from api.services.job_ids import JOB_ID, known_shape
from api.services.live import Live
from api.services.models import ModelResolver, is_checkpoint
from jobs.outbound import Outbound
from jobs.ports import Rng
from jobs.scoring_wire import ModelSource
from jobs.spec import Job, JobSpec, PPOSpec, ScoreSpec
from jobs.states import Action, Status
from jobs.store import Created, Store
from jobs.store_jobs import GENTLE, Ending, JobAt, JobChange, JobFilter, QueuePlace
from rlhf_core.config.ppo import LoraConfig, PPOConfig
from rlhf_core.config.rewards import urls_of
from rlhf_core.diagnosis import Finding

DATA_FILES = ("prompts_file", "eval_prompts_file", "ptx_texts_file")


AnyJob = TypeVar("AnyJob", Job, JobAt)


class JobPage(NamedTuple, Generic[AnyJob]):
    """One page; `more` when others follow."""

    jobs: list[AnyJob]
    more: bool

    @property
    def cursor(self) -> str | None:
        """What the next page comes after."""
        return self.jobs[-1].id if self.more else None


@dataclass(frozen=True, kw_only=True)
class JobQuery:
    """Which page: by time, those that fit `where`, behind the job `after`."""

    where: JobFilter
    after: str | None
    oldest_first: bool
    limit: int


class JobService:
    """The collection of jobs. `wake` tells the dispatcher that a row was committed; it cannot fail.

    `live` learns of every row that it reads for an answer.
    """

    def __init__(
        self,
        store: Store,
        models: ModelResolver,
        rng: Rng,
        wake: Callable[[], None],
        analysis: RunAnalysis,
        files: JobFiles,
        live: Live,
        *,
        queued_limit: int = 0,
        outbound: Outbound | None = None,
    ) -> None:
        self._store, self._models, self._rng, self._wake = store, models, rng, wake
        self._analysis, self._files, self._live, self._queued_limit = analysis, files, live, queued_limit
        self._outbound = outbound or Outbound()

    def create(
        self, spec: JobSpec, owner: str, idempotency_key: str | None, trace_id: str | None = None
    ) -> Created:
        """One row, or the job that this owner's key made before.

        Raises:
            UnknownModel, AdapterNotTrainable, UnusableClassifier, PathNotAllowed, FileNotFound: what it names is
                of no use.
            OutboundError: the URL of a reward must not be asked.
            CheckpointMismatch: it cannot go on from the checkpoint in `resume_from`.
            IdempotencyKeyReused: the key belongs to another request.
            QuotaExceeded: the owner has too many jobs that wait.
        """
        request_sha256 = canonical_sha256(spec)
        if idempotency_key is not None:  # a repeat succeeds even if what it names has gone meanwhile
            before = self._store.find_replay(owner, idempotency_key, request_sha256)
            if before is not None:
                self._live.saw([before])
                return Created(job=before, replayed=True)
        created = self._store.create_job(
            self._rng.job_id(),
            owner,
            spec,
            self._resolved(spec, owner),
            idempotency_key=idempotency_key,
            request_sha256=request_sha256,
            queued_limit=self._queued_limit,
            trace_id=trace_id,
        )
        self._wake()
        return created

    def dry_run(self, spec: JobSpec, owner: str) -> DryRun:
        """What `create` would make of it. Raises as `create`; writes nothing."""
        return dry_run(spec, self._resolved(spec, owner))

    def get(self, job_id: str, owner: str) -> Job:
        """The job. Raises JobNotFound, as all below."""
        job = self._store.get_job(known_shape(job_id), owner)
        self._live.saw([job])
        return job

    def page(self, owner: str, asked: JobQuery) -> JobPage[Job]:
        """The jobs. Raises InvalidCursor."""
        jobs = self._store.list_jobs(owner=owner, **_one_more(asked))
        self._live.saw(jobs)
        return JobPage(jobs[: asked.limit], len(jobs) > asked.limit)

    def page_versions(self, owner: str, asked: JobQuery) -> JobPage[JobAt]:
        """The same page without reading the jobs: what its ETag is made of. Raises InvalidCursor."""
        jobs = self._store.list_versions(owner=owner, **_one_more(asked))
        self._live.saw(jobs)
        return JobPage(jobs[: asked.limit], len(jobs) > asked.limit)

    def count(self, owner: str, where: JobFilter) -> int:
        """How many there are in all."""
        return self._store.count_jobs(owner=owner, where=where)

    def queue_place(self, job: Job) -> QueuePlace | None:
        """Where a queued job stands; None for others."""
        return self._store.queue_place(job) if job.status is Status.QUEUED else None

    def change(self, job_id: str, owner: str, change: JobChange) -> Job:
        """Name, metadata, priority. Raises VersionConflict, IllegalTransition, TooMuchMetadata."""
        job = self._store.change_job(known_shape(job_id), change, owner)
        self._wake()
        return job

    def delete(self, job_id: str, owner: str) -> None:
        """A job that has ended, with all it has. Raises IllegalTransition, JobInUse."""
        self._store.delete_job(known_shape(job_id), owner)

    def request(
        self, action: Action, job_id: str, owner: str, reason: str | None = None, ending: Ending = GENTLE
    ) -> Job:
        """Pause, resume or cancel (jobs.states.REQUESTS). Raises IllegalTransition."""
        job = self._store.request(known_shape(job_id), action, owner, reason=reason, ending=ending)
        self._wake()
        return job

    def diagnosis(self, job: Job) -> tuple[Finding, ...] | None:
        """What the metrics of its completed steps warn of; None for a score job."""
        return self._analysis.findings(job)

    def _resolved(self, spec: JobSpec, owner: str) -> dict[str, object]:
        """What the worker needs besides the spec: folders and files instead of names."""
        return self._to_score(spec, owner) if isinstance(spec, ScoreSpec) else self._to_train(spec, owner)

    def _to_score(self, spec: ScoreSpec, owner: str) -> dict[str, object]:
        names = self._models.pair(spec.config.policy, spec.config.reference)
        sources = {role: self._models.resolve(name, owner) for role, name in names.items()}
        return {
            "names": names,
            **{role: source.model_dump() for role, source in sources.items()},
            "checkpoints": self._saved(names.values(), owner),
            **self._files.resolved({"items_file": spec.config.items_file}, owner),
        }

    def _saved(self, names: Iterable[str], owner: str) -> list[dict[str, str]]:
        """Those of the names that are checkpoints, which the job pins."""
        saved = [self._models.checkpoint(name, owner)[1] for name in names if is_checkpoint(name)]
        return [{"job_id": c.job_id, "name": c.name, "sha256": c.sha256} for c in saved]

    def _to_train(self, spec: PPOSpec, owner: str) -> dict[str, object]:
        model = self._models.resolve(spec.config.model.name, owner)
        if model.base is not None:
            raise AdapterNotTrainable("config.model.name must be a full model; this one is an adapter")
        self._check_urls(spec.config)
        data = spec.config.data
        return {
            "model": model.model_dump(),
            "checkpoints": self._saved([spec.config.model.name], owner),
            "classifiers": classifier_paths(spec.config, self._models, owner),
            "resume_from": spec.resume_from and self._start(spec, spec.resume_from, model, owner),
            **self._files.resolved({name: getattr(data, name) for name in DATA_FILES}, owner),
        }

    def _check_urls(self, config: PPOConfig) -> None:
        """Raises OutboundError for an endpoint that the worker would not ask."""
        for reward in (config.reward, config.evaluation.gold_reward):
            for url in () if reward is None else urls_of(reward):
                self._outbound.check(url)

    def _start(self, spec: PPOSpec, checkpoint: str, model: ModelSource, owner: str) -> dict[str, object]:
        """Where the checkpoint is that the job goes on from, which must fit it."""
        source, saved = self._models.checkpoint(checkpoint, owner)
        theirs, ours = source.ppo, spec.config
        steps = ours.optimization.steps
        if source.resolved["model"]["path"] != model.path:
            raise CheckpointMismatch("resume_from is a checkpoint of another model than config.model.name")
        for name in ("lora", "value_adapter"):
            adapter = getattr(theirs.model, name)
            if adapter != getattr(ours.model, name):
                raise CheckpointMismatch(
                    f"resume_from was made with {_trained(name, adapter)}, config.model.{name} differs from that"
                )
        if steps <= saved.step:
            raise CheckpointMismatch(
                f"resume_from has completed step {saved.step}: optimization.steps ({steps}) counts from the "
                "first step and must be higher"
            )
        return {
            "path": saved.path,
            "sha256": saved.sha256,
            "step": saved.step,
            "job_id": saved.job_id,
            "name": saved.name,
            "same_kl": theirs.kl == ours.kl,
            "same_evaluation": _evaluated_with(theirs) == _evaluated_with(ours)
            and source.resolved.get("classifiers") == classifier_paths(ours, self._models, owner),
        }


def _one_more(asked: JobQuery) -> dict[str, Any]:
    """The store's arguments, with one job more to know whether there is another page. Raises InvalidCursor."""
    if asked.after is not None and not JOB_ID.fullmatch(asked.after):
        raise InvalidCursor
    return {**vars(asked), "limit": asked.limit + 1}


def _evaluated_with(config: PPOConfig) -> tuple[object, ...]:
    """What decides on the completions of held-out prompts and their scores, besides prompts and weights."""
    return config.reward, config.evaluation.gold_reward, config.rollout, config.seed, config.model.dtype


def _trained(name: str, adapter: LoraConfig | None) -> str:
    return f"no {name}" if adapter is None else f"{name} of rank {adapter.rank} and alpha {adapter.alpha:g}"


def canonical_sha256(spec: JobSpec) -> str:
    """Of the request with its defaults filled in and its names sorted: equal requests, equal hashes."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
