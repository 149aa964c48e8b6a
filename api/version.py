"""The release of the service."""

from jobs.version import VERSION

__all__ = ["VERSION"]
