"""The Scorer port over HTTP: one client with kept-alive connections to the scorer process."""

import threading

import httpx2

from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import ScoreReply, ScoreRequest, decode_reply

CONNECT_TIMEOUT_S, PROBE_TIMEOUT_S, GRACE_S = 2.0, 2.0, 2.0
MAX_WAITING, RETRY_SOON_S = 16, 2  # each waits in a thread, and the other routes need some of those 40


class HttpScorer:
    """A scorer at `unix:/path` or `http://host:port`; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._free = threading.BoundedSemaphore(MAX_WAITING)
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._client = httpx2.Client(
            base_url="http://scorer" if socket else url,
            transport=httpx2.HTTPTransport(uds=socket),
            trust_env=False,  # no proxy stands between the two
        )

    def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreReply:
        """Score every item. Raises ScorerUnavailable, ScorerOverloaded, DeadlineExceeded, ScoringRefused."""
        if not self._free.acquire(blocking=False):
            raise ScorerOverloaded(RETRY_SOON_S)
        try:
            response = self._post(request, timeout_s)
        finally:
            self._free.release()
        if response.status_code == 200:
            return decode_reply(response.content)
        raise _error(response)

    def _post(self, request: ScoreRequest, timeout_s: float) -> httpx2.Response:
        try:
            return self._client.post(
                "/score",
                content=request.model_dump_json(),
                headers={"timeout-s": str(timeout_s)},
                # The scorer gives up by itself; the grace lets it say so.
                timeout=httpx2.Timeout(timeout_s + GRACE_S, connect=CONNECT_TIMEOUT_S),
            )
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ScorerUnavailable("the scorer does not accept connections") from error
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded("the scorer did not answer in time") from error
        except httpx2.TransportError as error:
            raise ScorerUnavailable("the scorer cannot be reached") from error

    def ready(self) -> bool:
        """True if the scorer has its default pair loaded."""
        try:
            return self._client.get("/ready", timeout=PROBE_TIMEOUT_S).status_code == 200
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _error(response: httpx2.Response) -> Exception:
    """The error that a refusal of worker/scorer/app.py stands for."""
    if response.status_code == 503 and "Retry-After" in response.headers:
        return ScorerOverloaded(int(response.headers["Retry-After"]))
    if response.status_code == 504:
        return DeadlineExceeded("the scorer did not answer in time")
    if response.status_code >= 500:
        return ScorerUnavailable(f"the scorer answered {response.status_code}")
    refusal = response.json()
    return ScoringRefused(refusal["code"], refusal["detail"], refusal["context"])
