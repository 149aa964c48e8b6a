"""A score job through the real child: what it writes is what the engine says, and a kill changes no byte of it."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from transformers import PreTrainedTokenizerFast

from jobs.bulk import RESULTS
from jobs.errors import LeaseLost, ScoringRefused
from jobs.states import Action, Status
from rlhf_core.errors import TokenizerMismatch
from rlhf_core.models import WeightSource, load_pair
from rlhf_core.scoring import score_texts
from rlhf_core.tokenization import tokenize
from tests.tiny_models import CONTEXT, build, save_padded
from tests.worker.score_place import BAD, EVERY, ITEMS, Place, line_of, text_of
from worker.failures import DatasetError
from worker.run import Stop

PATIENCE_S = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("data"), build(tmp_path_factory.mktemp("models")))
    patched = pytest.MonkeyPatch()
    patched.setenv("KLEASH_DATA", str(place.settings.data))
    patched.setenv("KLEASH_DATABASE_URL", place.url)
    patched.setenv("KLEASH_MODEL_ROOTS", json.dumps([str(place.tiny.root)]))
    yield place
    patched.undo()
    place.store.close()


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> bytes:
    """What a job that nobody disturbs writes."""
    place.create("job_undisturbed")
    assert place.supervise("job_undisturbed") is Status.SUCCEEDED, place.store.get_job(
        "job_undisturbed"
    ).error
    return place.content("job_undisturbed")


def test_results_are_what_the_engine_says(place: Place, undisturbed: bytes) -> None:
    """Each shard equals one call of score_texts, to the bit; bad lines fail alone, with their number."""
    pair = load_pair(
        WeightSource(str(place.tiny.adapter), str(place.tiny.base)), WeightSource(str(place.tiny.base))
    )
    rows = [orjson.loads(line) for line in undisturbed.splitlines()]
    assert [row["index"] for row in rows] == list(range(ITEMS))
    for first in range(0, ITEMS, EVERY):
        shard = [row for row in rows[first : first + EVERY] if row["index"] + 1 not in BAD]
        texts = []
        for row in shard:
            number = row["index"] + 1
            prompt, text = (
                (None, text_of(number)) if number % 3 != 2 else ("the dog sat on", f" {text_of(number)}")
            )
            texts.append(tokenize(pair.tokenizer, text, prompt, context=CONTEXT))
        for row, scored in zip(shard, score_texts(pair, texts), strict=True):
            number = row["index"] + 1
            assert row.get("id") == {0: None, 1: f"line-{number}", 2: number}[number % 3]
            assert row.get("reward") == (number / 4 if number % 3 == 1 else None)
            assert (row["n_tokens"], row["n_scored"]) == (len(scored.ids), scored.scored.sum())
            for name, total in row["sums"].items():
                assert total == scored.quantities[name][scored.scored].sum(dtype=np.float64), name
                assert row["means"][name] == total / row["n_scored"]
    for number, (_, code) in BAD.items():
        assert rows[number - 1]["error"]["code"] == code
        assert f"line {number}" in rows[number - 1]["error"]["detail"]


def test_the_job_says_how_far_it_is_and_what_came_out(place: Place, undisturbed: bytes) -> None:
    job, rows = place.store.get_job("job_undisturbed"), place.rows("job_undisturbed")
    good = [row for row in rows if "error" not in row]
    shards = -(-ITEMS // EVERY)  # 61 items in eights: seven shards and one of five
    counts = {
        "items_done": ITEMS,
        "items_failed": len(BAD),
        "tokens": sum(row["n_tokens"] for row in good),
        "tokens_scored": sum(row["n_scored"] for row in good),
    }
    assert job.step == shards
    assert counts.items() <= job.latest.items()
    assert job.latest["items_total"] == ITEMS
    assert job.latest["tokens_per_s"] > 0
    assert job.result is not None
    assert counts.items() <= job.result.items()
    summary = job.result["summary"]
    # Lines 2, 5, 8, … share one prompt, which makes them one cluster; every other line is one of its own.
    alone = [[row] for row in good if row["index"] % 3 != 1]
    groups = [*alone, [row for row in good if row["index"] % 3 == 1]]
    assert (summary["n_items"], summary["n_clusters"]) == (len(good), len(groups))
    for name in ("k1", "kl", "entropy"):
        for kind, weight in (("sums", lambda row: 1), ("means", lambda row: row["n_scored"])):
            x = [sum(row["sums"][name] for row in group) for group in groups]
            t = [sum(weight(row) for row in group) for group in groups]
            mean, n = sum(x) / sum(t), len(groups)
            error = sum((a - mean * b) ** 2 for a, b in zip(x, t, strict=True)) * n / (n - 1) / sum(t) ** 2
            found = summary[kind][name]
            assert (found["mean"], found["se"]) == pytest.approx((mean, error**0.5), rel=1e-9)
            assert found["low"] < found["mean"] < found["high"]
    metrics = place.store.list_metrics("job_undisturbed")
    assert [row.step for row in metrics] == list(range(1, shards + 1))
    first = [row for row in rows[:EVERY] if "error" not in row]
    expected = sum(row["sums"]["kl"] for row in first) / sum(row["n_scored"] for row in first)
    assert metrics[0].metrics["kl/token"] == pytest.approx(expected, rel=1e-12)


def test_kill_9_at_every_place_of_a_save_changes_no_byte(
    place: Place, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real processes: the file durable under no name, under its name without a row, and the row just written."""
    armed = {
        "rename.before": 2,
        "commit.record_shard.before": 2,
        "commit.record_shard.after": 3,
    }
    monkeypatch.setenv("KLEASH_KILL_AT", ",".join(f"{name}:{n}" for name, n in armed.items()))
    monkeypatch.setenv("KLEASH_KILL_ONCE", str(tmp_path))
    place.create("job_killed")
    for _ in armed:
        assert place.supervise("job_killed") is Status.QUEUED
    assert place.supervise("job_killed") is Status.SUCCEEDED
    assert {path.name for path in tmp_path.iterdir()} == set(armed)
    assert place.content("job_killed") == undisturbed
    killed, whole = place.store.get_job("job_killed"), place.store.get_job("job_undisturbed")
    assert killed.result == whole.result
    assert [row.metrics for row in place.store.list_metrics("job_killed")] == [
        row.metrics for row in place.store.list_metrics("job_undisturbed")
    ]
    named = {place.settings.artifacts / path for path in place.store.list_folders("job_killed")}
    assert {path for path in (place.settings.artifacts / "job_killed").glob("*/*") if path.is_dir()} == named


def test_a_cancelled_job_keeps_what_it_has(place: Place, undisturbed: bytes) -> None:
    """SIGTERM to a real child: the results so far are the first lines of the whole."""
    place.file.with_name("long.jsonl").write_text(place.file.read_text() * 2000)
    place.create("job_cancelled", items_file=str(place.file.with_name("long.jsonl")))
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(place.supervise("job_cancelled")))
    thread.start()
    wait_until(lambda: place.store.get_job("job_cancelled").step >= 2)
    place.store.request("job_cancelled", Action.CANCEL)
    thread.join(PATIENCE_S)
    assert ended == [Status.CANCELLED]
    kept = place.content("job_cancelled")
    assert kept.splitlines()[: 2 * EVERY] == undisturbed.splitlines()[: 2 * EVERY]
    assert len(kept.splitlines()) == place.store.get_job("job_cancelled").latest["items_done"]
    assert place.store.get_job("job_cancelled").crash_count == 0


def test_a_stopped_job_goes_on_behind_its_last_shard(place: Place, undisturbed: bytes) -> None:
    place.create("job_stopped")
    place.attempt("job_stopped", until=3)
    assert place.store.get_job("job_stopped").step == 3
    before = place.store.list_shards("job_stopped")
    place.attempt("job_stopped")
    after = place.store.list_shards("job_stopped")
    assert after[:3] == before
    assert {shard.attempt for shard in after[3:]} == {2}
    assert place.content("job_stopped") == undisturbed


def test_a_damaged_shard_is_scored_again(place: Place, undisturbed: bytes) -> None:
    for harm in (lambda file: file.unlink(), lambda file: file.write_bytes(b"{}\n")):
        job_id = f"job_damaged_{harm.__code__.co_firstlineno}_{harm.__code__.co_names[0]}"
        place.create(job_id)
        place.attempt(job_id, until=3)
        harm(place.settings.artifacts / place.store.list_shards(job_id)[1].path / RESULTS)
        place.attempt(job_id)
        assert place.content(job_id) == undisturbed
        assert "shard.corrupt" in [event.type for event in place.store.list_events(job_id)]


def test_a_file_that_changed_is_not_mixed_with_what_it_was(place: Place) -> None:
    file = place.file.with_name("changing.jsonl")
    file.write_text(place.file.read_text())
    place.create("job_changed", items_file=str(file))
    place.attempt("job_changed", until=2)
    file.write_text(file.read_text().replace("line-1", "line-X"))
    with pytest.raises(DatasetError, match="changed"):
        place.attempt("job_changed")
    assert place.store.get_job("job_changed").step == 2


def test_an_owner_that_was_replaced_writes_nothing(place: Place) -> None:
    place.create("job_fenced")
    job, folder = place.claimed("job_fenced")
    old = place.run(job, folder)
    place.store.hand_back("job_fenced", job.attempt, reason="lost", crashed=True)
    place.claimed("job_fenced")
    with pytest.raises(LeaseLost):
        old._shards.save(0, [b"{}\n"], {}, metrics={}, timings={})
    with pytest.raises(LeaseLost):
        old.run(Stop())
    assert place.store.list_shards("job_fenced") == []


def test_inline_items_are_a_file_without_one(place: Place) -> None:
    good = [number for number in range(1, 2 * EVERY + 1) if number not in BAD]
    place.create("job_inline", items_file=None, items=[json.loads(line_of(number)) for number in good])
    same = place.file.with_name("same.jsonl")
    same.write_text("\n\n".join(line_of(number) for number in good))  # blank lines, and no newline at the end
    place.create("job_file", items_file=str(same))
    for job_id in ("job_inline", "job_file"):
        place.attempt(job_id)
    assert place.content("job_inline") == place.content("job_file")
    assert [row["index"] for row in place.rows("job_file")] == list(range(len(good)))


def test_a_worker_opens_no_folder_that_has_the_name_of_a_model_on_the_hub(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(place.tiny.base, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    place.create("job_hub", items_file=None, items=["the cat"])
    job, folder = place.claimed("job_hub")
    job.resolved["policy"] = {"path": "org/name", "base": None}
    with pytest.raises(ScoringRefused) as refused:
        place.run(job, folder).run(Stop())
    assert refused.value.code == "path_not_allowed"


def test_a_token_for_which_the_model_has_no_row_fails_its_line(place: Place, tmp_path: Path) -> None:
    padded = shutil.copytree(place.tiny.base, place.tiny.root / "padded")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(padded)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(padded)
    other = Place(tmp_path, place.tiny._replace(base=padded))
    other.create("job_padded", items_file=None, items=["the cat", "the [PAD]", "the dog"])
    other.attempt("job_padded")
    first, wrong, last = other.rows("job_padded")
    assert wrong["error"]["code"] == "token_id_out_of_range"
    assert (first["n_tokens"], last["n_tokens"]) == (2, 2)
    other.store.close()


def test_token_ids_and_chats_are_scored_as_in_requests(place: Place) -> None:
    """The ids of a text and of its prompt have the text's numbers; a chat's last turn is scored."""
    tokenizer = load_pair(WeightSource(str(place.tiny.base)), WeightSource(str(place.tiny.base))).tokenizer
    prompt, text = tokenizer("the dog")["input_ids"], tokenizer(" sat on the log")["input_ids"]
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    items = [
        {"prompt": "the dog", "text": " sat on the log"},
        {"token_ids": prompt + text, "score_from": len(prompt)},
        {"messages": chat},
        {"text": "the cat sat " * CONTEXT, "truncation": "right"},
    ]
    place.create("job_forms", items_file=None, items=items, numerics="strict")
    place.attempt("job_forms")
    by_text, by_ids, by_chat, cut = place.rows("job_forms")
    assert by_text["sums"] == by_ids["sums"]
    assert by_text["prompt_sha256"] == by_ids["prompt_sha256"]
    assert by_chat["prompt_sha256"] != by_text["prompt_sha256"]
    assert by_chat["n_scored"] >= len(tokenizer("sat")["input_ids"])
    assert (cut["truncated"], cut["n_tokens"]) == (True, CONTEXT)
    job = place.store.get_job("job_forms")
    assert job.result is not None
    assert job.result["summary"]["n_clusters"] == 3


def test_strict_numerics_do_not_depend_on_neighbours_and_per_token_shows_each(place: Place) -> None:
    config: dict[str, Any] = {"numerics": "strict", "per_token": True, "quantities": ["kl", "k1"], "top_k": 2}
    alone = json.loads(line_of(4))
    place.create("job_alone", items_file=None, items=[alone], **config)
    place.create("job_strict", **config)
    place.attempt("job_alone")
    place.attempt("job_strict")
    (one,), among = place.rows("job_alone"), place.rows("job_strict")[3]
    assert one["tokens"] == among["tokens"]
    assert one["tokens"]["kl"][0] is None
    assert sum(one["tokens"]["kl"][1:]) == pytest.approx(one["sums"]["kl"], rel=1e-6)
    assert set(one["tokens"]) == {"ids", "start", "end", "scored", "kl", "k1", "top"}
    largest, second = one["tokens"]["top"]["kl_term"][-1]
    assert one["tokens"]["kl"][-1] > largest >= second  # terms are ≥ 0 and sum to kl


def wait_until(holds: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_heads_of_different_size_are_scored_over_the_ids_that_both_have(place: Place) -> None:
    """Only where the job asks for it; its result says over how many."""
    wider = save_padded(place.tiny, place.tiny.root / "wider", rows=47)
    items = ["the cat sat on the mat", {"token_ids": [1, 377]}]
    place.create("job_refused", reference=wider, items_file=None, items=items)
    with pytest.raises(TokenizerMismatch):
        place.attempt("job_refused")
    place.create("job_intersect", reference=wider, items_file=None, items=items, vocab_mismatch="intersect")
    place.attempt("job_intersect")
    scored, beyond = place.rows("job_intersect")
    assert scored["sums"]["kl"] > 0
    assert beyond["error"]["code"] == "token_id_out_of_range"
    result = place.store.get_job("job_intersect").result
    assert result is not None
    assert (result["vocab_size"], result["vocab_sizes"]) == (377, [377, 424])
