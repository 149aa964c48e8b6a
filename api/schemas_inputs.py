"""What clients send to /v1/scores to be scored: texts, completions of a prompt, token ids, conversations."""

from collections.abc import Hashable, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from rlhf_core.config.base import Config

MAX_ITEMS = 4096  # of any deployment; Settings.max_items is the lower one of this deployment
MAX_MESSAGES = 4096
TokenIdList = Annotated[list[int], Field(fail_fast=True)]  # 1 MB of wrong elements would make 400,000 errors


class Completion(Config):
    """A prompt, which is only context, and the completion to score."""

    prompt: str
    completion: str


class TokenIds(Config):
    """A text as token ids, scored from one of them on. Nothing is added to them."""

    token_ids: TokenIdList
    score_from: int = Field(1, ge=1, description="The first that is scored; those before it are context.")


class Message(Config):
    """One turn of a conversation."""

    role: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    content: str


class Conversation(Config):
    """Turns of which the last, the assistant's, is scored, with its end-of-turn token; the others are context."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]

    @field_validator("messages")
    @classmethod
    def _the_assistant_is_last(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's: it is what is scored")
        return messages


Item = str | Completion | TokenIds | Conversation


# Tags are names that no item has: field_errors leaves them out of pointers.
def _item_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "ids"
    if isinstance(value, Conversation) or (isinstance(value, Mapping) and "messages" in value):
        return "conversation"
    if isinstance(value, TokenIds) or (isinstance(value, Mapping) and "token_ids" in value):
        return "id_object"
    return "prompted" if isinstance(value, Completion | Mapping) else None


def _input_tag(value: Any) -> str | None:
    if isinstance(value, list) and not (value and type(value[0]) is int):
        return "list"
    return _item_tag(value)


_Text = Annotated[str, Tag("text")]
_Ids = Annotated[TokenIdList, Tag("ids")]
_IdObject = Annotated[TokenIds, Tag("id_object")]
_Prompted = Annotated[Completion, Tag("prompted")]
_Conversation = Annotated[Conversation, Tag("conversation")]
FORMS = "a text, token ids, {prompt, completion}, {token_ids} or {messages}"
_Item = Annotated[
    _Text | _Ids | _Prompted | _IdObject | _Conversation,
    Discriminator(_item_tag, custom_error_type="input_item", custom_error_message=f"must be {FORMS}"),
]
_Items = Annotated[list[_Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), Tag("list")]
Input = Annotated[
    _Text | _Ids | _Prompted | _IdObject | _Conversation | _Items,
    Discriminator(
        _input_tag, custom_error_type="input", custom_error_message=f"must be {FORMS}, or a list of these"
    ),
]


def items_of(sent: Any) -> list[Item]:
    """The items of an `Input`, also when only one was sent; bare lists of integers as TokenIds."""
    items = sent if _input_tag(sent) == "list" else [sent]
    return [
        TokenIds.model_construct(token_ids=item, score_from=1) if isinstance(item, list) else item
        for item in items
    ]


def context_of(item: Item) -> Hashable:
    """What an item's scored part goes on from, or None: items that share a context are not independent."""
    match item:
        case Completion():
            return item.prompt
        case TokenIds() if item.score_from > 1:
            return tuple(item.token_ids[: item.score_from])
        case Conversation():
            return tuple((turn.role, turn.content) for turn in item.messages[:-1])
        case _:
            return None
