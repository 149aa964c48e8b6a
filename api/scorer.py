"""The Scorer port over HTTP: one client with kept-alive connections to each scorer process.

A request goes to the scorer with the fewest in flight; among equals to the one where its pair of models usually
goes (rendezvous hashing), so that pairs stay where they are loaded. Scoring is a pure function, so a request that
one scorer cannot take goes to the next. A request that is cancelled closes its connection, by which the scorer
learns that nobody waits any more.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2

from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.residents import Residents
from jobs.scoring_wire import ModelSource, ScoreReply, ScoreRequest, decode_reply
from jobs.tokenizing_wire import TokenizeReply, TokenizeRequest, decode_tokens

CONNECT_TIMEOUT_S, PROBE_TIMEOUT_S, GRACE_S = 2.0, 2.0, 2.0
MAX_WAITING, RETRY_SOON_S = 48, 2  # each holds a connection and its texts
PER_FREE = 2  # a client may have so many waiting for each place that is free: alone 32 of 48, never all
SHUN_S = 5.0  # a scorer that was not there is tried after the others for so long
MAX_BREAKS = 2  # a request that ends two scorers while they have it is not given to a third
Reply = TypeVar("Reply")


class _Broken(ScorerUnavailable):
    """The scorer took the request and broke."""


class _Endpoint:
    """One scorer process, and what this API process has with it."""

    def __init__(self, url: str, token: str | None) -> None:
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self.url, self.in_flight, self.shunned_until = url, 0, 0.0
        base_url = "http://scorer" if socket else url
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.client = httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            transport=httpx2.AsyncHTTPTransport(uds=socket),
            trust_env=False,  # no proxy stands between the two
        )
        self.probe = httpx2.Client(
            base_url=base_url,
            headers=headers,
            transport=httpx2.HTTPTransport(uds=socket),
            trust_env=False,
        )

    async def ask(self, path: str, body: str, timeout_s: float) -> bytes:
        response = await self._post(path, body, timeout_s)
        if response.status_code == 200:
            return response.content
        raise _error(response)

    async def _post(self, path: str, body: str, timeout_s: float) -> httpx2.Response:
        try:
            return await self.client.post(
                path,
                content=body,
                headers={"timeout-s": str(timeout_s)},
                # The scorer gives up by itself; the grace lets it say so.
                timeout=httpx2.Timeout(timeout_s + GRACE_S, connect=CONNECT_TIMEOUT_S),
            )
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ScorerUnavailable("the scorer does not accept connections") from error
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded("the scorer did not answer in time") from error
        except httpx2.ConnectError as error:
            raise ScorerUnavailable("the scorer cannot be reached") from error
        except httpx2.TransportError as error:
            raise _Broken("the scorer cannot be reached") from error

    def ready(self) -> bool:
        try:
            return self.probe.get("/ready", timeout=PROBE_TIMEOUT_S).status_code == 200
        except httpx2.TransportError:
            return False

    def residents(self) -> Residents | None:
        try:
            response = self.probe.get("/models", timeout=PROBE_TIMEOUT_S)
        except httpx2.TransportError:
            return None
        return Residents.model_validate_json(response.content) if response.status_code == 200 else None

    def wish(self, path: str, source: ModelSource) -> bool:
        try:
            response = self.probe.post(path, content=source.model_dump_json(), timeout=PROBE_TIMEOUT_S)
        except httpx2.TransportError:
            return False
        if response.status_code == 422:
            raise _error(response)
        return response.status_code == 202


class HttpScorer:
    """Scorers at `unix:/path` or `http://host:port`, for one event loop; what does not wait, for any thread."""

    def __init__(self, *urls: str, token: str | None = None) -> None:
        self._waiting: Counter[str] = Counter()  # by client
        self._endpoints = [_Endpoint(url, token) for url in urls]

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        """Score every item; cancelling it gives the request up.

        Raises ScorerUnavailable, ScorerOverloaded, DeadlineExceeded, ScoringRefused.
        """
        home = f"{request.policy!r} {request.reference!r}"
        return await self._ask("/score", request, home, decode_reply, timeout_s)

    async def tokenize(self, request: TokenizeRequest, *, timeout_s: float) -> TokenizeReply:
        """What a model's tokenizer makes of texts or ids. Raises as `score`."""
        return await self._ask("/tokenize", request, repr(request.model), decode_tokens, timeout_s)

    async def _ask(
        self,
        path: str,
        request: ScoreRequest | TokenizeRequest,
        home: str,
        decode: Callable[[bytes], Reply],
        timeout_s: float,
    ) -> Reply:
        client, free = request.client, MAX_WAITING - self._waiting.total()
        if self._waiting[client] >= PER_FREE * free:
            raise ScorerOverloaded(RETRY_SOON_S)
        self._waiting[client] += 1
        try:
            deadline = time.monotonic() + timeout_s
            return decode(await self._first_answer(path, request.model_dump_json(), home, deadline))
        finally:
            self._waiting[client] -= 1
            self._waiting = +self._waiting  # without those that have none

    async def _first_answer(self, path: str, body: str, home: str, deadline: float) -> bytes:
        tried, breaks = list[_Endpoint](), 0
        failure: Exception = DeadlineExceeded("no scorer answered in time")
        while (left_s := deadline - time.monotonic()) > 0 and breaks < MAX_BREAKS:
            with self._best(home, but=tried) as endpoint:
                if endpoint is None:
                    break
                tried.append(endpoint)
                try:
                    return await endpoint.ask(path, body, left_s)
                except ScorerOverloaded as error:
                    failure = error
                except ScorerUnavailable as error:
                    endpoint.shunned_until = time.monotonic() + SHUN_S
                    breaks += isinstance(error, _Broken)
                    if not isinstance(failure, ScorerOverloaded):  # a full one is worth coming back to
                        failure = error
        raise failure

    @contextmanager
    def _best(self, home: str, *, but: Collection[_Endpoint]) -> Iterator[_Endpoint | None]:
        """The scorer to ask, which has one more in flight meanwhile; None if none is left."""
        now = time.monotonic()
        best = min(
            (endpoint for endpoint in self._endpoints if endpoint not in but),
            key=lambda e: (e.shunned_until > now, e.in_flight, _weight(e.url, home)),
            default=None,
        )
        if best is None:
            yield None
            return
        best.in_flight += 1
        try:
            yield best
        finally:
            best.in_flight -= 1

    def ready(self) -> bool:
        """True if a scorer has its default pair loaded."""
        return any(endpoint.ready() for endpoint in self._endpoints)

    def residents(self) -> list[Residents]:
        """The models of each scorer that answers."""
        answers = [endpoint.residents() for endpoint in self._endpoints]
        return [answer for answer in answers if answer is not None]

    def load(self, source: ModelSource) -> None:
        """Have every scorer that answers load a model, soon. Raises ScorerUnavailable, ScoringRefused."""
        self._wish("/load", source)

    def unload(self, source: ModelSource) -> None:
        """Have every scorer that answers give a model up, soon. Raises as `load`."""
        self._wish("/unload", source)

    def _wish(self, path: str, source: ModelSource) -> None:
        answers = [endpoint.wish(path, source) for endpoint in self._endpoints]
        if not any(answers):
            raise ScorerUnavailable("no scorer answers")

    async def aclose(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            endpoint.probe.close()
            await endpoint.client.aclose()


def _weight(url: str, home: str) -> bytes:
    """The scorer with the smallest is the home of a pair: it changes only when that one leaves."""
    return hashlib.sha256(f"{url} {home}".encode()).digest()


def _error(response: httpx2.Response) -> Exception:
    """The error that a refusal of worker/scorer/app.py stands for."""
    if response.status_code == 503 and "Retry-After" in response.headers:
        return ScorerOverloaded(int(response.headers["Retry-After"]))
    if response.status_code == 503:
        return ScorerUnavailable("the scorer takes no requests now")
    if response.status_code == 401:
        return ScorerUnavailable("the scorer does not take our KLEASH_SCORER_TOKEN")
    if response.status_code == 504:
        return DeadlineExceeded("the scorer did not answer in time", _spent(response))
    if response.status_code >= 500:
        return _Broken(f"the scorer answered {response.status_code}")
    refusal = response.json()
    return ScoringRefused(refusal["code"], refusal["detail"], refusal["context"])


def _spent(response: httpx2.Response) -> dict[str, float]:
    try:
        return dict(response.json()["context"])
    except ValueError:  # not one of ours: a proxy's
        return {}
