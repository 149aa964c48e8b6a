"""Which texts go together: budgets are kept, little is wasted, and each text has its turn."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.batches import PADDING_WASTE, Capacity, fill_batch, in_batches
from rlhf_core.tokenization import TokenizedText


@given(
    lengths=st.lists(st.integers(1, 50), max_size=30),
    budgets=st.tuples(st.integers(1, 200), st.integers(0, 200)),
    strict=st.booleans(),
    reuses=st.booleans(),
)
def test_each_text_is_in_one_batch_and_the_longest_that_waits_in_the_next(lengths, budgets, strict, reuses):
    texts = []
    for length in lengths:
        ids = np.zeros(length, dtype=np.int32)
        texts.append(TokenizedText(ids, ids, ids, 1))
    capacity = Capacity(50, 1, packed_tokens=budgets[1], reuses_prefixes=reuses)
    batches = list(in_batches(texts, capacity, max_batch_tokens=budgets[0], strict=strict))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert not strict or len(batches) == len(lengths)
    longest = [max(lengths[index] for batch in batches[n:] for index in batch) for n in range(len(batches))]
    assert [lengths[batch[0]] for batch in batches] == longest


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    budgets=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_a_pack_is_filled_in_order_until_nothing_fits(lengths, budgets):
    batch = fill_batch(lengths, max_batch_tokens=budgets[0], packed_tokens=budgets[1])
    assert batch[0] == 0
    assert batch == sorted(set(batch))
    alike = [index for index, length in enumerate(lengths) if length == lengths[0]]
    if len(alike) * lengths[0] >= budgets[1]:  # enough of one length
        assert set(batch) <= set(alike)
        assert len(batch) == max(1, min(len(alike), budgets[0] // lengths[0]))
        return
    room = min(budgets) - sum(lengths[index] for index in batch)
    assert len(batch) == 1 or room >= 0
    assert all(lengths[index] > room for index in set(range(len(lengths))) - set(batch))


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    budget=st.integers(1, 200),
)
def test_a_batch_keeps_to_its_budget_and_wastes_little(lengths, budget):
    batch = fill_batch(lengths, max_batch_tokens=budget)
    assert batch[0] == 0
    assert len(set(batch)) == len(batch)
    chosen = [lengths[index] for index in batch]
    padded = max(chosen) * len(chosen)
    assert len(batch) == 1 or padded <= budget
    assert padded <= PADDING_WASTE * sum(chosen)
    for index in set(range(len(lengths))) - set(batch):  # an equally long text is left only for the budget
        if lengths[index] == lengths[0]:
            assert padded + max(chosen) > budget
