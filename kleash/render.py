"""Scores in a terminal: tokens coloured by their exact KL, a table of the numbers behind them, and the sums.

Model output is somebody else's text: nothing of it reaches the terminal before `visible`.
"""

import json
from bisect import bisect_right
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

# Exact KL in nats -> background; black or white letters keep a contrast of at least 4.5 : 1.
KL_BOUNDS = (0.02, 0.1, 0.3, 1.0, 3.0)
KL_STYLES = (
    "",
    "black on #fff3c4",
    "black on #ffd98a",
    "black on #ffb057",
    "black on #f97b3c",
    "white on #b3261e",
)
PIPE_WIDTH = 120
SHOWN_K1 = 0.3  # nats: from here on the number stands beside the token in the running text
DEFAULT_SUMS = ("k1", "kl", "policy_logprob", "reference_logprob", "k3", "entropy")  # the service's
NAMED = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x1b": "␛", "\x00": "␀"}


class Token(NamedTuple):
    """One token of a scored text; None where nothing is defined (the first token, the prompt)."""

    raw: bytes  # UTF-8, which may be a part of a character
    policy_logprob: float | None
    reference_logprob: float | None
    k1: float | None
    kl: float | None


def visible(text: str) -> str:
    """The text with every character that could steer a terminal spelled out: controls, bidi marks, …"""
    if text.isprintable():
        return text
    return "".join(NAMED.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text)


def tokens_of(score: Mapping[str, Any], text: str) -> list[Token]:
    """The tokens of one item of a scores answer; `text` is what was sent, prompt and completion in one."""
    columns, raw = score["tokens"], text.encode()
    pieces = [raw[start:end] for start, end in zip(columns["start"], columns["end"], strict=True)]
    nothing = [None] * len(pieces)
    numbers = (columns.get(name) or nothing for name in ("policy_logprob", "reference_logprob", "k1", "kl"))
    return [Token(*row) for row in zip(pieces, *numbers, strict=True)]


def running_text(tokens: list[Token]) -> Text:
    """The text itself: background by exact KL, and the signed k1 beside each token that moved.

    A character that several tokens share stands with the last of them, coloured by the largest KL.
    """
    line = Text()
    decoder = getincrementaldecoder("utf-8")("replace")
    largest: float | None = None
    for token in tokens:
        if token.kl is not None:
            largest = max(token.kl, largest or 0.0)
        if piece := decoder.decode(token.raw):
            line.append(visible(piece), "dim" if largest is None else _background(largest))
            largest = None
        if token.k1 is not None and abs(token.k1) >= SHOWN_K1:
            line.append(f"({token.k1:+.1f})", "dim")
    return line


def token_table(tokens: list[Token]) -> Table:
    """One row per scored token: both log-probabilities, k1 with its sign, exact KL."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token", no_wrap=True, max_width=24)
    for name in ("log p policy", "log p reference", "k1", "kl"):
        table.add_column(name, justify="right", no_wrap=True)
    for token in tokens:
        if token.policy_logprob is None and token.kl is None:
            continue
        table.add_row(
            Text(visible(token.raw.decode(errors="backslashreplace")), _background(token.kl or 0.0)),
            _number(token.policy_logprob, "8.3f"),
            _number(token.reference_logprob, "8.3f"),
            _number(token.k1, "+7.3f"),
            _number(token.kl, "7.4f"),
        )
    return table


def sums(score: Mapping[str, Any]) -> str:
    """Σ k1 and Σ exact KL over the scored tokens, in nats; other sums; the adjusted reward."""
    of, parts = score["sums"], [f"{score['n_scored']} tokens scored"]
    if "k1" in of:
        parts.append(f"Σ k1 = {_number(of['k1'], '+.3f')} nats")
    if "kl" in of:
        parts.append(f"Σ exact KL = {_number(of['kl'], '.4f')} nats")
    parts += [f"Σ {visible(name)} = {_number(of[name], '.4f')}" for name in of if name not in DEFAULT_SUMS]
    if score.get("adjusted_reward") is not None:
        parts.append(f"adjusted reward = {_number(score['adjusted_reward'], '.4f')}")
    return "   ".join([*parts, *map(visible, score.get("warnings") or ())])


def score_view(score: Mapping[str, Any], text: str) -> RenderableType:
    """One item of a scores answer, or the reason why it has none; `text` as for `tokens_of`."""
    if score.get("error"):
        problem = score["error"]
        return Text(f"not scored: {visible(problem['detail'])} ({visible(problem['code'])})", "red")
    total = Text(sums(score), "bold")
    if score["tokens"] is None:
        return total
    tokens = tokens_of(score, text)
    top = [top_table(score["top"], tokens)] if score.get("top") else []
    return Group(running_text(tokens), token_table(tokens), *top, total)


def top_table(top: Mapping[str, Any], tokens: Sequence[Token]) -> Table:
    """Per scored token the vocabulary items with the largest parts of its exact KL, and what all others have."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("token", "parts of its kl", "all others"):
        table.add_column(name, overflow="fold")
    for token, pieces, terms, rest in zip(tokens, top["text"], top["kl_term"], top["kl_rest"], strict=True):
        if pieces is not None:
            parts = (f"{visible(p)} {_number(x, '.4f')}" for p, x in zip(pieces, terms, strict=True))
            table.add_row(
                Text(visible(token.raw.decode(errors="backslashreplace"))),
                Text("   ".join(parts)),
                _number(rest, ".4f"),
            )
    return table


def legend() -> Text:
    """What the backgrounds mean."""
    line = Text("exact KL per token, nats: ", "dim")
    for style, label in zip(KL_STYLES, _ranges(), strict=True):
        line.append(f" {label} ", style)
    return line.append("  (±k1 beside a token that moved)", "dim")


def job_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """Jobs, one per row; ids are never cut."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "status", "step", "reward", "KL/seq"):
        table.add_column(name, no_wrap=True)
    table.add_column("name", overflow="fold")
    for job in jobs:
        progress = job["progress"]
        latest = progress["latest"]
        table.add_row(
            Text(visible(job["id"])),
            Text(visible(job["status"])),
            steps(progress),
            _number(latest.get("reward/mean"), ".3f"),
            _number(latest.get("kl/sequence"), ".2f"),
            Text(visible(job["name"] or "")),
        )
    return table


def job_line(job: Mapping[str, Any]) -> str:
    """Where a job stands, in one line of plain text (and the end of its log if it failed)."""
    progress, status = job["progress"], visible(job["status"])
    if job["status"] == "running" and job["phase"]:
        status += f" ({visible(job['phase'])})"
    parts = [status, f"step {steps(progress)}", *job_numbers(job)]
    if job.get("reason"):
        parts.append(f"reason: {visible(job['reason'])}")
    if job["error"]:
        parts.append(failure(job["error"]))
    return "  ".join(parts)


def dry_run(found: Mapping[str, Any]) -> Iterator[str]:
    """What a job would be: its whole config, what it would take, and what to mind."""
    yield visible_lines(json.dumps(found["resolved_config"], ensure_ascii=False, indent=2))
    yield from fields(found["estimate"])
    yield from (f"! {visible(warning)}" for warning in found["warnings"])


def visible_lines(text: str) -> str:
    """As `visible`, but lines stay lines."""
    return "\n".join(map(visible, text.split("\n")))


def job_view(job: Mapping[str, Any]) -> str:
    """`job_line`, and below it what the job's metrics warn of."""
    return "\n".join([job_line(job), *(finding_line(finding) for finding in job.get("diagnosis") or ())])


def finding_line(finding: Mapping[str, Any]) -> str:
    """One rule that fired: what it says, its number beside the threshold, over which steps, what to try."""
    evidence = finding["evidence"]
    where = f"steps {evidence['first_step']}–{evidence['last_step']}"
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in evidence["numbers"].items())
    past = f"{finding['value']:.3g}, threshold {finding['threshold']:.3g}"
    line = f"! {finding['rule']}: {finding['message']} ({past}; {where}: {numbers}) {finding['advice']}"
    return visible(line)


def steps(progress: Mapping[str, Any]) -> str:
    """Completed steps of all; a score job's file may not have been counted yet."""
    total = progress["total_steps"]
    return f"{progress['step']}/{'?' if total is None else total}"


def job_numbers(job: Mapping[str, Any]) -> Iterator[str]:
    """The last step's reward, exact KL per sequence and β, or how many items were scored; what is known."""
    latest = job["progress"]["latest"]
    for name, form in (
        ("reward/mean", "reward {:+.3f}"),
        ("kl/sequence", "KL/seq {:.2f}"),
        ("kl/beta", "β {:.4f}"),
        ("items_done", "{:.0f} items"),
        ("items_failed", "{:.0f} failed"),
        ("tokens_per_s", "{:.0f} tokens/s"),
    ):
        if latest.get(name) is not None:
            yield form.format(latest[name])


def failure(error: Mapping[str, Any]) -> str:
    """Why a job failed, its log's last lines below."""
    text = f"{visible(error['code'])}: {visible(error['detail'])}"
    if error.get("hint"):
        text += f" {visible(error['hint'])}"
    return "\n    ".join([text, *(visible(line) for line in error.get("log_tail") or ())])


def console() -> Console:
    """A console that takes nothing it is given for markup; colourless in a pipe and with NO_COLOR."""
    out = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


def _background(kl: float) -> str:
    return KL_STYLES[bisect_right(KL_BOUNDS, kl)]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _ranges() -> Iterator[str]:
    yield f"<{KL_BOUNDS[0]:g}"
    for low, high in pairwise(KL_BOUNDS):
        yield f"{low:g}–{high:g}"
    yield f"≥{KL_BOUNDS[-1]:g}"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """The named fields of documents, one document a row."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for place, name in enumerate(columns):
        grid.add_column(name, no_wrap=place == 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(value_text(row.get(name))) for name in columns))
    return grid


def fields(document: Mapping[str, Any]) -> Iterator[str]:
    """A document, a line for each field, and for each document in one."""
    shown = {name: value for name, value in document.items() if name != "object"}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        match value:
            case [{}, *_]:
                yield visible(name)
                yield from (f"    {value_text(part)}" for part in value)
            case _:
                yield f"{visible(name):{width}}  {value_text(value)}"


def value_text(value: Any) -> str:
    """A JSON value for people: nothing of it can steer a terminal."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case str():
            return visible(value)
        case list() if all(isinstance(part, str) for part in value):
            return visible(" ".join(value))
        case list() | dict():
            return visible(json.dumps(value, ensure_ascii=False))
        case _:
            return visible(str(value))
