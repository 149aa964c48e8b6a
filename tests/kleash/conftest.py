from collections.abc import Iterator

import pytest

from tests.kleash.scripted import Service, scripted_service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A scripted service; nothing of the caller's environment leads elsewhere."""
    for name in ("KLEASH_URL", "KLEASH_KEY", "KLEASH_DATA"):
        monkeypatch.delenv(name, raising=False)
    with scripted_service() as script:
        yield script
