"""The scorer's process: ready, warm, drained."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from jobs.scoring_wire import ModelSource, ScoreItem, ScoreRequest, decode_reply
from rlhf_core.models import load_pair
from tests.worker.scorer.bench import PATIENCE_S, in_background, request, wait_until
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache


@pytest.fixture
def launch(tmp_path, tiny):
    """Starts `python -m worker.scorer`; whatever happens, nothing of it is left."""
    started = []

    def start(environment=None, program=("-m", "worker.scorer"), **rest):
        registry = {
            "models": {
                "ref": {"source": str(tiny.base)},
                "pol": {"source": str(tiny.adapter), "base": "ref"},
            },
            "default_policy": "pol",
            "default_reference": "ref",
        } | rest
        (tmp_path / "models.json").write_text(json.dumps(registry))
        environment = {
            **os.environ,
            "KLEASH_SCORER_URL": f"unix:{tmp_path}/process.sock",
            "KLEASH_MODELS_FILE": str(tmp_path / "models.json"),
            "KLEASH_DATA": str(tmp_path / "data"),
            "OMP_NUM_THREADS": "1",
            "KLEASH_MAX_BATCH_TOKENS": "64",
            **(environment or {}),
        }
        process = subprocess.Popen(
            [sys.executable, *program], env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        transport = httpx2.HTTPTransport(uds=f"{tmp_path}/process.sock")
        return process, httpx2.Client(transport=transport, base_url="http://s", timeout=PATIENCE_S)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_ready(client):
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_process_scores_refuses_and_stops(tiny, launch):
    process, client = launch()
    wait_until(lambda: is_ready(client) or process.poll() is not None)
    reply = client.post("/score", content=request(tiny, "the cat 👩‍👩‍👧", "x" * 400).model_dump_json())
    first, second = decode_reply(reply.content).items
    assert first.end[-1] == len("the cat 👩‍👩‍👧".encode())
    assert (first.quantities["kl"][1:] > 0).all()
    assert np.isnan(first.quantities["kl"][0])
    assert second.code == "input_too_long"

    outside = ScoreRequest(
        policy=ModelSource(path="/etc"),
        reference=ModelSource(path=str(tiny.base)),
        items=[ScoreItem(text="a b")],
    )
    refused = client.post("/score", content=outside.model_dump_json())
    assert (refused.status_code, refused.json()["code"]) == (422, "path_not_allowed")

    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def test_a_default_pair_that_cannot_be_loaded_ends_the_process_with_one_sentence(tmp_path, launch):
    process, _ = launch(
        models={"ref": {"source": str(tmp_path / "nothing")}}, default_policy="ref", default_reference="ref"
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "the default pair cannot be loaded" in errors
    assert "Traceback" not in errors


CRASHES = """
import sys
from worker.scorer import batcher
from worker.scorer.__main__ import main

def broken(*_):
    raise RuntimeError("CUDA error: device-side assert triggered")

batcher.chosen, batcher.device_is_lost = broken, lambda: True
sys.exit(main())
"""


def test_a_lost_gpu_ends_the_process_in_an_error_so_that_it_is_started_again(tiny, launch):
    process, client = launch(program=("-c", CRASHES))
    wait_until(lambda: is_ready(client) or process.poll() is not None)
    refused = client.post("/score", content=request(tiny, "the cat").model_dump_json())
    assert refused.status_code == 503
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "the models' thread has crashed" in errors


# -- warm-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [True, False])
def test_a_preloaded_pair_has_run_every_kind_of_batch(pair_key, packs):
    """What the trunk saw: a row alone, rows of one length, texts of two lengths in one row or with a mask, and a
    prompt before its completions."""
    seen = []

    def watched(*args, **bodies):
        pair = load_pair(*args, **bodies)
        body = pair._policy[0]
        body.causal_lm = replace(body.causal_lm, packs=packs)
        body.causal_lm.trunk.register_forward_hook(
            lambda _, __, given, ___: seen.append(
                (tuple(given["input_ids"].shape), set(given) - {"input_ids", "use_cache"})
            ),
            with_kwargs=True,
        )
        return pair

    batcher = Batcher(PairCache(watched, memory_bytes=2**30), max_batch_tokens=512, max_queued_tokens=1000)
    batcher.preload(pair_key)
    # The context is 96: the long text has 96 tokens, a short one 96 / 4 = 24, of which 256 // 24 = 10 fit, and the
    # shared prompt 96 / 2 = 48. The last token of a text is never run.
    two_lengths = ((1, 95 + 23), {"position_ids"}) if packs else ((2, 95), {"attention_mask"})
    completions = ((3, 96 - 48 - 1), {"attention_mask", "past_key_values"})
    expected = [((1, 95), set()), ((10, 23), set()), two_lengths, ((1, 48), set()), completions]
    assert list(dict.fromkeys((shape, frozenset(how)) for shape, how in seen)) == [
        (shape, frozenset(how)) for shape, how in expected
    ]
    assert batcher.stats().batches == 0  # counters are for requests


# -- drain ----------------------------------------------------------------------------------------


# Of the batches after the first, none begins before a file is there.
HELD = """
import pathlib, sys, time
from worker.scorer import batcher
from worker.scorer.__main__ import main

go_on, chosen, batches = pathlib.Path(sys.argv[1]), batcher.chosen, []

def held(*given, **more):
    while batches and not go_on.exists():
        time.sleep(0.01)
    batch = chosen(*given, **more)
    if batch:  # nothing may be tokenised yet
        batches.append(batch)
    return batch

batcher.chosen = held
sys.exit(main())
"""


def busy(client, tiny, *, texts):
    """A request that is held, and proof that its first batch has run."""
    body = request(
        tiny, *(f"the cat sat on the mat and the dog {n} " * 4 for n in range(texts))
    ).model_dump_json()
    answer = in_background(lambda: client.post("/score", content=body))
    wait_until(lambda: client.get("/health").json()["batches"] or answer.done())
    return answer


def test_sigterm_refuses_new_requests_at_once_and_answers_those_it_has(tmp_path, tiny, launch):
    process, client = launch(program=("-c", HELD, str(tmp_path / "go on")))
    wait_until(lambda: is_ready(client) or process.poll() is not None)
    answer = busy(client, tiny, texts=200)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: client.get("/ready").status_code == 503)
    assert client.get("/ready").json()["code"] == "draining"
    refused = client.post("/score", content=request(tiny, "the cat").model_dump_json())
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert not answer.done()
    (tmp_path / "go on").touch()
    reply = answer.result(PATIENCE_S)
    assert reply.status_code == 200
    assert len(decode_reply(reply.content).items) == 200
    assert {part.split(";")[0] for part in reply.headers["Server-Timing"].split(", ")} == {
        "queue",
        "tokenize",
        "compute",
    }
    assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def test_a_drain_ends_with_its_grace(tmp_path, tiny, launch):
    held = ("-c", HELD, str(tmp_path / "go on"))
    process, client = launch(environment={"KLEASH_STOP_GRACE_S": "0.2"}, program=held)
    wait_until(lambda: is_ready(client) or process.poll() is not None)
    answer = busy(client, tiny, texts=250)
    process.send_signal(signal.SIGTERM)
    refused = answer.result(PATIENCE_S)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    (tmp_path / "go on").touch()
    assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
