"""Items that someone with access to the broker could put into a worker's lists, by number and seed."""

import base64
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from jobs.queue import RUN_JOB
from jobs.spec import MAX_PRIORITY
from worker.messages import MAX_BYTES, Hint, made_anew

SEPARATOR = "\x06\x16"  # kombu's, between a queue's name and a priority
NO_JOB = "job_0"
VALUES: list[Any] = [
    *(None, True, -1, 0, 1.5, 2**70, "", "x", "\0", "\ud800", "../../etc/passwd", "a" * 1000),
    *([], [[]], {}, {"a": {}}, [None] * 20, ["os.system"], {"task": "os.system"}, "2999-01-01T00:00:00"),
]
OTHER_TASKS: list[Any] = [
    *("os.system", "celery.map", "celery.chunks", "celery.chain", "celery.group", "celery.accumulate"),
    *(
        "celery.backend_cleanup",
        "celery.chord_unlock",
        "worker.app.run_job",
        "kleash.run_job\n",
        None,
        [],
        {},
    ),
]
# Protocol 0 names what to import in clear text: nothing here was made by a pickler.
PICKLE = b"cos\nsystem\n(S'touch %s'\ntR."
DEEP = b"[" * 8000 + b"]" * 8000


def message(**fields: Any) -> dict[str, Any]:
    """A message as a worker takes it, for a job that is none."""
    whole: dict[str, Any] = json.loads(made_anew(Hint(NO_JOB, 1, 0), "cpu"))
    return whole | fields


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*at, key)
        yield from places(part, (*at, key))


def changed(rng: random.Random) -> bytes:
    """One value of the message, or of its body, replaced or removed."""
    whole = message()
    body = json.loads(base64.b64decode(whole["body"]))
    inside = rng.random() < 0.3
    target: Any = copy.deepcopy(body) if inside else whole
    *path, last = rng.choice(list(places(target)))
    at = target
    for key in path:
        at = at[key]
    if rng.random() < 0.2:
        del at[last]
    else:
        at[last] = rng.choice(VALUES)
    if inside:
        whole["body"] = encoded(target)
    return json.dumps(whole).encode()


def crafted(canary: str) -> list[bytes]:
    """Each kind of attack once; those that would run something would make the file `canary`."""
    pickled = PICKLE % canary.encode()
    fields = {"job_id": NO_JOB, "epoch": 1}
    run = {
        "task": RUN_JOB,
        "args": [],
        "kwargs": {"job_id": "job_1", "epoch": 1},
        "options": {"queue": "cpu"},
    }
    embedded = {"callbacks": [run] * 50, "errbacks": [run], "chain": [run], "chord": run}
    types = [
        "application/x-python-serialize",
        "application/x-yaml",
        "application/x-msgpack",
        "binary",
        "x",
        None,
    ]
    pickles = [
        message(
            **{"content-type": kind, "content-encoding": "binary", "body": base64.b64encode(pickled).decode()}
        )
        for kind in types
    ]
    others = [message(headers=message()["headers"] | {"task": task}) for task in OTHER_TASKS]
    times = [
        message(headers=message()["headers"] | {name: value})
        for name in (
            "eta",
            "expires",
            "timelimit",
            "retries",
            "id",
            "shadow",
            "argsrepr",
            "stamps",
            "delivery_info",
        )
        for value in VALUES[:16]
    ]
    first_protocol = message(
        headers={}, body=encoded({"task": "os.system", "args": [f"touch {canary}"], "id": "1"})
    )
    bodies = [
        encoded([[], fields, embedded]),
        encoded([["x"], fields, {}]),
        encoded([[], fields]),
        encoded("x"),
    ]
    bodies += [
        encoded([[], fields | {"x": 1}, {}]),
        "***",
        base64.b64encode(DEEP).decode(),
        encoded(list(range(9))),
    ]
    whole = [json.dumps(value).encode() for value in (*pickles, *others, *times, first_protocol)]
    whole += [json.dumps(message(body=body)).encode() for body in bodies]
    raw = [
        pickled,
        b"",
        b"\0",
        b"\xff\xfe",
        b"null",
        b"1",
        b'"x"',
        b"[]",
        b"{}",
        b"NaN",
        b"[1e999]",
        DEEP,
        DEEP[:8000],
    ]
    raw += [
        b"7" * 5000,
        b'{"body":' * 500,
        b"x" * (MAX_BYTES + 1),
        b"{}" * 500_000,
        b"\x80\x04\x95",
        b"!!python/object",
    ]
    return whole + raw


def hostile_items(count: int, seed: int, canary: str) -> Iterator[tuple[str, bytes]]:
    """A list's name and an item for it: every crafted one, then changed ones."""
    rng = random.Random(seed)
    lists = ["cpu", *(f"cpu{SEPARATOR}{step}" for step in range(1, MAX_PRIORITY + 1))]
    known = crafted(canary)
    for number in range(count):
        yield rng.choice(lists), known[number] if number < len(known) else changed(rng)
