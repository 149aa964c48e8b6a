"""POST /v1/scores/stream: a request's items go to the scorer in groups, a few at a time, and come back as lines.

So a stream of any length holds few places in the scorer's queue, and an answer of any length little memory.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import orjson
from anyio.to_thread import run_sync

from api.problem_table import answer_of
from api.services.score_documents import (
    Document,
    Scored,
    item_document,
    shared_document,
    summary_document,
    unknown_document,
    usage_document,
    with_scored_tokens,
)
from api.services.scores import Asked
from jobs.errors import JobError, ScorerOverloaded, ScoringRefused
from jobs.ports import Scorer
from jobs.scoring_wire import ItemError, ItemScores, ScoreReply, Weights

GROUP, IN_FLIGHT = 8, 4  # items of a request to the scorer; such requests at once


class ScoreStream:
    """One streamed request. `patience_s` is for each group; the request's own time, if it has one, for all."""

    def __init__(self, asked: Asked, scorer: Scorer, *, patience_s: float) -> None:
        self._asked, self._scorer, self._patience_s = asked, scorer, patience_s
        self._deadline = time.monotonic() + (asked.request.request_timeout_s or math.inf)
        self._items: list[Scored] = []
        self._failed = 0
        self._begun = False
        self._shared, self._models = unknown_document(asked.request), (Weights(), Weights())

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Items in the order in which they are done, each once, and the summary.

        Raises, before the first line alone: ScorerUnavailable, ScorerOverloaded, DeadlineExceeded, ScoringRefused.
        """
        failure: JobError | None = None
        try:
            async with aclosing(self._replies()) as replies:
                async for group, reply in replies:
                    yield await run_sync(self._written, group, reply)
        except JobError as error:
            if not self._begun:
                raise
            failure = error
        yield await run_sync(self._summary, failure)

    async def _replies(self) -> AsyncGenerator[tuple[range, ScoreReply | ItemError], None]:
        """Each group with its answer; one that is too long for the queue goes in halves, to a single item."""
        count = len(self._asked.wire.items)
        waiting = deque(range(at, min(at + GROUP, count)) for at in range(0, count, GROUP))
        running: dict[asyncio.Task[ScoreReply], range] = {}
        try:
            while waiting or running:
                while waiting and len(running) < IN_FLIGHT:
                    group = waiting.popleft()
                    running[asyncio.create_task(self._ask(group))] = group
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    group = running.pop(task)
                    refusal = _too_long(task)
                    if refusal is None or len(group) == 1:
                        yield group, refusal or task.result()
                    else:
                        half = len(group) // 2
                        waiting.extendleft([group[half:], group[:half]])
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ask(self, group: range) -> ScoreReply:
        """Ask again while the queue is full: but the first group's client is told so instead."""
        items = self._asked.wire.items[group.start : group.stop]
        request = self._asked.wire.model_copy(update={"items": items})
        deadline = min(self._deadline, time.monotonic() + self._patience_s)
        while True:
            try:
                reply = await self._scorer.score(request, timeout_s=deadline - time.monotonic())
                return with_scored_tokens(reply)
            except ScorerOverloaded as error:
                if group.start == 0 or time.monotonic() + error.retry_after_s >= deadline:
                    raise
                await asyncio.sleep(error.retry_after_s)

    def _written(self, group: range, reply: ScoreReply | ItemError) -> bytes:
        self._begun = True
        return b"".join(map(_line, self._documents(group, reply)))

    def _documents(self, group: range, reply: ScoreReply | ItemError) -> Iterator[Document]:
        answers: Sequence[ItemScores | ItemError] = [reply] if isinstance(reply, ItemError) else reply.items
        pieces = {} if isinstance(reply, ItemError) else reply.pieces
        if isinstance(reply, ScoreReply):
            self._shared, self._models = shared_document(self._asked.request, reply), reply.models
        for index, answer in zip(group, answers, strict=True):
            document, item = item_document(self._asked.request, index, answer, pieces)
            if item is None:
                self._failed += 1
            else:
                self._items.append(item)
            yield document

    def _summary(self, failure: JobError | None) -> bytes:
        self._items.sort(key=lambda item: item.item)
        count = len(self._asked.wire.items)
        return _line(
            {
                "object": "score.summary",
                **self._asked.head(self._models),
                **self._shared,
                "complete": failure is None,
                "error": None if failure is None else _error(failure),
                "items": count,
                "failed": self._failed,
                "missing": count - len(self._items) - self._failed,
                "summary": summary_document(self._asked.request, self._items),
                "usage": usage_document(self._items),
            }
        )


def _too_long(task: asyncio.Task[ScoreReply]) -> ItemError | None:
    error = task.exception()
    if isinstance(error, ScoringRefused) and error.code == "input_too_long":
        return ItemError(code=error.code, detail=error.detail, context=error.context)
    return None


def _error(failure: JobError) -> Document:
    answer = answer_of(failure)
    return {"code": answer.code, "detail": answer.detail, "context": getattr(failure, "context", {})}


def _line(document: Document) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
