"""The Python client: what a program imports to score texts and to run jobs over HTTP.

    from kleash import Client

    client = Client()
    answer = client.scores.create(["The cat sat on the mat."])
    job = client.jobs.wait(client.jobs.create(spec)["id"])

Answers are the JSON documents of the HTTP contract, as dictionaries. Everything that is not a 2xx is a
KleashError.
"""

import json
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from kleash.score_options import Item, ScoreOptions

Document = dict[str, Any]  # one JSON object of the HTTP contract
Query = Mapping[str, str | int | None]

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_TRIES = 4
MAX_RETRY_AFTER_S = 30.0
NEVER_SENT = frozenset({"invalid_url", "invalid_key", "invalid_request"})  # codes


class KleashError(Exception):
    """A request that did not succeed.

    `status` is the HTTP status, 0 if no answer came; `code` is stable (`unknown_model`, `unreachable`, …);
    `detail` is for people; `errors` names the offending fields of a request that was refused. The codes
    `invalid_url`, `invalid_key` and `invalid_request` stand for what was never sent.
    """

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(status, code, detail, errors)
        self.status, self.code, self.detail, self.errors = status, code, detail, tuple(errors)

    def __str__(self) -> str:
        fields = "".join(f"\n  {e.get('pointer', '')}: {e.get('detail', '')}" for e in self.errors)
        return f"{self.detail} ({self.code}){fields}"


class Client:
    """One connection pool to one kleash service.

    `base_url` falls back to KLEASH_URL and then to this machine's port 8000; `key` to KLEASH_KEY and then,
    for a service on this machine only, to the file `key` in `data` (KLEASH_DATA, `.kleash`).
    """

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        try:
            url = httpx2.URL(base_url or os.environ.get("KLEASH_URL") or DEFAULT_URL)
        except (httpx2.InvalidURL, ValueError) as error:
            raise KleashError(0, "invalid_url", f"the service's address is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise KleashError(0, "invalid_url", "the service's address must begin with http:// or https://")
        local = url.host in LOOPBACK
        key = key or os.environ.get("KLEASH_KEY") or (_key_of_this_machine(data) if local else None)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise KleashError(0, "invalid_key", "the API key holds a character that no key has")
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout_s,
            trust_env=not local,  # a proxy cannot reach this machine's loopback
        )
        self.scores = Scores(self)
        self.jobs = Jobs(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def divergences(self, request: Mapping[str, Any]) -> Document:
        """POST /v1/divergences: KL and its kin of given distributions or log-probabilities."""
        return self.send("POST", "/v1/divergences", body=request)

    def models(self) -> Document:
        """GET /v1/models: the names that `policy` and `reference` may have."""
        return self.send("GET", "/v1/models")

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Document:
        """One request, tried again while the service says 429 or 503 with Retry-After. Raises KleashError."""
        return _document(self.exchange(method, path, body=body, query=query, headers=headers))

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """As `send`, with the whole response: 2xx or 304."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                response = self._http.request(method, path, json=body, params=params, headers=headers)
            except httpx2.RequestError as error:
                where = self._http.base_url
                raise KleashError(0, "unreachable", f"no answer from {where}: {error}") from error
            except (httpx2.InvalidURL, ValueError) as error:
                raise KleashError(0, "invalid_request", f"the request cannot be sent: {error}") from error
            if response.is_success or response.status_code == httpx2.codes.NOT_MODIFIED:
                return response
            pause_s = _pause_before_retry(response)
            if not tries_left or pause_s is None:
                break
            time.sleep(pause_s)
        raise _as_error(response)


class Scores:
    """POST /v1/scores."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, items: Item | Sequence[Item], **options: Unpack[ScoreOptions]) -> Document:
        """Per-token KL(policy ‖ reference) in nats, of one item or several.

        An item is a text, `{"prompt", "completion"}`, a list of token ids, `{"token_ids", "score_from"}`, or
        `{"messages"}`, of which the last, the assistant's, is scored. Without `policy` and `reference` the
        service's default pair answers; what is None is left to the service.
        """
        body = {"input": items, **options}
        return self._client.send(
            "POST", "/v1/scores", body={name: value for name, value in body.items() if value is not None}
        )


class Jobs:
    """The collection /v1/jobs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Document:
        """Create a job. A key is made up when none is given, so a repeated attempt never makes two jobs."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._client.send("POST", "/v1/jobs", body=spec, headers=headers)

    def list(
        self, *, status: str | None = None, limit: int | None = None, after: str | None = None
    ) -> Document:
        """One page, newest first; `after` is the `next_cursor` of the page before."""
        return self._client.send("GET", "/v1/jobs", query={"status": status, "limit": limit, "after": after})

    def get(self, job_id: str) -> Document:
        """The job as it is now."""
        return self._client.send("GET", _path(job_id))

    def pause(self, job_id: str) -> Document:
        """Ask it to stop for now; a running job is `pausing` until its process has saved and stopped."""
        return self._client.send("POST", _path(job_id, "pause"))

    def resume(self, job_id: str) -> Document:
        """Let a paused job go on from its last checkpoint."""
        return self._client.send("POST", _path(job_id, "resume"))

    def cancel(self, job_id: str) -> Document:
        """Ask for the end; a running job is `cancelling` until its process has stopped."""
        return self._client.send("POST", _path(job_id, "cancel"))

    def metrics(
        self,
        job_id: str,
        *,
        keys: Sequence[str] | None = None,
        from_step: int | None = None,
        max_points: int | None = None,
        after: str | None = None,
    ) -> Document:
        """Series of the keys, down-sampled; with the `next_after` of before as `after`, what came since."""
        query = {
            "keys": ",".join(keys) if keys else None,
            "from_step": from_step,
            "max_points": max_points,
            "after": after,
        }
        return self._client.send("GET", _path(job_id, "metrics"), query=query)

    def metric_rows(self, job_id: str, *, from_step: int | None = None) -> Sequence[Document]:
        """Metrics and timings of every step, ascending."""
        query = {"from_step": from_step, "format": "jsonl"}
        answer = self._client.exchange("GET", _path(job_id, "metrics"), query=query)
        return [json.loads(line) for line in answer.text.splitlines()]

    def frontier(self, job_id: str) -> Document:
        """Rewards of a PPO job against √KL, with Gao's law and its peak where it can be fitted."""
        return self._client.send("GET", _path(job_id, "frontier"))

    def events(self, job_id: str, *, after: int | None = None, limit: int | None = None) -> Document:
        """What happened, ascending by `seq`; `after` is the last seq already known."""
        return self._client.send("GET", _path(job_id, "events"), query={"after": after, "limit": limit})

    def samples(
        self, job_id: str, *, step: int | None = None, kind: str | None = None, limit: int | None = None
    ) -> Document:
        """Completions: `kind` is `rollout` or `eval` (held-out prompts)."""
        return self._client.send(
            "GET", _path(job_id, "samples"), query={"step": step, "kind": kind, "limit": limit}
        )

    def checkpoints(self, job_id: str) -> Document:
        """The job's saves; each can be scored as `job_…@<name>`."""
        return self._client.send("GET", _path(job_id, "checkpoints"))

    def watch(
        self, job_id: str, *, every_s: float = 1.0, timeout_s: float | None = None
    ) -> Iterator[Document]:
        """Yield the job now, at each change, and last when it is done; an unchanged poll costs a 304.

        Raises:
            TimeoutError: it is not done after `timeout_s` seconds.
        """
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        etag = None
        while True:
            headers = {"If-None-Match": etag} if etag else None
            response = self._client.exchange("GET", _path(job_id), headers=headers)
            if response.status_code != httpx2.codes.NOT_MODIFIED:
                etag = response.headers.get("ETag")
                job = _document(response)
                yield job
                if job["done"]:
                    return
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TimeoutError(f"{job_id} is not done after {timeout_s} s")
            time.sleep(every_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None, every_s: float = 1.0) -> Document:
        """The job once it is done, whatever its end. Raises TimeoutError."""
        return deque(self.watch(job_id, every_s=every_s, timeout_s=timeout_s), maxlen=1)[0]


def _path(job_id: str, part: str | None = None) -> str:
    """The job's address; an id with anything but word characters would name another one."""
    if not job_id.replace("_", "").isalnum():
        raise KleashError(404, "not_found", "a job's id looks like job_0192f3c1…")
    return f"/v1/jobs/{job_id}" if part is None else f"/v1/jobs/{job_id}/{part}"


def _key_of_this_machine(data: str | os.PathLike[str] | None) -> str | None:
    """The key that `kleash up` wrote, if it is there and ours to read."""
    try:
        return Path(data or os.environ.get("KLEASH_DATA") or ".kleash", "key").read_text().strip() or None
    except OSError:
        return None


def _document(response: httpx2.Response) -> Document:
    """The JSON object of an answer. Raises KleashError."""
    try:
        document = response.json()
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        where = response.request.url.host
        raise KleashError(
            response.status_code, "unexpected_answer", f"{where} answered something else than a JSON object"
        )
    return document


def _pause_before_retry(response: httpx2.Response) -> float | None:
    """Seconds the service asks for, or None when it does not ask to be tried again soon."""
    if response.status_code not in (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE):
        return None
    try:
        pause_s = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return pause_s if 0 <= pause_s <= MAX_RETRY_AFTER_S else None


def _as_error(response: httpx2.Response) -> KleashError:
    """The problem document (RFC 9457) of a refusal, or what can be said of an answer that is none."""
    try:
        problem = response.json()
        return KleashError(
            response.status_code, problem["code"], problem["detail"], problem.get("errors") or ()
        )
    except (ValueError, KeyError, TypeError):
        detail = f"{response.request.url.host} answered {response.status_code} without a problem document"
        return KleashError(response.status_code, "unexpected_answer", detail)
