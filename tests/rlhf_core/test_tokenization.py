import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.errors import EmptyInput, InputTooLong
from rlhf_core.tokenization import ends_from_characters, tokenize
from tests.tiny_models import byte_level_tokenizer

PLAIN = byte_level_tokenizer(400)
WITH_BOS = byte_level_tokenizer(400, bos=True)
HARD = [
    "👩‍👩‍👧‍👦 family",
    "日本語と中文和한국어",
    "e\u0301 a\u0308\u0323 combining",
    "🇨🇭🇯🇵 flags, 👍🏽 skin",
    "text<|end|>more<｜begin｜>日",
    " \t\n  spaces  \n",
]


def assert_tiles(text: str, start: list[int], end: list[int]) -> None:
    assert start[0] == 0
    assert start[1:] == end[:-1]
    assert end[-1] == len(text.encode())
    assert all(a <= b for a, b in zip(start, end, strict=True))


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["plain", "bos"])
@pytest.mark.parametrize("text", HARD)
def test_each_token_s_span_holds_exactly_its_bytes(tokenizer, text):
    tokens = tokenize(tokenizer, text, context=1000)
    raw = text.encode()
    assert_tiles(text, tokens.start.tolist(), tokens.end.tolist())
    for token_id, start, end in zip(tokens.ids, tokens.start, tokens.end, strict=True):
        if start == end:
            assert token_id == tokenizer.bos_token_id
            continue
        piece = raw[start:end]
        # Decoding one id gives its bytes back, U+FFFD where they are part of a character.
        assert tokenizer.decode([token_id]) == piece.decode("utf-8", "replace")


def test_a_character_may_be_split_over_tokens():
    """What makes bytes, not characters, the unit: the oracle above would be easy without it."""
    tokens = tokenize(PLAIN, "한국", context=100)
    widths = (tokens.end - tokens.start).tolist()
    assert sum(widths) == 6
    assert max(widths) < 3


@given(prompt=st.text(max_size=20), text=st.text(min_size=2, max_size=40))
def test_spans_tile_any_prompt_and_completion(prompt, text):
    tokens = tokenize(WITH_BOS, text, prompt, context=1000)
    assert_tiles(prompt + text, tokens.start.tolist(), tokens.end.tolist())
    assert tokens.start[tokens.first_scored] == len(prompt.encode())


def test_prompt_and_completion_are_joined_as_ids_with_special_tokens_in_the_prompt():
    joined = tokenize(WITH_BOS, " cat", "the", context=100)
    prompt = WITH_BOS("the")["input_ids"]
    completion = WITH_BOS(" cat", add_special_tokens=False)["input_ids"]
    assert joined.ids.tolist() == prompt + completion
    assert joined.first_scored == len(prompt)


def test_the_first_token_is_scored_only_after_a_token_that_the_tokenizer_adds():
    assert tokenize(PLAIN, "cat cat", context=100).first_scored == 1
    after_bos = tokenize(WITH_BOS, "cat cat", context=100)
    assert after_bos.first_scored == 1
    assert after_bos.start[1] == 0  # the text's own first token


@pytest.mark.parametrize(
    ("tokenizer", "text", "prompt"),
    [(PLAIN, "", None), (PLAIN, "a", None), (PLAIN, "", "a prompt"), (PLAIN, "a", ""), (WITH_BOS, "", None)],
)
def test_nothing_to_score_is_refused(tokenizer, text, prompt):
    with pytest.raises(EmptyInput):
        tokenize(tokenizer, text, prompt, context=100)


def test_a_context_is_full_before_it_overflows():
    n_tokens = len(PLAIN("the cat sat")["input_ids"])
    assert len(tokenize(PLAIN, "the cat sat", context=n_tokens).ids) == n_tokens
    with pytest.raises(InputTooLong, match=rf"{n_tokens} tokens .* {n_tokens - 1}"):
        tokenize(PLAIN, "the cat sat", context=n_tokens - 1)


@pytest.mark.parametrize(
    ("text", "spans", "ends"),
    [
        # é (2 bytes) in two byte-fallback tokens, then one letter
        ("éa", [(0, 1), (0, 1), (1, 2)], [1, 2, 3]),
        # 😀 (4 bytes) in three tokens: 4·1//3, 4·2//3, 4
        ("😀", [(0, 1)] * 3, [1, 2, 4]),
        # special, word, a gap of one space that the later word takes, word, trailing space, special
        ("ab cd ", [(0, 0), (0, 2), (3, 5), (0, 0)], [0, 2, 6, 6]),
    ],
)
def test_ends_from_characters(text, spans, ends):
    assert ends_from_characters(text, spans) == ends
