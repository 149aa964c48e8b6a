"""kill -9 in the middle of a job: it goes on from its checkpoint and ends as if nothing had happened."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kleash import Client
from tests.stack import PATIENCE_S, Stack, alive, nobody_is_left

STEPS = 40
# Soon over when the stack is dead, and renewed in time by one that lives, however busy the machine and its disk.
SHORT_LEASE = {"KLEASH_LEASE_S": "12", "KLEASH_HEARTBEAT_S": "0.5"}


def spec(seed: int = 0) -> dict[str, Any]:
    return {
        "config": {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": ["The cat", "A lovely", "The quick"], "eval_prompts": ["The dog"]},
            "reward": {"kind": "length", "target_tokens": 8},
            "rollout": {"batch_size": 16, "max_new_tokens": 24},
            "kl": {"beta": 0.1, "controller": {"kind": "pi", "target_nats_per_sequence": 1.0}},
            "optimization": {"steps": STEPS, "learning_rate": 0.003, "epochs": 2},
            "checkpoint": {"every_steps": 3},
            "seed": seed,
        }
    }


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    for pid in alive(folder):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def registry(tiny_model: Path, tmp_path: Path) -> Path:
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"models": {"tiny": {"source": str(tiny_model)}}}))
    return file


def until_step(client: Client, job_id: str, step: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while client.jobs.get(job_id)["progress"]["step"] < step:
        assert time.monotonic() < give_up_at, "the job does not move"
        time.sleep(0.05)


def outcome(client: Client, job_id: str) -> tuple[str, list[Any], Any]:
    """sha256 of the final weights, metric lines, evaluation: what must not depend on being killed."""
    job = client.jobs.wait(job_id)
    assert job["status"] == "succeeded", job["error"]
    rows = client.jobs.metric_rows(job_id)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # unique and contiguous
    file = client.checkpoints.file(job["result"]["checkpoint_id"], "adapter_model.safetensors")
    weights = b"".join(file)
    metrics = [row["metrics"] for row in rows]
    return hashlib.sha256(weights).hexdigest(), metrics, job["result"]["evaluation"]


def test_a_job_survives_kill_9_of_its_child_and_of_the_whole_stack(data: Path, registry: Path) -> None:
    stack = Stack(data, registry, "--port", "0", "--unsafe-no-auth", env=SHORT_LEASE)
    with Client(stack.ready()["url"]) as client:
        undisturbed = outcome(client, client.jobs.create(spec())["id"])

        killed = client.jobs.create(spec())["id"]
        until_step(client, killed, 4)
        (child,) = (pid for pid, command in alive(data).items() if "worker.train" in command)
        os.kill(child, signal.SIGKILL)
        until_step(client, killed, 12)
        stack.end(signal.SIGKILL)
        assert nobody_is_left(data)

    stack = Stack(data, registry, "--port", "0", "--unsafe-no-auth", env=SHORT_LEASE)
    with Client(stack.ready()["url"]) as client:
        assert outcome(client, killed) == undisturbed
        events = client.jobs.events(killed)["data"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events].count("job.resumed_from") == 2
        assert client.jobs.get(killed)["attempt"] == 3
    stack.end(signal.SIGTERM)
    assert nobody_is_left(data)
