"""/v1/api-keys: the operator's; and /v1/whoami, which is everybody's."""

from typing import Annotated

from fastapi import Body, Depends, Query, Request, Response

from api.auth import CallerDep
from api.deps import PartsDep
from api.examples import API_KEYS
from api.pages import MAX_PAGE, Limit, clamp, cursor, link_next
from api.routes.jobs import IdempotencyKey
from api.routing import BODY_PROBLEMS, TEXT, Responses, problems, v1_router
from api.schemas_api_keys import (
    ApiKeyDocument,
    ApiKeyList,
    CallerDocument,
    MadeApiKeyDocument,
    NewApiKey,
    OwnerName,
)
from api.services.api_keys import ApiKeys
from jobs.keys import KEY_ID, Grant

router = v1_router("api-keys", "admin")
anybodys = v1_router("api-keys", None)

REPLAYED = TEXT | {"description": "`true` if the Idempotency-Key had made the key before."}
CREATED: Responses = {201: {"headers": {"Location": TEXT, "Idempotency-Replayed": REPLAYED}}}


async def _service(parts: PartsDep) -> ApiKeys:
    return parts.api_keys


ApiKeysDep = Annotated[ApiKeys, Depends(_service)]


@router.post(
    "/api-keys",
    operation_id="api_keys_create",
    summary="Make an API key",
    status_code=201,
    responses=CREATED | BODY_PROBLEMS,
)
def create(
    wanted: Annotated[NewApiKey, Body(openapi_examples=API_KEYS)],
    caller: CallerDep,
    keys: ApiKeysDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> MadeApiKeyDocument:
    """The answer has the whole key, this once: the server keeps a hash of it.

    A repeat with the same Idempotency-Key answers what is known of the key, without its secret.
    """
    grant = Grant(
        owner=wanted.owner or caller.owner,
        name=wanted.name,
        scopes=frozenset(wanted.scopes),
        expires_at=None if wanted.expires_at is None else wanted.expires_at.timestamp(),
        expires_in_s=wanted.expires_in_s,
    )
    made = keys.create(grant, caller, idempotency_key)
    response.headers["Location"] = f"/v1/api-keys/{made.stored.id}"
    response.headers["Cache-Control"] = "no-store"
    if made.key is None:
        response.headers["Idempotency-Replayed"] = "true"
    return MadeApiKeyDocument.once(made)


@router.get(
    "/api-keys",
    operation_id="api_keys_list",
    summary="List API keys, newest first",
    responses=problems(400),
)
def index(
    keys: ApiKeysDep,
    request: Request,
    response: Response,
    owner: Annotated[OwnerName | None, Query(description="Of this owner only.")] = None,
    limit: Limit = 20,
    after: Annotated[str | None, cursor(KEY_ID)] = None,
) -> ApiKeyList:
    """Keys of all owners, also those that are expired or revoked."""
    page = ApiKeyList.of(keys.page(owner=owner, after=after, limit=clamp(limit, MAX_PAGE)))
    link_next(request, response, page.next_cursor)
    return page


@router.get(
    "/api-keys/{key_id}",
    operation_id="api_keys_get",
    summary="Show an API key",
    responses=problems(404),
)
def show(key_id: str, keys: ApiKeysDep) -> ApiKeyDocument:
    """What is known of a key of any owner; its secret is not."""
    return ApiKeyDocument.of(keys.get(key_id))


@router.delete(
    "/api-keys/{key_id}",
    operation_id="api_keys_revoke",
    summary="Revoke an API key",
    status_code=204,
    response_class=Response,
    responses=problems(404),
)
def revoke(key_id: str, keys: ApiKeysDep) -> None:
    """For ever, within a second for every process; a repeat changes nothing. What it has made stays."""
    keys.revoke(key_id)


@anybodys.get("/whoami", operation_id="whoami", summary="Show whose key this is")
def whoami(caller: CallerDep, keys: ApiKeysDep) -> CallerDocument:
    """The owner of what the caller makes, and what it may do."""
    return CallerDocument.of(keys.who(caller))
