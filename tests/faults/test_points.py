"""Fault points: every effect that outlives the process has one on either side, and a point kills when told to."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.faults import ROOMS, ROOT, names, names_in, parse
from tests.faults.points.keys import kill_keys
from tests.faults.points.lone import kill_files, kill_migrate
from tests.faults.points.stack import run
from tests.faults.points.uploads import kill_uploads

SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
EFFECTS = {"commit", "begin", "fsync", "fdatasync", "publish", "send_task", "heartbeat"}
EFFECTS |= {"rename", "renames", "link", "symlink", "hardlink_to", "symlink_to"}
# What looks like an effect and is none: (file, function, call) → why.
EXEMPT = {
    ("jobs/sql_base.py", "reading", "begin"): "writes nothing",
    ("rlhf_core/kernels/build.py", "_compile", "replace"): "a cache: whoever misses the file makes it again",
    ("jobs/dispatcher.py", "run_once", "publish"): "the port; the point is in its implementation",
}


def effect(node: ast.AST) -> str | None:
    """The name of the effect that this call has, None if it has none."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    name, receiver = node.func.attr, node.func.value
    if name == "replace":  # str.replace has two arguments, Path.replace one
        of_os = isinstance(receiver, ast.Name) and receiver.id == "os"
        return name if of_os or (len(node.args) == 1 and not node.keywords) else None
    return name if name in EFFECTS else None


def side(statement: ast.stmt | None) -> str | None:
    """`before` or `after`, if the statement is a point on that side."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="point"), args=[argument])):
            text = ast.unparse(argument).strip("'\"")
            return text.rpartition(".")[2]
    return None


def unguarded(source: str, file: str = "") -> list[str]:
    """Effects without `point("….before")` right before them and `point("….after")` right after."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in blocks(function):
            for i, statement in enumerate(block):
                last_in_with = isinstance(statement, ast.With)
                for name in effects_of(statement):
                    before = statement.body[-1] if last_in_with else (block[i - 1] if i else None)  # type: ignore[attr-defined]
                    after = block[i + 1] if i + 1 < len(block) else None
                    guarded = (side(before), side(after)) == ("before", "after")
                    if not guarded and (file, function.name, name) not in EXEMPT:
                        found.append(f"{function.name}: {name}")
    return found


def blocks(function: ast.AST) -> list[list[ast.stmt]]:
    """Every list of statements of this function, not of those inside it."""
    found, rest = [], [function]
    while rest:
        node = rest.pop()
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            if not isinstance(inner, list) or not inner:
                continue
            if isinstance(inner[0], ast.stmt):
                found.append(inner)
            rest += [n for n in inner if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return found


def effects_of(statement: ast.stmt) -> list[str]:
    """The effects in this statement itself: for a compound one, of its head."""
    heads: list[ast.AST]
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Try):
        return []
    if isinstance(statement, ast.With | ast.AsyncWith):
        heads = [item.context_expr for item in statement.items]
    elif isinstance(statement, ast.If | ast.While):
        heads = [statement.test]
    elif isinstance(statement, ast.For | ast.AsyncFor):
        heads = [statement.iter]
    elif isinstance(statement, ast.Match):
        heads = [statement.subject]
    else:
        heads = [statement]
    calls = [name for head in heads for node in ast.walk(head) if (name := effect(node)) is not None]
    return calls


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_effect_without_a_point(path: Path) -> None:
    assert unguarded(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    [
        "a.rename(b)",
        "a.replace(b)",
        "os.replace(a, b)",
        "if x: os.fsync(a)",
        "with engine.begin() as c: c.execute(s)",
        "try:\n  app.send_task('n')\nexcept E: pass",
        "return connection.commit()",
        "point('x.before')\n a.rename(b)",
        "a.rename(b)\n point('x.after')",
        "point('x.after')\n a.rename(b)\n point('x.before')",
    ],
)
def test_the_walk_finds_a_missing_point(line: str) -> None:
    assert unguarded(
        "def f():\n " + line.replace("\n", "\n ").replace("  point", " point").replace("  a.", " a.")
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n point('x.before')\n a.rename(b)\n point('x.after')",
        "def f():\n with e.begin() as c:\n  c.execute(s)\n  point('x.before')\n point('x.after')",
        "def f(): return text.replace('a', 'b')",
        "def f(): return dataclasses.replace(x, a=1)",
    ],
)
def test_the_walk_accepts_what_is_guarded(source: str) -> None:
    assert unguarded(source) == []


def test_exemptions_are_needed() -> None:
    for file, function, name in EXEMPT:
        assert f"{function}: {name}" in unguarded((ROOT / file).read_text())


def test_names_are_read_from_the_code() -> None:
    source = """
class Rows:
    def _pay(self):
        with self.writing() as c:
            c.execute(s)
        point("mail.before")
"""
    assert set(names_in(source)) == {"commit.pay.before", "commit.pay.after", "mail.before"}
    assert {"commit.claim.before", "publish.after", "rename.before", "lease.renew.after"} <= set(names())


PROGRAM = """
import sys
from jobs.faults import point
for i in range(int(sys.argv[1])):
    print(i, flush=True)
    point("here")
    point("there")
"""


def passes(env: dict[str, str], times: int = 3) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(times)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.split()


def test_a_point_kills_at_the_nth_passing_once() -> None:
    assert passes({}) == (0, ["0", "1", "2"])
    assert passes({"KLEASH_KILL_AT": "here:2"}) == (-signal.SIGKILL, ["0", "1"])
    assert passes({"KLEASH_KILL_AT": "there:3,here:4"}) == (-signal.SIGKILL, ["0", "1", "2"])
    assert passes({"KLEASH_KILL_AT": "elsewhere:1"}) == (0, ["0", "1", "2"])


def test_with_a_folder_each_name_kills_one_process(tmp_path: Path) -> None:
    armed = {"KLEASH_KILL_AT": "here:1,there:1", "KLEASH_KILL_ONCE": str(tmp_path)}
    assert [passes(armed)[0] for _ in range(3)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_an_unreadable_setting_is_refused() -> None:
    assert parse("a.b:1,c:2") == {"a.b": 1, "c": 2}
    with pytest.raises(ValueError, match="invalid literal"):
        parse("name")


def test_a_published_folder_is_whole_whenever_the_process_dies(tmp_path: Path) -> None:
    names = [f"{step}.{side}" for step in ("rename", "rename.replaced") for side in ("before", "after")]
    assert list(kill_files(tmp_path, names)) == []


def test_a_first_key_survives_a_death_between_file_and_row(tmp_path: Path) -> None:
    assert list(kill_migrate(tmp_path, ["link.key.after"])) == []


def test_a_revocation_survives_a_death_before_its_answer(tmp_path: Path) -> None:
    assert list(kill_keys(tmp_path, ["commit.revoke_key.after"])) == []


def test_a_file_is_gone_or_whole_whenever_the_process_dies(tmp_path: Path) -> None:
    assert list(kill_uploads(tmp_path, ["commit.delete_file.after"])) == []


def test_api_pool_child_and_training_child_die_once_each_and_the_jobs_end_alike(
    tmp_path: Path, tiny_registry: Path
) -> None:
    """All points: `python -m tests.faults.points`."""
    armed = {"publish.after": 1, "commit.claim.after": 1, "rename.after": 2}
    outcome = run(tmp_path, tiny_registry, armed, light=True)
    assert outcome.problems == []
    assert outcome.struck == {
        "publish.after": "API",
        "commit.claim.after": "pool child",
        "rename.after": "training child",
    }
