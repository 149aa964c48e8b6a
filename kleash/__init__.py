"""kleash: how far has a language model drifted from its reference? The client; the command is `kleash`."""

from kleash.client import Client, KleashError

__all__ = ["Client", "KleashError"]
