"""Starts a module of the stack as a child that cannot outlive us, whatever kills us (`jobs.lifeline`)."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent  # where api/, jobs/ and worker/ lie
PRIVATE = 0o077  # umask: prompts, keys and checkpoints are the user's own


def spawn(
    command: Sequence[str], *, stderr: int | IO[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[str]:
    """Run `command` in a session of its own, its stdout in a pipe, and its files readable by us alone.

    It starts in ROOT, for `python -m` looks for modules in the current folder first: the caller's may hold
    others of the same names.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.lifeline", "--", *command],
        cwd=ROOT,
        env=_environment(env),
        umask=PRIVATE,
        stdin=subprocess.PIPE,  # its end of file tells `lifeline` what the kernel may not
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches us alone, and we stop the children in order
        pass_fds=pass_fds,
    )


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Our modules on the path, and model roots that mean the same in another folder."""
    env = {**given, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), given.get("PYTHONPATH")]))}
    with contextlib.suppress(KeyError, ValueError, TypeError):  # else the settings say what is wrong with it
        env["KLEASH_MODEL_ROOTS"] = json.dumps(
            [os.path.abspath(root) for root in json.loads(given["KLEASH_MODEL_ROOTS"])]
        )
    return env
