"""/v1/webhooks: who is told when something happens to a job, and what became of each message."""

from typing import Annotated

from fastapi import Body, Request, Response

from api.auth import Owner
from api.deps import WebhooksDep
from api.examples import WEBHOOK_PATCHES, WEBHOOKS
from api.pages import MAX_PAGE, Limit, clamp, cursor, link_next
from api.routes.jobs import IdempotencyKey
from api.routing import BODY_PROBLEMS, TEXT, Responses, problems, v1_router
from api.schemas_webhooks import (
    CreatedWebhookDocument,
    DeliveryDocument,
    DeliveryList,
    NewWebhookRequest,
    WebhookChanges,
    WebhookDocument,
    WebhookList,
)
from api.services.webhooks import DELIVERY_ID, WEBHOOK_ID

router = v1_router("webhooks", "webhooks")

CREATED: Responses = {201: {"headers": {"Location": TEXT, "Idempotency-Replayed": TEXT}}}
PAGE: Responses = {200: {"headers": {"Link": TEXT}}}


@router.post(
    "/webhooks",
    operation_id="webhooks_create",
    summary="Create a webhook",
    status_code=201,
    responses=CREATED | BODY_PROBLEMS | problems(409, 410),
)
def create(
    body: Annotated[NewWebhookRequest, Body(openapi_examples=WEBHOOKS)],
    owner: Owner,
    webhooks: WebhooksDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> CreatedWebhookDocument:
    """From now on, events of the caller's jobs are posted to the URL, signed with the secret in the answer."""
    created = webhooks.create(body.model_dump(), owner, idempotency_key)
    response.headers["Location"] = f"/v1/webhooks/{created.webhook.id}"
    if created.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return CreatedWebhookDocument.made(created)


@router.get(
    "/webhooks",
    operation_id="webhooks_list",
    summary="List webhooks, newest first",
    responses=PAGE | problems(400),
)
def index(
    request: Request,
    response: Response,
    owner: Owner,
    webhooks: WebhooksDep,
    limit: Limit = 20,
    after: Annotated[str | None, cursor(WEBHOOK_ID)] = None,
) -> WebhookList:
    """A page of the caller's webhooks, without their secrets."""
    page = WebhookList.of(webhooks.page(owner, after=after, limit=clamp(limit, MAX_PAGE)))
    link_next(request, response, page.next_cursor)
    return page


@router.get(
    "/webhooks/{webhook_id}",
    operation_id="webhooks_get",
    summary="Show a webhook",
    responses=problems(404),
)
def show(webhook_id: str, owner: Owner, webhooks: WebhooksDep) -> WebhookDocument:
    """The webhook, without its secret."""
    return WebhookDocument.of(webhooks.get(webhook_id, owner))


@router.patch(
    "/webhooks/{webhook_id}",
    operation_id="webhooks_update",
    summary="Change a webhook",
    responses=BODY_PROBLEMS | problems(404),
)
def change(
    webhook_id: str,
    body: Annotated[WebhookChanges, Body(openapi_examples=WEBHOOK_PATCHES)],
    owner: Owner,
    webhooks: WebhooksDep,
) -> WebhookDocument:
    """Set what the body names. While a webhook is disabled its messages wait, and new events make none."""
    return WebhookDocument.of(webhooks.change(webhook_id, owner, body.model_dump(exclude_none=True)))


@router.delete(
    "/webhooks/{webhook_id}",
    operation_id="webhooks_delete",
    summary="Delete a webhook",
    status_code=204,
    responses=problems(404),
)
def delete(webhook_id: str, owner: Owner, webhooks: WebhooksDep) -> None:
    """With all its deliveries, also those that wait."""
    webhooks.delete(webhook_id, owner)


@router.post(
    "/webhooks/{webhook_id}/rotate",
    operation_id="webhooks_rotate",
    summary="Give a webhook another secret",
    responses=problems(404),
)
def rotate(webhook_id: str, owner: Owner, webhooks: WebhooksDep) -> CreatedWebhookDocument:
    """For 24 hours messages carry two signatures: by the new secret, and by the one before."""
    return CreatedWebhookDocument.made(webhooks.rotate(webhook_id, owner))


@router.post(
    "/webhooks/{webhook_id}/test",
    operation_id="webhooks_test",
    summary="Send a test message",
    status_code=202,
    responses=problems(404),
)
def test(webhook_id: str, owner: Owner, webhooks: WebhooksDep) -> DeliveryDocument:
    """Queue a message of type `webhook.test`; see its delivery for what came of it."""
    return DeliveryDocument.of(webhooks.test(webhook_id, owner))


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    operation_id="webhooks_deliveries",
    summary="List a webhook's deliveries, newest first",
    responses=PAGE | problems(400, 404),
)
def deliveries(
    webhook_id: str,
    request: Request,
    response: Response,
    owner: Owner,
    webhooks: WebhooksDep,
    limit: Limit = 20,
    after: Annotated[str | None, cursor(DELIVERY_ID)] = None,
) -> DeliveryList:
    """A page of messages: what was sent, how often, and the status of the last answer."""
    found = webhooks.deliveries(webhook_id, owner, after=after, limit=clamp(limit, MAX_PAGE))
    page = DeliveryList.of(found)
    link_next(request, response, page.next_cursor)
    return page


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    operation_id="webhooks_redeliver",
    summary="Send a message again",
    status_code=202,
    responses=problems(404),
)
def redeliver(webhook_id: str, delivery_id: str, owner: Owner, webhooks: WebhooksDep) -> DeliveryDocument:
    """The same message under the same id, with all its tries before it."""
    return DeliveryDocument.of(webhooks.redeliver(webhook_id, owner, delivery_id))
