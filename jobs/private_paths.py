"""Messages of loaders and of the operating system, without the folders of the machine they come from."""

import re
from dataclasses import replace

from jobs.spec import JobFailure

OURS = r"(?!v1/)"  # /v1/models is a path of the API, which a message may name
QUOTED = re.compile(rf"""(?P<quote>['"])(?:file://)?/{OURS}[^'"\n]*/(?P<last>[^/'"\n]+)/?(?P=quote)""")
PART = r"""[^\s/'"<>:,;()\[\]]+"""
BARE = re.compile(rf"(?:file://|(?<![\w:/.]))/{OURS}(?:{PART}/)+(?P<last>{PART}|)")


def without_folders(text: str) -> str:
    """Of every absolute path only the last part: `/srv/models/x: no config.json` → `…/x: no config.json`."""
    text = QUOTED.sub(r"\g<quote>…/\g<last>\g<quote>", text)
    return BARE.sub(r"…/\g<last>", text)


def for_clients(failure: JobFailure) -> JobFailure:
    """A failure as its job shows it. The log file keeps the whole."""
    tail = tuple(without_folders(line) for line in failure.log_tail)
    return replace(failure, detail=without_folders(failure.detail), log_tail=tail)
