"""A HttpScorer on an event loop of its own, for tests that ask from threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from anyio.from_thread import BlockingPortal, start_blocking_portal

from api.scorer import HttpScorer
from jobs.scoring_wire import ScoreReply, ScoreRequest


class BlockingScorer:
    """`score` returns when the answer is there."""

    def __init__(self, portal: BlockingPortal, scorer: HttpScorer) -> None:
        self._portal, self.asked = portal, scorer
        self.ready = scorer.ready

    def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        return self._portal.call(partial(self.asked.score, request, timeout_s=timeout_s))


@contextmanager
def blocking(*urls: str) -> Iterator[BlockingScorer]:
    with start_blocking_portal() as portal:
        scorer = HttpScorer(*urls)
        try:
            yield BlockingScorer(portal, scorer)
        finally:
            portal.call(scorer.aclose)
