"""The client, the command and the OpenAPI document say the same: none can change without the others."""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer

from api.app import create_app
from jobs.settings import Settings
from kleash import AsyncClient, Client, documents, service_documents
from kleash.calls import Call
from kleash.cli import app
from kleash.operations import api_keys, checkpoints, files, job_data, jobs, models, scores, service, webhooks

COMMANDS = Path(inspect.getfile(Client)).parent / "commands"
MODULES = (api_keys, checkpoints, files, job_data, jobs, models, scores, service, webhooks)
NOT_SENT = {  # what the client leaves to curl
    ("checkpoints_archive", "if-none-match"),
    ("checkpoints_archive", "if-range"),
    ("checkpoints_archive", "range"),
    ("checkpoints_file", "if-none-match"),
    ("checkpoints_file", "if-range"),
    ("checkpoints_file", "range"),
    ("files_content", "if-none-match"),
    ("jobs_results", "if-none-match"),
    ("jobs_results", "if-range"),
    ("jobs_results", "range"),
    ("jobs_list", "if-none-match"),
    ("jobs_metrics", "if-none-match"),
    ("jobs_get", "wait"),  # it says so in a header
    ("jobs_events_stream", "last-event-id"),  # `after` says the same
    ("events_stream", "last-event-id"),
}


@pytest.fixture(scope="session")
def openapi() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(openapi: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Method, path and document of each operation; a HEAD is its GET without a body."""
    return {
        document["operationId"]: (method.upper(), path, document)
        for path, methods in openapi["paths"].items()
        for method, document in methods.items()
        if method != "head"
    }


def described(module: ModuleType) -> Iterator[Callable[..., Call[Any]]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            yield function


def a_value(kind: Any) -> Any:
    """Any value of a type, the way the client is called with everything it takes."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return parts[0]
    if parts and type(None) in parts:
        return a_value(next(part for part in parts if part is not type(None)))
    if origin is not None and issubclass(origin, Mapping):
        return {"a": "b"}
    if origin is not None and issubclass(origin, Sequence):
        return ["a"]
    if parts:
        return a_value(parts[0])
    return {str: "x", int: 1, float: 1.0, bool: True, bytes: b"x"}.get(kind, "x")


def full_call(function: Callable[..., Call[Any]]) -> Call[Any]:
    """The call with every parameter given."""
    hints = get_type_hints(function)
    given = {
        name: a_value(hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    return function(**given)


CALLS = [
    pytest.param(call, id=f"{m.__name__.split('.')[-1]}.{call.__name__}")
    for m in MODULES
    for call in described(m)
]


@pytest.mark.parametrize("function", CALLS)
def test_a_method_sends_what_its_operation_takes(
    function: Callable[..., Call[Any]], openapi: dict[str, Any]
) -> None:
    call = full_call(function)
    method, path, document = operations(openapi)[call.operation]
    assert (call.method, call.path) == (method, path)
    parameters = document.get("parameters", [])
    names = {
        kind: {p["name"].lower() for p in parameters if p["in"] == kind}
        for kind in ("path", "query", "header")
    }
    assert set(call.names) == names["path"] == set(re.findall(r"\{(\w+)\}", path))
    assert set(call.query) <= names["query"]
    assert {name.lower() for name in call.headers} <= names["header"] | {"accept", "content-type"}
    has_body = call.body is not None or call.content is not None
    assert has_body == ("requestBody" in document)


def choices(kind: Any) -> set[str]:
    """The words that a type allows, wherever in it they stand."""
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return {word for part in get_args(kind) for word in choices(part)}


def declared_choices(schema: dict[str, Any]) -> set[str]:
    """As `choices`, of a schema."""
    own = {*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())}
    parts = [*schema.get("anyOf", ()), schema.get("items", {})]
    return own | {word for part in parts if part for word in declared_choices(part)}


@pytest.mark.parametrize("function", CALLS)
def test_a_choice_is_one_that_the_service_knows(
    function: Callable[..., Call[Any]], openapi: dict[str, Any]
) -> None:
    hints, call = get_type_hints(function), full_call(function)
    for parameter in operations(openapi)[call.operation][2].get("parameters", ()):
        if parameter["in"] == "query" and (known := choices(hints.get(parameter["name"]))):
            assert known == declared_choices(parameter["schema"]), parameter["name"]


def test_every_operation_and_every_parameter_has_a_method(openapi: dict[str, Any]) -> None:
    calls = [full_call(function) for module in MODULES for function in described(module)]
    sent = {(call.operation, name.lower()) for call in calls for name in {**call.query, **call.headers}}
    declared = operations(openapi)
    assert {call.operation for call in calls} == set(declared)
    taken = {
        (operation, parameter["name"].lower())
        for operation, (_, _, document) in declared.items()
        for parameter in document.get("parameters", ())
        if parameter["in"] != "path"
    }
    assert taken - sent == NOT_SENT


def test_creating_methods_carry_a_key_of_their_own(openapi: dict[str, Any]) -> None:
    keyed = {
        name
        for name, (method, _, document) in operations(openapi).items()
        if any(p["name"].lower() == "idempotency-key" for p in document.get("parameters", ()))
    }
    calls = [full_call(function) for module in MODULES for function in described(module)]
    assert keyed == {call.operation for call in calls if "idempotency-key" in call.headers}


def methods(client: type) -> dict[str, Any]:
    """`jobs.get` and its like, as the client's annotations of `__init__` have them."""
    home = inspect.getmodule(client)
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(inspect.getsource(client.__init__).strip())):  # type: ignore[misc]
        match node:
            case ast.Assign(targets=[ast.Attribute(attr=noun)], value=ast.Call(func=ast.Name(id=kind))):
                if kind != "address":
                    parts = vars(getattr(home, kind))
                    found |= {f"{noun}.{name}": part for name, part in parts.items() if callable(part)}
    return found | {name: part for name, part in vars(client).items() if hasattr(part, "__wrapped__")}


def public(client: type) -> dict[str, Any]:
    return {name: part for name, part in methods(client).items() if not name.split(".")[-1].startswith("_")}


def test_every_description_is_a_method_of_both_clients() -> None:
    assert set(public(Client)) == set(public(AsyncClient))
    for name, method in public(Client).items():
        assert inspect.signature(method) == inspect.signature(public(AsyncClient)[name]), name
        assert inspect.getdoc(method), name
    wrapped = {method.__wrapped__ for method in public(Client).values()}
    inside = {jobs.poll, job_data.events_stream, job_data.all_events_stream, job_data.results}
    inside |= {scores.stream, files.content}
    inside |= {
        checkpoints.archive,
        checkpoints.file,
    }  # plans of kleash.following and kleash.sequences use them
    assert {function for module in MODULES for function in described(module)} - wrapped == inside


DOCUMENTS = {
    "Job": "ResolvedJobDocument",
    "Progress": "Progress",
    "JobError": "JobError",
    "DryRun": "DryRunDocument",
    "Event": "EventDocument",
    "Series": "SeriesDocument",
    "Metrics": "MetricsDocument",
    "Sample": "SampleDocument",
    "LogLine": "LogLineDocument",
    "Checkpoint": "CheckpointDetail",
    "Artifact": "ArtifactDocument",
    "File": "FileDocument",
    "Model": "ModelDocument",
    "ApiKey": "ApiKeyDocument",
    "MadeApiKey": "MadeApiKeyDocument",
    "Caller": "CallerDocument",
    "Webhook": "WebhookDocument",
    "MadeWebhook": "CreatedWebhookDocument",
    "WebhookChanges": "WebhookChanges",
    "JobChanges": "JobPatch",
    "Delivery": "DeliveryDocument",
    "Worker": "WorkerDocument",
    "Scores": "ScoreList",
    "Readiness": "Readiness",
    "Info": "InfoDocument",
    "Version": "Version",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_has_the_fields_of_its_schema(name: str, openapi: dict[str, Any]) -> None:
    schema = openapi["components"]["schemas"][DOCUMENTS[name]]
    document = getattr(documents, name, None) or getattr(service_documents, name)
    assert set(document.__annotations__) <= set(schema["properties"])


def chains(tree: ast.AST) -> Iterator[str]:
    """`jobs.get` of each `client.jobs.get`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"client(\.\w+)+", dotted := ast.unparse(node)):
            yield dotted.removeprefix("client.")


def commands(group: typer.Typer, noun: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{noun} {command.name or command.callback.__name__}".strip(), command.callback
    for part in group.registered_groups:
        assert part.typer_instance is not None
        yield from commands(part.typer_instance, part.name if isinstance(part.name, str) else noun)


@functools.cache
def functions_of(path: str) -> dict[str, ast.AST]:
    tree = ast.parse(Path(path).read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def asked_by(callback: Callable[..., Any]) -> set[str]:
    """The client's methods that a command calls, itself or by functions of its file."""
    functions = functions_of(inspect.getfile(callback))
    seen, ahead = set(), [callback.__name__]
    while ahead:
        name = ahead.pop()
        seen.add(name)
        named = {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
        ahead += [other for other in named if other in functions and other not in seen]
    return {chain for name in seen for chain in chains(functions[name])}


@pytest.mark.parametrize(("name", "callback"), [pytest.param(n, c, id=n) for n, c in commands(app)])
def test_a_command_asks_what_the_client_can(name: str, callback: Callable[..., Any]) -> None:
    known = {*public(Client), "base_url"}
    nouns = {method.partition(".")[0] for method in known if "." in method}
    asked = asked_by(callback) - nouns
    assert asked or name in ("up", "demo")
    assert asked <= known
    assert inspect.getdoc(callback)


def test_the_command_has_a_noun_for_each_of_the_client_s() -> None:
    nouns = {name.partition(" ")[0] for name, _ in commands(app)}
    groups = {"jobs", "checkpoints", "files", "models", "keys", "webhooks"}
    alone = {"score", "divergences", "tokenize", "detokenize", "queue", "workers"}
    assert nouns == groups | alone | {"up", "demo", "doctor", "info"}
    done = {chain for _, callback in commands(app) for chain in asked_by(callback)}
    left_to_programs = {
        *(
            "jobs.events",
            "jobs.iterate",
            "jobs.log_text",
            "jobs.metrics",
            "jobs.samples",
            "jobs.iterate_logs",
        ),
        *("files.iterate", "api_keys.iterate", "webhooks.iterate", "scores.create_job", "health"),
        "service_metrics",
    }
    assert set(public(Client)) - done == left_to_programs


def test_what_the_docs_show_is_there() -> None:
    text = (COMMANDS.parent.parent / "docs" / "http" / "client.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert set(chains(ast.parse(python))) - {"jobs", "scores"} <= set(public(Client))
    names = {name for name, _ in commands(app)}
    for line in re.findall(r"\bkleash ((?:\w+ ?){1,2})", re.findall(r"```sh\n(.*?)```", text, re.S)[0]):
        assert line.strip() in names or line.split()[0] in names, line
