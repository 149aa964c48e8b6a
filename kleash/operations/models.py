"""/v1/models: the names that `policy` and `reference` may have."""

from kleash.calls import Call, document
from kleash.documents import Page
from kleash.service_documents import Model

MODEL = "/v1/models/{model_id}"


def list_() -> Call[Page[Model]]:
    """All of them."""
    return Call("models_list", "GET", "/v1/models", document, repeatable=True)


def get(model_id: str) -> Call[Model]:
    """A model and its state in the scorers."""
    return Call("models_get", "GET", MODEL, document, {"model_id": model_id}, repeatable=True)


def load(model_id: str) -> Call[Model]:
    """Ask the scorers to load it now."""
    return Call("models_load", "POST", f"{MODEL}/load", document, {"model_id": model_id}, repeatable=True)


def unload(model_id: str) -> Call[Model]:
    """Ask the scorers to give it up."""
    return Call("models_unload", "POST", f"{MODEL}/unload", document, {"model_id": model_id}, repeatable=True)
