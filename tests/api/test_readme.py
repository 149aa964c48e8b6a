"""The README's curl lines, pasted into a shell against a real server."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from jobs.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SERVER = "http://127.0.0.1:8000"  # in the README
BLOCKS = [
    block
    for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    if "curl" in block and "docker" not in block
]
# Every refusal fails, also inside $(…), and each call leaves a line.
PREAMBLE = """set -eo pipefail
curl() { echo called >> "$CALLS"; command curl --fail-with-body --noproxy '*' "$@"; }
"""


@pytest.fixture
def server(new_app: Callable[[Settings], FastAPI], settings: Settings, tmp_path: Path) -> Iterator[str]:
    """The application on a port of its own, with the names that the examples use."""
    models = {"smollm2-135m-instruct": {"source": "org/model"}, "tuned": {"source": "org/adapter"}}
    models["tuned"]["base"] = "smollm2-135m-instruct"
    defaults = {"default_policy": "tuned", "default_reference": "smollm2-135m-instruct"}
    (tmp_path / "readme.json").write_text(json.dumps({"models": models, **defaults}))
    app = new_app(settings.model_copy(update={"models_file": tmp_path / "readme.json"}))
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    give_up_at = time.monotonic() + 60
    while not running.started:
        assert thread.is_alive()
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(60)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.usefixtures("answering")
def test_every_curl_line_works_as_it_stands(server: str, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    for block in BLOCKS:
        script = PREAMBLE + block.replace(SERVER, server)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", "CALLS": str(calls)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert len(calls.read_text().splitlines()) == sum(len(re.findall(r"\bcurl -", b)) for b in BLOCKS) >= 7
