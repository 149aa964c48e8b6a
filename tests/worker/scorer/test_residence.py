"""Models loaded and given up because somebody asked: what waits is answered all the same."""

import numpy as np
import pytest

from jobs.scoring_wire import ModelSource
from rlhf_core.models import WeightSource
from tests import tiny_models
from tests.worker.scorer.bench import in_background, request, serving, settings_for, wait_until
from worker.scorer.pairs import stored_bytes


@pytest.fixture
def running(batcher):
    """The batcher with its threads, and no model."""
    ended = [in_background(batcher.run), in_background(batcher.tokenize_ahead)]
    yield batcher
    batcher.close()
    for thread in ended:
        thread.result(60)


def states(batcher):
    return {model.source.path: model.state for model in batcher.residence.models()}


def test_a_model_is_loaded_before_anybody_needs_it_and_given_up(running, tiny, pair_key, loader):
    adapter, base = pair_key
    running.residence.wish(adapter, loaded=True)
    assert states(running) == {adapter.path: "loading"} or states(running) == {adapter.path: "loaded"}
    wait_until(lambda: states(running) == {adapter.path: "loaded"})
    (found,) = running.residence.models()
    assert found.source == ModelSource(path=adapter.path, base=adapter.base)
    assert (found.dtype, found.vocab_size, found.max_context) == ("float32", 377, tiny_models.CONTEXT)
    assert (found.bytes, len(found.tokenizer_sha256)) == (stored_bytes(adapter.path), 64)
    assert loader.loaded == [(adapter, adapter)]
    running.residence.wish(base, loaded=False)  # is not there as a model of its own
    running.residence.wish(adapter, loaded=False)
    wait_until(lambda: states(running) == {})
    assert running._pairs.weights_bytes == 0


def test_what_waits_for_a_model_that_is_given_up_has_it_loaded_again(batcher, tiny, pair_key, loader):
    adapter, base = pair_key
    first = batcher.submit(request(tiny, "the cat sat"), pair_key)
    batcher.step()
    waiting = [batcher.submit(request(tiny, "the cat sat"), pair_key) for _ in range(3)]
    batcher.residence.wish(base, loaded=False)
    ended = in_background(batcher.run)
    kl = [future.result(60).items[0].quantities["kl"] for future in (first, *waiting)]
    for other in kl[1:]:
        np.testing.assert_array_equal(kl[0], other)
    wait_until(lambda: not batcher.residence.due)
    assert loader.loaded == [pair_key, pair_key]
    assert states(batcher) == {adapter.path: "loaded", base.path: "loaded"}
    batcher.close()
    ended.result(60)


def test_a_model_that_cannot_be_loaded_says_so_and_harms_nobody(running, tiny, pair_key, tmp_path):
    broken = WeightSource(str(tmp_path))
    running.residence.wish(broken, loaded=True)
    wait_until(lambda: states(running) == {str(tmp_path): "failed"})
    assert running.residence.models()[0].error == "model_load_failed"
    assert running.submit(request(tiny, "the cat"), pair_key).result(60)
    running.residence.wish(broken, loaded=False)
    wait_until(lambda: str(tmp_path) not in states(running))


def test_the_last_wish_counts_and_a_sleeping_scorer_keeps_it(running, pair_key):
    adapter, base = pair_key
    assert running.rest.sleep("w", 600)
    running.residence.wish(adapter, loaded=True)
    running.residence.wish(base, loaded=True)
    running.residence.wish(base, loaded=False)
    assert states(running) == {adapter.path: "loading"}
    assert not len(running._pairs)
    running.rest.wake("w")
    wait_until(lambda: states(running) == {adapter.path: "loaded"})


def test_over_http_only_what_may_be_scored_may_be_loaded(batcher, tiny, tmp_path):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        inside, outside = ModelSource(path=str(tiny.base)), ModelSource(path="/etc")
        assert client.post("/load", content=inside.model_dump_json()).status_code == 202
        assert client.get("/models").json()["models"][0]["state"] == "loading"
        assert client.post("/unload", content=inside.model_dump_json()).status_code == 202
        assert client.get("/models").json() == {"models": []}
        refused = client.post("/load", content=outside.model_dump_json())
        assert (refused.status_code, refused.json()["code"]) == (422, "path_not_allowed")
        assert client.post("/load", content="{}").status_code == 422
        batcher.close()
        assert client.post("/load", content=inside.model_dump_json()).status_code == 503
