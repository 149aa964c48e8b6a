"""A database, a tiny model and attempts at jobs as forked children: the ground of resume.py and bad_runs.py."""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.faults.forking import fork

STEPS = 4
PROMPTS = ["The cat", "A lovely", "The quick brown", "Naïve"]


def spec(
    training: dict[str, Any],
    *,
    controller: dict[str, Any] | None = None,
    penalty: str = "k1",
    limit: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    reward: dict[str, Any] | None = None,
    best_of_n: int | None = None,
) -> PPOSpec:
    """Four steps with held-out prompts; `training` goes into `model`."""
    return PPOSpec.model_validate(
        {
            "limits": limits or {},
            "config": {
                "model": {"name": "tiny", **training},
                "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS[:2]},
                "reward": reward or {"kind": "length", "target_tokens": 4},
                "rollout": {"batch_size": 4, "max_new_tokens": 6},
                "kl": {
                    "beta": 0.1,
                    "penalty": penalty,
                    "controller": controller or {"kind": "pi"},
                    "limit": limit,
                },
                "optimization": {"steps": STEPS, "learning_rate": 0.01, "minibatches": 2},
                "evaluation": {"every_steps": 2, "best_of_n": best_of_n},
                "checkpoint": checkpoint or {},
            },
        }
    )


def fickle(reward: Callable[..., list[float]]) -> Callable[..., list[float]]:
    """A reward that draws from each of the process's generators: they are part of what must be the same."""

    def score(*args: Any) -> list[float]:
        import numpy
        import torch

        noise = random.random() + float(numpy.random.random()) + float(torch.rand(()))
        return [value + noise for value in reward(*args)]

    return score


class Bench:
    """One database, one tiny model, and attempts at jobs as child processes."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data=folder, database_url=f"sqlite:///{folder}/kleash.db")  # type: ignore[arg-type]
        os.environ |= {"KLEASH_DATA": str(folder), "KLEASH_MODEL_ROOTS": json.dumps([str(folder)])}
        os.environ["KLEASH_DATABASE_URL"] = self.settings.database_url.get_secret_value()
        self.model, self._jobs = folder / "tiny", 0
        self._in_child(self._make_model)
        upgrade(self.settings.database_url.get_secret_value())

    def _make_model(self) -> int:
        from tests.tiny_models import byte_level_tokenizer, save_tiny

        save_tiny(self.model, byte_level_tokenizer(vocab_size=400), seed=0)
        return 0

    def _in_child(self, body: Callable[[], int], log: Path = Path(os.devnull)) -> int:
        with log.open("ab") as output:
            _, status = os.waitpid(fork(body, output.fileno()), 0)
        return os.waitstatus_to_exitcode(status)

    def create(self, job: PPOSpec) -> str:
        self._jobs += 1
        job_id = f"job_{self._jobs:032x}"
        with self.store() as store:
            store.create_job(job_id, "me", job, {"model": {"path": str(self.model)}})
        return job_id

    def store(self) -> "Closing":
        return Closing(SqlStore(self.settings.database_url.get_secret_value()))

    def attempt(self, job_id: str, *prepare: Callable[[], None]) -> tuple[int, float, str]:
        """Claim and run to the child's end: exit code, when that was (monotonic), what it printed."""
        with self.store() as store:
            claimed = store.claim(job_id, store.get_job(job_id).epoch, worker="w", lease_s=600)
            assert claimed is not None
        folder = self.settings.artifacts / job_id / str(claimed.attempt)
        folder.mkdir(parents=True)

        def body() -> int:
            import worker.run
            import worker.train

            worker.run.make_reward = _fickle_rewards(worker.run.make_reward)
            for act in prepare:
                act()
            sys.argv = ["worker.train", job_id, str(claimed.attempt)]
            return worker.train.main()

        code = self._in_child(body, folder / "log.txt")
        ended_at, log = time.monotonic(), (folder / "log.txt").read_text()
        with self.store() as store:
            if not store.get_job(job_id).done:
                store.hand_back(job_id, claimed.attempt, reason="stopped")
        return code, ended_at, log

    def outcome(self, job_id: str) -> dict[str, Any]:
        """All that must not depend on having been stopped."""
        with self.store() as store:
            job = store.get_job(job_id)
            assert job.status is Status.SUCCEEDED, job.status
            final = store.get_checkpoint(job_id, "final")
            rows = store.list_metrics(job_id)
            samples = store.list_samples(job_id, limit=10_000)
            listed = {(self.settings.artifacts / c.path).resolve() for c in store.list_checkpoints(job_id)}
        assert final is not None
        weights = "model" if job.ppo.model.lora is None else "adapter_model"
        files = (f"{weights}.safetensors", "trainer.safetensors", "trainer.json")
        there = {path.resolve() for path in (self.settings.artifacts / job_id).glob("*/*") if path.is_dir()}
        return {
            "files": {
                n: hashlib.sha256((self.settings.artifacts / final.path / n).read_bytes()).hexdigest()
                for n in files
            },
            "metrics": [[row.step, row.metrics] for row in rows],
            "samples": [repr(sample) for sample in samples],
            "evaluation": (job.result or {}).get("evaluation"),
            "orphans": sorted(map(str, there - listed)),
            "too many checkpoints": len(listed) > job.spec.config.checkpoint.keep_last + 1,
        }


def _fickle_rewards(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *config: fickle(make(*config))


class Closing:
    """A store for one `with`: a fork must not inherit open connections."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def __enter__(self) -> SqlStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()
