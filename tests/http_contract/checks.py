"""What schemathesis checks besides its own: every refusal is a problem of ours. Loaded by its config."""

from typing import Any

import schemathesis

from api.problem_table import TITLES
from api.problems import MAX_BYTES, MEDIA_TYPE


@schemathesis.check
def small_problems(ctx: Any, response: Any, case: Any) -> None:
    """RFC 9457 with a code of the catalogue, at most 2 KB."""
    if response.status_code < 400:
        return
    body = response.json()
    assert response.headers["content-type"] == [MEDIA_TYPE], "not a problem document"
    assert len(response.content) <= MAX_BYTES, "more than 2 KB"
    assert body["code"] in TITLES, f"the catalogue has no code {body['code']}"
    assert [body["request_id"]] == response.headers["x-request-id"], "another request's id"
