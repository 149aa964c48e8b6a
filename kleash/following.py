"""Following a job: polls that the service holds, and the stream of its events. Plans, as in `kleash.plans`."""

import time
from collections.abc import Callable
from typing import Any

from kleash.calls import NOT_MODIFIED, Call, document
from kleash.documents import Job
from kleash.errors import TIMEOUT, UNREACHABLE, KleashError
from kleash.event_frames import Frame, Frames
from kleash.operations import job_data, jobs
from kleash.plans import MAX_TRIES, Item, Pause, Plan, Read, Request, attempts

HELD_S = 30  # of one poll
OUTAGE_S = 60.0  # of a service that is restarted while somebody waits for a job
AGAIN_S = 1.0
STARTS = ("snapshot", "ready")  # frames that begin a stream


def watch(job_id: str, *, every_s: float = 1.0, timeout_s: float | None = None) -> Plan[Job]:
    """Yield the job now, at each change, and last when it is done.

    The service holds each poll until something changes, where it can; else it is asked every `every_s`
    seconds, at the cost of a 304. A service that goes away meanwhile is waited for, up to a minute.

    Raises:
        TimeoutError: it is not done after `timeout_s` seconds.
    """
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    etag = None
    while True:
        asked_at = time.monotonic()
        left_s = float(HELD_S) if give_up_at is None else give_up_at - asked_at
        poll = jobs.poll(job_id, etag, max(1, min(HELD_S, int(left_s))))
        answer = yield from (attempts(poll) if etag is None else _patiently(poll))
        if answer.status != NOT_MODIFIED:
            job: Job = document(answer)
            yield Item(job)
            if job["done"]:
                return
        if give_up_at is not None and time.monotonic() >= give_up_at:
            raise TimeoutError(f"{job_id} is not done after {timeout_s} s")
        if etag is not None and "preference-applied" not in answer.headers:
            yield Pause(every_s)
        elif answer.status == NOT_MODIFIED and time.monotonic() - asked_at < AGAIN_S:
            yield Pause(AGAIN_S)  # a service that is about to stop holds nothing
        etag = answer.headers.get("etag", etag)


def wait(job_id: str, *, every_s: float = 1.0, timeout_s: float | None = None) -> Plan[Job]:
    """The job once it is done, whatever its end; as `watch`. Raises TimeoutError."""
    return watch(job_id, every_s=every_s, timeout_s=timeout_s)


def stream_events(job_id: str, *, after: int | None = None) -> Plan[Frame]:
    """Follow what happens to a job, as server-sent events: a snapshot, each event once, and `done`.

    A stream that breaks is asked for again where it was; the snapshot is shown the first time only.
    """
    return _streamed(lambda after: job_data.events_stream(job_id, after=after), after)


def stream_all_events(*, after: int | None = None) -> Plan[Frame]:
    """Follow what happens to all jobs: `ready`, then each event once, without end; `id` is where it stands.

    A stream that breaks is asked for again where it was; `ready` is shown the first time, and again if the service
    has lost that place (`lost`).
    """
    return _streamed(lambda after: job_data.all_events_stream(after=after), after)


def _streamed(ask: Callable[[int | None], Call[None]], after: int | None) -> Plan[Frame]:
    """The frames of a stream after an id, of all the streams that it takes."""
    failures, starts = 0, 0
    while True:
        frames = Frames()
        try:
            yield from attempts(ask(after))
            while chunk := (yield Read()):
                assert isinstance(chunk, bytes)
                for frame in frames(chunk):
                    failures = 0
                    after = frame.id if frame.id is not None else after
                    starts += frame.event in STARTS
                    if frame.event not in STARTS or starts == 1 or frame.data.get("lost"):
                        yield Item(frame)
                    if frame.event == "done":
                        return
        except KleashError as error:
            failures += 1
            if error.code not in (UNREACHABLE, TIMEOUT) or failures > MAX_TRIES:
                raise
        yield Pause(frames.retry_s)


def _patiently(call: Call[Any]) -> Request:
    """As `attempts`, through an outage of a minute."""
    give_up_at = time.monotonic() + OUTAGE_S
    while True:
        try:
            return (yield from attempts(call))
        except KleashError as error:
            if not error.retryable or time.monotonic() >= give_up_at:
                raise
        yield Pause(AGAIN_S)
