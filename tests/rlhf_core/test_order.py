"""The order of prompts is a function of seed and step: pass after pass, each in its own order."""

import pytest
import torch

from rlhf_core import order
from rlhf_core.order import prompt_indices, text_indices


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (3, 7), (4, 4), (1, 5)])
def test_steps_go_through_pass_after_pass(count: int, batch: int) -> None:
    passes = [order._permutation(count, f"5/prompts/{epoch}").tolist() for epoch in range(40)]
    expected = [index for indices in passes for index in indices]
    for step in range(1, 6):
        found = prompt_indices(count, batch=batch, step=step, seed=5)
        assert found == expected[(step - 1) * batch : step * batch]
    assert all(sorted(indices) == list(range(count)) for indices in passes)


def test_texts_of_minibatches_are_drawn_likewise_but_in_an_order_of_their_own() -> None:
    first, second = (order._permutation(7, f"5/ptx/{epoch}").tolist() for epoch in range(2))
    drawn = [text_indices(7, batch=4, minibatch=number, seed=5) for number in (1, 2, 3)]
    assert drawn == [first[:4], first[4:] + second[:1], second[1:5]]
    assert first != order._permutation(7, "5/prompts/0").tolist()


def test_a_step_draws_one_permutation_of_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def permutation(count: int, name: str) -> torch.Tensor:
        drawn.append(name)
        return torch.arange(count)

    monkeypatch.setattr(order, "_permutation", permutation)
    prompt_indices(6, batch=10, step=2, seed=0)  # places 10 to 19 of passes of 6
    assert drawn == ["0/prompts/1", "0/prompts/2", "0/prompts/3"]
