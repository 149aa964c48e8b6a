"""The curl lines of the README and of docs/http, pasted into a shell against a real server."""

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
    models = {name: {"source": "org/model"} for name in ("smollm2-135m-instruct", "base")}
    models["tuned"] = {"source": "org/adapter"}
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


PAGES = sorted((ROOT / "docs" / "http").glob("*.md"))
# What a line is answered with that is not a success, as its page says.
REFUSED = {
    ("jobs", "If-Match"): 412,  # the job is at another version
    ("files", "DELETE"): 409,  # a job reads it
    ("keys", "DELETE"): 404,  # nobody's key
}
# tests/api/test_downloads.py has checkpoints; `python -m api` refuses long headers: tests/api/test_connections.py.
ELSEWHERE = ("$CKPT", "20000")
NAMES = """
api() { command curl -s --noproxy '*' -H 'Content-Type: application/json' "$URL/v1/$1" "${@:2}"; }
id() { python3 -c "import json, sys; a = json.load(sys.stdin); print(a.get('id') or a['data'][0]['id'])"; }
export H="Authorization: Bearer $KEY" API=$URL/v1
printf '"My day was"\n' > prompts.jsonl
cp "$ROOT/examples/demo_job.json" job.json
JOB=$(api jobs -d '{"type": "score", "config": {"items": ["A."]}}' | id)
api jobs/$JOB/cancel -X POST > cancelled  # the stream of its events ends
"""
# A line without its `curl`; a stream that has no end is left after 5 s.
SHOWN = "command curl -sS -m 5 --noproxy '*' -w '%{stderr}status %{http_code}\\n' "
FIRST = {  # what `$ID` and `$MSG` are
    "files": 'printf \'"A."\' > items; ID=$(curl -s "$API/files?name=a&purpose=items" --data-binary @items '
    "-H Content-Type:application/jsonl | id)",
    "jobs": "ID=$(api jobs -d @job.json | id)",
    "webhooks": """ID=$(api webhooks -d '{"url": "https://hooks.example"}' | id)
        api webhooks/$ID/test -X POST > sent; MSG=$(api webhooks/$ID/deliveries | id)""",
}


def curl_lines(page: str) -> list[str]:
    """Each command of the page's blocks, with the lines that go on with it."""
    fenced = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n)+", prose, re.MULTILINE)
    blocks = [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]
    return [line for block in blocks for line in re.findall(r"^curl .*\n(?:[ \t]+.*\n)*", block, re.M)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.usefixtures("answering")
def test_every_curl_line_of_the_docs_is_answered_as_they_say(server: str, tmp_path: Path) -> None:
    script, expected = [NAMES], []
    for page in PAGES:
        lines = [line for line in curl_lines(page.read_text()) if not any(word in line for word in ELSEWHERE)]
        script += [
            FIRST.get(page.stem, ""),
            *(SHOWN + line.removeprefix("curl ").replace(SERVER, server) for line in lines),
        ]
        expected += [(page.stem, line) for line in lines]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "URL": server, "KEY": "k", "ROOT": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    statuses = [int(line) for line in re.findall(r"^status (\d+)$", done.stderr, re.M)]
    for (page, line), status in zip(expected, statuses, strict=True):
        refused = next(
            (code for (where, word), code in REFUSED.items() if where == page and word in line), None
        )
        assert status == refused if refused else 200 <= status < 300, (page, line, status)
    assert len(statuses) >= 50
