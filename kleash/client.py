"""The Python client: what a program imports to score texts and to run jobs over HTTP.

    from kleash import Client

    client = Client()
    answer = client.scores.create(["The cat sat on the mat."])
    job = client.jobs.wait(client.jobs.create(spec)["id"])

Answers are the JSON documents of the HTTP contract, as dictionaries. Everything that is not a 2xx is a
KleashError. `kleash.async_client` has the same methods to await.
"""

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

import httpx2

from kleash import following, sequences
from kleash.calls import Call
from kleash.errors import KleashError
from kleash.operations import api_keys, checkpoints, files, job_data, jobs, models, scores, service, webhooks
from kleash.plans import Item, Pause, Plan, Read, Reply
from kleash.plans import once as single
from kleash.service_address import address
from kleash.transport import UNSENT, answer_of, failure, request

P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT_S = 120.0


class Runner(Protocol):
    """Who carries plans out: the client and its nouns."""

    def run(self, plan: Plan[T]) -> Iterator[T]:
        """Every item of a plan."""


Method = Callable[Concatenate[Runner, P], T]


def once(describe: Callable[P, Call[T]]) -> Method[P, T]:
    """The method that sends what `describe` describes and returns the parsed answer."""

    @functools.wraps(describe)
    def method(self: Runner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return next(self.run(single(describe(*args, **kwargs))))

    return method


def many(plan: Callable[P, Plan[T]]) -> Method[P, Iterator[T]]:
    """The method that iterates over the items of a plan."""

    @functools.wraps(plan)
    def method(self: Runner, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self.run(plan(*args, **kwargs))

    return method


def last(plan: Callable[P, Plan[T]]) -> Method[P, T]:
    """The method that returns the last item of a plan."""

    @functools.wraps(plan)
    def method(self: Runner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return deque(self.run(plan(*args, **kwargs)), maxlen=1)[0]

    return method


class Noun:
    """A part of the client."""

    def __init__(self, client: Runner) -> None:
        self.run = client.run


class Scores(Noun):
    """/v1/scores."""

    create = once(scores.create)
    create_job = once(scores.create_job)
    stream = many(sequences.stream_scores)


class Jobs(Noun):
    """/v1/jobs."""

    create = once(jobs.create)
    dry_run = once(jobs.dry_run)
    list = once(jobs.list_)
    iterate = many(sequences.iterate)
    get = once(jobs.get)
    update = once(jobs.update)
    delete = once(jobs.delete)
    pause = once(jobs.pause)
    resume = once(jobs.resume)
    cancel = once(jobs.cancel)
    watch = many(following.watch)
    wait = last(following.wait)
    events = once(job_data.events)
    iterate_events = many(sequences.iterate_events)
    stream_events = many(following.stream_events)
    stream_all_events = many(following.stream_all_events)
    metrics = once(job_data.metrics)
    metric_rows = once(job_data.metric_rows)
    frontier = once(job_data.frontier)
    samples = once(job_data.samples)
    iterate_samples = many(sequences.iterate_samples)
    checkpoints = once(job_data.checkpoints)
    artifacts = once(job_data.artifacts)
    results = many(sequences.results)
    logs = once(job_data.logs)
    iterate_logs = many(sequences.iterate_logs)
    log_text = once(job_data.log_text)


class Checkpoints(Noun):
    """/v1/checkpoints."""

    get = once(checkpoints.get)
    update = once(checkpoints.update)
    delete = once(checkpoints.delete)
    archive = many(sequences.checkpoint_archive)
    file = many(sequences.checkpoint_file)


class Files(Noun):
    """/v1/files."""

    create = once(files.create)
    list = once(files.list_)
    iterate = many(sequences.iterate_files)
    get = once(files.get)
    content = many(sequences.file_content)
    delete = once(files.delete)


class Models(Noun):
    """/v1/models."""

    list = once(models.list_)
    get = once(models.get)
    load = once(models.load)
    unload = once(models.unload)


class ApiKeys(Noun):
    """/v1/api-keys."""

    create = once(api_keys.create)
    list = once(api_keys.list_)
    iterate = many(sequences.iterate_keys)
    get = once(api_keys.get)
    revoke = once(api_keys.revoke)


class Webhooks(Noun):
    """/v1/webhooks."""

    create = once(webhooks.create)
    list = once(webhooks.list_)
    iterate = many(sequences.iterate_webhooks)
    get = once(webhooks.get)
    update = once(webhooks.update)
    delete = once(webhooks.delete)
    test = once(webhooks.test)
    rotate = once(webhooks.rotate)
    deliveries = once(webhooks.deliveries)
    redeliver = once(webhooks.redeliver)


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
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        where = address(base_url, key, data)
        self._timeout_s = timeout_s
        self._http = httpx2.Client(
            base_url=where.url,
            headers=where.headers,
            timeout=timeout_s,
            verify=where.verify,
            trust_env=not where.local,  # a proxy cannot reach this machine's loopback
        )
        self.scores = Scores(self)
        self.jobs = Jobs(self)
        self.checkpoints = Checkpoints(self)
        self.files = Files(self)
        self.models = Models(self)
        self.api_keys = ApiKeys(self)
        self.webhooks = Webhooks(self)

    whoami = once(api_keys.whoami)
    tokenize = once(scores.tokenize)
    detokenize = once(scores.detokenize)
    divergences = once(scores.divergences)
    info = once(service.info)
    queue = once(service.queue)
    workers = once(service.workers)
    health = once(service.health)
    ready = once(service.ready)
    version = once(service.version)
    service_metrics = once(service.service_metrics)

    @property
    def base_url(self) -> str:
        """Whom it asks."""
        return str(self._http.base_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def run(self, plan: Plan[T]) -> Iterator[T]:
        """Carry a plan out, step by step; its items. Raises KleashError."""
        reply: Reply = None
        failed: KleashError | None = None
        body: httpx2.Response | None = None
        chunks: Iterator[bytes] = iter(())
        try:
            while True:
                try:
                    step = plan.send(reply) if failed is None else plan.throw(failed)
                except StopIteration:
                    return
                reply = failed = None
                match step:
                    case Item():
                        yield step.value
                    case Pause():
                        time.sleep(step.seconds)
                    case _:
                        try:
                            if isinstance(step, Read):
                                reply = next(chunks, b"")
                                continue
                            body = self._sent(step, body)
                            reply, chunks = answer_of(body), body.iter_bytes()
                        except KleashError as error:
                            failed = error
                        except (httpx2.RequestError, *UNSENT) as error:
                            failed = failure(error, self._http.base_url)
        finally:
            plan.close()
            if body is not None:
                body.close()

    def _sent(self, call: Call[Any], before: httpx2.Response | None) -> httpx2.Response:
        """The response; of a streamed call that succeeded only its head has been read."""
        if before is not None:
            before.close()
        response = self._http.send(request(self._http, call, self._timeout_s), stream=True)
        if not (call.streamed and response.is_success):
            try:
                response.read()
            finally:
                response.close()
        return response
