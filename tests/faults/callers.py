"""A trivial client of several API replicas, and what it was promised."""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

Document = dict[str, Any]
TEMPORARY = {429, 503}


class Refused(Exception):
    """A 4xx that no repetition changes."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status


class NobodyAnswers(Exception):
    """No replica served the request before its deadline."""


@dataclass
class Promises:
    """What clients were told, to be held against the database afterwards."""

    created: list[str] = field(default_factory=list)
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    failures: list[str] = field(default_factory=list)  # 500s and other answers that nobody should see
    served: Counter[str] = field(default_factory=Counter)


def unasked(promises: Promises, job_ids: Iterable[str]) -> list[str]:
    """Jobs that exist although no answer ever named them: every create here was repeated until it was answered."""
    known = set(promises.created)
    return [
        f"I2 {job_id}: made by a request that was answered with another job"
        for job_id in job_ids
        if job_id not in known
    ]


class Caller:
    """Asks one replica after the other until one serves, at most `patience_s`.

    Every request may be repeated: a create carries its Idempotency-Key, the rest say what shall be.
    """

    def __init__(
        self, urls: Sequence[str], promises: Promises, *, patience_s: float = 120.0, timeout_s: float = 5.0
    ) -> None:
        self._clients = [httpx2.Client(base_url=url, timeout=timeout_s, trust_env=False) for url in urls]
        self.promises, self._patience_s, self._turn = promises, patience_s, 0
        self._lock = threading.Lock()

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def ask(
        self, method: str, path: str, *, body: Document | None = None, key: str | None = None
    ) -> Document:
        """The document of a 2xx. Raises Refused, NobodyAnswers."""
        headers = {"Idempotency-Key": key} if key else {}
        give_up_at, last = time.monotonic() + self._patience_s, "nothing"
        while time.monotonic() < give_up_at:
            with self._lock:
                self._turn += 1
                client = self._clients[self._turn % len(self._clients)]
            try:
                response = client.request(method, path, json=body, headers=headers)
            except httpx2.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    with self._lock:
                        self.promises.served[method] += 1
                    document: Document = response.json() if response.content else {}
                    return document
                last = f"{response.status_code} {response.text[:300]}"
                if response.status_code not in TEMPORARY:
                    if response.status_code >= 500:
                        self.promises.failures.append(f"{method} {path}: {last}")
                    raise Refused(response.status_code, last)
            time.sleep(0.1)
        raise NobodyAnswers(f"{method} {path}: {last}")

    def create(self, spec: Document, *, key: str | None = None) -> str:
        """The id; kept as a promise."""
        key = key or str(uuid.uuid4())
        job_id: str = self.ask("POST", "/v1/jobs", body=spec, key=key)["id"]
        self.promises.created.append(job_id)
        self.promises.keys[key].add(job_id)
        return job_id

    def get(self, job_id: str) -> Document:
        return self.ask("GET", f"/v1/jobs/{job_id}")

    def act(self, job_id: str, action: str) -> int:
        """`cancel`, `pause` or `resume`: 200, or the status of the refusal (a job that has moved on)."""
        try:
            self.ask("POST", f"/v1/jobs/{job_id}/{action}")
        except Refused as refused:
            return refused.status
        return 200
