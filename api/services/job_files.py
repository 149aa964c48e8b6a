"""From what a job calls a file to the file: an uploaded one by its id, or a path below the configured roots."""

from collections.abc import Mapping

from api.services.files import FileService, is_file_id
from api.services.models import ModelResolver
from jobs.lines import Purpose

PURPOSES: dict[str, Purpose] = {
    "prompts_file": "prompts",
    "eval_prompts_file": "prompts",
    "ptx_texts_file": "texts",
    "items_file": "items",
}


class JobFiles:
    """Finds the files that a config names."""

    def __init__(self, models: ModelResolver, files: FileService) -> None:
        self._models, self._files = models, files

    def resolved(self, named: Mapping[str, str | None], owner: str) -> dict[str, object]:
        """A path for each name; and in `files` the id and sha256 of those that were uploaded.

        Raises:
            PathNotAllowed, FileNotFound: a name leads nowhere.
        """
        paths: dict[str, object] = {}
        uploads: dict[str, dict[str, str]] = {}
        for field, name in named.items():
            if name is not None and is_file_id(name):
                found = self._files.for_job(name, owner, PURPOSES[field])
                paths[field] = str(found.path)
                uploads[field] = {"id": found.file.id, "sha256": found.file.sha256}
            else:
                paths[field] = name and self._models.resolve_file(name)
        return paths | ({"files": uploads} if uploads else {})
