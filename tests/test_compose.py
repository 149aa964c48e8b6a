"""docker-compose.yml, read by the real Compose binary (no engine needed), and a lint of what it hardens."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.settings import SECRETS, Settings
from jobs.signatures import new_secret

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = Path(sys.executable).parent / "docker-compose"
HADOLINT = Path(sys.executable).parent / "hadolint"
SERVICES = ("api", "migrate", "postgres", "scorer", "valkey", "worker", "worker-gpu")


def compose(*arguments: str) -> str:
    done = subprocess.run(
        [COMPOSE, "--profile", "*", "config", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(compose("--format", "json"))
    return document


def test_compose_accepts_the_file() -> None:
    compose("-q")


def test_the_lint_sees_every_service(stack: dict[str, Any]) -> None:
    assert sorted(stack["services"]) == sorted(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_hardened(stack: dict[str, Any], name: str) -> None:
    service = stack["services"][name]
    uid = service["user"].split(":")[0]
    assert uid.isdigit()
    assert int(uid) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True
    assert not service.get("privileged")
    assert all(service.get(space) is None for space in ("network_mode", "pid", "ipc"))
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_each_lasting_service_has_a_healthcheck(stack: dict[str, Any], name: str) -> None:
    check = stack["services"][name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


def test_the_one_shot_migration_ends_and_the_services_wait_for_it(stack: dict[str, Any]) -> None:
    services = stack["services"]
    assert services["migrate"]["restart"] == "no"
    for name in ("api", "worker", "worker-gpu"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_only_the_api_is_published_and_only_on_loopback(stack: dict[str, Any]) -> None:
    published = {
        name: service["ports"] for name, service in stack["services"].items() if service.get("ports")
    }
    assert list(published) == ["api"]
    assert [port["host_ip"] for port in published["api"]] == ["127.0.0.1"]


def test_database_and_broker_are_on_the_internal_network_alone(stack: dict[str, Any]) -> None:
    assert stack["networks"]["backend"]["internal"] is True
    for name in ("postgres", "valkey", "migrate"):
        assert set(stack["services"][name]["networks"]) == {"backend"}


def test_secrets_are_files(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            assert "://" not in value or "@" not in value, f"{name}: {variable} holds a secret"
            if re.search("PASSWORD|SECRET|_TOKEN|(DATABASE|BROKER)_URL", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.removeprefix("/run/secrets/") in [
                    secret["source"] for secret in service["secrets"]
                ]


def test_every_kleash_variable_is_one_that_settings_reads(stack: dict[str, Any]) -> None:
    known = {f"KLEASH_{field.upper()}" for field in Settings.model_fields}
    known |= {f"KLEASH_{name.upper()}_FILE" for name in SECRETS}
    used = {
        variable
        for service in stack["services"].values()
        for variable in service.get("environment") or {}
        if variable.startswith("KLEASH_")
    }
    assert used
    assert used <= known


@pytest.mark.parametrize("name", ["api", "migrate", "scorer", "worker", "worker-gpu"])
def test_settings_accept_the_environment_of_each_service(
    stack: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = {"URL": "redis://a-secret", "TOKEN": "t" * 48, "SECRET": new_secret()}
    for kind, secret in kinds.items():
        (tmp_path / kind).write_text(secret)
    for variable, value in stack["services"][name]["environment"].items():
        kind = variable.removesuffix("_FILE").rpartition("_")[2]
        secret = variable.endswith("_FILE") and kind in kinds
        monkeypatch.setenv(variable, str(tmp_path / kind) if secret else value)
    settings = Settings()
    assert (settings.reward_secret is not None) == name.startswith("worker"), "who signs alone"
    assert settings.database_url.get_secret_value() == "redis://a-secret"
    assert settings.data == Path("/data")
    assert settings.unsafe_no_auth is False


def test_the_switches_that_a_person_may_set_reach_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"KLEASH_GZIP": "true", "KLEASH_RETENTION_DAYS": "7", "KLEASH_OUTBOUND_ALLOW": '["rewards:8080"]'}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = json.loads(compose("--format", "json"))["services"]["api"]["environment"]
    assert {name: found[name] for name in given} == given
    for name in given:
        monkeypatch.delenv(name)
    by_default = json.loads(compose("--format", "json"))["services"]["api"]["environment"]
    assert {name: by_default[name] for name in given} == {
        "KLEASH_GZIP": "false",
        "KLEASH_RETENTION_DAYS": "",
        "KLEASH_OUTBOUND_ALLOW": "[]",
    }


def test_no_environment_of_the_caller_s_opens_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API listens on all addresses of its container, where open mode would be refused, and would be no use."""
    monkeypatch.setenv("KLEASH_UNSAFE_NO_AUTH", "true")
    monkeypatch.setenv("KLEASH_HOST", "127.0.0.1")
    services = json.loads(compose("--format", "json"))["services"]
    assert services["api"]["environment"]["KLEASH_HOST"] == "0.0.0.0"
    assert not any(
        "UNSAFE" in name for service in services.values() for name in service.get("environment", {})
    )


def test_whoever_shares_the_artifacts_is_the_same_user(stack: dict[str, Any]) -> None:
    """The scorer reads checkpoints and the API the first key, which only their owner may read."""
    sharing = {
        name: service["user"]
        for name, service in stack["services"].items()
        if any(volume["source"] == "artifacts" for volume in service.get("volumes", ()))
    }
    assert set(sharing) == {"api", "migrate", "scorer", "worker", "worker-gpu"}
    assert set(sharing.values()) == {"10001:10001"}


def test_the_api_alone_writes_uploads_and_the_workers_read_them(stack: dict[str, Any]) -> None:
    found = {
        name: bool(volume.get("read_only"))
        for name, service in stack["services"].items()
        for volume in service.get("volumes", ())
        if volume["source"] == "uploads"
        and volume["target"] == service["environment"]["KLEASH_UPLOADS_DIR"] == "/uploads"
    }
    assert found == {"api": False, "worker": True, "worker-gpu": True}
    for name in ("api", "worker"):  # or the volume's first user would be root
        text = (ROOT / "deploy" / f"Dockerfile.{name}").read_text()
        assert re.search(r"install -d -o kleash -g kleash [^\n]*/uploads$", text, re.MULTILINE)


def test_git_does_not_see_the_secrets() -> None:
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("file", ["Dockerfile.api", "Dockerfile.worker", "standins/Dockerfile"])
def test_hadolint_finds_nothing(file: str) -> None:
    done = subprocess.run([HADOLINT, ROOT / "deploy" / file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    assert subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, check=False).returncode


def test_each_copied_file_is_sent_to_the_engine() -> None:
    """.dockerignore leaves out everything but the folders that it names."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    for name in ("api", "worker"):
        text = (ROOT / "deploy" / f"Dockerfile.{name}").read_text()
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
            assert {f"!{source.split('/')[0]}" for source in sources.split()} <= set(lines)


@pytest.mark.parametrize("name", ["api", "worker"])
def test_dockerfiles_do_not_run_as_root_and_copy_what_exists(name: str) -> None:
    text = (ROOT / "deploy" / f"Dockerfile.{name}").read_text()
    final_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", final_stage, re.MULTILINE)
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_the_api_image_is_free_of_torch() -> None:
    text = (ROOT / "deploy" / "Dockerfile.api").read_text()
    assert "torch" not in "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not re.search(r"^(torch|transformers)==", (ROOT / "locks" / "api.lock").read_text(), re.MULTILINE)


def test_secrets_script_writes_each_declared_secret(stack: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "make-secrets.sh"
    script.write_text((ROOT / "deploy" / "make-secrets.sh").read_text())
    subprocess.run(["sh", script], check=True)
    declared = {Path(secret["file"]).name for secret in stack["secrets"].values()}
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == declared
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    password = (tmp_path / "secrets" / "postgres_password").read_text()
    assert len(password) == 48
    assert f":{password}@postgres:" in (tmp_path / "secrets" / "database_url").read_text()
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    (tmp_path / "secrets" / "scorer_token").unlink()  # as in a deployment that is older than it
    subprocess.run(["sh", script], check=True)
    after = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["scorer_token"]
    Settings(scorer_token=SecretStr(after["scorer_token"]), reward_secret=SecretStr(after["reward_secret"]))
