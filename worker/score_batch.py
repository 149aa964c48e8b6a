"""One attempt at a score job: from the first item without a recorded shard to the end, or to SIGTERM.

Shards are windows of the input, fixed by item numbers, and batches never reach over a window's edge: a resumed
job forms the batches of an undisturbed one, and its results are the same bytes: unless memory was short, for then
a batch goes in halves, and numbers move by rounding.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from jobs.bulk import BulkItem
from jobs.lines import BadLine
from jobs.scoring_wire import ModelSource
from jobs.spec import Job, NewEvent, Shard
from jobs.states import Status
from jobs.store import Store
from rlhf_core.batches import Capacity, in_batches
from rlhf_core.errors import UnusableInput
from rlhf_core.models import ModelPair, load_pair
from rlhf_core.scoring import ScoredText, capacity, score_batch
from rlhf_core.tokenization import TokenizedText, tokenize_item
from worker.bulk_input import Cursor, Line, Reader, Window, count_items, open_input
from worker.run import Stop
from worker.score_results import Result, failed_result, scored_result, summarise
from worker.scorer.memory import score_in_halves
from worker.scorer.sources import AllowedSources
from worker.shards import Shards
from worker.texts import upload_sha256

ALIVE_EVERY_S = 10.0  # a window may take longer than the supervisor waits for progress
COUNTED = ("items_done", "items_failed", "tokens", "tokens_scored")
T = TypeVar("T")
log = structlog.get_logger()


class Prepared(NamedTuple):
    """A window whose items are tokenised, or are known not to be scored; keys are places in the window."""

    window: Window
    texts: dict[int, TokenizedText]
    problems: dict[int, BadLine]


class ScoreRun:
    """One attempt at one score job."""

    def __init__(
        self,
        store: Store,
        job: Job,
        folder: Path,
        device: str,
        *,
        sources: AllowedSources,
        max_batch_tokens: int,
    ) -> None:
        self.store, self.job, self.device, self._sources = store, job, device, sources
        self.config, self.step = job.score, job.step
        self._max_batch_tokens = max_batch_tokens
        self._shards = Shards(store, job, folder)
        self._alive_at = time.monotonic()

    def run(self, stop: Stop) -> int:
        """Score to the end. `stop` ends it wherever it is: nothing but recorded shards was ever saved."""
        self._shards.tidy()
        self._phase("loading")
        with open_input(self.config, self.job.resolved.get("items_file")) as file:
            total = count_items(file, upload_sha256(self.job.resolved, "items_file"))
            reader, done = Reader(file), self._done()
            counts = dict.fromkeys(COUNTED, 0)
            if done:
                last = done[-1].cursor
                reader.skip_to(Cursor(*(last[name] for name in Cursor._fields)))
                counts = {name: last[name] for name in COUNTED}
            pair = self._load()
            room = capacity(pair, self.config.vocab_mismatch)
            windows = reader.windows(len(done), self.config.checkpoint.every_items)
            self._phase("scoring")
            for prepared in ahead(prepare(window, pair, room) for window in windows):
                counts = self._save(prepared.window, self._results(prepared, pair, room), counts, total)
        self._succeed(pair, counts)
        return 0

    def _load(self) -> ModelPair:
        """The pair that the API resolved. Raises ScoringRefused: here it may not be opened."""
        policy, reference = (
            self._sources.weights(ModelSource(**self.job.resolved[role])) for role in ("policy", "reference")
        )
        return load_pair(policy, reference, device=self.device)

    def _done(self) -> list[Shard]:
        done = self._shards.done()
        self.step = len(done)
        if done:
            message = f"Resumed after {done[-1].cursor['items_done']} items."
            event = NewEvent(type="job.resumed_from", message=message, data={"step": self.step})
            self.store.add_event(self.job.id, self.job.attempt, event)
        return done

    def _results(self, prepared: Prepared, pair: ModelPair, room: Capacity) -> tuple[list[Result], float]:
        """The window's results in order, and the seconds they took."""
        began = time.monotonic()
        first = prepared.window.number * self.config.checkpoint.every_items
        items = [line.item for line in prepared.window.lines]
        results = {
            place: failed_result(first + place, items[place], why) for place, why in prepared.problems.items()
        }
        for place, scored in self._scores(prepared.texts, pair, room):
            line, text = prepared.window.lines[place], prepared.texts[place]
            results[place] = self._result(first + place, line, text, scored)
        return [results[place] for place in range(len(items))], time.monotonic() - began

    def _result(self, index: int, line: Line, text: TokenizedText, scored: ScoredText | None) -> Result:
        assert isinstance(line.item, BulkItem)
        if scored is None:
            detail = f"line {line.number}: memory is not enough for its {len(text.ids)} tokens"
            return failed_result(index, line.item, BadLine("out_of_memory", detail))
        return scored_result(index, line.item, scored, self.config, truncated=text.truncated)

    def _scores(
        self, texts: dict[int, TokenizedText], pair: ModelPair, room: Capacity
    ) -> Iterator[tuple[int, ScoredText | None]]:
        """As rlhf_core.scoring.score_texts, by places in the window, and a sign of life between batches.

        Where memory is short a batch goes in halves; None for a text that does not fit alone.
        """
        config, places = self.config, list(texts)
        waiting, strict = list(texts.values()), config.numerics == "strict"

        def score(part: Sequence[TokenizedText]) -> list[ScoredText]:
            return score_batch(pair, part, temperature=config.temperature, top_k=config.top_k)

        def short_of_memory() -> None:
            log.warning("out of memory", step=self.step)

        for batch in in_batches(waiting, room, max_batch_tokens=self._max_batch_tokens, strict=strict):
            together = [waiting[index] for index in batch]
            scores = score_in_halves(score, together, on_failure=short_of_memory)
            yield from zip((places[index] for index in batch), scores, strict=True)
            if time.monotonic() - self._alive_at > ALIVE_EVERY_S:
                self._phase("scoring")

    def _save(
        self, window: Window, scored: tuple[list[Result], float], counts: dict[str, int], total: int
    ) -> dict[str, int]:
        """Make the window's shard durable; the counts with it."""
        results, took_s = scored
        tokens, n_scored = sum(r.tokens for r in results), sum(r.scored for r in results)
        grown = (len(results), sum(result.failed for result in results), tokens, n_scored)
        counts = {name: counts[name] + more for name, more in zip(COUNTED, grown, strict=True)}
        totals: dict[str, float] = {}
        for result in results:
            for name, value in result.sums.items():
                totals[name] = totals.get(name, 0.0) + value
        self._shards.save(
            window.number,
            [result.line for result in results],
            window.end._asdict() | counts,
            metrics={
                **counts,
                "items_total": total,
                **{f"{name}/token": value / n_scored for name, value in totals.items()},
            },
            timings={"shard_s": took_s, "tokens_per_s": tokens / took_s},
        )
        self.step = window.number + 1
        self._alive_at = time.monotonic()
        log.info("shard", step=self.step, tokens_per_s=round(tokens / took_s), **counts)
        return counts

    def _succeed(self, pair: ModelPair, counts: dict[str, int]) -> None:
        self._phase("summary")
        lines = (line for shard in self.store.list_shards(self.job.id) for line in self._lines(shard))
        result: dict[str, Any] = {
            "policy": self.job.resolved["names"]["policy"],
            "reference": self.job.resolved["names"]["reference"],
            **{name: counts[name] for name in COUNTED},
            "sampled_from": self.config.sampled_from,
            "tokenizer_sha256": pair.tokenizer_sha256,
            "vocab_size": min(pair.vocab_sizes),
            "vocab_sizes": pair.vocab_sizes,
            "weights_dtype": pair.weights_dtype,
            "summary": summarise(lines),
        }
        self.store.finish(self.job.id, self.job.attempt, Status.SUCCEEDED, result=result)

    def _lines(self, shard: Shard) -> Iterator[bytes]:
        with self._shards.file(shard.path).open("rb") as file:
            yield from file

    def _phase(self, phase: str) -> None:
        self.store.set_phase(self.job.id, self.job.attempt, phase)
        self._alive_at = time.monotonic()


def prepare(window: Window, pair: ModelPair, room: Capacity) -> Prepared:
    """Tokenise a window."""
    texts: dict[int, TokenizedText] = {}
    problems: dict[int, BadLine] = {}
    for place, line in enumerate(window.lines):
        if isinstance(line.item, BadLine):
            problems[place] = line.item
            continue
        try:
            texts[place] = tokenize_item(
                pair.tokenizer, line.item, context=room.context, vocab_size=room.vocab_size
            )
        except UnusableInput as error:
            problems[place] = BadLine(error.code, f"line {line.number}: {error}", error.context)
    return Prepared(window, texts, problems)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made while the one before it is used: the engine does not wait for the tokenizer."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item
