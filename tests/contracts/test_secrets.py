"""Secrets that a deployment is given show nowhere: not in answers, logs, the database, files or command lines."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import psycopg
import pytest
from pydantic import SecretStr

from jobs.keys import ALL_SCOPES, Grant, new_key
from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.signatures import new_secret
from jobs.spec import JOB_SPEC, PPOSpec
from jobs.sql_store import SqlStore
from jobs.system import SystemRng
from tests.api.serving import ROOT, serving
from worker.supervisor import Supervisor

DATABASE, BROKER = "canary-database-5e1f", "canary-broker-77b2"
REWARD, SCORER = new_secret(), "canary-scorer-19c4"
SPEC: dict[str, Any] = {
    "config": {
        "model": {"name": "m"},
        "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"},
        "optimization": {"steps": 1},
    }
}
HTTP = {"kind": "http", "url": "https://rewards.example/"}
UNDER_SOAK = pytest.mark.skipif("KLEASH_SOAK" not in os.environ, reason="three more processes: KLEASH_SOAK=1")


@pytest.fixture(scope="module")
def database_url(new_postgres_database: Callable[[str], str]) -> str:
    """With a password, of which this server takes any."""
    parts = urlsplit(new_postgres_database("secrets"))
    account = parts.netloc.rpartition("@")[0].split(":")[0] or "postgres"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{account}:{DATABASE}@{host}"))


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    upgrade(database_url)
    with closing(SqlStore(database_url)) as store:
        yield store


def environment(database_url: str, folder: Path) -> dict[str, str]:
    return {
        "KLEASH_DATABASE_URL": database_url,
        "KLEASH_BROKER_URL": f"redis://:{BROKER}@127.0.0.1:1/0",  # nobody there
        "KLEASH_DATA": str(folder),
        "KLEASH_UNSAFE_NO_AUTH": "false",
        "KLEASH_REWARD_SECRET": REWARD,
        "KLEASH_SCORER_TOKEN": SCORER,
    }


def dump(database_url: str, *, but: str = "") -> str:
    """Every row of every table, or of all but one, as text."""
    with psycopg.connect(database_url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [
            connection.execute(f'SELECT t::text FROM "{name}" t'.encode()).fetchall()
            for (name,) in names
            if name != but
        ]
    return str(rows)


def command_lines() -> str:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def absent(secrets: list[str], places: dict[str, str]) -> None:
    for where, text in places.items():
        assert [secret for secret in secrets if secret in text] == [], where


def test_an_api_that_works_and_fails_tells_no_secret(
    database_url: str, store: SqlStore, tmp_path: Path
) -> None:
    (tmp_path / "models.json").write_text('{"models": {"m": {"source": "org/m"}}}')
    settings = Settings(database_url=SecretStr(database_url), models_file=tmp_path / "models.json")
    key, wrong = new_key(SystemRng()), new_key(SystemRng())
    store.create_key(key.id, key.secret_sha256, Grant(owner="me", name="test", scopes=ALL_SCOPES))
    answers: list[Any] = []
    with serving(settings, tmp_path, **environment(database_url, tmp_path)) as (url, log, process):
        for token in (str(key), str(wrong), f"{key}x", f"kl_{key.id}_{wrong.secret}"):
            with httpx2.Client(
                base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60
            ) as client:
                answers += [
                    client.get(path) for path in ("/ready", "/v1/jobs", "/v1/models", "/openapi.json")
                ]
                answers += [
                    client.post("/v1/jobs", json=SPEC | {"name": "a"}),
                    client.post("/v1/jobs", content=b"{"),
                ]
                answers += [client.post("/v1/scores", json={"input": "a", "policy": "m", "reference": "m"})]
        lines = command_lines()
        assert process.poll() is None
    statuses = {answer.status_code for answer in answers}
    assert statuses >= {200, 201, 401, 415, 503}
    places = {"answers": "".join(f"{answer.headers}{answer.text}" for answer in answers)}
    places |= {"log": log.read_text(), "database": dump(database_url), "command lines": lines}
    absent([DATABASE, BROKER, REWARD, SCORER, key.secret, wrong.secret], places)


def test_a_webhook_s_secrets_are_told_once_and_kept_in_one_table(
    database_url: str, store: SqlStore, tmp_path: Path
) -> None:
    """Through a delivery that is signed with both, and fails."""
    nobody = "127.0.0.1:1"
    (tmp_path / "models.json").write_text("{}")
    settings = Settings(database_url=SecretStr(database_url), models_file=tmp_path / "models.json")
    key = new_key(SystemRng())
    store.create_key(key.id, key.secret_sha256, Grant(owner="them", name="test", scopes=ALL_SCOPES))
    variables = environment(database_url, tmp_path) | {"KLEASH_OUTBOUND_ALLOW": f'["{nobody}"]'}
    answers = []
    with (
        serving(settings, tmp_path, **variables) as (url, log, _),
        httpx2.Client(
            base_url=f"{url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
        ) as client,
    ):
        made = client.post("/webhooks", json={"url": f"http://{nobody}/hook", "event_types": ["*"]}).json()
        rotated = client.post(f"/webhooks/{made['id']}/rotate").json()
        secrets = [made["secret"], rotated["secret"]]
        client.post(f"/webhooks/{made['id']}/test")
        while True:
            tried = client.get(f"/webhooks/{made['id']}/deliveries")
            if tried.json()["data"][0]["error"] is not None:
                break
            time.sleep(0.05)
        assert tried.json()["data"][0]["error"] == "connect_failed"
        answers += [tried, client.get("/webhooks"), client.get(f"/webhooks/{made['id']}")]
        answers += [client.patch(f"/webhooks/{made['id']}", json={"secret": secrets[0], "description": "x"})]
        answers += [
            client.patch(f"/webhooks/{made['id']}", json={"description": "x"}),
            client.get("/webhooks/wh_other"),
        ]
        lines = command_lines()
    assert len(set(secrets)) == 2
    assert all(secret in dump(database_url) for secret in secrets), "signing needs them"
    places = {
        "answers": "".join(f"{answer.headers}{answer.text}" for answer in answers),
        "command lines": lines,
    }
    places |= {"log": log.read_text(), "other tables": dump(database_url, but="webhooks")}
    absent([*secrets, REWARD, SCORER], places)


@pytest.mark.parametrize(
    ("spec", "signs"),
    [
        (SPEC, False),
        ({"type": "score", "config": {"items": ["a"]}}, False),
        ({"config": SPEC["config"] | {"reward": HTTP}}, True),
        ({"config": SPEC["config"] | {"evaluation": {"gold_reward": HTTP}}}, True),
    ],
    ids=["no endpoint", "score", "reward", "gold reward"],
)
def test_a_child_is_given_no_secret_that_it_has_no_use_for(
    database_url: str,
    store: SqlStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
    signs: bool,
) -> None:
    """As /proc shows it, of the child itself."""
    for name, value in environment(database_url, tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "secret").write_text(REWARD)
    monkeypatch.setenv("KLEASH_REWARD_SECRET_FILE", str(tmp_path / "secret"))
    job_id = f"job_{uuid.uuid4().hex}"
    store.create_job(job_id, "me", JOB_SPEC.validate_python(spec), {})
    look = "import os, shutil; shutil.copy('/proc/self/environ', os.environ['KLEASH_DATA'] + '/seen')"
    settings = Settings()
    Supervisor(store, settings, worker="w", command=[sys.executable, "-c", look]).run(job_id, 1)
    seen = dict(item.split("=", 1) for item in (tmp_path / "seen").read_text().split("\0") if item)
    assert (seen.get("KLEASH_REWARD_SECRET") == REWARD) is signs
    assert ("KLEASH_REWARD_SECRET_FILE" in seen) is signs
    assert "KLEASH_SCORER_TOKEN" not in seen, "a child asks no scorer"
    assert seen["KLEASH_DATABASE_URL"] == database_url, "all else is handed on"


@UNDER_SOAK
@pytest.mark.parametrize("up", [True, False], ids=["its model is missing", "no database"])
def test_a_job_that_fails_tells_no_secret(
    database_url: str, store: SqlStore, tmp_path: Path, up: bool
) -> None:
    """The training child, whose last words go to clients."""
    resolved = {"model": {"path": str(tmp_path / "nothing"), "base": None}}
    job_id = "job_1" if up else "job_2"
    store.create_job(job_id, "me", PPOSpec.model_validate(SPEC), resolved)
    job = store.claim(job_id, 1, worker="w", lease_s=60)
    assert job is not None
    url = database_url if up else f"postgresql://kleash:{DATABASE}@127.0.0.1:1/kleash"
    env = environment(url, tmp_path) | {"KLEASH_MODEL_ROOTS": f'["{tmp_path}"]', "KLEASH_LEASE_S": "1"}
    (tmp_path / "jobs" / job_id / str(job.attempt)).mkdir(parents=True)
    child = subprocess.run(
        [sys.executable, "-m", "worker.train", job_id, str(job.attempt)],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == (70 if up else 69), child.stderr
    files = {str(path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert bool(files) == up  # error.json
    absent(
        [DATABASE, BROKER, REWARD, SCORER],
        files | {"out": child.stdout, "log": child.stderr, "database": dump(database_url)},
    )


@UNDER_SOAK
def test_a_worker_without_its_broker_tells_no_secret(
    database_url: str, store: SqlStore, tmp_path: Path
) -> None:
    """Celery's banner, and its complaints."""
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--pool", "solo", "-l", "DEBUG"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment(database_url, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        said = []
        for line in worker.stdout:
            said.append(line)
            if "Cannot connect" in line:
                break
        lines = command_lines()
        worker.kill()
    absent([DATABASE, BROKER, REWARD, SCORER], {"log": "".join(said), "command lines": lines})
