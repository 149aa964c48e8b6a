"""`kleash score`: how far the policy is from the reference, token by token."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import Json, Key, Pairs, Url
from kleash.commands.session import OK, USAGE, ask, fail, pairs, print_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from kleash.client import Client


def score(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT…", help="- reads standard input.")
    ] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option("-f", "--file", help="Items as JSON lines: texts or objects; - is standard input."),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show each item as soon as it is known.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Context; only what follows it is scored.")] = None,
    policy: Annotated[str | None, typer.Option(help="A model's name, job_…@step-40, or a path.")] = None,
    reference: Annotated[str | None, typer.Option(help="As --policy.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits of both.")] = None,
    quantity: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="kl, k1, js, …; may be repeated.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Show the vocabulary items that carry most of each KL.")
    ] = None,
    per_token: Annotated[bool, typer.Option(help="Or sums and means alone.")] = True,
    sampled_from: Annotated[str | None, typer.Option(help="policy, reference or unknown.")] = None,
    reward: Annotated[list[float] | None, typer.Option(help="One per item; needs --beta.")] = None,
    beta: Annotated[float | None, typer.Option(help="Adjusted reward: reward − beta × Σ k1.")] = None,
    special: Annotated[bool, typer.Option(help="What the tokenizer puts around a text.")] = True,
    truncation: Annotated[str | None, typer.Option(help="Of what is too long: error, left or right.")] = None,
    vocab_mismatch: Annotated[
        str | None, typer.Option(help="Of heads that differ in size: error or intersect.")
    ] = None,
    numerics: Annotated[str | None, typer.Option(help="fast, or strict: the same to the bit.")] = None,
    offsets: Annotated[str | None, typer.Option(help="byte, codepoint, utf16 or none; needs --json.")] = None,
    encoding: Annotated[str | None, typer.Option(help="float or base64; needs --json.")] = None,
    attribution: Annotated[
        bool, typer.Option("--attribution", help="What carries the KL; needs --json.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds that the service may take.")] = None,
    metadata: Pairs = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show how far the policy is from the reference, token by token, in nats."""
    for name, given in (("offsets", offsets), ("encoding", encoding), ("attribution", attribution or None)):
        if given is not None and not as_json:
            fail(USAGE, "invalid_request", f"--{name} is for programs: give --json too", as_json)
    items = _items(texts, file, prompt, as_json)
    options: Any = {
        "policy": policy,
        "reference": reference,
        "temperature": temperature,
        "quantities": quantity or None,
        "top_k": top_k,
        "per_token": None if per_token else False,
        "sampled_from": sampled_from,
        "reward": reward or None,
        "beta": beta,
        "add_special_tokens": None if special else False,
        "truncation": truncation,
        "vocab_mismatch": vocab_mismatch,
        "numerics": numerics,
        "offsets": offsets,
        "encoding_format": encoding,
        "attribution": attribution or None,
        "request_timeout_s": timeout,
        "metadata": pairs(metadata, as_json) or None,
    }

    def work(client: "Client") -> int:
        if stream:
            return _stream(client.scores.stream(items, **options), items, as_json)
        answer = client.scores.create(items, **options)
        if as_json:
            print_json(answer)
        else:
            _show(answer["data"], items)
        return USAGE if any(item.get("error") for item in answer["data"]) else OK

    ask(work, url, key, as_json)


def _items(
    texts: Sequence[str] | None, file: typer.FileText | None, prompt: str | None, as_json: bool
) -> list[Any]:
    """What is to be scored, as the service takes it."""
    if file is not None and texts:
        fail(USAGE, "invalid_request", "give texts or --file, not both", as_json)
    try:
        if file is not None:
            items: list[Any] = [json.loads(line) for line in file if line.strip()]
        else:
            items = [sys.stdin.read() if text == "-" else text for text in texts or ["-"]]
    except UnicodeDecodeError as error:
        fail(USAGE, "invalid_request", f"the input is not text: {error}", as_json)
    except (ValueError, RecursionError) as error:
        fail(USAGE, "malformed_json", f"a line is not JSON: {error}", as_json)
    if prompt is None:
        return items
    return [{"prompt": prompt, "completion": item} if isinstance(item, str) else item for item in items]


def _show(scores: Iterable[Mapping[str, Any]], items: Sequence[Any]) -> None:
    from kleash import render

    out = render.console()
    for score in scores:
        out.print(render.score_view(score, _text(score, items)))
        out.print()
    out.print(render.legend())


def _stream(documents: Iterable[Mapping[str, Any]], items: Sequence[Any], as_json: bool) -> int:
    """Items as they come, then what is said of all; USAGE where one failed or is missing."""
    from kleash import render

    summary: Mapping[str, Any] = {}
    failed, out = False, render.console()
    with _bar(len(items)) or nullcontext() as bar:
        task = bar.add_task("scored", total=len(items)) if bar else None
        for document in documents:
            if as_json:
                print_json(document)
            elif "index" in document:
                out.print(render.score_view(document, _text(document, items)))
                out.print()
            if "index" in document:
                failed |= bool(document.get("error"))
                if bar and task is not None:
                    bar.advance(task)
            else:
                summary = document
    if not as_json:
        print(
            f"{len(items)} items, {summary.get('failed', '?')} failed, {summary.get('missing', '?')} missing"
        )
    return OK if summary.get("complete") and not failed else USAGE


def _bar(total: int) -> "Progress | None":
    """On standard error, where that is a terminal and the items are not shown there."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))


def _text(score: Mapping[str, Any], items: Sequence[Any]) -> str:
    """What the offsets of a score are into."""
    item = items[score["index"]] if score.get("index", len(items)) < len(items) else None
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and isinstance(item.get("completion"), str):
        return f"{item.get('prompt') or ''}{item['completion']}"
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        return str(item["text"])
    return "".join((score.get("tokens") or {}).get("text") or ())
