"""Both databases, as the contract suite has them; and the tiny model under a name."""

import json
from pathlib import Path

import pytest

from tests.contracts.conftest import (  # noqa: F401
    clean,
    clock,
    database,
    empty_database_url,
    new_postgres_database,
    postgres_url,
    store,
)


@pytest.fixture
def tiny_registry(tiny_model: Path, tmp_path: Path) -> Path:
    """The file that names it, below a folder of its own."""
    file = tmp_path / "registry" / "models.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"models": {"tiny": {"source": str(tiny_model)}}}))
    return file
