"""Who is whose child, read from /proc."""

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All living descendants, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, rest = list[int](), [pid]
    while rest:
        below = children.get(rest.pop(0), [])
        found += below
        rest += below
    return found


def children(pid: int) -> list[int]:
    """The living direct children."""
    return [child for child in descendants(pid) if _parent(child) == pid]


def command(pid: int) -> list[str]:
    """Its arguments; empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def training_job(pid: int) -> str | None:
    """The job of a training child, None for any other process."""
    arguments = command(pid)
    if "worker.train" not in arguments:
        return None
    return arguments[arguments.index("worker.train") + 1]


def gone(pid: int) -> bool:
    """True if there is no such process, or only its exit code is left."""
    return _stat(pid)[:1] in ([], ["Z"], ["X"])


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields and fields[0] not in "ZX" else None


def _stat(pid: int) -> list[str]:
    """State, parent, … of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
