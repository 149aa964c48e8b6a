"""The JSON documents of API keys and of the caller."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from api.schemas import TEN_YEARS_S, Document, FutureInstant, Page, Timestamp
from api.services.api_keys import KeyPage, Made, WhoIs
from jobs.keys import OWNER, Scope, StoredKey
from rlhf_core.config.base import Config

NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]+$"
OwnerName = Annotated[str, Field(pattern=f"^{OWNER.pattern}$")]


class NewApiKey(Config):
    """What a new key is for."""

    name: str = Field(min_length=1, max_length=200, pattern=NO_CONTROLS, description="For people.")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=32)] = Field(
        description="What it may do. `admin` is the operator's: it makes keys, of any owner."
    )
    owner: OwnerName | None = Field(
        None,
        description="Whose jobs it makes and sees; several keys may have one owner. By default the caller's.",
    )
    expires_at: FutureInstant | None = Field(
        None, description="With its time zone. Without an end, until revoked."
    )
    expires_in_s: int | None = Field(None, ge=1, le=TEN_YEARS_S, description="Instead of `expires_at`.")

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.expires_at is not None and self.expires_in_s is not None:
            raise ValueError("give at most one of expires_at and expires_in_s")
        return self


class ApiKeyDocument(Document):
    """A key, without its secret, which nobody has but its holder."""

    object: Literal["api_key"] = "api_key"
    id: str = Field(description="The 8 characters behind `kl_`.")
    owner: str
    name: str
    scopes: list[str]
    created_at: Timestamp
    expires_at: Timestamp | None
    revoked_at: Timestamp | None
    last_used_at: Timestamp | None = Field(description="Up to two minutes late.")

    @classmethod
    def of(cls, key: StoredKey) -> Self:
        """The document of a key."""
        return cls(
            id=key.id,
            owner=key.owner,
            name=key.name,
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )


class MadeApiKeyDocument(ApiKeyDocument):
    """A key at its making."""

    key: str | None = Field(
        None, description="The whole key, this once. null if an Idempotency-Key had made it before."
    )

    @classmethod
    def once(cls, made: Made) -> Self:
        """The document with the secret, unless that was shown before."""
        return cls.of(made.stored).model_copy(update={"key": made.key and str(made.key)})


class ApiKeyList(Page):
    """A page of keys, newest first."""

    data: list[ApiKeyDocument]

    @classmethod
    def of(cls, page: KeyPage) -> Self:
        """The document of a page."""
        return cls(
            data=[ApiKeyDocument.of(key) for key in page.keys],
            has_more=page.more,
            next_cursor=page.keys[-1].id if page.more else None,
        )


class CallerDocument(Document):
    """Who the server takes the caller for."""

    object: Literal["caller"] = "caller"
    owner: str
    scopes: list[str]
    key: ApiKeyDocument | None = Field(description="null in open mode, where there are no keys.")

    @classmethod
    def of(cls, who: WhoIs) -> Self:
        """The document of a caller."""
        key = None if who.key is None else ApiKeyDocument.of(who.key)
        return cls(owner=who.caller.owner, scopes=sorted(who.caller.scopes), key=key)
