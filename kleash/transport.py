"""A call as httpx2's request, and its response as an answer: what the sync and the async client share."""

from typing import Any

import httpx2

from kleash.calls import Answer, Call
from kleash.errors import KleashError, too_slow, unreachable, unsendable

UNSENT = (httpx2.InvalidURL, ValueError)


def request(http: httpx2.Client | httpx2.AsyncClient, call: Call[Any], timeout_s: float) -> httpx2.Request:
    """What goes over the wire. Raises KleashError where HTTP or JSON cannot say it."""
    return http.build_request(
        call.method,
        call.url,
        params=httpx2.QueryParams(tuple(call.params)),
        headers=call.sent_headers(),
        content=call.encoded(),
        timeout=max(timeout_s, call.timeout_s or 0.0),
    )


def answer_of(response: httpx2.Response) -> Answer:
    """The answer; without content where that is still to be streamed."""
    content = response.content if response.is_closed else b""
    return Answer(response.status_code, response.headers, content, response.request.url.host)


def failure(error: Exception, where: object) -> KleashError:
    """What an exception of httpx2 means."""
    if isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
        return too_slow(where)
    if isinstance(error, httpx2.LocalProtocolError) or not isinstance(error, httpx2.RequestError):
        return unsendable(error)
    return unreachable(where, error)
