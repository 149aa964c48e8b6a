"""Texts of a run: from the config, or from a JSONL file that the API has found."""

import hashlib
from pathlib import Path

import pytest

from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from worker.failures import DatasetError
from worker.run import Stop, TrainingRun
from worker.scorer.sources import AllowedSources
from worker.texts import read_texts, texts_of


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
    sources = AllowedSources(Settings(data=tmp_path, model_roots=[tiny_model]))
    assert TrainingRun(store, job, place, "cpu", sources=sources).run(Stop()) == 0
    (row,) = store.list_metrics("job_1")
    assert row.metrics["loss/ptx"] == pytest.approx(0.5 * row.metrics["ptx/nats_per_token"])


def test_inline_texts_come_first_and_nothing_is_no_text() -> None:
    assert texts_of({"prompts_file": "/nowhere"}, "prompts_file", ("a", "b")) == ["a", "b"]
    assert texts_of({}, "ptx_texts_file", None, field="text") == []


def test_a_line_is_a_text_or_has_one_and_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a\u2028b\x85"\r\n  \n{"prompt": "é", "more": [1]}')
    assert read_texts(file) == ["a\u2028b\x85", "é"]


def test_an_upload_must_be_what_the_job_was_created_with(tmp_path: Path) -> None:
    file = tmp_path / "file_1"
    file.write_text('"a"\n')
    sha256 = hashlib.sha256(b'"a"\n').hexdigest()
    resolved = {"prompts_file": str(file), "files": {"prompts_file": {"id": "file_1", "sha256": sha256}}}
    assert texts_of(resolved, "prompts_file", None) == ["a"]
    file.write_text('"b"\n')
    with pytest.raises(DatasetError, match="file_1 is not what was uploaded"):
        texts_of(resolved, "prompts_file", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a b"}\n{"prompt": "a"}\n', "line 2 is neither a text nor an object with a text `text`"),
        ('{"text": "a b"}\n\n{"text": ""}\n', "line 3 is neither"),
        ('{"text": 7}\n', "line 1 is neither"),
        ('[["a"]]', "line 1 is neither"),
        ("\n", "has no line"),
        ("no JSON", "line 1 is not JSON"),
        ("[" * 2000, "line 1 is not JSON"),
    ],
    ids=["no field", "empty", "a number", "a list", "no line", "no JSON", "deep"],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with pytest.raises(DatasetError, match=f"texts.jsonl:? {message}"):
        read_texts(file, field="text")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="x cannot be read: No such file"):
        read_texts(tmp_path / "x")
