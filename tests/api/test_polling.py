"""Polls of a job: what the shared poller may leave unread, and what nobody may be told."""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from api.event_stream import event_frame
from api.prefer import wait_s
from api.services.job_documents import QUEUED_S
from api.services.live import GOOD_FOR_TICKS, TICK_S, Live
from jobs.settings import Settings
from jobs.spec import JobFailure, ScoreSpec
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.store_live import JobVersion
from tests.api.acting import claimed, queued
from tests.api.live_client import Connection, counted, listening

POLLED = "jobs.event_seq, jobs.status"  # of the poller's query
WAITERS = 1000


@pytest.fixture
def elsewhere(settings: Settings, store: SqlStore) -> Iterator[SqlStore]:
    """The same database as another process has it."""
    other = SqlStore(settings.database_url.get_secret_value())
    yield other
    other.close()


@pytest.fixture
def served(new_app: Callable[[Settings], FastAPI], settings: Settings) -> FastAPI:
    """Another application over the same store, for `listening`."""
    return new_app(settings)


@pytest.fixture
def made(store: SqlStore, spec: dict[str, Any]) -> str:
    """The id of a queued job."""
    return queued(store, spec)


@pytest.mark.parametrize(
    ("prefer", "wait", "seconds"),
    [
        (None, None, 0),
        ("wait=30", None, 30),
        ("respond-async, Wait = 7 ; x=y", None, 7),
        ('wait="9"', 3, 9),
        ("wait=900", None, 55),
        ("wait=" + "9" * 5000, None, 55),
        ("wait=-1", 4, 4),
        ("wait=²", None, 0),
        ("await=5, wait", None, 0),
        (None, 10**30, 55),
        (None, 0, 0),
    ],
)
def test_how_long_a_poll_may_be_held(prefer: str | None, wait: int | None, seconds: int) -> None:
    assert wait_s(prefer, wait) == seconds


def test_a_poll_says_when_to_come_back(client: TestClient, store: SqlStore, made: str) -> None:
    url = f"/v1/jobs/{made}"
    queued = client.get(url)
    unchanged = client.get(url, headers={"If-None-Match": queued.headers["etag"]})
    assert unchanged.status_code == 304
    attempt = claimed(store, made).attempt
    running = client.get(url)
    store.finish(made, attempt, Status.FAILED, error=JobFailure(code="c", detail="d"))
    done = client.get(url)
    hints = [answer.headers.get("retry-after") for answer in (queued, unchanged, running, done)]
    assert hints == ["5", "5", "2", None]
    assert (
        "preference-applied" not in client.get(url, headers={"Prefer": "wait=9"}).headers
    )  # nothing to wait for


def test_a_page_of_jobs_has_an_etag_too(client: TestClient, store: SqlStore, made: str) -> None:
    etag = client.get("/v1/jobs").headers["etag"]
    unchanged = client.get("/v1/jobs", headers={"If-None-Match": f"W/{etag}"})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    claimed(store, made)
    assert client.get("/v1/jobs", headers={"If-None-Match": etag}).json()["data"][0]["status"] == "running"
    assert (
        client.get("/v1/jobs", params={"status": "queued"}, headers={"If-None-Match": etag}).json()["data"]
        == []
    )


def test_the_etag_of_a_page_is_of_its_owner_and_its_filter_and_sees_deletions(
    client: TestClient, store: SqlStore, spec: dict[str, Any], made: str
) -> None:
    second = queued(store, spec)
    store.request(second, Action.CANCEL)
    asked: list[dict[str, Any]] = [{}, {"status": "cancelled"}, {"status": "queued"}, {"limit": 1}]

    def tags(known: list[str | None]) -> list[str | None]:
        """New tags; None where the known one still holds."""
        answers = [
            client.get("/v1/jobs", params=params, headers={"If-None-Match": tag or ""})
            for params, tag in zip(asked, known, strict=True)
        ]
        return [None if answer.status_code == 304 else answer.headers["etag"] for answer in answers]

    first = tags([None] * 4)
    assert len(set(first)) == 4
    store.create_job("job_of_another", "another", store.get_job(made).spec, {})
    with counted(store, "jobs.spec") as jobs_read:
        assert tags(first) == [None] * 4
    assert jobs_read() == 0
    client.delete(f"/v1/jobs/{second}")  # the newest: what is left has not changed
    assert [tag is None for tag in tags(first)] == [False, False, True, False]


def test_an_unchanged_poll_reads_nothing_and_others_the_version_alone(
    client: TestClient, store: SqlStore, made: str
) -> None:
    url = f"/v1/jobs/{made}"
    first = client.get(url)
    began = time.monotonic()
    with counted(store, "FROM jobs") as queries:
        for _ in range(50):
            assert client.get(url, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert queries() < 25 + 2 * (time.monotonic() - began) / TICK_S
    began = time.monotonic()
    with counted(store, "jobs.spec") as rows_read:
        for _ in range(20):
            assert client.get(url).content == first.content
    # The document is written once, and of a queued job once a second.
    assert rows_read() <= 1 + (time.monotonic() - began) / QUEUED_S


def test_no_replica_takes_back_what_another_has_told(
    client: TestClient, elsewhere: SqlStore, made: str
) -> None:
    """A version that is at hand may be two ticks old: enough for a 304, not for a document."""
    url = f"/v1/jobs/{made}"
    tag = client.get(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 304  # at hand
    told = elsewhere.request(made, Action.CANCEL)  # by another replica, which answers with it
    for headers in ({}, {"If-None-Match": f'"{told.version - 5}"'}):
        assert client.get(url, headers=headers).json()["status"] == "cancelled"
    assert client.get(url, headers={"If-None-Match": f'"{told.version}"'}).status_code == 304


def test_another_representation_has_another_tag_and_waits_as_well(
    client: TestClient, elsewhere: SqlStore, made: str
) -> None:
    url, resolved = f"/v1/jobs/{made}", {"include": "resolved_config"}
    plain, shown = client.get(url), client.get(url, params=resolved)
    tags = [plain.headers["etag"], shown.headers["etag"]]
    assert tags == ['"1"', '"1.resolved_config"']
    assert shown.json() == plain.json() | {"resolved_config": plain.json()["config"]}

    def asked(params: dict[str, str], tag: str) -> tuple[int, str]:
        answer = client.get(url, params=params, headers={"If-None-Match": tag})
        return answer.status_code, answer.headers["etag"]

    assert asked(resolved, tags[1]) == asked(resolved, f"{tags[0]}, {tags[1]}") == (304, tags[1])
    assert asked(resolved, tags[0]) == (200, tags[1])
    assert [asked({}, tag) for tag in tags] == [(304, tags[0]), (200, tags[0])]  # from memory or not
    assert asked(resolved | {"wait": "1"}, tags[1]) == (304, tags[1])
    assert asked(resolved | {"wait": "50"}, tags[0]) == (200, tags[1])  # at once
    changed = client.patch(url, json={"name": "n"}, headers={"If-Match": tags[1]})  # the job is the same
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert client.patch(url, json={"name": "m"}, headers={"If-Match": tags[1]}).status_code == 412
    assert asked(resolved, tags[1]) == (200, '"2.resolved_config"')
    elsewhere.request(made, Action.CANCEL)
    assert client.get(url, params=resolved).json()["status"] == "cancelled"


def test_what_is_at_hand_is_so_for_its_owner_only(
    keyed_client: TestClient, new_key: Callable[[], dict[str, str]], spec: dict[str, Any]
) -> None:
    mine, theirs = new_key(), new_key()
    url = keyed_client.post("/v1/jobs", json=spec, headers=mine).headers["location"]
    for headers in ({}, {"If-None-Match": '"1"'}, {"If-None-Match": '"1"', "Prefer": "wait=1"}):
        keyed_client.get(url, headers=mine)  # now it is at hand
        answers = [
            keyed_client.get(url, headers=headers | key)
            for key in (theirs, {}, {"Authorization": "Bearer x"})
        ]
        assert [answer.status_code for answer in answers] == [404, 401, 401]
        assert not [answer for answer in answers if "etag" in answer.headers]
    assert keyed_client.get(url, headers=mine | {"If-None-Match": '"1"'}).status_code == 304


def test_a_poll_without_options_is_answered_as_one_with_options_that_change_nothing(
    keyed_client: TestClient, new_key: Callable[..., dict[str, str]], spec: dict[str, Any]
) -> None:
    """The one before the router, the other by the route's function."""
    mine = new_key()
    url = keyed_client.post("/v1/jobs", json=spec, headers=mine).headers["location"]
    known, nowhere = {"If-None-Match": '"1"'}, f"/v1/jobs/job_{'0' * 32}"
    narrow, key = new_key(scopes=["score"]), mine["Authorization"]
    asked = [(url, mine), (url, mine | known), (url, mine | {"If-None-Match": '"0", W/"1"'}), (nowhere, mine)]
    asked += [
        (url, {}),
        (url, known),
        (url, narrow | known),
        (url, {"Authorization": key.replace("Bearer", "Basic")}),
    ]
    answers = []
    for query in ("", "?wait=0"):
        found = [keyed_client.get(path + query, headers=headers) for path, headers in asked]
        assert [answer.status_code for answer in found] == [200, 304, 304, 404, 401, 401, 403, 401]
        answers.append([told(answer) for answer in found])
    assert answers[0] == answers[1]


def told(answer: Response) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and document, without what every request has for itself."""
    headers = {name: value for name, value in answer.headers.items() if "request-id" not in name}
    headers.pop("ratelimit", None)
    body = answer.json() if answer.content else {}
    body.pop("request_id", None)
    return headers, body


def test_what_this_process_wrote_no_poll_misses(client: TestClient, store: SqlStore, made: str) -> None:
    url = f"/v1/jobs/{made}"
    for action in ("pause", "resume") * 10:
        before = client.get(url)
        written = client.post(f"{url}/{action}")
        after = client.get(url, headers={"If-None-Match": before.headers["etag"]})
        assert (after.status_code, after.headers["etag"]) == (200, written.headers["etag"])
        assert after.json() == written.json()


def test_a_deleted_job_is_gone_at_once(client: TestClient, store: SqlStore, made: str) -> None:
    url = f"/v1/jobs/{made}"
    store.request(made, Action.CANCEL)
    headers = {"If-None-Match": client.get(url).headers["etag"]}
    assert client.get(url, headers=headers).status_code == 304
    assert client.delete(url).status_code == 204
    assert [client.get(url, headers=more).status_code for more in (headers, {})] == [404, 404]


def test_what_was_read_besides_is_never_followed_by_something_older(
    client: TestClient, elsewhere: SqlStore, made: str
) -> None:
    url = f"/v1/jobs/{made}"
    for action in (Action.PAUSE, Action.RESUME) * 5:
        before = client.get(url).headers["etag"]
        version = elsewhere.request(made, action).version
        listed = client.get("/v1/jobs").json()["data"][0]["version"]
        assert listed == version
        assert client.get(url, headers={"If-None-Match": before}).headers["etag"] == f'"{version}"'


class GatedStore(SqlStore):
    """Holds what it has read of versions until the gate opens."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.read, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def job_versions(self, job_ids: Collection[str]) -> dict[str, JobVersion]:
        found = super().job_versions(job_ids)
        self.read.set()
        assert self.gate.wait(30)
        return found


@pytest.mark.parametrize("known", [False, True])
def test_a_write_that_overtakes_a_read_is_not_lost(
    settings: Settings, store: SqlStore, made: str, known: bool
) -> None:
    gated = GatedStore(settings.database_url.get_secret_value())

    async def overtake() -> None:
        live = Live(gated, event_frame)
        async with live.running():
            if known:
                await live.seen(made, "local")
                await asyncio.sleep((GOOD_FOR_TICKS + 1) * TICK_S)  # the next read is under way, or soon
            gated.read.clear()
            gated.gate.clear()
            reading = asyncio.create_task(live.seen(made, "local"))
            await asyncio.to_thread(gated.read.wait, 30)
            version = (await asyncio.to_thread(gated.request, made, Action.PAUSE)).version
            gated.gate.set()
            await reading
            assert (await live.seen(made, "local")).version == version

    asyncio.run(overtake())
    gated.close()


def test_a_waiter_learns_what_another_process_did(
    served: FastAPI, store: SqlStore, elsewhere: SqlStore, spec: dict[str, Any], made: str
) -> None:
    idle = queued(store, spec)

    async def wait(port: int) -> None:
        poll, other = await Connection.to(port), await Connection.to(port)
        async with poll, other:
            first = await poll.get(f"/v1/jobs/{made}")
            began = asyncio.get_running_loop().time()
            poll.ask(f"/v1/jobs/{made}", If_None_Match=first.headers["etag"], Prefer="wait=55")
            await until(lambda: waiting(served) == 1)
            version = claimed(elsewhere, made).version
            changed = await poll.answer()
            assert asyncio.get_running_loop().time() - began < 50
            assert (changed.status, changed.document["status"]) == (200, "running")
            assert changed.headers["etag"] == f'"{version}"'
            assert changed.headers["preference-applied"] == "wait=55"

            began = asyncio.get_running_loop().time()
            unchanged = await other.get(f"/v1/jobs/{idle}?wait=1", If_None_Match='"1"')
            assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, b"", '"1"')
            assert unchanged.headers["preference-applied"] == "wait=1"
            assert asyncio.get_running_loop().time() - began > 1

    with listening(served) as port:
        asyncio.run(wait(port))


def waiting(app: FastAPI) -> int:
    return sum(len(watches) for watches in app.state.parts.live._watches.values())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_thousand_waiters_cost_one_query_a_tick_and_no_thread(
    served: FastAPI, store: SqlStore, elsewhere: SqlStore, spec: dict[str, Any], made: str
) -> None:
    jobs = [made, *(queued(store, spec) for _ in range(9))]

    async def wait(port: int) -> None:
        polls = [await Connection.to(port) for _ in range(WAITERS)]
        for number, poll in enumerate(polls):
            poll.ask(f"/v1/jobs/{jobs[number % len(jobs)]}", If_None_Match='"1"', Prefer="wait=55")
        await until(lambda: waiting(served) == WAITERS)
        began = asyncio.get_running_loop().time()
        with counted(store, POLLED) as queries:
            await until(lambda: queries() >= 3)
            # One more, because a tick of before may reach the database only now.
            assert queries() <= (asyncio.get_running_loop().time() - began) / TICK_S + 2
        with counted(store, "jobs.spec") as rows_read:
            for job_id in jobs:
                claimed(elsewhere, job_id)
            answers = await asyncio.gather(*(poll.answer() for poll in polls))
        assert {(answer.status, answer.document["status"]) for answer in answers} == {(200, "running")}
        assert rows_read() == len(jobs)  # each document was written once

        for poll in polls[: WAITERS // 10]:
            poll.ask(f"/v1/jobs/{made}", If_None_Match='"2"', Prefer="wait=55")
        await until(lambda: waiting(served) == WAITERS // 10)
        for poll in polls:
            poll.writer.transport.abort()
        await until(lambda: waiting(served) == 0)  # who has gone is waited for no longer

    with listening(served) as port:
        asyncio.run(wait(port))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("live")]


def test_without_a_database_polls_are_refused_and_waiters_wait(
    served: FastAPI, elsewhere: SqlStore, made: str
) -> None:
    async def outage(port: int) -> None:
        url = f"/v1/jobs/{made}"
        async with (
            await Connection.to(port) as poll,
            await Connection.to(port) as wait,
            await Connection.to(port) as late,
        ):
            wait.ask(url, If_None_Match='"1"', Prefer="wait=30")
            late.ask(url, If_None_Match='"1"', Prefer="wait=5")  # long enough for the outage to come first
            await until(lambda: waiting(served) == 2)
            with elsewhere.writing() as connection:
                connection.exec_driver_sql("ALTER TABLE jobs RENAME TO away")
            await asyncio.sleep((GOOD_FOR_TICKS + 1) * TICK_S)
            refused = await poll.get(url, If_None_Match='"1"')
            assert (refused.status, refused.document["code"]) == (503, "database_unavailable")
            assert (await late.answer()).status == 503  # at its deadline, not before
            with elsewhere.writing() as connection:
                connection.exec_driver_sql("ALTER TABLE away RENAME TO jobs")
            claimed(elsewhere, made)
            assert (await wait.answer()).document["status"] == "running"

    with listening(served) as port:
        asyncio.run(outage(port))


def test_a_score_job_whose_row_names_no_models_is_shown_with_the_config_that_it_has(
    client: TestClient, store: SqlStore
) -> None:
    """As rows have that were written before names were kept."""
    made = f"job_{'a' * 32}"
    store.create_job(
        made, "local", ScoreSpec.model_validate({"type": "score", "config": {"items": ["a"]}}), {}
    )
    shown = client.get(f"/v1/jobs/{made}?include=resolved_config").json()
    assert shown["resolved_config"] == shown["config"]
