"""kleash: how far has a language model drifted from its reference? The client; the command is `kleash`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kleash.async_client import AsyncClient
    from kleash.client import Client
    from kleash.errors import KleashError
    from kleash.token_arrays import arrays

__all__ = ["AsyncClient", "Client", "KleashError", "arrays"]

_HOMES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "KleashError": "errors",
    "arrays": "token_arrays",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: `kleash --help` needs no HTTP."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
