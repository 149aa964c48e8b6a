"""Held polls, outages and streams that break."""

import json
from collections.abc import Generator
from typing import Any

import pytest

from kleash import Client, KleashError, following
from kleash.calls import Answer, Call
from kleash.errors import unreachable
from kleash.event_frames import Frame, Frames
from kleash.plans import Item, Pause
from tests.kleash.scripted import Service, a_job

HELD = {"Preference-Applied": "wait=30"}


def frame(event: str, data: object, seq: int | None = None) -> bytes:
    given = f"id: {seq}\n" if seq is not None else ""
    return f"event: {event}\ndata: {json.dumps(data)}\n{given}\n".encode()


def test_a_service_that_holds_polls_is_asked_again_without_a_pause(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers = [
        (200, {"ETag": '"1"'}, a_job()),
        (200, {"ETag": '"2"', **HELD}, a_job("running", 1)),
        (200, {"ETag": '"3"', **HELD}, a_job("succeeded", 4)),
    ]
    slept: list[float] = []
    monkeypatch.setattr("kleash.client.time.sleep", slept.append)
    with Client(service.url) as client:
        assert client.jobs.wait("job_0", every_s=20)["done"]
    assert slept == []
    assert [asked.headers.get("prefer") for asked in service.asked] == [None, "wait=30", "wait=30"]


def test_a_hurried_304_of_a_service_that_stops_is_followed_by_a_pause(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers = [(200, {"ETag": '"1"'}, a_job()), (304, HELD, None), (200, {}, a_job("failed"))]
    slept: list[float] = []
    monkeypatch.setattr("kleash.client.time.sleep", slept.append)
    with Client(service.url) as client:
        client.jobs.wait("job_0", every_s=5)
    assert slept == [following.AGAIN_S]


def steps(plan: Generator[Any, Any, None], script: list[Any]) -> list[Any]:
    """Carries a plan out against a script of answers, bytes and errors; the items, and pauses as numbers."""
    seen: list[Any] = []
    reply: Any = None
    while True:
        try:
            step = plan.throw(reply) if isinstance(reply, Exception) else plan.send(reply)
        except StopIteration:
            return seen
        reply = None
        if isinstance(step, Item):
            seen.append(step.value)
        elif isinstance(step, Pause):
            seen.append(step.seconds)
        else:
            if isinstance(step, Call):
                seen.append(step.params)
            reply = script.pop(0)


def answer(document: object, etag: str = '"1"') -> Answer:
    return Answer(200, {"etag": etag}, json.dumps(document).encode(), "here")


def test_an_outage_while_waiting_is_sat_out() -> None:
    gone = [unreachable("here", "refused")] * 5  # 4 tries of one request, and the first of the next
    done = a_job("succeeded")
    seen = steps(following.watch("job_0", every_s=0), [answer(a_job()), *gone, answer(done)])
    assert [job for job in seen if isinstance(job, dict)] == [a_job(), done]
    assert [pause for pause in seen if isinstance(pause, float) and pause] == [
        0.001,
        0.002,
        0.004,
        1.0,
        0.001,
    ]


def test_the_first_question_is_not_asked_for_a_minute() -> None:
    with pytest.raises(KleashError, match="refused"):
        steps(following.watch("job_0"), [unreachable("here", "refused")] * 4)


def test_a_stream_that_breaks_goes_on_where_it_was_and_repeats_nothing() -> None:
    head = Answer(200, {}, b"", "here")
    first = frame("snapshot", {"id": "job_0"}) + b"retry: 0\n" + frame("started", {"seq": 1}, 1)
    half = frame("step", {"seq": 2}, 2)
    end = frame("snapshot", {"id": "job_0"}) + half + frame("done", {"status": "succeeded"})
    script = [head, first, half[:9], unreachable("here", "reset"), head, end[:50], end[50:]]
    seen = steps(following.stream_events("job_0"), script)
    assert [item.event for item in seen if isinstance(item, Frame)] == ["snapshot", "started", "step", "done"]
    assert [query for query in seen if isinstance(query, list)] == [[], [("after", "1")]]


def test_the_stream_of_all_jobs_begins_where_it_broke_and_tells_of_what_is_lost() -> None:
    head = Answer(200, {}, b"", "here")
    lost = frame("ready", {"position": 2, "lost": True}, 2) + frame("job.created", {}, 3)
    script = [
        *(head, frame("ready", {"position": 7, "lost": False}, 7), b""),  # broken before the first event
        *(head, frame("ready", {"position": 7, "lost": False}, 7) + frame("job.started", {}, 9)),
        *(unreachable("here", "reset"), head, frame("ready", {"position": 9, "lost": False}, 9), b""),
        *(head, lost, b"", head, frame("done", {})),  # no service sends this one
    ]
    seen = steps(following.stream_all_events(), script)
    assert [item.id for item in seen if isinstance(item, Frame)] == [7, 9, 2, 3, None]
    asked = [query for query in seen if isinstance(query, list)]
    assert asked == [[], [("after", "7")], [("after", "9")], [("after", "9")], [("after", "3")]]


def test_a_stream_that_never_comes_is_given_up() -> None:
    gone = [unreachable("here", "refused")] * 100
    with pytest.raises(KleashError, match="refused"):
        steps(following.stream_events("job_0"), gone)
    assert len(gone) == 100 - 5 * 4  # 5 streams of 4 tries


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_are_whole_however_their_bytes_come(size: int) -> None:
    sent = (
        b": ping\n\n"
        + frame("a", {"text": "é\n"}, 7)
        + b"event: b\r\ndata: {\r\ndata: }\r\n\r\n"
        + b"id: 9\n"
    )
    frames = Frames()
    found = [f for at in range(0, len(sent), size) for f in frames(sent[at : at + size])]
    assert found == [Frame("a", {"text": "é\n"}, 7), Frame("b", {}, None)]
