"""Dispatcher and reaper: what is sent, and that one's trouble is not the other's."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.dispatcher import Dispatcher
from jobs.errors import BrokerUnavailable
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action, Status

SETTINGS = Settings(dispatch_every_s=0.05, reap_every_s=0.05)
SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 1}}}"""
)


class SwitchedBroker:
    """A broker with a switch; `asked` is released at each publish, `arrived` at each that succeeds."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.sent: list[tuple[str, int, str]] = []
        self.asked, self.arrived = threading.Semaphore(0), threading.Semaphore(0)

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int) -> None:
        self.asked.release()
        if not self.up:
            raise BrokerUnavailable("down")
        self.sent.append((job_id, epoch, queue))
        self.arrived.release()

    def ready(self) -> bool:
        return self.up


def create(store: SqlStore, job_id: str) -> None:
    store.create_job(job_id, "me", SPEC, {})


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def running(run: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive(), "the loop ends when told"


def test_each_queued_job_is_sent_once(store: SqlStore) -> None:
    broker = SwitchedBroker()
    dispatcher = Dispatcher(store, broker, SETTINGS)
    create(store, "job_1")
    create(store, "job_2")
    assert [dispatcher.run_once(), dispatcher.run_once()] == [2, 0]
    assert broker.sent == [("job_1", 1, "cpu"), ("job_2", 1, "cpu")]
    job = store.claim("job_1", 1, worker="w", lease_s=30)
    assert job is not None
    store.hand_back("job_1", job.attempt, reason="r")
    dispatcher.run_once()
    assert broker.sent[2:] == [("job_1", 2, "cpu")]


def test_an_owner_at_its_limit_waits_for_a_job_of_its_own_to_end(store: SqlStore) -> None:
    broker = SwitchedBroker()
    dispatcher = Dispatcher(store, broker, SETTINGS.model_copy(update={"running_jobs_per_owner": 1}))
    create(store, "job_1")
    create(store, "job_2")
    assert [dispatcher.run_once(), dispatcher.run_once()] == [1, 0]
    job = store.claim("job_1", 1, worker="w", lease_s=30)
    assert job is not None
    assert dispatcher.run_once() == 0
    store.finish("job_1", job.attempt, Status.SUCCEEDED)
    assert dispatcher.run_once() == 1
    assert broker.sent == [("job_1", 1, "cpu"), ("job_2", 1, "cpu")]


def test_jobs_wait_in_their_rows_while_the_broker_is_down(store: SqlStore) -> None:
    broker = SwitchedBroker(up=False)
    create(store, "job_1")
    with running(Dispatcher(store, broker, SETTINGS).run):
        assert broker.asked.acquire(timeout=60)
        assert broker.asked.acquire(timeout=60), "it tries again"
        broker.up = True
        assert broker.arrived.acquire(timeout=60)
    assert broker.sent == [("job_1", 1, "cpu")]
    assert store.undispatched(resend_after_s=60) == []


def test_a_woken_dispatcher_does_not_wait_for_its_turn(store: SqlStore) -> None:
    broker = SwitchedBroker()
    dispatcher = Dispatcher(store, broker, Settings(dispatch_every_s=1e6))
    create(store, "job_1")
    with running(dispatcher.run):
        assert broker.arrived.acquire(timeout=60)
        create(store, "job_2")
        dispatcher.wake()
        assert broker.arrived.acquire(timeout=60)


def test_the_reaper_works_while_the_broker_is_down(store: SqlStore) -> None:
    broker = SwitchedBroker(up=False)
    create(store, "job_1")
    create(store, "job_2")
    assert store.claim("job_1", 1, worker="w", lease_s=-1) is not None
    with running(Dispatcher(store, broker, SETTINGS).run), running(Reaper(store, SETTINGS).run):
        wait_until(lambda: store.get_job("job_1").status is Status.QUEUED)
    assert store.get_job("job_1").epoch == 2
    assert broker.sent == []


def unfinished(store: SqlStore, data: Path) -> Path:
    """The folder of a running attempt with a checkpoint, a save that no row names yet, and a log."""
    create(store, "job_1")
    store.claim("job_1", 1, worker="w", lease_s=600)
    attempt = data / "jobs" / "job_1" / "1"
    for name in ("step-1", "step-2", "step-3.partial"):
        (attempt / name).mkdir(parents=True)
    (attempt / "log").touch()
    store.record_checkpoint("job_1", 1, name="step-1", step=1, path="job_1/1/step-1", sha256="", size=0)
    return attempt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_reaper_clears_what_a_lost_attempt_left(store: SqlStore, tmp_path: Path) -> None:
    attempt = unfinished(store, tmp_path)
    store.heartbeat("job_1", 1, lease_s=-1)
    assert [item.status for item in Reaper(store, Settings(data=tmp_path)).run_once()] == [Status.QUEUED]
    assert names(attempt) == ["log", "step-1"]


def test_a_new_reaper_clears_what_one_that_died_did_not(store: SqlStore, tmp_path: Path) -> None:
    attempt = unfinished(store, tmp_path)
    Reaper(store, Settings(data=tmp_path)).sweep()
    assert names(attempt) == ["log", "step-1", "step-2", "step-3.partial"], "the attempt runs"
    store.heartbeat("job_1", 1, lease_s=-1)
    store.reap()  # and dies here
    (tmp_path / "jobs" / "job_unknown" / "1" / "step-1").mkdir(parents=True)
    with running(Reaper(store, Settings(data=tmp_path)).run):
        wait_until(lambda: names(attempt) == ["log", "step-1"])
    assert (tmp_path / "jobs" / "job_unknown" / "1" / "step-1").exists(), "not ours to judge"


@pytest.mark.parametrize("tidied", [Reaper.run_once, Reaper.sweep])
@pytest.mark.parametrize("it_wrote", [True, False], ids=["its own folder", "no folder"])
def test_a_checkpoint_that_a_later_attempt_was_retiring_goes(
    store: SqlStore, tmp_path: Path, tidied: Callable[[Reaper], object], *, it_wrote: bool
) -> None:
    """The second attempt drops the row of the first one's checkpoint and dies before the folder goes."""
    attempt = unfinished(store, tmp_path)
    store.hand_back("job_1", 1, reason="r")
    store.claim("job_1", store.get_job("job_1").epoch, worker="w", lease_s=600)
    if it_wrote:
        attempt.with_name("2").mkdir()
    assert store.drop_checkpoints("job_1", 2, ["step-1"]) == ["step-1"]
    store.request("job_1", Action.CANCEL)
    store.heartbeat("job_1", 2, lease_s=-1)
    if tidied is Reaper.sweep:
        store.reap()  # whoever did it died here
    tidied(Reaper(store, Settings(data=tmp_path)))
    assert store.get_job("job_1").status is Status.CANCELLED
    assert names(attempt) == ["log"]
