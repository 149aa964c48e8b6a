"""What tests of jobs over HTTP do on both sides: a client that creates, a worker that claims and saves."""

from typing import Any

from starlette.testclient import TestClient

from jobs.spec import JOB_SPEC, Job
from jobs.sql_store import SqlStore
from jobs.system import SystemRng


def queued(store: SqlStore, spec: dict[str, Any]) -> str:
    """The id of a job of open mode's owner that nobody asked a server for."""
    job_id = SystemRng().job_id()
    return store.create_job(job_id, "local", JOB_SPEC.validate_python(spec), {"resume_from": None}).job.id


def claimed(store: SqlStore, job_id: str) -> Job:
    job = store.get_job(job_id)
    running = store.claim(job_id, job.epoch, worker="w0@here", lease_s=60)
    assert running is not None
    return running


def create(client: TestClient, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=spec, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


def saved(store: SqlStore, job_id: str, step: int) -> str:
    """A checkpoint of a running job, by the name a request gives it."""
    attempt = claimed(store, job_id).attempt
    digest, name = "ab" * 32, f"step-{step}"
    store.record_checkpoint(job_id, attempt, name=name, step=step, path=f"/a/{name}", sha256=digest, size=7)
    return f"{job_id}@{name}"
