"""The least and the most that can be scored: no token, one, parts of a character, a full context."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.scoring_wire import ItemError, ItemScores, ScoreItem
from rlhf_core.models import WeightSource
from tests import tiny_models
from tests.tiny_models import CONTEXT

COMBINING = "\N{COMBINING ACUTE ACCENT}"  # 2 bytes
EMOJI = "\N{ALCHEMICAL SYMBOL FOR GOLD}"  # 4 bytes, of which the tokenizer has the first two as one


@pytest.fixture(scope="module")
def with_bos(tiny):
    """A model whose tokenizer begins every text with a token of its own."""
    folder = tiny.root / "bos"
    tiny_models.save_tiny(folder, tiny_models.byte_level_tokenizer(vocab_size=400, bos=True), seed=5)
    return folder


@pytest.mark.parametrize(
    ("text", "n_tokens"), [("", 0), (" ", 1), ("a", 1), (COMBINING, 2), (EMOJI, 3), (" \n\t ", None)]
)
def test_without_a_first_token_of_its_own_a_text_needs_two(score, tiny, text, n_tokens):
    ids = AutoTokenizer.from_pretrained(tiny.base)(text)["input_ids"]
    assert n_tokens in (None, len(ids))
    (item,) = score(ScoreItem(text=text))
    if len(ids) < 2:
        assert (item.code, item.context) == ("empty_input", {})
        return
    assert item.token_ids.tolist() == ids
    assert item.scored.tolist() == [False] + [True] * (len(ids) - 1)
    assert_tiles(item, text)


@pytest.mark.parametrize("text", [" ", "a", COMBINING, EMOJI])
def test_after_a_first_token_of_its_own_every_token_is_scored(score, with_bos, text):
    """Against the model's own log-softmax in float64."""
    (item,) = score(ScoreItem(text=text), policy=WeightSource(str(with_bos)), reference=with_bos)
    model = AutoModelForCausalLM.from_pretrained(with_bos, dtype=torch.float64)
    ids = torch.tensor([item.token_ids.tolist()], dtype=torch.long)
    with torch.no_grad():
        expected = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert item.token_ids[0] == AutoTokenizer.from_pretrained(with_bos).bos_token_id
    np.testing.assert_allclose(item.quantities["policy_logprob"][1:], expected, rtol=1e-5)
    assert (item.quantities["kl"][1:] == 0).all()
    assert_tiles(item, text)


def test_after_a_first_token_of_its_own_an_empty_text_has_nothing_to_score(score, with_bos):
    empty, prompted = score(
        ScoreItem(text=""),
        ScoreItem(prompt="", text="a"),
        policy=WeightSource(str(with_bos)),
        reference=with_bos,
    )
    assert empty.code == "empty_input"
    assert prompted.scored.tolist() == [False, True]


@pytest.mark.parametrize("text", ["the cat", "日本"])
def test_one_that_cannot_be_scored_moves_nothing_of_its_neighbours(score, text):
    alone, *_ = score(ScoreItem(text=text), numerics="strict")
    empty, single, found = score(
        ScoreItem(text=""), ScoreItem(text="a"), ScoreItem(text=text), numerics="strict"
    )
    assert isinstance(empty, ItemError)
    assert isinstance(single, ItemError)
    for name, values in alone.quantities.items():
        assert values.tobytes() == found.quantities[name].tobytes(), name


@pytest.mark.parametrize("truncation", ["error", "left", "right"])
@pytest.mark.parametrize("n_tokens", [CONTEXT - 1, CONTEXT, CONTEXT + 1])
def test_at_the_edge_of_the_context(score, n_tokens, truncation):
    """What is left of a text that is one too long has the scores of these very tokens."""
    ids = [2 + n % 300 for n in range(n_tokens)]
    (item,) = score(ScoreItem(token_ids=ids, truncation=truncation))
    if n_tokens > CONTEXT and truncation == "error":
        assert (item.code, item.context) == ("input_too_long", {"limit": CONTEXT, "actual": n_tokens})
        assert all(str(number) in item.detail for number in item.context.values())
        return
    kept = ids[-CONTEXT:] if truncation == "left" else ids[:CONTEXT]
    (expected,) = score(ScoreItem(token_ids=kept))
    assert item.token_ids.tolist() == kept
    assert item.truncated is (n_tokens > CONTEXT)
    assert item.scored.tolist() == [False] + [True] * (len(kept) - 1)
    for name, values in expected.quantities.items():
        np.testing.assert_allclose(item.quantities[name], values, rtol=1e-6, err_msg=name)


def assert_tiles(item: ItemScores, text: str) -> None:
    """Spans are in order and cover every byte once; every number of a scored token is finite."""
    assert item.start.tolist() == [0, *item.end.tolist()[:-1]]
    assert item.end[-1] == len(text.encode())
    for values in item.quantities.values():
        assert np.isfinite(values[item.scored]).all()
