"""What a worker reads in the broker's lists: hints that are ours, and nothing else of what an item says."""

import json

import pytest
from celery import Celery

from jobs.queue import MESSAGE_SETTINGS, RUN_JOB
from tests.contracts.hostile_messages import NO_JOB, crafted, hostile_items, message
from worker.messages import Hint, NotOurs, made_anew, read


def sent(job_id: str, epoch: int) -> bytes:
    """What CeleryBroker's message is in the list: kombu's own envelope."""
    app = Celery("kleash", broker="memory://", set_as_current=False)
    app.conf.update(MESSAGE_SETTINGS)
    with app.connection_for_write() as connection:
        channel = connection.channel()
        app.send_task(
            RUN_JOB, kwargs={"job_id": job_id, "epoch": epoch}, queue="cpu", connection=connection, priority=4
        )
        return json.dumps(channel._get("cpu")).encode()


def test_what_we_send_is_read_and_made_anew_without_loss() -> None:
    hint = read(sent("job_1", 7))
    assert hint == Hint("job_1", 7, 4)
    assert read(made_anew(hint, "gpu.any")) == hint
    assert json.loads(made_anew(hint, "gpu.any"))["properties"]["delivery_info"]["routing_key"] == "gpu.any"


@pytest.mark.parametrize("seed", range(3))
def test_a_hostile_item_is_refused_or_says_no_more_than_a_job_and_a_number(seed: int) -> None:
    """Every other part of what Celery gets is ours: of the item's own there is nothing left to be hostile."""
    refused = 0
    for _, item in hostile_items(2000, seed, "canary"):
        try:
            hint = read(item)
        except NotOurs:
            refused += 1
            continue
        assert hint.job_id == NO_JOB or hint.job_id in ("x", "a" * 64)
        ours, mine = json.loads(made_anew(hint, "cpu")), message()
        for fresh in (ours, mine):
            del fresh["body"], fresh["headers"]["kwargsrepr"], fresh["properties"]["priority"]
            for part, name in (("headers", "id"), ("headers", "root_id"), ("properties", "correlation_id")):
                del fresh[part][name]
            del fresh["properties"]["delivery_tag"]
        assert ours == mine
    assert refused > 500


def test_every_pickle_and_every_other_task_is_refused() -> None:
    for item in crafted("canary")[:19]:
        with pytest.raises(NotOurs):
            read(item)
