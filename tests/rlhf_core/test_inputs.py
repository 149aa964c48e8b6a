"""Token ids and conversations to what is scored: exact bytes, the policy's own tokens, and bounded templates."""

import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jobs.scoring_wire import ChatMessage, ScoreItem
from rlhf_core.errors import (
    ChatTemplateFailed,
    ChatTemplateMismatch,
    EmptyInput,
    InputTooLong,
    NoChatTemplate,
    TokenIdOutOfRange,
)
from rlhf_core.tokenization import tokenize_item
from rlhf_core.vocabulary import alone
from tests.tiny_models import CHATML, CORPUS, byte_level_tokenizer

PLAIN = byte_level_tokenizer(400)
WITH_BOS = byte_level_tokenizer(400, bos=True)
SIZE = 410  # of the model's head: ten ids more than the tokenizer knows
TURNS = [("system", "Be kind."), ("user", "Où est le 猫?"), ("assistant", "the cat sat\n")]


def chatting(template=CHATML):
    tokenizer = byte_level_tokenizer(400)
    tokenizer.chat_template = template
    return tokenizer


def found(item, tokenizer=PLAIN, *, context=1000):
    return tokenize_item(tokenizer, item, context=context, vocab_size=SIZE)


def chat(*turns, tokenizer=None, **rest):
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    return found(ScoreItem(messages=messages, **rest), tokenizer or chatting())


def spans(tokens):
    raw = tokens.text
    return [raw[start:end] for start, end in zip(tokens.start, tokens.end, strict=True)]


# -- token ids ------------------------------------------------------------------------------------


@given(st.text(min_size=2, max_size=40))
def test_ids_of_a_text_stand_for_the_text(text):
    ids = PLAIN(text)["input_ids"]
    if len(ids) < 2:
        return
    tokens = found(ScoreItem(token_ids=ids))
    assert tokens.text == text.encode()
    assert tokens.ids.tolist() == ids
    assert b"".join(spans(tokens)) == tokens.text
    for token_id, piece in zip(ids, spans(tokens), strict=True):
        assert PLAIN.decode([token_id]) == piece.decode("utf-8", "replace")


@given(st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=30))
def test_any_ids_tile_their_bytes_and_unknown_ones_stand_for_none(ids):
    tokens = found(ScoreItem(token_ids=ids))
    assert b"".join(spans(tokens)) == tokens.text
    assert tokens.start[0] == 0
    assert all(
        (piece == b"") == (token_id >= len(PLAIN)) for token_id, piece in zip(ids, spans(tokens), strict=True)
    )
    # decoding replaces what is no UTF-8 in the same way
    assert PLAIN.decode([i for i in ids if i < len(PLAIN)]) == tokens.text.decode("utf-8", "replace")


def test_special_ids_stand_for_their_names_and_nothing_is_added():
    tokens = found(ScoreItem(token_ids=[1, 40, 0]), WITH_BOS)
    assert tokens.ids.tolist() == [1, 40, 0]
    assert [spans(tokens)[0], spans(tokens)[2]] == ["<｜begin｜>".encode(), b"<|end|>"]


def test_scoring_starts_where_it_is_told():
    assert found(ScoreItem(token_ids=[5, 6, 7, 8])).first_scored == 1
    assert found(ScoreItem(token_ids=[5, 6, 7, 8], score_from=3)).first_scored == 3
    for ids, score_from in (([], 1), ([5], 1), ([5, 6, 7, 8], 4)):
        with pytest.raises(EmptyInput):
            found(ScoreItem(token_ids=ids, score_from=score_from))


@pytest.mark.parametrize("wrong", [-1, SIZE, 2**31, 2**40, -(2**63), 2**70])
def test_an_id_that_the_model_does_not_have_is_named_by_its_place(wrong):
    with pytest.raises(TokenIdOutOfRange, match="from 0 to 409") as refused:
        found(ScoreItem(token_ids=[5, 6, wrong, wrong]))
    assert str(wrong) not in str(refused.value)
    assert wrong == 2**70 or "at 2" in str(refused.value)


def test_half_a_million_ids_are_refused_at_once():
    item = ScoreItem(token_ids=[7] * 500_000)
    found(ScoreItem(token_ids=[7, 7]))  # the table of the vocabulary is made once
    started = time.thread_time()
    with pytest.raises(InputTooLong):
        found(item)
    assert time.thread_time() - started < 0.5


def metaspace_tokenizer():
    """SentencePiece's way: ▁ for a space, and bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS[:2], trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_other_vocabularies_are_decoded_with_their_spaces():
    tokenizer = metaspace_tokenizer()
    text = "the cat sat near the log"
    ids = tokenizer(text)["input_ids"]
    tokens = found(ScoreItem(token_ids=ids), tokenizer)
    assert tokens.text.decode() == text
    assert len(set(ids)) > 4
    assert alone(tokenizer, np.array(ids))[0].startswith(" ")


# -- conversations --------------------------------------------------------------------------------


def test_the_answer_is_scored_with_its_end_of_turn_and_without_the_line_break_after_it():
    tokens = chat(*TURNS)
    tokenizer = chatting()
    turns = [{"role": role, "content": content} for role, content in TURNS]
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokens.text.decode() + "\n" == whole
    assert tokens.ids.tolist() == (
        tokenizer(prompt)["input_ids"] + tokenizer("the cat sat\n<|end|>")["input_ids"]
    )
    assert tokenizer.decode(tokens.ids[tokens.first_scored :]) == "the cat sat\n<|end|>"
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert b"".join(spans(tokens)) == tokens.text


def test_the_template_writes_the_special_tokens():
    tokenizer = byte_level_tokenizer(400, bos=True)
    tokenizer.chat_template = CHATML
    tokens = chat(*TURNS, tokenizer=tokenizer)
    assert tokens.ids.tolist() == chat(*TURNS).ids.tolist()


def test_an_answer_without_end_of_turn_keeps_its_line_breaks():
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens = chat(("user", "hi "), ("assistant", "yes\n\n"), tokenizer=chatting(bare))
    assert tokens.text == b"hi yes\n\n"


def test_an_empty_answer_is_its_end_of_turn():
    tokens = chat(("user", "hi"), ("assistant", ""))
    assert len(tokens.ids) - tokens.first_scored == 1


def test_an_answer_may_stand_alone():
    tokens = chat(("assistant", "the cat"))
    assert tokens.text.decode() == "<｜begin｜>assistant\nthe cat<|end|>"


def test_without_a_template_there_is_no_conversation():
    with pytest.raises(NoChatTemplate):
        chat(*TURNS, tokenizer=PLAIN)


@pytest.mark.parametrize(
    "template",
    [
        # the last turn is shown otherwise than the prompt promised
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if add_generation_prompt %}A:{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_conversation_that_does_not_go_on_from_its_prompt_is_refused(template):
    with pytest.raises(ChatTemplateMismatch):
        chat(*TURNS, tokenizer=chatting(template))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles: ' + messages[0].content) }}",
        "{% if",
        "{{ messages[9].content.x.y }}",
        "{{ 1 // 0 }}",
        "{{ 'a' + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ messages.append(messages[0]) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ (messages | attr('__class__')) }}{{ self.__init__.__globals__['os'] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 3000000 }}{{ messages | length }}{{ 'x' * 3000000 }}",
    ],
)
def test_what_a_template_may_not_do_is_one_error_that_repeats_nothing(template):
    with pytest.raises(ChatTemplateFailed) as refused:
        chat(*TURNS, tokenizer=chatting(template))
    assert "Be kind" not in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x=0) %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% set n.x = n.x + 1 %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_is_stopped(template, monkeypatch):
    chat(*TURNS)
    monkeypatch.setattr("rlhf_core.chat.RENDER_S", 0.5)
    started, tracing = time.monotonic(), sys.gettrace()
    with pytest.raises(ChatTemplateFailed, match=r"ran for more than 0\.5 s"):
        chat(*TURNS, tokenizer=chatting(template))
    assert time.monotonic() - started < 120  # it would take hours
    assert sys.gettrace() is tracing
    assert chat(*TURNS).first_scored  # and the next conversation has a time of its own


# -- truncation -----------------------------------------------------------------------------------

LONG = "the cat sat on the mat and the dog sat on the log near the cafe"


def test_nothing_is_cut_unless_asked_for():
    n = len(PLAIN(LONG)["input_ids"])
    with pytest.raises(InputTooLong, match=f"{n} tokens .* {n - 1}"):
        found(ScoreItem(text=LONG), context=n - 1)
    for side in ("left", "right", "error"):
        assert found(ScoreItem(text=LONG, truncation=side), context=n).truncated is False


def test_the_left_loses_the_first_tokens_and_spares_what_the_tokenizer_put_there():
    ids = WITH_BOS(LONG)["input_ids"]
    tokens = found(ScoreItem(text=LONG, truncation="left"), WITH_BOS, context=6)
    assert tokens.ids.tolist() == [ids[0], *ids[-5:]]
    assert tokens.truncated
    assert tokens.first_scored == 1
    raw = LONG.encode()
    kept = b"".join(raw[a:b] for a, b in zip(tokens.start, tokens.end, strict=True))
    assert kept.decode() == WITH_BOS.decode(ids[-5:])  # spans are still into the whole text


def test_the_left_of_a_prompt_goes_before_its_completion():
    item = ScoreItem(prompt=LONG, text=" cat", truncation="left")
    n_completion = len(PLAIN(" cat")["input_ids"])
    tokens = found(item, context=5)
    assert tokens.first_scored == 5 - n_completion
    assert tokens.ids.tolist() == (PLAIN(LONG)["input_ids"] + PLAIN(" cat")["input_ids"])[-5:]
    ids = found(ScoreItem(token_ids=[2, 3, 4, 5, 6, 7], score_from=4, truncation="left"), context=4)
    assert (ids.ids.tolist(), ids.first_scored) == ([4, 5, 6, 7], 2)
    assert (
        found(ScoreItem(token_ids=[2, 3, 4, 5], score_from=2, truncation="left"), context=2).first_scored == 1
    )


def test_the_right_loses_the_last_tokens_and_may_lose_all_that_is_scored():
    ids = PLAIN(LONG)["input_ids"]
    tokens = found(ScoreItem(text=LONG, truncation="right"), context=6)
    assert tokens.ids.tolist() == ids[:6]
    with pytest.raises(EmptyInput):
        found(ScoreItem(prompt=LONG, text=" cat", truncation="right"), context=6)


def test_special_tokens_can_be_left_out():
    with_bos, without = (
        found(ScoreItem(text="the cat", add_special_tokens=add), WITH_BOS).ids.tolist()
        for add in (True, False)
    )
    assert with_bos == [1, *without]
