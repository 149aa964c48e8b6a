"""Contenders' processes as the benchmark sees them: started, asked for iterations in turns, ended."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from benchmarks.ppo.turn import Task

Answer = dict[str, Any]
KL_AT_START = 1e-3  # nats per sequence: k1 of a rollout whose log-probabilities come from the cache


class Contender:
    """A process that is loaded and waits."""

    def __init__(self, task: Task, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.task, self._process, self._log = task, process, log
        self.at_start = self._read()
        self.answers: list[Answer] = []

    def iterate(self) -> Answer:
        """One iteration. Raises ChildProcessError, with the end of what it printed, if the process is dead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        self.answers.append(self._read())
        return self.answers[-1]

    def faults(self) -> list[str]:
        """Why its figures are worth nothing, if they are."""
        wanted, name = self.task.case.optimizer_steps, self.task.contender
        found = [
            f"{name}: {answer['optimizer_steps']} optimizer steps in iteration {number}, not {wanted}"
            for number, answer in enumerate(self.answers, start=1)
            if answer["optimizer_steps"] != wanted
        ]
        kl = self.answers[0]["kl"] if self.answers else 0.0
        if not abs(kl) <= KL_AT_START:
            found.append(f"{name}: KL {kl:.2e} before the first update, not 0")
        return found

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: Answer = json.loads(line)
        return answer

    def _death(self) -> ChildProcessError:
        code = self._process.wait()
        self._log.seek(0)
        printed = self._log.read().split("\n")
        said = next((line.strip() for line in reversed(printed) if line.strip()), "it printed nothing")
        who = f"{self.task.contender} on {self.task.case_name}, seed {self.task.seed}"
        return ChildProcessError(f"{who}, died with exit code {code}: {said}")


@contextmanager
def started(task: Task) -> Iterator[Contender]:
    """The contender, until the context is left."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ppo.contender", json.dumps(task)]
    # TRL warns that PPO is experimental, and asks the hub for what is not there.
    env = os.environ | {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
        try:
            yield Contender(task, process, log)
        finally:
            process.kill()
            process.communicate()


def take_turns(tasks: Sequence[Task], rounds: int) -> list[Contender]:
    """One iteration each that is not counted in the times, then `rounds` rounds, every second one backwards."""
    with ExitStack() as stack:
        contenders = [stack.enter_context(started(task)) for task in tasks]
        for number in range(rounds + 1):
            for contender in contenders[:: -1 if number % 2 else 1]:
                contender.iterate()
    return contenders
