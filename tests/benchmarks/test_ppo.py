"""The PPO benchmark's arithmetic, and what it says where TRL is missing."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ppo.cases import CASES, OURS, share_of_fifths
from benchmarks.ppo.equal_kl import Point, common_kl, paired, reward_at
from benchmarks.ppo.gradients import noise
from benchmarks.ppo.models import folder_of, new_policy
from benchmarks.ppo.processes import Contender, started, take_turns
from benchmarks.ppo.turn import Task
from benchmarks.ppo.variance import bootstrapped

ROOT = Path(__file__).parents[2]


def _command(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ppo", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_needs_no_trl() -> None:
    done = _command("--help")
    assert done.returncode == 0
    assert "TRL 1.12.0" in done.stdout


def test_it_says_how_to_get_trl(tmp_path: Path) -> None:
    done = _command("--packages", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "trl is missing" in done.stderr
    assert "make bench-ppo" in done.stderr
    assert "--target FOLDER -r locks/bench.lock" in done.stderr


def test_another_trl_is_not_taken_for_it(tmp_path: Path) -> None:
    found = tmp_path / "trl-1.16.0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.16.0\n")
    done = _command("--packages", str(tmp_path))
    assert done.returncode == 2
    assert "trl 1.16.0 is there" in done.stderr


def test_reward_is_read_where_a_run_first_has_the_kl() -> None:
    run = [Point(0.0, 0.2), Point(1.0, 0.4), Point(3.0, 0.6), Point(2.0, 0.9), Point(4.0, 1.0)]
    assert reward_at(run, 0.0) == 0.2
    assert reward_at(run, 1.0) == pytest.approx(0.4)
    assert reward_at(run, 2.0) == pytest.approx(0.5)  # half way from 0.4 to 0.6, not 0.9
    assert reward_at(run, 3.5) == pytest.approx(0.975)  # from KL 2 to 4, three quarters of 0.9 to 1.0
    with pytest.raises(ValueError, match="never"):
        reward_at(run, 4.1)


def test_runs_are_compared_at_the_smaller_of_their_largest_kls() -> None:
    ours = [Point(0.0, 0.0), Point(2.0, 1.0)]
    theirs = [Point(0.0, 0.0), Point(4.0, 1.0)]
    assert common_kl(ours, theirs) == 2.0
    # At KL 2 ours has 1 and theirs ½; with the roles changed −½; a run against itself has 0.
    found = paired([(ours, theirs), (theirs, ours), (ours, ours)])
    assert found.mean == pytest.approx(0.0)
    # Standard deviation of (½, −½, 0) is ½; over √3.
    assert found.se == pytest.approx(0.5 / 3**0.5)
    assert paired([(ours, theirs)]) == (pytest.approx(0.5), None, 1)


def test_the_variance_ratio_is_of_the_same_rows() -> None:
    kl = np.random.default_rng(0).normal(size=500)
    found = bootstrapped(3.0 * kl, kl, seed=0)  # rows drawn together keep the ratio 9 in every resample
    assert (found.ratio, found.low, found.high) == pytest.approx((9.0, 9.0, 9.0))
    assert found.sequences == 500


def test_the_interval_of_a_variance_ratio_holds_it() -> None:
    rng = np.random.default_rng(1)
    found = bootstrapped(2.0 * rng.normal(size=2000), rng.normal(size=2000), seed=0)
    # ln of a sample variance of a normal varies by √(2/n): of two, ±1.96·√(4/2000) = 8.8 % around 4.
    assert found.low < 4.0 < found.high
    assert found.high / found.low == pytest.approx(1.19, abs=0.05)


def test_the_tiny_reward_is_a_share_of_words() -> None:
    assert share_of_fifths(["", ""], ["w0 w1 w5 w7", "w3"], [4, 1]) == [0.5, 0.0]


def test_a_contender_answers_for_every_iteration(ours: Contender) -> None:
    assert ours.faults() == []
    assert [answer["optimizer_steps"] for answer in ours.answers] == [4 * 4] * 2
    assert ours.answers[0]["kl"] == 0.0 < ours.answers[1]["kl"]
    if sys.platform == "linux":
        assert ours.at_start["imported_bytes"] < ours.answers[-1]["peak_bytes"]


def test_what_is_not_like_for_like_is_a_fault(ours: Contender) -> None:
    wrong = copy.copy(ours)
    first, second = ours.answers
    # No KL at the start; and the optimizer's steps of gradients accumulated over four minibatches.
    wrong.answers = [{**first, "kl": float("nan")}, {**second, "optimizer_steps": 4}]
    steps, kl = wrong.faults()
    assert "4 optimizer steps in iteration 2, not 16" in steps
    assert "before the first update" in kl


def test_a_contender_that_dies_between_turns_is_named_in_one_line(tmp_path: Path) -> None:
    folder = folder_of(CASES["tiny"], Path("no registry"), tmp_path)
    with started(Task(OURS, "tiny", str(folder), None, seed=3, iterations=2)) as one:
        os.kill(one._process.pid, signal.SIGKILL)
        one._process.wait()
        with pytest.raises(ChildProcessError) as death:
            one.iterate()
    assert str(death.value) == "kleash on tiny, seed 3, died with exit code -9: it printed nothing"


def test_a_contender_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    task = Task(OURS, "tiny", str(tmp_path / "nowhere"), None, seed=0, iterations=1)
    with pytest.raises(ChildProcessError, match=r"died with exit code 1: .*nowhere") as death, started(task):
        pass
    assert "\n" not in str(death.value)


def test_gradient_noise_is_the_trace_over_batches() -> None:
    gradients = torch.randn(64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Three times each deviation has nine times the trace in every resample, and a common mean has none.
    found = noise(3.0 * gradients + 7.0, gradients, seed=0)
    assert (found.over_k1, found.low, found.high) == pytest.approx((9.0, 9.0, 9.0))
    other = torch.randn(64, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = noise(other, gradients, seed=0)
    assert found.over_k1 == pytest.approx(float(other.var(dim=0).sum() / gradients.var(dim=0).sum()))
    assert found.low < found.over_k1 < found.high


def test_the_three_penalties_have_one_mean_gradient(tmp_path: Path) -> None:
    from benchmarks.ppo import gradients

    case = CASES["tiny"]._replace(batch=8, tokens=3)
    folder = str(folder_of(case, Path("no registry"), tmp_path))
    policy = new_policy(case, folder, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in policy.trainable_parameters().values():
            weight += 0.1 * weight * torch.randn(weight.shape, generator=generator)
    found = gradients.gradients_of(policy, case, folder, batches=40, seed=0)
    assert found.kl > 0.01
    mean = found.of_kl["exact"][:20].mean(
        dim=0
    )  # the quietest, of other batches than those it is compared with

    def z(difference: torch.Tensor) -> float:
        shares = difference[20:] @ mean / mean.square().sum()
        return float(shares.mean() / shares.std() * 20**0.5)

    for name in ("hybrid", "exact"):
        assert abs(z(found.of_kl[name] - found.of_kl["k1"])) < 3
        assert z(found.of_kl[name] / 2 - found.of_kl["k1"]) < -3  # half of it would be seen


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Contender:
    folder = folder_of(CASES["tiny"], Path("no registry"), tmp_path_factory.mktemp("bench"))
    [contender] = take_turns([Task(OURS, "tiny", str(folder), None, seed=0, iterations=2)], rounds=1)
    return contender
