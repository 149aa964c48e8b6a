"""jobs.ports.Broker on a real Valkey: what a raw consumer finds is JSON with an id and an epoch, nothing else."""

import base64
import json
import os
import signal
from typing import Any

import pytest
from celery import Celery

from jobs.errors import BrokerUnavailable
from jobs.queue import PRIORITIES, RUN_JOB, CeleryBroker


def messages(valkey: Any, queue: str) -> list[Any]:
    client = valkey.client()
    urgent_first = [queue, *(f"{queue}\x06\x16{level}" for level in range(1, 10))]
    raw = [item for key in urgent_first for item in reversed(client.lrange(key, 0, -1))]
    return [json.loads(item) for item in raw]


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


def test_of_waiting_messages_the_highest_priority_is_taken_first(valkey: Any) -> None:
    broker = CeleryBroker(valkey.url)
    priorities = [5, 0, 9, 4, 9, 5, 1]
    for n, priority in enumerate(priorities):
        broker.publish(f"job_{n}", 1, queue="cpu", priority=priority)
    taken: list[int] = []
    with Celery(broker=valkey.url, set_as_current=False) as app:
        app.conf.broker_transport_options = PRIORITIES
        with app.connection_for_read() as connection, connection.SimpleQueue("cpu") as queue:
            for _ in priorities:
                message = queue.get(timeout=60)
                taken.append(int(message.payload[1]["job_id"].removeprefix("job_")))
                message.ack()
    assert taken == sorted(range(7), key=lambda n: (-priorities[n], n))


def test_a_broker_that_comes_back_has_kept_its_messages(valkey: Any) -> None:
    broker = CeleryBroker(valkey.url)
    assert broker.ready()
    broker.publish("job_1", 1, queue="cpu")
    valkey.settle()
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
