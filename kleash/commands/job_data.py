"""`kleash jobs events|metrics|frontier|samples|logs|results|checkpoints|artifacts`: what a job has produced."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import JobId, Json, Key, Output, Url
from kleash.commands.session import OK, USAGE, ask, fail, print_json, show, show_each, show_table, written

if TYPE_CHECKING:
    from kleash.client import Client

app = typer.Typer()

EVERY_S = 1.0
LEVELS = ("info", "warning", "error")
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Stay until the job is done.")]
Most = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]


@app.command()
def events(
    job_id: JobId,
    follow: Follow = False,
    level: Annotated[str | None, typer.Option(help="This level and above: info, warning, error.")] = None,
    after: Annotated[int | None, typer.Option(help="The last `seq` already known.")] = None,
    limit: Most = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """What happened to a job, one event a line."""
    from kleash.render import visible

    if level not in (None, *LEVELS):
        fail(USAGE, "invalid_request", f"--level is one of {', '.join(LEVELS)}", as_json)
    levels = LEVELS[LEVELS.index(level) :] if level else LEVELS

    def line(event: Mapping[str, Any]) -> str:
        seq, said = event["seq"], f"{event['level']}  {event['type']}  {event['message']}"
        return visible(f"{seq:>5}  {event['created_at']}  {said}")

    def work(client: "Client") -> int:
        if follow:
            frames = client.jobs.stream_events(job_id, after=after)
            shown = (frame.data for frame in frames if frame.id is not None)
            return show_each((event for event in shown if event["level"] in levels), as_json, line)
        options: Any = {"after": after, "level": level}
        return show_each(islice(client.jobs.iterate_events(job_id, **options), limit), as_json, line)

    ask(work, url, key, as_json)


@app.command()
def follow(
    after: Annotated[int | None, typer.Option(help="The last id already known.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """What happens to all jobs from now on, one event a line, until Ctrl-C."""
    from kleash.render import visible

    def line(event: Mapping[str, Any]) -> str:
        said = f"{event['level']}  {event['type']}  {event['message']}"
        return visible(f"{event['created_at']}  {event['job_id']}  {said}")

    def work(client: "Client") -> int:
        frames = client.jobs.stream_all_events(after=after)
        return show_each((frame.data for frame in frames if frame.event != "ready"), as_json, line)

    ask(work, url, key, as_json)


@app.command()
def metrics(
    job_id: JobId,
    keys: Annotated[str | None, typer.Option(help="Separated by commas; * stands for anything.")] = None,
    from_step: Annotated[int | None, typer.Option(help="The first step.")] = None,
    to_step: Annotated[int | None, typer.Option(help="The last step.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Metrics of each step: tab-separated columns, or JSON lines."""
    from kleash.render import visible

    def work(client: "Client") -> int:
        wanted = keys.split(",") if keys else None
        rows = client.jobs.metric_rows(job_id, keys=wanted, from_step=from_step, to_step=to_step)
        if as_json:
            return show_each(rows, as_json, str)
        names = sorted({name for row in rows for name in row["metrics"]})
        print("step", *map(visible, names), sep="\t")
        for row in rows:
            print(row["step"], *(_number(row["metrics"].get(name)) for name in names), sep="\t")
        return OK

    ask(work, url, key, as_json)


@app.command()
def samples(
    job_id: JobId,
    step: Annotated[int | None, typer.Option(help="Only of this step.")] = None,
    from_step: Annotated[int | None, typer.Option(help="The first step.")] = None,
    to_step: Annotated[int | None, typer.Option(help="The last step.")] = None,
    kind: Annotated[str | None, typer.Option(help="rollout, or eval: the held-out prompts.")] = None,
    order_by: Annotated[str | None, typer.Option(help="step, kl or reward.")] = None,
    descending: Annotated[bool, typer.Option("--desc", help="The last, or the largest, first.")] = False,
    limit: Most = 20,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Completions of the policy in training."""
    from kleash.render import visible

    def line(sample: Mapping[str, Any]) -> str:
        reward = _number(sample["data"].get("reward"))
        head = f"step {sample['step']}  {sample['kind']} {sample['index']}  reward {reward}"
        return f"{visible(head)}\n    {visible(sample['prompt'])}▸{visible(sample['completion'])}"

    def work(client: "Client") -> int:
        options: Any = {"step": step, "from_step": from_step, "to_step": to_step}
        options |= {"kind": kind, "tokens": as_json, "order_by": order_by}
        options["order"] = "desc" if descending else None
        return show_each(islice(client.jobs.iterate_samples(job_id, **options), limit), as_json, line)

    ask(work, url, key, as_json)


@app.command()
def logs(
    job_id: JobId,
    follow: Follow = False,
    tail: Annotated[int | None, typer.Option(min=1, max=1000, help="The last lines only.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only of this attempt.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """What a job's processes printed."""
    from kleash.render import visible

    def work(client: "Client") -> int:
        lines = _log_lines(client, job_id, attempt, tail, follow)
        return show_each(lines, as_json, lambda line: visible(line["text"]))

    ask(work, url, key, as_json)


def _log_lines(
    client: "Client", job_id: str, attempt: int | None, tail: int | None, follow: bool
) -> Iterator[Mapping[str, Any]]:
    """From the first line or the last few, to the end or as long as the job runs."""
    page = client.jobs.logs(job_id, attempt=attempt, tail=tail)
    while True:
        yield from page["data"]
        if not page["has_more"] and not follow:
            return
        if not page["data"] and not page["has_more"]:
            follow = not client.jobs.get(job_id)["done"]  # once more after the end: the last lines
            time.sleep(EVERY_S if follow else 0)
        page = client.jobs.logs(job_id, attempt=attempt, after=page["next_cursor"])


@app.command()
def results(
    job_id: JobId, output: Output = None, url: Url = None, key: Key = None, as_json: Json = False
) -> None:
    """The results of a score job so far, as JSON lines."""

    def work(client: "Client") -> int:
        documents = client.jobs.results(job_id)
        if output is None:
            for document in documents:
                print_json(document)
            return OK
        with written(output, as_json) as write:
            for document in documents:
                write(json.dumps(document).encode() + b"\n")
        return OK

    ask(work, url, key, as_json)


@app.command()
def checkpoints(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """A job's saves; `model` is what `kleash score --policy` takes."""
    columns = ("id", "name", "step", "model", "bytes", "pinned", "created_at")
    ask(lambda client: show_table(client.jobs.checkpoints(job_id), as_json, columns), url, key, as_json)


@app.command()
def artifacts(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """All that a job has left to download; each at its `url`."""
    columns = ("kind", "name", "bytes", "created_at", "url")
    ask(lambda client: show_table(client.jobs.artifacts(job_id), as_json, columns), url, key, as_json)


@app.command()
def frontier(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Rewards against √KL, tab-separated; the fitted law of each curve on standard error."""

    def work(client: "Client") -> int:
        found = client.jobs.frontier(job_id)
        return show(found, as_json, lambda: _print_curves(found))

    ask(work, url, key, as_json)


def _print_curves(found: Mapping[str, Any]) -> None:
    print("curve", "step", "kl", "d", "reward", sep="\t")
    for name in ("proxy", "gold", "held_out", "held_out_gold"):
        for point in found[name]["points"]:
            print(name, point["step"], *(_number(point[of]) for of in ("kl", "d", "reward")), sep="\t")
        if fit := found[name]["fit"]:
            law = ", ".join(f"{of} {_number(fit[of])}" for of in ("r0", "a", "b"))
            peak = f"; its peak at KL {_number(fit['peak']['kl'])}" if fit["peak"] else ""
            print(f"{name}: R(d) = r0 + d(a − b ln d), {law}{peak}", file=sys.stderr)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"
