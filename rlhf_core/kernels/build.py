"""The C kernels: compiled once per machine by the system's C compiler, kept in a cache, loaded by ctypes.

    python -m rlhf_core.kernels.build      compiles and says where (an image does it while it is built)

Without a compiler and without a compiled kernel everything still works, by torch's own operations and several
times slower; `status()` says which it is and why.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("scores.c")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
# The first that compiles. With OpenMP the rows are shared between torch's own threads.
VARIANTS: Sequence[Sequence[str]] = (("-fopenmp",), ())
CACHE = "KLEASH_KERNELS"  # a folder of compiled kernels instead of the user's cache


class KernelUnavailable(Exception):
    """There is no compiled kernel, and none could be made; the message is the reason."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None if there are none, for the reason in `status()`."""
    loaded = _load()
    return None if isinstance(loaded, str) else loaded


def status() -> str:
    """`native`, or `torch: ` and why the kernels are not used."""
    loaded = _load()
    return f"torch: {loaded}" if isinstance(loaded, str) else "native"


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return ctypes.CDLL(str(compiled()))
    except (KernelUnavailable, OSError) as error:
        return str(error)


@functools.cache
def identity() -> str:
    """What the results depend on to the bit: the compiled file, or `torch`."""
    return hashlib.sha256(compiled().read_bytes()).hexdigest()[:16] if library() else "torch"


def compiled() -> Path:
    """The library's file, compiled first if it is not there.

    Raises:
        KernelUnavailable: no compiler, or it refused.
    """
    folder = cache()
    key = hashlib.sha256(
        b"\0".join([SOURCE.read_bytes(), repr((FLAGS, VARIANTS, platform.machine(), sys.platform)).encode()])
    ).hexdigest()[:16]
    target = folder / f"scores-{key}.so"
    if not target.exists():
        _compile(target)
    return target


def cache() -> Path:
    """Where compiled kernels are kept."""
    if CACHE in os.environ:
        return Path(os.environ[CACHE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kleash" / "kernels"


def _compile(target: Path) -> None:
    named = shlex.split(os.environ.get("CC", ""))
    command = named or [name for name in ("gcc", "cc") if shutil.which(name)][:1]
    if not command:
        raise KernelUnavailable("there is no C compiler (gcc), which would make scoring faster")
    said = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch, target.name)
            for variant in VARIANTS:
                done = subprocess.run(
                    [*command, *FLAGS, *variant, str(SOURCE), "-o", str(made), "-lm"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode == 0:
                    made.replace(target)  # another process may have done the same
                    return
                said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
    except OSError as error:
        said = str(error)
    raise KernelUnavailable(f"the C compiler made no kernel: {said}")


if __name__ == "__main__":
    sys.stdout.write(f"{compiled()}\n")
