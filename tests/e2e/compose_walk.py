"""What a running compose stack must do, and the small models that it needs for it.

python -m tests.e2e.compose_walk offer FOLDER       before: the folder for KLEASH_MODELS_DIR
python -m tests.e2e.compose_walk walk KEY URL…      then, with one URL for each replica of the API
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from kleash import Client

TEXT = "the cat sat on the mat"
JOB: dict[str, Any] = {
    "config": {
        "model": {"name": "base", "lora": {"rank": 2}},
        "data": {"prompts": ["the cat", "the dog", "reinforcement", "the mat"]},
        "reward": {"kind": "length", "target_tokens": 2},
        "rollout": {"batch_size": 4, "max_new_tokens": 8},
        "kl": {"beta": 0.05},
        "optimization": {"steps": 2, "learning_rate": 0.01},
    },
}
LONG = {"config": JOB["config"] | {"optimization": {"steps": 100_000, "learning_rate": 1e-6}}}
PATIENCE_S = 180.0


def offer(folder: Path) -> Path:
    """Write a pair of small models and their registry: `tuned`, the default policy, and `base`, its reference."""
    from tests.tiny_models import build

    build(folder)
    registry = {
        "models": {"base": {"source": "./base"}, "tuned": {"source": "./adapter", "base": "base"}},
        "default_policy": "tuned",
        "default_reference": "base",
    }
    (folder / "models.json").write_text(json.dumps(registry))
    return folder


def walk(key: str, urls: list[str]) -> None:
    """Score; run a job beside another one; score what it has made; cancel the other; each by another replica.

    The job's prompts were uploaded: one service writes the volume, another reads it.
    """
    clients = [Client(url, key) for url in urls]
    first, last = clients[0], clients[-1]
    for client in clients:
        assert client.scores.create([TEXT])["data"][0]["sums"]["kl"] > 0
    endless = first.jobs.create(LONG)["id"]
    _await_step(last, endless)
    prompts = "".join(f"{json.dumps(prompt)}\n" for prompt in JOB["config"]["data"]["prompts"])
    file = last.files.create(prompts.encode(), purpose="prompts")
    spec = JOB | {"config": JOB["config"] | {"data": {"prompts_file": file["id"]}}}
    job = last.jobs.wait(first.jobs.create(spec)["id"], timeout_s=PATIENCE_S, every_s=0.2)
    assert job["status"] == "succeeded", job
    workers = first.workers()["data"]
    assert endless in [worker["current_job"] for worker in workers], workers
    made = first.scores.create([TEXT], policy=job["result"]["model"], reference="base")
    assert made["data"][0]["sums"]["kl"] > 0  # the scorer reads what a worker wrote
    last.jobs.cancel(endless)
    other = first.jobs.wait(endless, timeout_s=PATIENCE_S, every_s=0.2)
    assert other["status"] == "cancelled", other
    for client in clients:
        client.close()


def _await_step(client: Client, job_id: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while (job := client.jobs.get(job_id))["progress"]["step"] < 1:
        assert not job["done"], job
        assert time.monotonic() < give_up_at, job
        time.sleep(0.2)


if __name__ == "__main__":
    if sys.argv[1] == "offer":
        offer(Path(sys.argv[2]))
    else:
        walk(sys.argv[2], sys.argv[3:])
        sys.stdout.write("A score, a job, its model, a cancelled job: all well\n")
