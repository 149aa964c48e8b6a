"""A score job on the same texts: from its file to its durable results, with the models in memory already."""

import itertools
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import structlog

from benchmarks.scoring.contenders import LONGEST_BATCH_TOKENS, Answers
from benchmarks.scoring.workloads import Text
from jobs.bulk import RESULTS
from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import JOB_SPEC
from jobs.sql_store import SqlStore
from rlhf_core.models import ModelPair
from worker.run import Stop
from worker.score_batch import ScoreRun
from worker.scorer.sources import AllowedSources


class _LoadedRun(ScoreRun):
    """A run that finds the pair in memory: loading is not what is measured."""

    pair: ModelPair

    def _load(self) -> ModelPair:
        return self.pair


class ScoreJobs:
    """Jobs on a SQLite database in a temporary folder; `close` removes it."""

    def __init__(self, pair: ModelPair) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        self._pair, self._numbers = pair, itertools.count()
        self._folder = tempfile.TemporaryDirectory(prefix="kleash-bench-job-")
        self._settings = Settings(data=Path(self._folder.name))
        url = f"sqlite:///{self._folder.name}/kleash.db"
        upgrade(url)
        self._store = SqlStore(url)

    def score(self, texts: Sequence[Text]) -> Answers:
        """One job with `kl` of every token; returns what its results file says."""
        job_id = f"job_{next(self._numbers)}"
        file = Path(self._folder.name, f"{job_id}.jsonl")
        file.write_text("".join(f"{json.dumps({'text': text.string})}\n" for text in texts))
        config = {"items_file": str(file), "quantities": ["kl"], "per_token": True}
        resolved = {"names": {"policy": "policy", "reference": "reference"}, "items_file": str(file)}
        self._store.create_job(
            job_id, "bench", JOB_SPEC.validate_python({"type": "score", "config": config}), resolved
        )
        job = self._store.claim(job_id, self._store.get_job(job_id).epoch, worker="bench", lease_s=3600)
        assert job is not None
        folder = self._settings.artifacts / job_id / str(job.attempt)
        folder.mkdir(parents=True)
        sources = AllowedSources(self._settings)
        run = _LoadedRun(
            *(self._store, job, folder, "cpu"), sources=sources, max_batch_tokens=LONGEST_BATCH_TOKENS
        )
        run.pair = self._pair
        run.run(Stop())
        paths = [self._settings.artifacts / shard.path / RESULTS for shard in self._store.list_shards(job_id)]
        rows = [orjson.loads(line) for path in paths for line in path.read_bytes().splitlines()]
        return {"kl": [np.array(row["tokens"]["kl"][1:], dtype=np.float32) for row in rows]}

    def close(self) -> None:
        """Forget all jobs."""
        self._store.close()
        self._folder.cleanup()
