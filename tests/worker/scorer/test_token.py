"""A scorer that others could reach asks for a token, and APIs and workers have it."""

import os
import subprocess
import sys

import pytest
from pydantic import SecretStr

from api.scorer import HttpScorer
from jobs.errors import ScorerUnavailable
from jobs.scoring_wire import ModelSource
from jobs.settings import Settings
from tests.api.serving import ROOT
from tests.worker.scorer.bench import serving, settings_for
from worker.scorer.__main__ import token_for
from worker.shared_gpu import scorers_asleep

TOKEN = "canary-scorer-token-19c4"
ASKED = [
    ("GET", "/models"),
    ("POST", "/score"),
    ("POST", "/tokenize"),
    ("POST", "/load"),
    ("POST", "/unload"),
    ("POST", "/sleep?who=x&for_s=60"),
    ("POST", "/wake?who=x"),
    ("GET", "/nothing"),
]


def test_all_but_probes_asks_for_the_token(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path, token=TOKEN) as (client, _):
        for method, path in ASKED:
            for shown in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
                answer = client.request(method, path, headers=shown, content=b"{}")
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
                assert TOKEN not in answer.text
        assert batcher.rest.over, "nobody put it to sleep"
        assert client.get("/health").status_code == 200
        assert client.get("/ready").json()["code"] == "starting"
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/models", headers=right).status_code == 200


def test_apis_and_workers_show_it(tmp_path, tiny, batcher, caplog):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path, token=TOKEN) as (_, path):
        url, source = f"unix:{path}", ModelSource(path=str(tiny.base))
        with pytest.raises(ScorerUnavailable):
            HttpScorer(url).load(source)
        HttpScorer(url, token=TOKEN).load(source)
        for token, asleep in ((None, False), (SecretStr(TOKEN), True)):
            ours = Settings(data=tmp_path, scorer_url=url, scorer_shares_gpu=True, scorer_token=token)
            with scorers_asleep(ours, "w"):
                assert batcher.rest.over is not asleep
    assert "/sleep failed: it answered 401" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("url", "starts"),
    [
        ("unix:/tmp/s.sock", True),
        ("http://127.0.0.1:8001", True),
        ("http://[::1]:8001", True),
        ("http://0.0.0.0:8001", False),
        ("http://scorer:8001", False),
        ("http://10.0.0.7:8001", False),
    ],
)
def test_off_loopback_none_starts_without_one(url, starts):
    assert token_for(Settings(scorer_url=url, scorer_token=SecretStr(TOKEN))) == TOKEN
    if starts:
        assert token_for(Settings(scorer_url=url)) is None
    else:
        with pytest.raises(SystemExit, match="needs KLEASH_SCORER_TOKEN"):
            token_for(Settings(scorer_url=url))


def test_the_process_says_so_before_it_loads_anything(tmp_path):
    environment = {**os.environ, "KLEASH_SCORER_URL": "http://0.0.0.0:8001", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "worker.scorer"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert "a scorer on http://0.0.0.0:8001 needs KLEASH_SCORER_TOKEN" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("token", ["short", "with a blank in between", "é" * 20, "line\nfeed-line-feed-line"])
def test_a_token_that_no_header_holds_is_refused(monkeypatch, token):
    with pytest.raises(ValueError, match="16 to 200 characters") as refused:
        Settings(scorer_token=SecretStr(token))
    assert token not in str(refused.value)
