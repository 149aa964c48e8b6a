"""Polls while clients have texts scored and a PPO job runs; the bare handler beside the same load.

304s are of a job that has ended, documents are those of the job that runs.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from benchmarks.http.polls import TEXT, TRAINING, beside_bare, ended
from benchmarks.http.service import Service

SCORING_CLIENTS = 4
PATIENCE_S = 180.0


def busy(service: Service, rounds: int) -> dict[str, Any]:
    """Rounds of polls beside both loads, which must both have gone on all the time."""
    unchanged = ended(service.client())
    with _training(service) as job_id, _scoring(service) as scored:
        first_step, began = _step(service, job_id), time.monotonic()
        told = beside_bare(service, "busy", rounds, unchanged=unchanged, wanted=job_id)
        _wait_for_step(service, job_id, first_step + 1)
        seconds = time.monotonic() - began
        steps, texts = _step(service, job_id) - first_step, len(scored)
    print(f"  meanwhile {texts / seconds:.2f} texts/s were scored and {steps / seconds:.2f} steps/s trained")
    if not texts:
        raise RuntimeError("no text was scored meanwhile")
    return told | {
        "busy_texts_per_s": round(texts / seconds, 2),
        "busy_steps_per_s": round(steps / seconds, 2),
    }


@contextlib.contextmanager
def _training(service: Service) -> Iterator[str]:
    """A job that has done its first step, and goes on."""
    client = service.client()
    job_id = client.jobs.create(TRAINING)["id"]
    try:
        _wait_for_step(service, job_id, 1)
        yield job_id
    finally:
        client.jobs.cancel(job_id)
        client.jobs.wait(job_id, timeout_s=PATIENCE_S)


def _wait_for_step(service: Service, job_id: str, step: int) -> None:
    """Raises RuntimeError where the training stands still."""
    until = time.monotonic() + PATIENCE_S
    while _step(service, job_id) < step:
        if time.monotonic() > until:
            raise RuntimeError(f"the training does not go on: {service.client().jobs.get(job_id)}")
        time.sleep(0.2)


def _step(service: Service, job_id: str) -> int:
    return int(service.client().jobs.get(job_id)["progress"]["step"])


@contextlib.contextmanager
def _scoring(service: Service) -> Iterator[list[float]]:
    """Clients that each ask again when they have their answer: when each answer came."""
    answered, over = list[float](), threading.Event()

    def ask(place: int) -> None:
        with httpx2.Client(base_url=service.url, headers=service.authorization, timeout=PATIENCE_S) as client:
            while not over.is_set():
                body = {"input": [f"{TEXT} {place} {time.monotonic()}"], "per_token": False}
                client.post("/v1/scores", json=body).raise_for_status()
                answered.append(time.monotonic())

    with ThreadPoolExecutor(SCORING_CLIENTS) as threads:
        asking = [threads.submit(ask, place) for place in range(SCORING_CLIENTS)]
        try:
            yield answered
        finally:
            over.set()
    for each in asking:
        each.result()
