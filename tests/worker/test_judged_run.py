"""A run whose judges are classifiers that the API has found, one of them only watching."""

from pathlib import Path
from typing import Any

import pytest

from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from rlhf_core.errors import ModelLoadError
from tests.tiny_classifiers import save_decoder, save_encoder
from worker.run import Stop, TrainingRun
from worker.scorer.sources import AllowedSources

CONFIG = {
    "model": {"name": "tiny", "lora": {"rank": 2}},
    "data": {"prompts": ["The cat", "A lovely"], "eval_prompts": ["The", "A", "Naïve"]},
    "reward": {"kind": "classifier", "model": "tone", "label": "good"},
    "rollout": {"batch_size": 2, "max_new_tokens": 4},
    "optimization": {"steps": 2, "minibatches": 1},
    "evaluation": {"gold_reward": {"kind": "classifier", "model": "gold"}},
}


def run(folder: Path, model: Path, config: dict[str, Any]) -> SqlStore:
    url = f"sqlite:///{folder}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    resolved = {
        "model": {"path": str(model)},
        "classifiers": {
            "tone": str(save_encoder(folder / "encoder")),
            "gold": str(save_decoder(folder / "decoder")),
        },
    }
    store.create_job("job_1", "me", PPOSpec.model_validate({"config": config}), resolved)
    job = store.claim("job_1", 1, worker="w", lease_s=600)
    assert job is not None
    place = folder / "jobs" / job.id / str(job.attempt)
    place.mkdir(parents=True)
    sources = AllowedSources(Settings(data=folder, model_roots=[folder, model]))
    assert TrainingRun(store, job, place, "cpu", sources=sources).run(Stop()) == 0
    return store


def test_both_judges_are_reported(tiny_model: Path, tmp_path: Path) -> None:
    store = run(tmp_path, tiny_model, CONFIG)
    result = store.get_job("job_1").result
    assert result is not None
    found = result["evaluation"]
    rise = found["after"]["gold_mean"] - found["before"]["gold_mean"]
    assert found["gold_difference"]["mean"] == pytest.approx(rise, abs=1e-9)
    held_out = store.list_samples("job_1", kind="eval", limit=100)
    last = [sample.data["gold"] for sample in held_out if sample.step == 2]
    assert sum(last) / 3 == pytest.approx(found["after"]["gold_mean"])
    metrics = store.list_metrics("job_1")[-1].metrics
    assert metrics["eval/gold_mean"] == pytest.approx(found["after"]["gold_mean"])
    assert {"reward/gold_mean", "reward/gold_se"} <= metrics.keys()


def test_a_label_that_only_the_worker_could_look_for_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    reward = {"kind": "classifier", "model": "tone", "label": "joy"}
    with pytest.raises(ModelLoadError, match="no such label, by name or index; it has bad, plain, good"):
        run(tmp_path, tiny_model, CONFIG | {"reward": reward})
