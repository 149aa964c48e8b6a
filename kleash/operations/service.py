"""The probes, the queue and the workers."""

from kleash.calls import Call, document, text
from kleash.documents import Document, Page
from kleash.service_documents import Info, Readiness, Version, Worker


def health() -> Call[Document]:
    """Does the process live?"""
    return Call("health", "GET", "/health", document, repeatable=True)


def ready() -> Call[Readiness]:
    """Can it serve? `checks` says which part does not answer."""
    return Call("ready", "GET", "/ready", document, repeatable=True, accepts=(503,))


def version() -> Call[Version]:
    """Which software answers?"""
    return Call("version", "GET", "/version", document, repeatable=True)


def service_metrics() -> Call[str]:
    """The service's numbers, in Prometheus' text format."""
    return Call("service_metrics", "GET", "/metrics", text, repeatable=True)


def info() -> Call[Info]:
    """What does this deployment allow: limits, quotas, the default pair?"""
    return Call("info", "GET", "/v1/info", document, repeatable=True)


def queue() -> Call[Document]:
    """How many jobs wait, of everybody."""
    return Call("queue_get", "GET", "/v1/queue", document, repeatable=True)


def workers() -> Call[Page[Worker]]:
    """Who runs jobs, and who has gone quiet."""
    return Call("workers_list", "GET", "/v1/workers", document, repeatable=True)
