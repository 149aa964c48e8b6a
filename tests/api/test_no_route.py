"""What the router itself answers says what kind of thing is missing, and echoes nothing of the request."""

import pytest
from starlette.testclient import TestClient

CANARY = "canary-5e1f"


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v2/jobs", "/v1/jobs/x/nothing/more"])
def test_a_404_of_the_router_is_told_from_one_of_a_thing(client: TestClient, path: str) -> None:
    answer = client.get(f"{path}{CANARY}?q={CANARY}", headers={"X-Canary": CANARY})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["detail"] == "there is no such route: /docs and /openapi.json have them all"
    assert CANARY not in answer.text
    assert client.get(f"/v1/jobs/{CANARY}").json()["detail"] == "no such job"


def test_a_405_says_what_the_route_takes(client: TestClient) -> None:
    answer = client.put(f"/v1/jobs?q={CANARY}")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert (
        answer.json()["detail"]
        == f"this route takes {answer.headers['Allow']}"
        == "this route takes GET, POST"
    )
