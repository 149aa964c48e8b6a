"""Score jobs on a real store and a pair of tiny models: the ground of test_score_batch.py."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.bulk import RESULTS
from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import JOB_SPEC, Job
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.tiny_models import CONTEXT, CORPUS, TinyModels
from worker.run import Stop, Stopped
from worker.score_batch import ScoreRun
from worker.scorer.sources import AllowedSources
from worker.supervisor import Supervisor

EVERY, ITEMS = 8, 61
WORDS = " ".join(CORPUS).split()
BAD = {  # line number → its text and the code of its error
    3: ('{"text": "the cat"', "malformed_json"),
    9: ('{"prompt": "the cat"}', "validation_error"),
    10: ('{"text": 1}', "validation_error"),
    20: ('{"text": ""}', "empty_input"),
    33: (json.dumps("the cat " * CONTEXT), "input_too_long"),
    34: ("[1, 2]", "validation_error"),
    35: ('{"token_ids": [1, 400000]}', "token_id_out_of_range"),
}


def text_of(number: int) -> str:
    return " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(2 + number * 5 % 11))


def line_of(number: int) -> str:
    """Lines of every form; line numbers count from 1."""
    if number in BAD:
        return BAD[number][0]
    text = text_of(number)
    if number % 3 == 0:
        return json.dumps(text)
    if number % 3 == 1:
        return json.dumps({"id": f"line-{number}", "reward": number / 4, "text": text})
    return json.dumps({"id": number, "prompt": "the dog sat on", "completion": " " + text})


class Place:
    """A database, a pair of tiny models, and score jobs on it."""

    def __init__(self, folder: Path, tiny: TinyModels) -> None:
        self.url = f"sqlite:///{folder}/kleash.db"
        upgrade(self.url)
        self.store, self.tiny = SqlStore(self.url), tiny
        self.settings = Settings(data=folder, model_roots=[tiny.root])
        self.file = folder / "items.jsonl"
        self.file.write_text("".join(f"{line_of(number)}\n" for number in range(1, ITEMS + 1)))

    def create(self, job_id: str, *, reference: Path | None = None, **config: Any) -> None:
        config = {"items_file": str(self.file), "checkpoint": {"every_items": EVERY}} | config
        job = {"type": "score", "config": config, "limits": {"max_attempts": 20}}
        resolved = {
            "names": {"policy": "tuned", "reference": "base"},
            "policy": {"path": str(self.tiny.adapter), "base": str(self.tiny.base)},
            "reference": {"path": str(reference or self.tiny.base), "base": None},
            "items_file": config.get("items_file"),
        }
        self.store.create_job(job_id, "me", JOB_SPEC.validate_python(job), resolved)

    def supervise(self, job_id: str) -> Status | None:
        """One attempt as a real process."""
        return Supervisor(self.store, self.settings, worker="w").run(job_id, self.store.get_job(job_id).epoch)

    def claimed(self, job_id: str) -> tuple[Job, Path]:
        job = self.store.claim(job_id, self.store.get_job(job_id).epoch, worker="w", lease_s=600)
        assert job is not None
        return job, self.settings.artifacts / job_id / str(job.attempt)

    def run(self, job: Job, folder: Path) -> ScoreRun:
        sources, tokens = AllowedSources(self.settings), self.settings.max_batch_tokens
        return ScoreRun(self.store, job, folder, "cpu", sources=sources, max_batch_tokens=tokens)

    def attempt(self, job_id: str, *, until: int | None = None) -> None:
        """One attempt in this process, stopped by SIGTERM when shard `until` has been recorded."""
        job, folder = self.claimed(job_id)
        run = self.run(job, folder)
        if until is None:
            run.run(Stop())
            return
        stop_after(run, until)
        with pytest.raises(Stopped):
            run.run(Stop())
        self.store.hand_back(job_id, job.attempt, reason="stopped")

    def content(self, job_id: str) -> bytes:
        paths = [self.settings.artifacts / s.path / RESULTS for s in self.store.list_shards(job_id)]
        return b"".join(path.read_bytes() for path in paths)

    def rows(self, job_id: str) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.content(job_id).splitlines()]


def stop_after(run: ScoreRun, shards: int) -> None:
    save = run._shards.save

    def save_and_stop(index: int, *args: Any, **options: Any) -> Any:
        save(index, *args, **options)
        if index + 1 == shards:
            Stop().request(15, None)

    run._shards.save = save_and_stop  # type: ignore[method-assign]
