"""Every way of charging KL, as sections `kl` of a configuration."""

from typing import Any

KL_SETTINGS: list[dict[str, Any]] = [
    {"penalty": "k1"},
    {"penalty": "hybrid"},
    {"penalty": "exact"},
    {"penalty": "none", "loss": "k2"},
    {"penalty": "none", "loss": "k3"},
    {"penalty": "none", "loss": "ratio_k1"},
]
