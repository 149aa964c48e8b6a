"""What schemathesis checks besides its own: every refusal is a problem of ours. Loaded by its config."""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import use_after_free

from api.problem_table import TITLES
from api.problems import MAX_BYTES, MEDIA_TYPE


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def lines(ctx: Any, value: Any) -> bytes:
    """Of an upload: the text as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.check
def small_problems(ctx: Any, response: Any, case: Any) -> None:
    """RFC 9457 with a code of the catalogue, at most 2 KB."""
    if response.status_code < 400 or case.method == "HEAD":  # whose answers have no body
        return
    body = response.json()
    assert response.headers["content-type"] == [MEDIA_TYPE], "not a problem document"
    assert len(response.content) <= MAX_BYTES, "more than 2 KB"
    assert body["code"] in TITLES, f"the catalogue has no code {body['code']}"
    assert [body["request_id"]] == response.headers["x-request-id"], "another request's id"


@schemathesis.check
def deleted_stays_deleted(ctx: Any, response: Any, case: Any) -> Any:
    """As schemathesis' own check, but for API keys: a revoked one stays visible, and says when it ended."""
    return None if "/api-keys" in case.path else use_after_free(ctx, response, case)
