"""The release of the service, and of its contract."""

from jobs.version import VERSION

__all__ = ["API_VERSION", "VERSION"]

API_VERSION = "1.0.0"  # of /v1: grows with what is added; what is there stays
