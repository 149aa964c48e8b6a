"""`make demo`: the stack on a free port, then both halves of the service over HTTP, as any client would.

Scores two sentences, trains a small policy on a leash, scores what it has become, and stops everything.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.text import Text

from kleash import render
from kleash.client import Client
from kleash.documents import Job, Sample
from kleash.errors import KleashError
from kleash.spawn import ROOT, spawn

JOB = ROOT / "examples" / "demo_job.json"
SENTENCES = (
    "The film was a quiet pleasure, and I would gladly see it again.",
    "The train was late, the coffee was cold, and nobody told us why.",
)
STOP_GRACE_S = 40.0
LEAST_RISE_SE = 5.0
LARGEST_MISS = 0.25  # of the target KL
LOG_TAIL = 25


class DemoError(Exception):
    """The demo did not reach its end; the message says why."""


def run(data: Path, models: Path | None) -> None:
    """The whole demo, from an empty data folder to a stopped stack. Raises DemoError."""
    out = render.console()
    folder = data.expanduser().absolute() / time.strftime("demo-%Y%m%d-%H%M%S")
    with _stack(folder, models) as url, Client(url, timeout_s=300) as client:
        out.print(f"kleash is ready at {url} (data and logs in {folder})")
        try:
            _score_sentences(client, out)
            job = _train(client, out)
            missed = _report(client, job, out)
        except KleashError as error:
            raise DemoError(f"{error}\n{_tail(folder / 'up.log')}") from error
    out.print("Every process has been stopped.")
    if missed:
        raise DemoError("\n".join(missed))


@contextlib.contextmanager
def _stack(folder: Path, models: Path | None) -> Iterator[str]:
    """`kleash up` as a child that cannot outlive us; yields the URL once it is ready."""
    folder.mkdir(mode=0o700, parents=True)
    up = [
        sys.executable,
        "-m",
        "kleash",
        "up",
        "--port",
        "0",
        "--unsafe-no-auth",
        "--json",
        "--data",
        str(folder),
    ]
    if models is not None:
        up += ["--models", str(models.absolute())]
    log = folder / "up.log"
    with log.open("w") as log_file:
        process = spawn(up, stderr=log_file, env=os.environ)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise DemoError(f"The stack did not start. The end of {log}:\n{_tail(log)}")
        yield json.loads(ready)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # and `lifeline` takes the rest with it
            process.wait()


def _score_sentences(client: Client, out: Console) -> None:
    out.print(Rule("How far is the default policy from its reference?", align="left"))
    answer = client.scores.create(list(SENTENCES))
    for item, sentence in zip(answer["data"], SENTENCES, strict=True):
        out.print(render.score_view(item, sentence))
        out.print()
    out.print(render.legend())


def _train(client: Client, out: Console) -> Job:
    """Create the PPO job and follow it by polling. Raises DemoError unless it succeeds."""
    out.print(Rule("A PPO job on a leash", align="left"))
    job = client.jobs.create(json.loads(JOB.read_text()))
    out.print(
        f"{render.visible(job['id'])} created; polling GET {render.visible(job['links']['self'] or '')}"
    )
    follow = _follow_with_bar if out.is_terminal else _follow_with_lines
    job = follow(client, job["id"], out)
    if job["status"] != "succeeded":
        reason = render.failure(job["error"]) if job["error"] else "it gave no reason"
        raise DemoError(f"The job ended as {job['status']}: {reason}")
    return job


def _follow_with_bar(client: Client, job_id: str, out: Console) -> Job:
    job: Job | None = None
    columns = (BarColumn(bar_width=14), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("")
        for job, speed in _polls(client, job_id):
            line = "  ".join([render.visible(job["phase"] or job["status"]), *render.job_numbers(job), speed])
            progress = job["progress"]
            bar.update(task, description=line, total=progress["total_steps"], completed=progress["step"])
    assert job is not None
    return job


def _follow_with_lines(client: Client, job_id: str, out: Console) -> Job:
    job: Job | None = None
    step = None
    for job, speed in _polls(client, job_id):
        if job["progress"]["step"] != step or job["done"]:
            step = job["progress"]["step"]
            out.print(f"{render.job_line(job)}  {speed}")
    assert job is not None
    return job


def _polls(client: Client, job_id: str) -> Iterator[tuple[Job, str]]:
    """The job at each change, with the tokens/s of its last step."""
    step, speed = 0, ""
    for job in client.jobs.watch(job_id, every_s=0.5):
        if job["progress"]["step"] != step:
            step = job["progress"]["step"]
            found = client.jobs.metrics(job_id, keys=["timings/tokens_per_s"], from_step=step)["series"]
            if found:
                speed = f"{found[0]['value'][-1]:.0f} tokens/s"
        yield job, speed


def _report(client: Client, job: Job, out: Console) -> list[str]:
    """What came of it: reward, KL against its target, the checkpoint, and the policy's own words.

    Returns what it promised and did not reach.
    """
    out.print(Rule("What came of it", align="left"))
    result, total_steps = job["result"], job["progress"]["total_steps"]
    assert result is not None  # it has succeeded
    assert total_steps is not None
    for line in outcome(result["evaluation"]):
        out.print(line)
    held = leash(client.jobs.metric_rows(job["id"]), total_steps)
    out.print(str(held))
    out.print(f"checkpoint              {result['checkpoint_id']}  (score it as {result['model']})")

    config, model = job["config"], result["model"]
    before, after = _typical_sample(client, job)
    out.print(Rule("The held-out prompt with the median change in reward", align="left"))
    for name, sample in (("before", before), ("after", after)):
        text = Text(f"{name}, reward {sample['data']['reward']:+.2f}:  ", "bold")
        text.append(render.visible(sample["prompt"]), "dim not bold")
        out.print(text.append(render.visible(sample["completion"]), "not bold"))
    out.print(Rule("The latter, scored with the trained policy against its reference", align="left"))
    answer = client.scores.create(
        [{"prompt": after["prompt"], "completion": after["completion"]}],
        policy=model,
        reference=config["model"]["name"],
        temperature=config["rollout"]["temperature"],
        sampled_from="policy",
    )
    out.print(render.score_view(answer["data"][0], after["prompt"] + after["completion"]))
    return list(shortfalls(result["evaluation"], held))


def shortfalls(evaluation: Mapping[str, Any], held: "Leash") -> Iterator[str]:
    """Where a run missed what the demo shows: a rise of the reward, on the leash."""
    rise = evaluation["reward_difference"]
    if not rise["mean"] >= LEAST_RISE_SE * rise["se"]:
        yield f"The held-out reward rose by less than {LEAST_RISE_SE:g} standard errors."
    if held.target is not None and not abs(held.kl / held.target - 1) <= LARGEST_MISS:
        yield f"The KL per sequence is off its target by more than {LARGEST_MISS:.0%}."


def outcome(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """The held-out evaluation before and after training: reward with its paired difference, and the tells."""
    before, after, rise = evaluation["before"], evaluation["after"], evaluation["reward_difference"]
    yield (
        f"held-out reward         {before['reward_mean']:+.3f} → {after['reward_mean']:+.3f}   "
        f"paired difference {rise['mean']:+.3f} ± {rise['se']:.3f} SE over {rise['n']:.0f} prompts"
    )
    yield f"length, tokens          {before['length_mean']:.1f} → {after['length_mean']:.1f}"
    yield f"repeated bigrams        {before['repeated_bigrams']:.3f} → {after['repeated_bigrams']:.3f}"


class Leash(NamedTuple):
    """Mean exact KL per sequence over the last `steps` steps, in nats, and the controller's target."""

    kl: float
    steps: int
    target: float | None

    def __str__(self) -> str:
        text = f"exact KL per sequence   {self.kl:.2f} nats, mean of the last {self.steps} steps"
        if self.target is None:
            return text
        return f"{text}   target {self.target:g} ({self.kl / self.target - 1:+.0%})"


def leash(rows: Sequence[Mapping[str, Any]], total_steps: int) -> Leash:
    """The leash over the last quarter of the steps."""
    last_quarter = [row["metrics"] for row in rows if row["step"] > total_steps * 3 / 4]
    kl = sum(metrics["kl/sequence"] for metrics in last_quarter) / len(last_quarter)
    return Leash(kl, len(last_quarter), last_quarter[-1].get("kl/target"))


def _typical_sample(client: Client, job: Job) -> tuple[Sample, Sample]:
    """The untrained and the trained policy's completion of the prompt whose reward changed by the median."""
    first, last = (
        client.jobs.samples(job["id"], kind="eval", step=step, limit=100)["data"]
        for step in (0, job["progress"]["step"])
    )
    pairs = sorted(
        zip(first, last, strict=True), key=lambda pair: pair[1]["data"]["reward"] - pair[0]["data"]["reward"]
    )
    return pairs[len(pairs) // 2]


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL:])
