"""Children of ours find our modules, whatever lies in the folder where the caller stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kleash.spawn import ROOT, spawn

SHOW = """
import json, os, pathlib, jobs.settings
file = pathlib.Path(os.environ["SHOWN"])
file.write_text("")
print(json.dumps({
    "jobs": jobs.settings.__file__,
    "roots": [str(root) for root in jobs.settings.Settings().model_roots],
    "mode": file.stat().st_mode & 0o777,
}))
"""


def shown(environment: dict[str, str]) -> dict[str, object]:
    child = spawn([sys.executable, "-c", SHOW], stderr=subprocess.DEVNULL, env=os.environ | environment)
    with child:  # its stdin stays open until it has answered: the end of it would be our death
        assert child.stdout is not None
        found: dict[str, object] = json.loads(child.stdout.read())
    assert child.returncode == 0
    return found


def test_a_folder_with_modules_of_our_names_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jobs", "api", "worker", "celery"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    found = shown({"SHOWN": str(tmp_path / "file"), "KLEASH_MODEL_ROOTS": '["models", "/abs"]'})
    assert found["jobs"] == str(ROOT / "jobs" / "settings.py")
    assert found["roots"] == [str(tmp_path / "models"), "/abs"]
    assert found["mode"] == 0o600  # what children write is for the user alone
