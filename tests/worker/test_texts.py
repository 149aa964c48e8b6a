"""Texts of a run: from the config, or from a JSONL file that the API has found."""

from pathlib import Path

import pytest

from jobs.migrate import upgrade
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from worker.failures import DatasetError
from worker.run import Stop, TrainingRun, read_texts


def test_a_run_mixes_in_the_texts_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "The cat sat on the mat."}\n\n{"text": "東京 is big", "prompt": "not this"}\n')
    config = {
        "model": {"name": "tiny", "lora": {"rank": 2}},
        "data": {"prompts": ["The cat", "A lovely"], "ptx_texts_file": "texts.jsonl"},
        "reward": {"kind": "length", "target_tokens": 4},
        "rollout": {"batch_size": 2, "max_new_tokens": 4},
        "loss": {"ptx_coefficient": 0.5},
        "optimization": {"steps": 1, "minibatches": 1, "ptx_batch_size": 2},
    }
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    resolved = {"model": {"path": str(tiny_model)}, "ptx_texts_file": str(file)}
    store.create_job("job_1", "me", PPOSpec.model_validate({"config": config}), resolved)
    job = store.claim("job_1", 1, worker="w", lease_s=600)
    assert job is not None
    place = tmp_path / "jobs" / job.id / str(job.attempt)
    place.mkdir(parents=True)
    assert TrainingRun(store, job, place, "cpu").run(Stop()) == 0
    (row,) = store.list_metrics("job_1")
    assert row.metrics["loss/ptx"] == pytest.approx(0.5 * row.metrics["ptx/nats_per_token"])


def test_inline_texts_come_first_and_nothing_is_no_text() -> None:
    assert read_texts(("a", "b"), None) == ["a", "b"]
    assert read_texts(None, None, field="text") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a b"}\n{"prompt": "a"}\n', "texts.jsonl: KeyError: 'text'"),
        ('{"text": "a b"}\n{"text": ""}\n', r"needs a field `text` with text; text 1 \(from 0\) has none"),
        ('{"text": 7}\n', r"text 0 \(from 0\) has none"),
        ("\n", "every line needs a field `text` with text$"),
        ("no JSON", "texts.jsonl: JSONDecodeError"),
    ],
    ids=["no field", "empty", "a number", "no line", "no JSON"],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_texts(None, str(file), field="text")
