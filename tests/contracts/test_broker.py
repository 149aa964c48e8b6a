"""jobs.ports.Broker on a real Valkey: what a raw consumer finds is JSON with an id and an epoch, nothing else."""

import base64
import json
import os
import signal
from typing import Any

import pytest

from jobs.errors import BrokerUnavailable
from jobs.queue import RUN_JOB, CeleryBroker


def messages(valkey: Any, queue: str) -> list[Any]:
    raw = valkey.client().lrange(queue, 0, -1)
    return [json.loads(item) for item in reversed(raw)]


def test_a_message_is_json_with_an_id_and_an_epoch(valkey: Any) -> None:
    broker = CeleryBroker(valkey.url)
    broker.publish("job_1", 1, queue="cpu")
    broker.publish("job_2", 7, queue="gpu.any")
    for queue, expected in (("cpu", ("job_1", 1)), ("gpu.any", ("job_2", 7))):
        (message,) = messages(valkey, queue)
        assert message["content-type"] == "application/json"
        assert message["headers"]["task"] == RUN_JOB
        assert message["headers"]["expires"] is None  # a worker's wrong clock must not drop it
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        assert args == []
        assert kwargs == {"job_id": expected[0], "epoch": expected[1]}


def test_a_broker_that_comes_back_has_kept_its_messages(valkey: Any) -> None:
    broker = CeleryBroker(valkey.url)
    assert broker.ready()
    broker.publish("job_1", 1, queue="cpu")
    valkey.kill()
    assert not broker.ready()
    with pytest.raises(BrokerUnavailable):
        broker.publish("job_2", 1, queue="cpu")
    valkey.start()
    assert broker.ready()
    broker.publish("job_3", 1, queue="cpu")
    ids = [json.loads(base64.b64decode(m["body"]))[1]["job_id"] for m in messages(valkey, "cpu")]
    assert ids == ["job_1", "job_3"]


@pytest.mark.parametrize(
    "url", ["redis+socket:///nowhere/v.sock", "redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"]
)
def test_an_absent_broker_is_unavailable(url: str) -> None:
    broker = CeleryBroker(url)
    assert not broker.ready()
    with pytest.raises(BrokerUnavailable):
        broker.publish("job_1", 1, queue="cpu")


def test_a_frozen_broker_is_unavailable(valkey: Any) -> None:
    broker = CeleryBroker(valkey.url)
    os.kill(valkey.process.pid, signal.SIGSTOP)
    assert not broker.ready()
    with pytest.raises(BrokerUnavailable):
        broker.publish("job_1", 1, queue="cpu")
    os.kill(valkey.process.pid, signal.SIGCONT)
    assert broker.ready()
