"""`kleash up` with its real processes, on a registry without a default pair: nothing is loaded, all else runs."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.signatures import new_secret
from kleash import Client, KleashError
from kleash.claims import UpError, free_port, locked, socket_folder
from tests.stack import PATIENCE_S, Stack, alive, nobody_is_left

SPEC = {
    "config": {
        "model": {"name": "ghost"},
        "data": {"prompts": ["a", "b"]},
        "reward": {"kind": "sentiment"},
        "rollout": {"batch_size": 2},
        "optimization": {"steps": 1},
    }
}


ROLES = {"valkey", "worker.scorer", "celery", "-m api"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A registry with a model that does not exist, and no default pair."""
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"models": {"ghost": {"source": str(tmp_path / "nowhere")}}}))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path has spaces and 150 characters or more: no unix socket fits below it."""
    folder = tmp_path / "a b" / "a long path with spaces ".ljust(150, "x") / "data"
    folder.parent.mkdir(parents=True)
    yield folder
    for pid in alive(folder):
        os.kill(pid, signal.SIGKILL)
    for record in folder.rglob("run.json"):  # what a killed run could not remove
        shutil.rmtree(json.loads(record.read_text())["sockets"], ignore_errors=True)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_up_stops_cleanly_finds_its_data_again_and_leaves_nothing_after_kill_9(
    data: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jobs", "api", "worker", "celery"):  # what lies where the caller stands is not run
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    reward = {"KLEASH_REWARD_SECRET": new_secret()}
    first = Stack(data, models, env=reward)
    ready = first.ready()
    sockets = Path(json.loads((data / "run.json").read_text())["sockets"])
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert {role for role in ROLES for command in alive(data).values() if role in command} == ROLES
    assert {command for command in given(data, reward) if "celery" not in command} == set(), "who signs alone"
    assert given(data, reward)
    assert ready["key_file"] == str(data / "key")
    assert (data / "key").stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / "kleash.db").stat().st_mode & 0o777 == 0o600
    with Client(ready["url"], data=data) as client:
        job_id = client.jobs.create(SPEC)["id"]
    with Client(ready["url"], "kl_not_ours") as client, pytest.raises(KleashError) as refused:
        client.jobs.get(job_id)
    assert refused.value.status == 401

    second = Stack(data, models)
    assert second.process.wait(PATIENCE_S) == 1
    assert json.loads(second.log.read_text())["error"]["detail"].startswith("Another kleash is running on ")

    assert first.end(signal.SIGTERM) == 0
    assert nobody_is_left(data)
    assert not sockets.exists()
    assert not (data / "run.json").exists()

    again = Stack(data, models)
    with Client(again.ready()["url"], data=data) as client:
        assert client.jobs.get(job_id)["id"] == job_id
    left = Path(json.loads((data / "run.json").read_text())["sockets"])
    assert again.end(signal.SIGKILL) == -signal.SIGKILL
    assert nobody_is_left(data)

    assert left.exists()  # nobody was there to remove it …
    with locked(data), socket_folder(data, "http://unused"):
        assert not left.exists()  # … so the next start does


def given(data: Path, variables: dict[str, str]) -> list[str]:
    """The processes of the stack that were handed one of the variables."""
    marks = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for pid, command in alive(data).items():
        with contextlib.suppress(OSError):
            if marks & set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.append(command)
    return found


@linux
def test_any_death_ends_all_and_shows_the_last_lines(data: Path, models: Path) -> None:
    stack = Stack(data, models)
    stack.ready()
    scorer = next(pid for pid, command in alive(data).items() if "worker.scorer" in command)
    os.kill(scorer, signal.SIGKILL)
    assert stack.process.wait(PATIENCE_S) == 1
    assert "scorer ended with exit code -9. Its last lines:" in stack.log.read_text()
    assert nobody_is_left(data)


@linux
def test_a_demo_that_is_killed_leaves_nothing(data: Path, models: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom kleash import demo\n"
        "with demo._stack(*map(pathlib.Path, sys.argv[1:])) as url: print(url, flush=True), time.sleep(600)"
    )
    demo = subprocess.Popen([sys.executable, "-c", code, data, models], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert demo.stdout.readline().startswith("http://127.0.0.1:")
    assert len(alive(data)) >= len(ROLES)
    demo.kill()
    assert nobody_is_left(data)


def test_a_taken_port_is_one_clear_sentence(data: Path, models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = Stack(data, models, "--port", str(port))
        assert done.process.wait(PATIENCE_S) == 1
    detail = json.loads(done.log.read_text())["error"]["detail"]
    assert detail.startswith(f"Port {port} on 127.0.0.1 cannot be used: Address already in use.")
    assert not data.exists()


def test_open_mode_is_refused_off_loopback(data: Path, models: Path) -> None:
    done = Stack(data, models, "--host", "0.0.0.0", "--unsafe-no-auth")
    assert done.process.wait(PATIENCE_S) == 1
    assert "refused off loopback" in done.log.read_text()


def test_a_data_folder_that_no_database_url_can_name_is_one_clear_sentence(
    tmp_path: Path, models: Path
) -> None:
    done = Stack(tmp_path / "what?", models)
    assert done.process.wait(PATIENCE_S) == 1
    detail = json.loads(done.log.read_text())["error"]["detail"]
    assert "a database URL has no place for a question mark" in detail
    assert not (tmp_path / "what?").exists()


def test_a_registry_that_is_not_there_is_one_clear_sentence(data: Path, tmp_path: Path) -> None:
    done = Stack(data, tmp_path / "missing.json")
    assert done.process.wait(PATIENCE_S) == 1
    assert "There is no model registry at" in done.log.read_text()


def test_port_0_is_any_free_one() -> None:
    port = free_port("127.0.0.1", 0)
    assert free_port("127.0.0.1", port) == port


@linux
def test_port_0_is_nobody_else_s_until_a_server_has_it() -> None:
    """The kernel draws from some 14,000: if the 100 were free, 4,000 draws would miss them once in 10¹² runs."""
    ports = {free_port("127.0.0.1", 0) for _ in range(100)}
    for _ in range(4000):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in ports
    for port in ports:
        with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_host_that_is_nobody_s_is_one_clear_sentence() -> None:
    with pytest.raises(UpError, match=r"Port 8000 on 192\.0\.2\.1 cannot be used"):
        free_port("192.0.2.1", 8000)


def test_a_data_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UpError, match=r"The data folder .* cannot be used: Not a directory"),
        locked(tmp_path / "file" / "data"),
    ):
        pass


@pytest.mark.parametrize("left", ["", "{}", "[]", '{"sockets": 3}', "no json"])
def test_a_damaged_record_of_the_last_run_does_no_harm(tmp_path: Path, left: str) -> None:
    (tmp_path / "run.json").write_text(left)
    with socket_folder(tmp_path, "http://here") as folder:
        assert len(str(folder / "valkey.sock")) < 108
        assert json.loads((tmp_path / "run.json").read_text())["sockets"] == str(folder)
    assert not folder.exists()


def test_only_a_folder_of_ours_is_ever_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"sockets": str(precious)}))
    with socket_folder(tmp_path, "http://here"):
        pass
    assert precious.is_dir()
