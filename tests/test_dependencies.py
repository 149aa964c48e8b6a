"""No dependency is older than the release that mended what others were attacked by; known without a network."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.version import Version

LOCKS = Path(__file__).parents[1] / "locks"
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.M)
MINIMUM = {
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747: torch.load
    "starlette": "0.49.1",  # CVE-2025-62727: Range
    "fastapi": "0.163",
    "h11": "0.16",  # CVE-2025-43859: chunked bodies
    "celery": "5.7",  # CVE-2021-23727
    "kombu": "5.4",  # celery#9054
    "jinja2": "3.1.6",  # CVE-2025-27516: out of the sandbox of chat templates
    "transformers": "5",  # CVE-2026-1839, and the class of CVE-2026-22807
    "urllib3": "2.5",  # CVE-2025-50181: redirects
    "requests": "2.32.4",  # CVE-2024-47081: .netrc
    "redis": "6.1",  # kombu's demand
    "python-multipart": "0.0.18",  # CVE-2024-53981
    "safetensors": "0.8",
}
ABSENT = frozenset({"flower", "mlflow", "vllm", "ray", "dill", "python-jose"})


def pinned(lock: Path) -> dict[str, str]:
    """Versions by normalised name."""
    return {name.lower().replace("_", "-"): found for name, found in PINNED.findall(lock.read_text())}


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.lock")), ids=lambda lock: lock.stem)
def test_locks_hold_nothing_older(lock: Path) -> None:
    found = pinned(lock)
    assert found
    old = {
        name: found[name]
        for name, least in MINIMUM.items()
        if name in found and Version(found[name]) < Version(least)
    }
    assert old == {}


@pytest.mark.parametrize("name", ["api", "worker"])
def test_what_serves_depends_on_nothing_that_was_a_way_in(name: str) -> None:
    assert ABSENT & pinned(LOCKS / f"{name}.lock").keys() == set()


def test_the_table_is_about_what_we_use() -> None:
    """A row for a package that no lock has says nothing."""
    everything = {name for lock in LOCKS.glob("*.lock") for name in pinned(lock)}
    assert MINIMUM.keys() - everything <= {"torch", "python-multipart"}  # one is no hashed pin, one is absent


def test_what_is_installed_is_no_older() -> None:
    old = {}
    for name, least in MINIMUM.items():
        try:
            if Version(version(name)) < Version(least):
                old[name] = version(name)
        except PackageNotFoundError:
            continue
    assert old == {}
