"""The environment of a process that starts: what cannot be is said at once, by name, and no secret with it."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import LOOPBACK, Settings, settings_or_exit
from jobs.signatures import new_secret
from tests.api.serving import ROOT

CANARY = "canary-5e1f"
GOOD = new_secret()


def complaint(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        settings_or_exit()
    assert CANARY not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize(
    "secret",
    [
        CANARY,
        f"whsec_{CANARY}",
        f"whsec_{base64.b64encode(b'x' * 23).decode()}",
        base64.b64encode(b"x" * 32).decode(),
        "whsec_",
        "whsec_é" + CANARY,
    ],
)
def test_a_reward_secret_that_cannot_sign_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    told = complaint(monkeypatch, KLEASH_REWARD_SECRET=secret, KLEASH_PORT=CANARY)
    assert "KLEASH_REWARD_SECRET: must be whsec_ and the base64 of 24 bytes or more" in told
    assert "KLEASH_PORT: " in told, "all that is wrong at once"
    assert secret == "whsec_" or secret not in told


def test_a_secret_may_lie_in_a_file_and_none_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{GOOD}\n")
    monkeypatch.setenv("KLEASH_REWARD_SECRET_FILE", str(tmp_path / "secret"))
    settings = settings_or_exit()
    assert settings.reward_secret is not None
    assert settings.reward_secret.get_secret_value() == GOOD
    assert GOOD not in repr(settings)
    monkeypatch.setenv("KLEASH_REWARD_SECRET", "")
    assert settings_or_exit().reward_secret is None


def test_a_secret_s_file_that_is_not_there_is_said_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    told = complaint(monkeypatch, KLEASH_DATABASE_URL_FILE="/nowhere/file")
    assert "KLEASH_DATABASE_URL_FILE names a file that cannot be read: No such file" in told


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "kleash.example.org", "127.0.0.1.org", ""])
def test_the_open_mode_is_refused_off_loopback(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    told = complaint(monkeypatch, KLEASH_UNSAFE_NO_AUTH="true", KLEASH_HOST=host)
    assert "--unsafe-no-auth is refused off loopback" in told


def test_the_open_mode_is_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEASH_UNSAFE_NO_AUTH", "true")
    assert {Settings(host=host).unsafe_no_auth for host in LOOPBACK} == {True}


@pytest.mark.parametrize("module", ["api", "jobs.migrate", "worker.app"])
def test_a_process_ends_with_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    monkeypatch.setenv("KLEASH_UNSAFE_NO_AUTH", "true")
    monkeypatch.setenv("KLEASH_HOST", "0.0.0.0")
    monkeypatch.setenv("KLEASH_REWARD_SECRET", f"whsec_{CANARY}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ended = subprocess.run(
        [sys.executable, "-m", module], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("kleash cannot start with this environment: ")
    assert ended.stderr.count("\n") == 1
    assert CANARY not in ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir()), "nothing was begun"
