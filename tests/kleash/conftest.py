import functools
from collections.abc import Iterator

import pytest
import typer.main
import typer.testing

from tests.kleash.scripted import Service, scripted_service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A scripted service; nothing of the caller's environment leads elsewhere."""
    for name in ("KLEASH_URL", "KLEASH_KEY", "KLEASH_DATA"):
        monkeypatch.delenv(name, raising=False)
    with scripted_service() as script:
        yield script


@pytest.fixture(autouse=True)
def _room_on_any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is free where the tests run is not their matter."""
    monkeypatch.setattr("kleash.commands.doctor.LEAST_FREE_BYTES", 0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is asked again at once."""
    monkeypatch.setattr("kleash.plans.FIRST_BACKOFF_S", 0.001)


@pytest.fixture(autouse=True, scope="session")
def _one_command() -> Iterator[None]:
    """Typer builds the command from its functions once, not for every call of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield
