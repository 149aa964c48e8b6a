"""The points of uploads and of workers' rows: who is killed at each leaves what the next run can mend."""

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.migrate import upgrade
from jobs.sql_store import SqlStore
from tests.faults.points.lone import run_command

UPLOADS = (
    *("fsync.upload", "link.upload", "link.removal"),
    *("commit.create_file", "commit.delete_file", "commit.record_worker", "commit.forget_worker"),
)
UPLOAD_AND_DELETE = """
from api.services.files import FileService
from jobs.settings import Settings
from jobs.sql_store import open_store
from jobs.store_workers import WorkerCard
from jobs.upload_folder import UploadFolder

settings = Settings()
store, folder = open_store(settings), UploadFolder(settings.uploads)
store.record_worker(WorkerCard(id="h:1", host="h", queues=(), device="cpu", versions={}))
folder.sweep(store)
service = FileService(store, folder, owner_may_have=100)
arrival = service.begin("me", name="n", purpose="items", declared_bytes=0)
arrival.take(b'"a"')
arrival.finish("key")
for file in store.list_files("me"):
    service.delete(file.id, "me")
store.forget_worker("h:1")
"""


def kill_uploads(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Problems: at no moment a row without its bytes; after the next run neither rows nor files."""
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        url = f"sqlite:///{folder}/kleash.db"
        upgrade(url)
        command = [sys.executable, "-c", UPLOAD_AND_DELETE]
        env = {"KLEASH_DATABASE_URL": url, "KLEASH_UPLOADS_DIR": str(folder / "uploads")}
        code = run_command(command, env | {"KLEASH_KILL_AT": f"{name}:1"})
        if code != -signal.SIGKILL:
            yield f"{name}: ended with {code} instead of dying"
        store = SqlStore(url)
        for file in store.list_files("me"):
            if (folder / "uploads" / file.id).read_bytes() != b'"a"':
                yield f"{name}: {file.id} is not what its row says"
        repeated = UPLOAD_AND_DELETE.replace('"key"', '"another key"')
        code = run_command([sys.executable, "-c", repeated], env)
        left = [path.name for path in (folder / "uploads").iterdir()]
        if code != 0 or left or store.list_files("me") or store.list_workers():
            yield f"{name}: the next run ended with {code} and left {left}"
        store.close()
