"""One contender in a process of its own, which does one iteration for every line that it reads.

It answers with one line of JSON each time, the first time when its models are loaded. What libraries print goes to
its standard error. Resident memory is the system's count (Linux's /proc), from the process's first moment on.
"""

import json
import os
import sys
from importlib import import_module

from benchmarks.ppo.cases import OURS
from benchmarks.ppo.turn import Task, Turn, memory


def main() -> None:
    """The task is the only argument, as JSON."""
    task = Task(*json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if task.packages is not None:
        sys.path.append(task.packages)  # at the end: ours come first
    side = import_module(f"benchmarks.ppo.{'kleash' if task.contender == OURS else 'trl'}_side")
    from torch.optim.optimizer import register_optimizer_step_post_hook

    turn = Turn(task, answers, memory("VmRSS"))
    register_optimizer_step_post_hook(turn.count_optimizer_step)
    side.run(task, turn)


if __name__ == "__main__":
    main()
