"""The scorer with each form of an item: the same tokens have the same scores, however they were sent."""

import shutil

import numpy as np
import pytest

from jobs.errors import ScoringRefused
from jobs.scoring_wire import (
    ChatMessage,
    ItemError,
    ItemScores,
    ModelSource,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    TopTerms,
    Weights,
    decode_reply,
    encode_reply,
)
from jobs.settings import Settings
from rlhf_core.models import WeightSource, load_pair
from rlhf_core.scoring import ScoredText, TopItems, score_texts
from rlhf_core.tokenization import TokenizedText
from tests import tiny_models
from tests.worker.scorer.bench import drain, in_background, serving, settings_for, wait_until
from worker.scorer.answers import item_scores, top_pieces
from worker.scorer.batcher import Batcher
from worker.scorer.sources import AllowedSources


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny_models.PreTrainedTokenizerFast.from_pretrained(tiny.base)


def chat(*turns):
    return ScoreItem(messages=[ChatMessage(role=role, content=content) for role, content in turns])


def assert_same_scores(one, two):
    assert isinstance(one, ItemScores)
    assert one.token_ids.tolist() == two.token_ids.tolist()
    assert one.scored.tolist() == two.scored.tolist()
    for name, values in one.quantities.items():
        np.testing.assert_allclose(values, two.quantities[name], atol=2e-5, err_msg=name)


def test_ids_are_scored_as_the_text_they_stand_for(score, tokenizer):
    ids = tokenizer("the cat sat on the mat")["input_ids"]
    prompt, completion = tokenizer("the cat 日")["input_ids"], tokenizer("本 sat")["input_ids"]
    text, given, joined, given_from = score(
        ScoreItem(text="the cat sat on the mat"),
        ScoreItem(token_ids=ids),
        ScoreItem(prompt="the cat 日", text="本 sat"),
        ScoreItem(token_ids=prompt + completion, score_from=len(prompt)),
    )
    assert_same_scores(text, given)
    assert_same_scores(joined, given_from)
    assert given.text == b"the cat sat on the mat"
    assert text.text is None
    assert (given_from.start.tolist(), given_from.end.tolist()) == (
        joined.start.tolist(),
        joined.end.tolist(),
    )


def test_requests_of_one_batch_get_their_own_tops(score, tokenizer):
    (with_top,) = score(
        ScoreItem(text="the cat sat on the mat"), top_k=3, quantities=("kl", "policy_logprob")
    )
    (without,) = score(ScoreItem(text="the cat sat on the mat"))
    assert without.top is None
    rows = with_top.scored
    assert with_top.top.ids.shape == (len(with_top.token_ids), 3)
    assert (with_top.top.ids[rows] < 400).all()
    terms = with_top.top.kl_term[rows]
    assert (terms >= 0).all()
    assert (np.diff(terms) <= 0).all()
    assert (terms.sum(axis=1) <= with_top.quantities["kl"][rows] * 1.0001 + 1e-6).all()


def test_a_conversation_is_scored_as_its_rendering(score, tokenizer):
    turns = [("user", "the dog?"), ("assistant", "the cat")]
    conversation, by_hand = score(
        chat(*turns),
        ScoreItem(prompt="<｜begin｜>user\nthe dog?<|end|>\n<｜begin｜>assistant\n", text="the cat<|end|>"),
    )
    assert_same_scores(conversation, by_hand)
    assert conversation.token_ids[-1] == tokenizer.eos_token_id
    assert conversation.text.endswith(b"assistant\nthe cat<|end|>")


def test_what_cannot_be_scored_fails_alone(score, tiny):
    wrong, empty, long, cut, good = score(
        ScoreItem(token_ids=[5, 400]),
        ScoreItem(token_ids=[5]),
        ScoreItem(token_ids=[7] * 97),
        ScoreItem(token_ids=[7] * 97, truncation="left"),
        ScoreItem(token_ids=[7] * 96),
    )
    assert [item.code for item in (wrong, empty, long)] == [
        "token_id_out_of_range",
        "empty_input",
        "input_too_long",
    ]
    assert (cut.truncated, len(cut.token_ids), good.truncated) == (True, 96, False)
    (untold,) = score(
        chat(("user", "a"), ("assistant", "b")),
        policy=WeightSource(str(tiny.foreign)),
        reference=tiny.foreign,
    )
    assert isinstance(untold, ItemError)
    assert untold.code == "no_chat_template"


def test_a_token_for_which_the_model_has_no_row_fails_alone(tiny, pairs, tmp_path):
    """A tokenizer with a [PAD] that was added later; another client's text waits for the same batch."""
    folder = padded(tiny, tmp_path / "padded")
    key = (WeightSource(folder), WeightSource(folder))
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=1000)

    def asked(*items, client):
        source = ModelSource(path=folder)
        request = ScoreRequest(policy=source, reference=source, items=list(items), client=client)
        return batcher.submit(request, key)

    one = asked(ScoreItem(text="the cat [PAD]"), chat(("user", "a"), ("assistant", "[PAD]")), client="a")
    other = asked(ScoreItem(text="the dog"), client="b")
    drain(batcher)
    assert [item.code for item in one.result(0).items] == ["token_id_out_of_range"] * 2
    assert isinstance(other.result(0).items[0], ItemScores)


def test_heads_of_different_size_are_scored_for_those_who_ask_for_their_intersection(tiny, pairs, tmp_path):
    """Two requests wait for one pair; the one that did not ask is refused alone."""
    wider = tiny_models.save_padded(tiny, tmp_path / "wider", rows=47)
    key = (WeightSource(str(wider)), WeightSource(str(tiny.base)))
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=1000)

    def asked(**options):
        sources = {"policy": ModelSource(path=str(wider)), "reference": ModelSource(path=str(tiny.base))}
        return batcher.submit(
            ScoreRequest(items=[ScoreItem(text="the cat sat")], top_k=20, **sources, **options), key
        )

    strict, willing = asked(), asked(vocab_mismatch="intersect")
    drain(batcher)
    assert strict.exception(0).code == "tokenizer_mismatch"
    reply = decode_reply(encode_reply(willing.result(0)))
    shared = reply.vocab_size
    assert reply.vocab_sizes == (shared + 47, shared)
    (item,) = reply.items
    assert (item.top.ids[item.scored] < shared).all()
    (expected,) = score_texts(
        load_pair(*key),
        [TokenizedText(item.token_ids, item.start, item.end, 1)],
        vocab_mismatch="intersect",
    )
    np.testing.assert_allclose(item.quantities["kl"], expected.quantities["kl"], rtol=1e-6)


def padded(tiny, folder):
    shutil.copytree(tiny.base, folder)
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_request_is_bounded_by_what_its_tokens_are_found_to_be(tiny, pairs, tmp_path):
    """No two of 60 tildes are one token, and the template adds over 10; a queue of 140 takes 70 of a client.

    By bytes it was estimated as (4 + 1 + 9 + 60) / 3 + 2 · 4 + 1 = 34.
    """
    batcher = Batcher(pairs, max_batch_tokens=256, max_queued_tokens=140)
    source = ModelSource(path=str(tiny.base))
    request = ScoreRequest(
        policy=source, reference=source, items=[chat(("user", "a"), ("assistant", "~" * 60))]
    )
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        answer = in_background(lambda: client.post("/score", content=request.model_dump_json()))
        wait_until(lambda: batcher.stats().waiting_requests)
        drain(batcher)
        refused = answer.result(60)
    assert (refused.status_code, refused.json()["code"]) == (413, "input_too_long")
    assert refused.json()["context"]["limit"] == 70
    assert 70 < refused.json()["context"]["actual"] <= tiny_models.CONTEXT


def test_each_request_gets_as_many_top_terms_as_it_asked_for():
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    terms = ids.astype(np.float32)
    top = TopItems(ids, terms, -terms, terms / 2)
    scored = ScoredText(
        ids[:, 0], ids[:, 0], ids[:, 0], np.array([False, True]), {"kl": terms[:, 0], "k1": terms}, top
    )
    text = TokenizedText(ids[:, 0], ids[:, 1], ids[:, 2], 1, b"abc", True)
    source = ModelSource(path="a")
    for k in (0, 2):
        request = ScoreRequest(policy=source, reference=source, items=[], top_k=k, quantities=("kl",))
        found = item_scores(text, scored, request)
        assert (found.text, found.truncated, list(found.quantities)) == (b"abc", True, ["kl"])
        assert found.start.tolist() == [2, 5]
        assert (found.top is None) == (k == 0)
    assert found.top.ids.tolist() == [[1, 2], [4, 5]]
    assert found.top.reference_logprob.tolist() == [[-1, -2], [-4, -5]]
    assert found.top.kl_term.tolist() == [[0.5, 1], [2, 2.5]]


def test_a_reply_spells_the_ids_of_its_tops_and_no_others(tokenizer):
    ids = np.array([[7, 8], [9, 10], [11, 9]], np.int32)
    terms = np.zeros((3, 2), np.float32)
    item = ItemScores(
        token_ids=ids[:, 0],
        start=ids[:, 0],
        end=ids[:, 0],
        scored=np.array([False, True, True]),
        quantities={},
        top=TopTerms(ids=ids, policy_logprob=terms, reference_logprob=terms + 1, kl_term=terms + 2),
        text=b"\xf0\x9f",
        truncated=True,
    )
    error = ItemError(code="empty_input", detail="x")
    found = top_pieces(tokenizer, [item, error])
    assert found == {token_id: tokenizer.decode([token_id]) for token_id in (9, 10, 11)}
    models = Weights(revision="a", weights_sha256="b"), Weights()
    reply = ScoreReply(
        items=[item, error, item],
        tokenizer_sha256="",
        vocab_size=9,
        weights_dtype="",
        models=models,
        pieces=found,
    )
    decoded = decode_reply(encode_reply(reply))
    assert decoded.models == models
    assert decoded.pieces == found
    assert decoded.items[1] == error
    for again in (decoded.items[0], decoded.items[2]):
        assert (again.text, again.truncated) == (b"\xf0\x9f", True)
        assert again.top.ids.tolist() == ids.tolist()
        assert again.top.kl_term.tolist() == (terms + 2).tolist()
    assert top_pieces(tokenizer, [error]) == {}


def test_hub_ids_are_opened_only_where_the_deployment_says_so(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    closed, open_ = (
        AllowedSources(Settings(data=tmp_path, model_roots=[tiny.root], allow_hub_models=allow))
        for allow in (False, True)
    )
    assert open_.weights(ModelSource(path="org/name")) == WeightSource("org/name")
    on_the_hub = ModelSource(path=str(tiny.adapter), base="org/name")
    assert open_.weights(on_the_hub).base == "org/name"
    refused = [
        (closed, "org/name"),
        (closed, "here/model"),
        (open_, "here/model"),
    ]  # the last would be a folder
    refused += [(open_, path) for path in ("../x", "a/b/c", "/etc", "a/..", "a\0/b", "a/b@main", "gpt2")]
    for sources, path in refused:
        for source in (ModelSource(path=path), ModelSource(path=str(tiny.adapter), base=path)):
            with pytest.raises(ScoringRefused) as error:
                sources.weights(source)
            assert error.value.code == "path_not_allowed"
