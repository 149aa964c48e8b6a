"""The scorer's process: ready, warm, drained."""

import json
import os
import signal
import subprocess
import sys

import httpx2
import numpy as np
import pytest

from jobs.scoring_wire import ModelSource, ScoreItem, ScoreRequest, decode_reply
from tests.worker.scorer.bench import PATIENCE_S, in_background, request, wait_until


@pytest.fixture
def launch(tmp_path, tiny):
    """Starts `python -m worker.scorer`; whatever happens, nothing of it is left."""
    started = []

    def start(**rest):
        registry = {
            "models": {
                "ref": {"source": str(tiny.base)},
                "pol": {"source": str(tiny.adapter), "base": "ref"},
            },
            "default_policy": "pol",
            "default_reference": "ref",
        } | rest
        (tmp_path / "models.json").write_text(json.dumps(registry))
        environment = os.environ | {
            "KLEASH_SCORER_URL": f"unix:{tmp_path}/process.sock",
            "KLEASH_MODELS_FILE": str(tmp_path / "models.json"),
            "KLEASH_DATA": str(tmp_path / "data"),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.scorer"], env=environment, stderr=subprocess.PIPE, text=True
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
