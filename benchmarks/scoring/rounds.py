"""Turns, times, ratios, and whether the contenders' answers agree.

A round runs every contender once; every second round runs them backwards, so that a slow drift of the machine
favours nobody. A ratio is taken within each round, between two runs seconds apart, and reported as its median over
the rounds with its quartiles: a machine that is slow for a while is slow for both.
"""

import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.ratios import Ratio, spread
from benchmarks.scoring.contenders import Answers, Contender
from benchmarks.scoring.workloads import Draw

OURS = "kleash, exact"
# Nats within which 99 % of a round's tokens agree between two ways in float32, whose products round differently.
# Random words sometimes make a context that amplifies any rounding a hundred times, so the largest difference is
# printed and not judged; on plain text: python -m benchmarks.accuracy
BOUNDS = {"kl": 1e-4, "policy_logprob": 5e-4, "reference_logprob": 5e-4}
MOST = 0.99


class Run(NamedTuple):
    """What came of a workload."""

    times: dict[str, list[float]]  # by contender, in the order of the rounds
    tokens: int  # of one round
    # By quantity and contender the difference from OURS: of 99 % of a round's tokens, and the largest
    apart: dict[tuple[str, str], tuple[float, float]]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.times[name])

    def ratio(self, above: str, below: str) -> Ratio:
        """Of times."""
        return Ratio.of(self.times[above], self.times[below])

    @property
    def agrees(self) -> bool:
        """False if a difference is above its bound."""
        return all(most <= BOUNDS[quantity] for (quantity, _), (most, _) in self.apart.items())


def take_turns(contenders: Mapping[str, Contender], draw: Draw, rounds: int) -> Run:
    """All contenders on the same texts, `rounds` times, new texts every time."""
    run = Run({name: [] for name in contenders}, sum(len(t.tokens.ids) for t in draw(0)), {})
    for number in range(rounds):
        texts, answers = draw(number), dict[str, Answers]()
        order = list(contenders)[:: -1 if number % 2 else 1]
        for name in order:
            began = time.perf_counter()
            answers[name] = contenders[name](texts)
            run.times[name].append(time.perf_counter() - began)
        _compare(answers, run.apart)
    return run


def print_table(workload: str, run: Run) -> None:
    """Each contender's time, useful tokens a second, and its time over ours."""
    ours = OURS if OURS in run.times else next(iter(run.times))
    for name in run.times:
        ratio, seconds = run.ratio(name, ours), run.median(name)
        print(
            f"{workload:8} {name:26} {seconds:8.3f} s {run.tokens / seconds:7.0f} tokens/s"
            f" {spread(ratio)}  n={ratio.rounds}"
        )
    for (quantity, name), (most, largest) in run.apart.items():
        verdict = "within" if most <= BOUNDS[quantity] else "MORE THAN"
        print(
            f"{workload:8} {name:26} {quantity} is {most:.1e} from ours, {verdict} {BOUNDS[quantity]:.0e} nats,"
            f" for 99 % of tokens; at most {largest:.1e}"
        )


def _compare(answers: Mapping[str, Answers], apart: dict[tuple[str, str], tuple[float, float]]) -> None:
    if OURS not in answers:
        return
    for name, theirs in answers.items():
        for quantity, arrays in theirs.items():
            if name != OURS:
                pairs = zip(answers[OURS][quantity], arrays, strict=True)
                found = np.concatenate([np.abs(a - b) for a, b in pairs])
                before = apart.get((quantity, name), (0.0, 0.0))
                now = (float(np.quantile(found, MOST)), float(found.max()))  # NaN stays
                apart[quantity, name] = (
                    float(np.max([before[0], now[0]])),
                    float(np.max([before[1], now[1]])),
                )
