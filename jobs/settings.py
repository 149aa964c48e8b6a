"""Settings of every process of the stack, from environment variables `KLEASH_*` (or `*_FILE` secrets)."""

import math
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from jobs.scoring_wire import ModelSource
from jobs.signatures import LEAST_SECRET_BYTES, PREFIX, key_of

CLIENT_SHARE = 0.5  # of the scorer's queue, in tokens: one client alone never shuts the others out
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SECRETS = (
    "database_url",
    "broker_url",
    "reward_secret",
    "scorer_token",
)  # each may lie in a file, named by KLEASH_…_FILE
REWARD_SECRET = frozenset({"KLEASH_REWARD_SECRET", "KLEASH_REWARD_SECRET_FILE"})  # for those who sign alone
SCORER_TOKEN = frozenset({"KLEASH_SCORER_TOKEN", "KLEASH_SCORER_TOKEN_FILE"})


class RegisteredModel(BaseModel):
    """A name that requests may use: a folder or hub id, and for an adapter the name of its base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    base: str | None = None


class Registry(BaseModel):
    """The models a deployment offers by name, and the pair that requests without names use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, RegisteredModel] = Field(default_factory=dict)
    default_policy: str | None = None
    default_reference: str | None = None

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        bases = [model.base for model in self.models.values()]
        for name in (self.default_policy, self.default_reference, *bases):
            if name is not None and name not in self.models:
                raise ValueError(f"{name!r} is not one of the registered models")
        for name in bases:
            if name is not None and self.models[name].base is not None:
                raise ValueError(f"{name!r} is the base of an adapter and must not be one itself")
        return self

    def source(self, name: str) -> ModelSource:
        """Where a registered model's weights are, an adapter's with its base. Raises KeyError."""
        model = self.models[name]
        base = None if model.base is None else self.models[model.base].source
        return ModelSource(path=model.source, base=base)


class Settings(BaseSettings):
    """One process's view of the deployment."""

    model_config = SettingsConfigDict(
        env_prefix="KLEASH_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: SecretStr = SecretStr("sqlite:///.kleash/kleash.db")
    broker_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    # unix:/path or http://host:port; for the API several, separated by commas
    scorer_url: str = "unix:.kleash/scorer.sock"
    scorer_token: SecretStr | None = None  # what a scorer is shown; one on TCP off loopback must have it
    data: Path = Path(".kleash")
    uploads_dir: Path | None = None  # of uploaded files; DATA/uploads
    models_file: Path | None = None  # JSON of `Registry`; relative sources are relative to it
    model_roots: list[Path] = Field(default_factory=list)
    allow_hub_models: bool = False  # a request may name any org/name of the hub, and have it downloaded
    host: str = "127.0.0.1"
    port: int = 8000
    unsafe_no_auth: bool = False
    cors_origins: list[str] = Field(default_factory=list)  # exact: of pages elsewhere that may read answers

    # JSON list of host or host:port: URLs of users may name these by http, on any port, in private networks
    outbound_allow: list[str] = Field(default_factory=list)
    reward_secret: SecretStr | None = None  # `whsec_…`: requests to reward endpoints are signed with it

    webhook_every_s: float = 1.0
    webhook_deliveries_kept_s: float = Field(2_592_000.0, ge=3600)  # after the last try
    lease_s: float = 30.0
    heartbeat_s: float = 5.0
    dispatch_every_s: float = 2.0
    resend_after_s: float = 60.0
    reap_every_s: float = 2.0
    stop_grace_s: float = 20.0  # between SIGTERM and SIGKILL of a training child
    alive_file: Path | None = None  # touched by a Celery worker while it can take jobs: for healthchecks
    stall_after_s: float = 1800.0  # no progress for so long: the attempt is killed

    client_timeout_s: float = Field(
        10.0, gt=0
    )  # for a request's head, and for any pause in a body or in reading
    max_connections: int = Field(2048, ge=1)
    max_connections_per_client: int = Field(512, ge=1)  # of one address off loopback: a proxy needs more
    requests_per_minute: int = Field(6000, ge=0)  # of one key, in one API process; 0: any number
    queued_jobs_per_owner: int = Field(1000, ge=0)  # paused ones count; 0: any number
    # ended jobs are deleted after so long; by default never
    retention_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    running_jobs_per_owner: int = Field(0, ge=0)  # 0: any number

    gzip: bool = False  # scores, metrics and /openapi.json for clients that take it: pays below 0.5 Gbit/s
    max_body_bytes: int = 1_000_000
    max_file_bytes: int = Field(100_000_000, gt=0)  # of one upload, for which max_body_bytes does not hold
    file_bytes_per_owner: int = Field(1_000_000_000, ge=0)
    max_items: int = 256
    max_batch_tokens: int = 2048
    max_queued_tokens: int = 65_536  # CLIENT_SHARE of them for one client
    max_queued_requests: int = 1024
    score_timeout_s: float = 60.0
    scorer_memory_share: float = Field(
        0.9, gt=0, le=1
    )  # of the GPU's memory; without a GPU, of the machine's
    scorer_weights_bytes: int | None = Field(
        None, gt=0
    )  # for the models kept in memory; by default 0.6 of the share
    scorer_shares_gpu: bool = False  # with the worker that reads this: it sleeps while a job runs

    @model_validator(mode="after")
    def _no_auth_stays_home(self) -> Self:
        if self.unsafe_no_auth and self.host not in LOOPBACK:
            raise ValueError(f"--unsafe-no-auth is refused off loopback (host is {self.host})")
        return self

    @field_validator("retention_days", mode="before")
    @classmethod
    def _empty_keeps(cls, given: object) -> object:
        return None if given == "" else given

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?", origin) is None:
                raise ValueError(f"{origin!r} is no exact origin like https://dashboard.example.org")
        return origins

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, values: Any) -> Any:
        """`KLEASH_DATABASE_URL_FILE` names a file that holds `KLEASH_DATABASE_URL`."""
        for name in SECRETS:
            variable = f"KLEASH_{name.upper()}_FILE"
            path = os.environ.get(variable)
            if path and name not in values:
                try:
                    values[name] = Path(path).read_text().strip()
                except (OSError, ValueError) as error:
                    reason = getattr(error, "strerror", None) or "it is no text"
                    raise ValueError(f"{variable} names a file that cannot be read: {reason}") from None
        return values

    @field_validator("reward_secret", "scorer_token", mode="before")
    @classmethod
    def _empty_is_none(cls, given: object) -> object:
        return None if given == "" else given

    @field_validator("scorer_token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and re.fullmatch(r"[!-~]{16,200}", token.get_secret_value()) is None:
            raise ValueError("must be 16 to 200 characters of ASCII without blanks")
        return token

    @field_validator("reward_secret")
    @classmethod
    def _can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        """It is used in the middle of runs, which is too late to find out."""
        if secret is None:
            return None
        try:
            known = secret.get_secret_value().startswith(PREFIX) and len(key_of(secret.get_secret_value()))
        except ValueError:
            known = False
        if not known or known < LEAST_SECRET_BYTES:
            raise ValueError(f"must be {PREFIX} and the base64 of {LEAST_SECRET_BYTES} bytes or more")
        return secret

    @property
    def scorer_urls(self) -> list[str]:
        """The scorers behind one API."""
        return [url.strip() for url in self.scorer_url.split(",") if url.strip()]

    @property
    def max_request_tokens(self) -> int:
        """Of one request for scores: more would never be admitted."""
        return math.floor(CLIENT_SHARE * self.max_queued_tokens)

    @property
    def artifacts(self) -> Path:
        """Below it, each job has a folder."""
        return self.data / "jobs"

    @property
    def uploads(self) -> Path:
        """The folder of uploaded files: the API writes, workers read."""
        return self.uploads_dir or self.data / "uploads"

    @cached_property
    def registry(self) -> Registry:
        """The registered models, with relative sources made absolute."""
        if self.models_file is None:
            return Registry()
        registry = Registry.model_validate_json(self.models_file.read_text())
        here = self.models_file.resolve().parent
        models = {
            name: model.model_copy(update={"source": str(here / model.source)})
            if model.source.startswith(".") or os.path.isdir(here / model.source)
            else model
            for name, model in registry.models.items()
        }
        return registry.model_copy(update={"models": models})


def settings_or_exit() -> Settings:
    """The environment's, for a process that starts. Raises SystemExit with what is wrong, and with no secret."""
    try:
        return Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(f"kleash cannot start with this environment: {_complaints(error)}") from None


def _complaints(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):  # a list or an object that is no JSON
        return str(error)
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = "_".join(str(part) for part in item["loc"]).upper()
        found.append((f"KLEASH_{name}: " if name else "") + item["msg"].removeprefix("Value error, "))
    return "; ".join(found)
