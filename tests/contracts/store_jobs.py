"""Jobs in every state and all that an owner writes: the ground of the store's contract tests."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import update

from jobs.schema import jobs
from jobs.spec import Job, JobFailure, NewEvent, NewShard, PPOSpec, Sample
from jobs.sql_store import SqlStore
from jobs.states import Action, Status

LEASE_S = 30.0
SPEC = PPOSpec.model_validate_json(
    """{"name": "n", "metadata": {"team": "rl"}, "limits": {"max_attempts": 2},
        "config": {"model": {"name": "m"}, "data": {"prompts": ["a", "b\\u0000"]},
                   "reward": {"kind": "length", "target_tokens": 3}, "optimization": {"steps": 5}}}"""
)
FAILURE = JobFailure(code="nan_loss", detail="NaN\x00", hint="h", step=3, log_tail=("a", "b"))


def create(store: SqlStore, job_id: str = "job_1", **options: Any) -> Job:
    return store.create_job(job_id, "me", SPEC, {"model": {"path": "/m", "base": None}}, **options).job


def claim(store: SqlStore, job_id: str = "job_1") -> Job:
    job = store.claim(job_id, store.get_job(job_id).epoch, worker="w", lease_s=LEASE_S)
    assert job is not None
    return job


def set_row(store: SqlStore, job_id: str, **values: Any) -> None:
    with store.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


def in_state(store: SqlStore, name: str) -> Job:
    """A job in a public state, reached through the port."""
    create(store)
    if name in ("queued", "cancelled"):
        return store.get_job("job_1") if name == "queued" else store.request("job_1", Action.CANCEL)
    job = claim(store)
    if name == "cancelling":
        return store.request("job_1", Action.CANCEL)
    if name in ("pausing", "paused"):
        store.request("job_1", Action.PAUSE)
    if name == "paused":
        store.hand_back("job_1", job.attempt, reason="r")
    if name in ("succeeded", "failed"):
        store.finish("job_1", job.attempt, Status(name))
    return store.get_job("job_1")


def reap_later(store: SqlStore, clock: Any) -> Any:
    clock.time += LEASE_S + 1
    return store.reap()


SAMPLE = Sample(step=1, kind="rollout", index=0, prompt="p\x00", completion="c", data={"reward": 1.0})
CHECKPOINT = {"name": "step-1", "step": 1, "path": "/p", "sha256": "0" * 64, "size": 2**40}
SHARD = NewShard(
    index=0, items=3, path="job_1/1/s", sha256="0" * 64, bytes=2**40, cursor={"bytes": 7, "a": "\x00"}
)
OWNER_WRITES: dict[str, Callable[[SqlStore, Job], Any]] = {
    "heartbeat": lambda s, j: s.heartbeat(j.id, j.attempt, lease_s=LEASE_S),
    "set_phase": lambda s, j: s.set_phase(j.id, j.attempt, "rollout"),
    "record_step": lambda s, j: s.record_step(
        j.id,
        j.attempt,
        step=1,
        metrics={"a": 0.1},
        timings={},
        samples=[SAMPLE],
        events=[NewEvent(type="t", message="m")],
    ),
    "record_samples": lambda s, j: s.record_samples(j.id, j.attempt, [SAMPLE]),
    "add_event": lambda s, j: s.add_event(j.id, j.attempt, NewEvent(type="t", message="m")),
    "record_checkpoint": lambda s, j: s.record_checkpoint(j.id, j.attempt, **CHECKPOINT),
    "record_shard": lambda s, j: s.record_shard(j.id, j.attempt, SHARD, metrics={"a": 0.1}, timings={}),
    "drop_checkpoints": lambda s, j: s.drop_checkpoints(j.id, j.attempt, ["step-1"]),
    "finish succeeded": lambda s, j: s.finish(j.id, j.attempt, Status.SUCCEEDED),
    "finish failed": lambda s, j: s.finish(j.id, j.attempt, Status.FAILED, error=FAILURE),
    "finish cancelled": lambda s, j: s.finish(j.id, j.attempt, Status.CANCELLED),
    "hand_back": lambda s, j: s.hand_back(j.id, j.attempt, reason="r"),
    "hand_back crashed": lambda s, j: s.hand_back(j.id, j.attempt, reason="r", crashed=True),
}
STATES = ["queued", "running", "pausing", "cancelling", "paused", "succeeded", "failed", "cancelled"]


def assert_gap_free(store: SqlStore, job_id: str = "job_1") -> None:
    seqs = [event.seq for event in store.list_events(job_id, limit=10_000)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert seqs, "a job has at least its first event"
