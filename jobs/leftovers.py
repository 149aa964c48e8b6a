"""What an attempt that has ended left in its folder: saves that no row names, and unfinished ones."""

import logging
from pathlib import Path

from jobs.ports import Files
from jobs.store import Store

log = logging.getLogger(__name__)


def remove_leftovers(store: Store, files: Files, job_id: str, attempt_folder: Path) -> None:
    """Remove every folder of this attempt and those before it but the job's checkpoints and shards.

    Logs and error.json stay. An attempt retires checkpoints of earlier ones too, and may die on the way.

    Only for an attempt whose process is gone or stands behind the fence: nothing there can become one.

    Raises:
        StoreUnavailable: nothing was removed.
    """
    attempts = range(1, int(attempt_folder.name) + 1)
    folders = [attempt_folder.with_name(str(attempt)) for attempt in attempts]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        return
    artifacts = attempt_folder.parents[1]
    named = {artifacts / path for path in store.list_folders(job_id)}
    for folder in folders:
        try:
            files.keep_only(folder, named)
        except OSError as error:
            log.warning("%s: leftovers stay in %s: %s", job_id, folder, error)
