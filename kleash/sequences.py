"""What is read one after the other: entries of lists over their pages, lines and bytes of streams. Plans."""

from collections.abc import Sequence
from typing import Any, Unpack

from kleash.calls import JsonLines
from kleash.documents import Document, Event, Job, JobFilters, LogLine, Sample
from kleash.operations import api_keys, checkpoints, files, job_data, jobs, scores, webhooks
from kleash.plans import Plan, lines, pages
from kleash.score_options import Item, ScoreOptions
from kleash.service_documents import ApiKey, File, Purpose, Webhook

Items = Item | Sequence[Item]
ROWS = 100  # of a page


def iterate(**filters: Unpack[JobFilters]) -> Plan[Job]:
    """Every job that `list` would have on its pages."""
    return pages(lambda cursor: jobs.list_(**filters, after=cursor))


def iterate_events(
    job_id: str,
    *,
    after: int | str | None = None,
    level: job_data.Level | None = None,
    type: str | None = None,
) -> Plan[Event]:
    """Every event so far, ascending by `seq`."""
    return pages(lambda c: job_data.events(job_id, after=c or after, limit=ROWS, level=level, type=type))


def iterate_samples(
    job_id: str,
    *,
    step: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    kind: job_data.Kind | None = None,
    tokens: bool | None = None,
    order: job_data.Order | None = None,
    order_by: job_data.SampleOrder | None = None,
) -> Plan[Sample]:
    """Every completion that is kept, ascending by step unless it is said otherwise."""
    chosen: Any = {"step": step, "from_step": from_step, "to_step": to_step, "kind": kind}
    chosen |= {"tokens": tokens, "order": order, "order_by": order_by}
    return pages(lambda cursor: job_data.samples(job_id, limit=ROWS, after=cursor, **chosen))


def iterate_logs(job_id: str, *, attempt: int | None = None, after: str | None = None) -> Plan[LogLine]:
    """Every line so far."""
    return pages(lambda c: job_data.logs(job_id, attempt=attempt, after=c or after, limit=ROWS))


def iterate_files(*, purpose: Purpose | None = None) -> Plan[File]:
    """Every file, newest first."""
    return pages(lambda cursor: files.list_(purpose=purpose, after=cursor))


def iterate_keys(*, owner: str | None = None) -> Plan[ApiKey]:
    """Every key, newest first."""
    return pages(lambda cursor: api_keys.list_(owner=owner, after=cursor))


def iterate_webhooks() -> Plan[Webhook]:
    """Every webhook, newest first."""
    return pages(lambda cursor: webhooks.list_(after=cursor))


def results(job_id: str) -> Plan[Document]:
    """The results of a score job so far, item by item."""
    return lines(job_data.results(job_id), JsonLines())


def stream_scores(items: Items, **options: Unpack[ScoreOptions]) -> Plan[Document]:
    """A document for each item as soon as it is known; the last is the summary, with `complete`."""
    return lines(scores.stream(items, **options), JsonLines())


def file_content(file_id: str) -> Plan[bytes]:
    """The bytes as they were uploaded, in pieces."""
    return lines(files.content(file_id), _as_they_come)


def checkpoint_archive(checkpoint_id: str) -> Plan[bytes]:
    """All files of a checkpoint as one tar, in pieces."""
    return lines(checkpoints.archive(checkpoint_id), _as_they_come)


def checkpoint_file(checkpoint_id: str, name: str) -> Plan[bytes]:
    """One file of a checkpoint, in pieces."""
    return lines(checkpoints.file(checkpoint_id, name), _as_they_come)


def _as_they_come(chunk: bytes) -> list[bytes]:
    return [chunk] if chunk else []
