"""The folders of deleted jobs and checkpoints: removed by the workers, who alone can write there.

A note of each stands in the database from the transaction that deleted it until nobody can write there any
more, so that whoever dies on the way has a successor. A folder goes only if no row has its path.
"""

import logging
import threading
from pathlib import Path

from jobs.errors import StoreUnavailable
from jobs.ports import Files
from jobs.store import Store

log = logging.getLogger(__name__)

EVERY_S = 30.0
# A process whose job was taken from it, and has ended since, may live and write until it notices.
LATE_WRITES_S = 3600.0


def remove_deleted(store: Store, files: Files, artifacts: Path) -> int:
    """Remove every such folder that is there; returns how many. Raises StoreUnavailable."""
    noted, removed = store.deleted_folders(), 0
    gone = []
    for path in noted:
        folder = artifacts / path
        try:
            if folder.exists():
                files.remove_folder(folder)
                removed += 1
            gone.append(path)
        except OSError as error:
            log.warning("%s stays: %s", path, error)
    if gone:
        store.forget_deleted(gone, older_than_s=LATE_WRITES_S)
    return removed


def run(store: Store, files: Files, artifacts: Path, stop: threading.Event) -> None:
    """Every EVERY_S until `stop` is set."""
    while not stop.wait(EVERY_S):
        try:
            remove_deleted(store, files, artifacts)
        except StoreUnavailable as error:
            log.warning("deleted folders stay for now: %s", error)
