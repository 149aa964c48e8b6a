"""Sleep while a job trains on the same GPU: no models, no requests, and awake whatever happens to the worker."""

import gc
import os
import sys
import threading
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from jobs.settings import Settings
from jobs.states import Action, Status
from tests.worker.scorer.bench import in_background, request, serving, settings_for, wait_until
from tests.worker.supervised import CHILD, LONG_S, spec
from worker.scorer.rest import ScorerAsleep
from worker.shared_gpu import scorers_asleep
from worker.supervisor import Supervisor


@pytest.fixture
def running(batcher, pair_key):
    """The batcher with its threads, and the default pair in memory."""
    batcher.preload(pair_key)
    ended = [in_background(batcher.run), in_background(batcher.tokenize_ahead)]
    yield batcher
    batcher.close()
    for thread in ended:
        thread.result(60)


def kl(future: Future):
    return future.result(60).items[0].quantities["kl"]


def test_what_waits_is_answered_then_all_models_go_and_come_back_the_same(running, tiny, pair_key, loader):
    models = weakref.ref(running._pairs.find(pair_key).models)
    for _ in range(5):  # so that either thread has tokenised with it
        kl(running.submit(request(tiny, "a dog"), pair_key))
    waiting = running.submit(request(tiny, "the cat sat"), pair_key)
    assert running.rest.sleep("w", LONG_S)
    assert waiting.done()
    gc.collect()
    assert models() is None
    with pytest.raises(ScorerAsleep):
        running.submit(request(tiny, "the cat sat"), pair_key)
    running.rest.wake("w")
    wait_until(lambda: running.rest.over)
    assert pair_key in running._pairs
    again = running.submit(request(tiny, "the cat sat"), pair_key)
    np.testing.assert_array_equal(kl(waiting), kl(again))
    assert len(loader.loaded) == 2


def test_it_sleeps_as_long_as_one_worker_wants_it_to(running):
    assert running.rest.sleep("one", LONG_S)
    assert running.rest.sleep("other", LONG_S)
    running.rest.wake("one")
    assert running.rest.asleep
    assert not len(running._pairs)
    running.rest.wake("other")
    wait_until(lambda: running.rest.over)
    assert len(running._pairs) == 1


def test_sleep_waits_for_what_is_being_loaded(running, loader, monkeypatch):
    """A job that follows another: the models are neither there nor gone while they come back."""
    loading, go_on = threading.Event(), threading.Event()
    real = running._pairs._load

    def slowly(*key, **rest):
        loading.set()
        assert go_on.wait(60)
        return real(*key, **rest)

    assert running.rest.sleep("w", LONG_S)
    monkeypatch.setattr(running._pairs, "_load", slowly)
    running.rest.wake("w")
    assert loading.wait(60)
    asleep = in_background(lambda: running.rest.sleep("w", LONG_S))
    assert not asleep.done()
    go_on.set()
    assert asleep.result(60)
    assert not len(running._pairs)


def test_a_scorer_that_is_closed_keeps_no_worker_waiting(batcher, pair_key):
    batcher.preload(pair_key)
    asleep = in_background(lambda: batcher.rest.sleep("w", LONG_S))  # nobody runs the batcher
    batcher.close()
    assert asleep.result(60) is False


def test_it_wakes_by_itself_when_nobody_asks_again(running, tiny, pair_key):
    for_s = 0.5
    while not running.rest.sleep("w", for_s):  # the time was over before the models had gone
        for_s *= 2
    wait_until(lambda: running.rest.over)
    assert kl(running.submit(request(tiny, "the cat"), pair_key))[1] > 0


@pytest.fixture
def shared(tmp_path, tiny, running):
    """Settings of a worker on the scorer's GPU, and the scorer over HTTP."""
    settings, ready = settings_for(tmp_path, tiny), threading.Event()
    ready.set()
    with serving(running, settings, tmp_path, ready=ready) as (client, path):
        yield (
            Settings(
                data=tmp_path,
                scorer_url=f"unix:{path}",
                scorer_shares_gpu=True,
                heartbeat_s=0.05,
                lease_s=LONG_S,
                stop_grace_s=LONG_S,
            ),
            client,
        )


def test_it_sleeps_while_a_job_runs_and_only_then(tmp_path, shared, running, store):
    """A real supervisor with a real child, which starts when the models have gone."""
    settings, client = shared
    store.create_job("job_1", "me", spec(), {})
    command = [sys.executable, str(CHILD), "obey", str(tmp_path)]
    supervisor = Supervisor(store, settings, worker="w", command=command)
    run = in_background(lambda: supervisor.run("job_1", store.get_job("job_1").epoch))
    try:
        wait_until(lambda: (tmp_path / "starts").exists())
        assert not len(running._pairs)
        assert client.get("/ready").json() == {"status": "asleep"}
    finally:
        store.request("job_1", Action.CANCEL)
        ended = run.result(60)
    assert ended is Status.CANCELLED
    wait_until(lambda: running.rest.over)
    assert len(running._pairs) == 1


def test_a_scorer_that_is_not_there_holds_no_job_back(tmp_path, caplog):
    settings = Settings(data=tmp_path, scorer_url=f"unix:{tmp_path}/none.sock", scorer_shares_gpu=True)
    with scorers_asleep(settings, "w"):
        pass
    assert f"{tmp_path}/none.sock" in caplog.text
    assert os.listdir(tmp_path) == []
