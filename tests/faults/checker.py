"""The one invariant checker: what must hold of a job service, read from its database, event log and files alone.

It shares no code with the store: its own SQL, its own table of legal moves, its own hashing. Works on SQLite and
PostgreSQL, on a live service (`quiescent=False`) and on one that has come to rest.

I1   every job that a client was promised (`created`) has a row
I2   idempotency keys and jobs are one to one
I3   events tell a legal path; a row agrees with its last move; terminal rows are consistent and (`freeze`,
     `changed`) never change
I4   attempts only grow along events and metric rows; nothing was written by an attempt after it had ended
I5   metric rows are unique and contiguous
I6   final weights equal an undisturbed run's: by `weights`, and among succeeded jobs with the same configuration
I7   attempts and crashes are bounded, a failed job says why
I8   event numbers have no gap
I9   each listed checkpoint verifies by its manifest; shards are contiguous, and their files as recorded
I10  nothing is left behind: leases, transactions, partial folders, folders of checkpoints that no row names,
     processes

A folder is *left behind* if it lies in the folder of one of the job's attempts and is partial (`*.partial`), set
aside (`.*.replaced`), or a checkpoint without a row, although somebody had the duty to remove it. An attempt
removes what the ones before it left before it writes anything, and nothing of its own is left when it succeeds. So
for a job that succeeded no attempt is exempt, and for another those are from the last one that wrote something
(metrics, a checkpoint, an event of its run): its worker may have been killed, and nobody has come after it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.checker_files import damage, holds_results, left_behind, weights_sha256
from tests.faults.checker_rows import Database, JobRows, read_database
from tests.stack import alive

TERMINAL = {"succeeded", "failed", "cancelled"}
STATUSES = {"queued", "running", "paused"} | TERMINAL

# event → the status it leads to, and where from
MOVES: dict[str, tuple[str, set[str | None]]] = {
    "job.created": ("queued", {None}),
    "job.started": ("running", {"queued"}),
    "job.requeued": ("queued", {"running"}),
    "job.resumed": ("queued", {"paused"}),
    "job.paused": ("paused", {"queued", "running"}),
    "job.succeeded": ("succeeded", {"running"}),
    "job.failed": ("failed", {"queued", "running"}),
    "job.cancelled": ("cancelled", {"queued", "running", "paused"}),
}

# what a client asked of a running job → where it may no longer go
BARRED = {
    "job.cancelling": {"queued", "paused"},
    "job.pausing": {"queued"},
    "job.pause_withdrawn": set[str](),
}

# events that only a run writes
RUN_EVENTS = (
    "checkpoint.",
    "job.audited",
    "job.best_of_n",
    "job.resumed_from",
    "job.rolled_back",
    "job.micro_batch_halved",
)


def violations(
    store_url: str,
    artifacts: Path,
    *,
    quiescent: bool = True,
    created: Sequence[str] = (),
    keys: Mapping[str, Collection[str]] | None = None,
    weights: Mapping[str, str] | None = None,
    data: Path | None = None,
    steady_clock: bool = True,
) -> list[str]:
    """Every violation as `I4 job_…: what`; empty if all holds.

    `created`: ids that clients were given. `keys`: for an idempotency key, every job id that was answered to it.
    `weights`: job id → the sha256 that `checker_files.weights_sha256` must give for its final checkpoint.
    `quiescent`: nothing runs any more, so nothing may be left; with `data`, no process marked with this
    KLEASH_DATA either. `steady_clock=False`: the database's clock has been set back in between (I4 then does not
    compare times).
    """
    database = read_database(store_url)
    found = [*_promised(database, created), *_idempotent(database, keys or {})]
    for job in database.jobs.values():
        found += [
            f"{fault[0]} {job.id}: {fault[1]}" for fault in _of_job(job, artifacts, steady_clock=steady_clock)
        ]
    found += _weights(database, artifacts, weights or {})
    if quiescent:
        found += _left(database, artifacts)
        found += [f"I10 process {pid} lives: {command}" for pid, command in _processes(data).items()]
    return found


def _of_job(job: JobRows, artifacts: Path, *, steady_clock: bool) -> Iterator[tuple[str, str]]:
    yield from (("I3", fault) for fault in _path(job))
    yield from (("I3", fault) for fault in _row(job))
    yield from (("I4", fault) for fault in _attempts(job))
    if steady_clock:
        yield from (("I4", fault) for fault in _late_writes(job))
    yield from (("I5", fault) for fault in _metrics(job))
    yield from (("I7", fault) for fault in _bounds(job))
    yield from (("I8", fault) for fault in _numbers(job))
    for checkpoint in job.checkpoints:
        if (fault := damage(artifacts / checkpoint["path"], checkpoint["sha256"])) is not None:
            yield "I9", f"checkpoint {checkpoint['name']}: {fault}"
    for expected, shard in enumerate(job.shards):
        if shard["index"] != expected:
            yield "I9", f"shard {shard['index']} where {expected} should be"
        if not holds_results(artifacts / shard["path"], shard["sha256"]):
            yield "I9", f"shard {shard['index']}: its results are not those recorded"


# -- I1, I2 -----------------------------------------------------------------------------------


def _promised(database: Database, created: Sequence[str]) -> Iterator[str]:
    for job_id in created:
        if job_id not in database.jobs:
            yield f"I1 {job_id}: promised to a client and not there"


def _idempotent(database: Database, keys: Mapping[str, Collection[str]]) -> Iterator[str]:
    owner_of: dict[str, str] = {}
    for row in database.keys:
        label = f"key {row['key']!r} of {row['owner']}"
        job = database.jobs.get(row["resource_id"])
        if job is None and row["resource_id"] in database.deleted:
            continue
        if job is None:
            yield f"I2 {label}: names {row['resource_id']}, which does not exist"
        elif job.row["owner"] != row["owner"]:
            yield f"I2 {label}: names a job of {job.row['owner']}"
        if row["resource_id"] in owner_of:
            yield f"I2 {label}: names the job of {owner_of[row['resource_id']]}"
        owner_of[row["resource_id"]] = label
    for key, answered in keys.items():
        if len(set(answered)) > 1:
            yield f"I2 key {key!r}: made {sorted(set(answered))}"


# -- I3 ---------------------------------------------------------------------------------------


def _path(job: JobRows) -> Iterator[str]:
    """The events as moves of the state machine."""
    status: str | None = None
    barred: set[str] = set()  # where a client's request keeps it from going
    for event in job.events:
        kind, at = event["type"], f"event {event['seq']} ({event['type']})"
        if kind not in MOVES:
            if (
                status is None
                or status in TERMINAL
                or (kind.startswith("checkpoint.") and status != "running")
            ):
                yield f"{at} while {status}"
            barred = BARRED.get(kind, barred)
            continue
        after, before = MOVES[kind]
        if status not in before:
            yield f"{at} while {status}"
        if after in barred:
            yield f"{at} although a client had asked for another end"
        status, barred = after, set()
    if status != job.row["status"]:
        yield f"the events end in {status}, the row says {job.row['status']}"


def _row(job: JobRows) -> Iterator[str]:
    """What belongs together in one row."""
    row = job.row
    status, ended = row["status"], row["status"] in TERMINAL
    if status not in STATUSES:
        yield f"unknown status {status!r}"
    if ended != (row["finished_at"] is not None):
        yield f"{status} with finished_at = {row['finished_at']}"
    if (row["error"] is not None) != (status == "failed"):
        yield f"{status} with error = {row['error']}"
    if (row["result"] is not None) != (status == "succeeded"):
        yield f"{status} with result = {row['result']}"
    if status != "running" and row["worker"] is not None:
        yield f"{status} with a worker"
    if status == "running" and row["attempt"] < 1:
        yield "running and never claimed"


def freeze(store_url: str) -> dict[str, dict[str, Any]]:
    """What must never change again, of every job that has ended: to be given to `changed` later."""
    database = read_database(store_url)
    return {
        job.id: {
            "row": {n: job.row[n] for n in ("status", "result", "error", "finished_at", "attempt", "step")},
            "metrics": [(row["step"], row["metrics"], row["attempt"]) for row in job.metrics],
            "events": [(row["seq"], row["type"]) for row in job.events],
            "checkpoints": [(row["name"], row["sha256"]) for row in job.checkpoints],
        }
        for job in database.jobs.values()
        if job.row["status"] in TERMINAL
    }


def changed(frozen: Mapping[str, Mapping[str, Any]], store_url: str) -> list[str]:
    """I3 violations: what changed of jobs that had ended when `frozen` was taken. A deleted job is none."""
    now, rows = freeze(store_url), read_database(store_url).jobs
    found = []
    for job_id, before in frozen.items():
        if job_id in now:
            names = [name for name, value in before.items() if now[job_id][name] != value]
            found += [f"I3 {job_id}: its {name} changed after it had ended" for name in names]
        elif job_id in rows:
            found.append(f"I3 {job_id}: {before['row']['status']}, and then {rows[job_id].row['status']}")
    return found


# -- I4, I5, I7, I8 ---------------------------------------------------------------------------


def _attempts(job: JobRows) -> Iterator[str]:
    """Every claim is one attempt; nothing goes back to an older one."""
    last = 0
    for event in job.events:
        expected = last + (event["type"] == "job.started")
        if event["attempt"] != expected:
            yield f"event {event['seq']} ({event['type']}) of attempt {event['attempt']}, not {expected}"
        last = event["attempt"]
    if (job.row["status"] == "running") and job.row["lease_until"] is None:
        yield "running without a lease"
    if last != job.row["attempt"]:
        yield f"the events end with attempt {last}, the row says {job.row['attempt']}"
    last = 0
    for row in job.metrics:  # beyond the row's step: an earlier attempt's, to be written again
        if row["attempt"] > job.row["attempt"] or (row["step"] <= job.row["step"] and row["attempt"] < last):
            yield f"metrics of step {row['step']} by attempt {row['attempt']} after one by attempt {last}"
        last = row["attempt"]


def _late_writes(job: JobRows) -> Iterator[str]:
    """Metrics, checkpoints and shards lie between their attempt's first and last event."""
    began, ended, attempt = {}, {}, 0
    for event in job.events:
        attempt = event["attempt"]
        if event["type"] == "job.started":
            began[attempt] = event["created_at"]
        elif event["type"] in MOVES:
            ended.setdefault(attempt, event["created_at"])
    kinds = (("metrics of step", job.metrics), ("checkpoint", job.checkpoints), ("shard", job.shards))
    for what, rows in kinds:
        for row in rows:
            first = began.get(row["attempt"], float("inf"))
            if not first <= row["created_at"] <= ended.get(row["attempt"], float("inf")):
                name = row.get("name", row.get("step", row.get("index")))
                yield f"{what} {name} written by attempt {row['attempt']} while it did not own the job"


def _metrics(job: JobRows) -> Iterator[str]:
    steps = [row["step"] for row in job.metrics]
    first = job.first_step + 1
    if steps != list(range(first, first + len(steps))):
        yield f"metric rows of steps {steps}, to be contiguous from {first}"
    by_step = {row["step"]: row["metrics"] for row in job.metrics}
    step = job.row["step"]
    latest = job.row["latest"]
    if not job.trains:  # how fast it is stands there too
        latest = {name: value for name, value in latest.items() if name in by_step.get(step, {})}
    if step >= first and by_step.get(step) != latest:
        yield f"the latest metrics are not those of step {step}"
    if job.row["status"] == "succeeded" and (step != job.steps or (steps and steps[-1] != step)):
        yield f"succeeded at step {step} with rows up to {steps[-1:]} of {job.steps}"


def _bounds(job: JobRows) -> Iterator[str]:
    row, limits = job.row, job.spec["limits"]
    error = row["error"]
    if row["status"] == "failed" and not (error and error.get("code") and error.get("detail")):
        yield "failed without a reason"
    most = limits["max_attempts"]
    if row["crash_count"] > most:
        yield f"{row['crash_count']} crashes in a row of at most {most}"
    crashes, saved = 0, job.first_step
    for event in job.events:
        if event["type"] == "checkpoint.created" and event["data"]["step"] > saved:
            crashes, saved = 0, event["data"]["step"]
        elif event["type"] in ("job.requeued", "job.paused") and event["data"].get("crashed"):
            crashes += 1
            if crashes == most:
                yield f"event {event['seq']}: not failed after {most} crashes without a later checkpoint"


def _numbers(job: JobRows) -> Iterator[str]:
    numbers = [event["seq"] for event in job.events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"event numbers {numbers}"
    if numbers[-1:] != [job.row["event_seq"]]:
        yield f"the last event is {numbers[-1:]}, the row says {job.row['event_seq']}"


# -- I6, I10 ----------------------------------------------------------------------------------


def _weights(database: Database, artifacts: Path, expected: Mapping[str, str]) -> Iterator[str]:
    first_of: dict[str, tuple[str, str]] = {}
    for job in database.jobs.values():
        final = [row for row in job.checkpoints if row["name"] == "final"]
        if job.row["status"] != "succeeded" or not job.trains:
            continue
        if not final:
            yield f"I6 {job.id}: succeeded without a final checkpoint"
            continue
        found = weights_sha256(artifacts / final[0]["path"])
        if job.id in expected and found != expected[job.id]:
            yield f"I6 {job.id}: final weights {found}, undisturbed {expected[job.id]}"
        same, theirs = first_of.setdefault(job.work, (job.id, found))
        if found != theirs:
            yield f"I6 {job.id}: final weights {found}, those of {same} with the same configuration {theirs}"


def _left(database: Database, artifacts: Path) -> Iterator[str]:
    for job in database.jobs.values():
        if job.row["status"] == "running":
            yield f"I10 {job.id}: still running"
        elif job.row["lease_until"] is not None:
            yield f"I10 {job.id}: {job.row['status']} with a lease"
        below = float("inf") if job.row["status"] == "succeeded" else _last_that_wrote(job)
        paths = {*database.deleted, *(row["path"] for row in (*job.checkpoints, *job.shards))}
        named = {(artifacts / path).resolve() for path in paths}
        for folder in left_behind(artifacts / job.id, named=named, below_attempt=below):
            yield f"I10 {job.id}: {folder.relative_to(artifacts / job.id)} is left behind"
    for transaction in database.open_transactions:
        yield f"I10 {transaction}"


def _last_that_wrote(job: JobRows) -> int:
    by_run = [event for event in job.events if event["type"].startswith(RUN_EVENTS)]
    return max((row["attempt"] for row in [*job.metrics, *job.checkpoints, *job.shards, *by_run]), default=0)


def _processes(data: Path | None) -> Mapping[int, str]:
    return {} if data is None else alive(data)
