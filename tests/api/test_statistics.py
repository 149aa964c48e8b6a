"""What /v1/scores says of several texts together: sequence KL, effective sample size, attribution."""

import math

import numpy as np
import pytest

from api.schemas_scores import ScoreList
from jobs.scoring_wire import ItemScores, ScoreReply, TopTerms, decode_reply, encode_reply

# T5: two tokens after an unscored one, policy P against reference Q; texts are written "x00" … "x11".
P1, P2 = (0.7, 0.3), ((0.9, 0.1), (0.2, 0.8))
Q1, Q2 = (0.5, 0.5), ((0.6, 0.4), (0.5, 0.5))
TEXTS = {"x00": (0, 0), "x01": (0, 1), "x10": (1, 0), "x11": (1, 1)}


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def chain_scores(item, names):
    """The answer of the two chains to a text of T5."""
    y, z = TEXTS[item.text]
    columns = {
        "k1": (math.log(P1[y] / Q1[y]), math.log(P2[y][z] / Q2[y][z])),
        "kl": (kl(P1, Q1), kl(P2[y], Q2[y])),
        "kl_ref": (kl(Q1, P1), kl(Q2[y], P2[y])),
    }
    return ItemScores(
        token_ids=np.frombuffer(item.text.encode(), np.uint8).astype(np.int32),
        start=np.arange(3, dtype=np.int32),
        end=np.arange(1, 4, dtype=np.int32),
        scored=np.array([False, True, True]),
        quantities={name: np.array([math.nan, *columns[name]], np.float32) for name in names},
    )


def answering(make):
    """A scorer whose items are make(item, quantities), through the wire format."""

    def answer(request):
        items = [make(item, request.quantities) for item in request.items]
        reply = ScoreReply(
            items=items,
            tokenizer_sha256="ab" * 32,
            vocab_size=256,
            weights_dtype="float32",
            pieces={2: " the", 3: " cat"},
        )
        return decode_reply(encode_reply(reply))

    return answer


def post(client, body):
    response = client.post("/v1/scores", json=body)
    assert response.status_code == 200, response.text
    ScoreList.model_validate_json(response.content, strict=True)  # what OpenAPI promises
    return response.json()


def sample(p1, p2):
    """100 texts, each as often as its probability says; and those probabilities."""
    probability = {text: p1[y] * p2[y][z] for text, (y, z) in TEXTS.items()}
    return [text for text, p in probability.items() for _ in range(round(100 * p))], probability


def test_texts_of_the_policy_estimate_its_sequence_kl(client, scorer):
    scorer.answer = answering(chain_scores)
    texts, policy = sample(P1, P2)
    _, reference = sample(Q1, Q2)
    found = post(client, {"input": texts, "sampled_from": "policy", "quantities": ["kl"]})
    block = found["summary"]["sequence_kl"]
    assert block["estimates"] == "kl"
    for name in ("rao_blackwell", "k1", "k3"):
        assert block[name]["mean"] == pytest.approx(0.2985087184, abs=1e-6)
        assert block[name]["low"] < block[name]["mean"] < block[name]["high"]
    assert block["rao_blackwell"] == found["summary"]["sums"]["kl"]
    assert block["k1"]["se"] ** 2 * 99 == pytest.approx(0.4574377543, rel=1e-5)
    assert block["variance_ratio"] == pytest.approx(0.4574377543 / 0.0002362977, rel=1e-3)
    # w = ref/π: (Σw)²/Σw² over n texts in the policy's proportions is n / Σ ref²/π
    share = 1 / sum(reference[text] ** 2 / policy[text] for text in TEXTS)
    assert found["summary"]["ess"] == {
        "size": pytest.approx(100 * share, rel=1e-5),
        "share": pytest.approx(share, rel=1e-5),
        "towards": "reference",
    }
    # What the statistics need was asked for, and is not shown.
    assert set(scorer.requests[0].quantities) == {"kl", "k1"}
    assert set(found["data"][0]["sums"]) == set(found["summary"]["sums"]) == {"kl"}
    assert set(found["data"][0]["tokens"]) == {"ids", "text", "start", "end", "scored", "kl"}


def test_texts_of_the_reference_estimate_the_other_direction(client, scorer):
    scorer.answer = answering(chain_scores)
    texts, reference = sample(Q1, Q2)
    _, policy = sample(P1, P2)
    found = post(client, {"input": texts, "sampled_from": "reference", "quantities": ["k1"]})
    block = found["summary"]["sequence_kl"]
    truth = kl(Q1, P1) + sum(q * kl(Q2[y], P2[y]) for y, q in enumerate(Q1))
    assert block["estimates"] == "kl_ref"
    for name in ("rao_blackwell", "k1", "k3"):
        assert block[name]["mean"] == pytest.approx(truth, abs=1e-6)
    assert block["k1"]["mean"] == -found["summary"]["sums"]["k1"]["mean"]
    share = 1 / sum(policy[text] ** 2 / reference[text] for text in TEXTS)
    assert found["summary"]["ess"]["share"] == pytest.approx(share, rel=1e-5)
    assert found["summary"]["ess"]["towards"] == "policy"
    assert found["data"][0]["sampled_from"] == "reference"
    assert "estimate KL(reference ‖ policy)" in found["note"]


def test_other_texts_estimate_nothing(client, scorer):
    scorer.answer = answering(chain_scores)
    found = post(client, {"input": ["x00", "x11"], "quantities": ["k1"]})
    assert found["summary"]["sequence_kl"]["estimates"] is None
    assert found["summary"]["ess"] is None
    assert "not an estimate of the sequence KL" in found["note"]


def test_completions_of_one_prompt_have_no_interval_and_no_ratio(client, scorer):
    scorer.answer = answering(chain_scores)
    items = [{"prompt": "", "completion": text} for text in ("x00", "x11")]
    block = post(client, {"input": items, "sampled_from": "policy", "quantities": ["k1"]})["summary"][
        "sequence_kl"
    ]
    assert block["variance_ratio"] is None
    assert (block["k1"]["se"], block["rao_blackwell"]["high"]) == (None, None)


def test_one_text_needs_nothing_more(client, scorer):
    scorer.answer = answering(chain_scores)
    found = post(client, {"input": "x00", "quantities": ["kl"]})
    assert (found["summary"], found["attribution"]) == (None, None)
    (request,) = scorer.requests
    assert (request.quantities, request.top_k) == (("kl",), 0)


# -- attribution ----------------------------------------------------------------------------------

PIECES = {"x the cat": ["x", " the", " cat"], "x\n7": ["x", "\n", "7"]}
IDS = {"x": 1, " the": 2, " cat": 3, "\n": 4, "7": 5}
KL = {" the": 1.0, " cat": 3.0, "\n": 0.5, "7": 0.0}


def drifted(item, names, *, scale=1.0, terms=True):
    """Each token's KL as in KL; its own item has 3/4 of it, item 9 an eighth."""
    pieces = PIECES[item.text]
    values = np.array([math.nan, *(KL[piece] * scale for piece in pieces[1:])], np.float32)
    columns = {
        "kl": values,
        "k1": values,
        "entropy": values + 1,
        "entropy_ref": values * 0 + 3,
        "policy_rank": values * 0 + 1,
        "reference_rank": np.where(values > 0, 4, 1).astype(np.float32),
    }
    ends = np.cumsum([len(piece) for piece in pieces]).astype(np.int32)
    scored = np.arange(len(pieces)) > 0
    half, quarter = (np.where(scored, math.log(p), 0.0).astype(np.float32) for p in (0.5, 0.25))
    return ItemScores(
        token_ids=np.array([IDS[piece] for piece in pieces], np.int32),
        start=np.array([0, *ends[:-1]], np.int32),
        end=ends,
        scored=scored,
        quantities={name: columns[name] for name in names},
        top=TopTerms(
            ids=np.array([[IDS[piece] * real, 9 * real] for piece, real in zip(pieces, scored, strict=True)]),
            policy_logprob=np.stack([half, quarter], 1),
            reference_logprob=np.stack([quarter, half], 1),
            kl_term=np.nan_to_num(np.outer(values, [0.75, 0.125])).astype(np.float32),
        )
        if terms
        else None,
    )


BODY = {"input": list(PIECES), "attribution": True, "quantities": ["k1"], "per_token": False}


def test_attribution(client, scorer):
    scorer.answer = answering(drifted)
    found = post(client, BODY)
    (request,) = scorer.requests
    assert request.top_k >= 20
    assert {"entropy", "entropy_ref", "policy_rank", "reference_rank", "kl"} <= set(request.quantities)
    assert list(found["data"][0]["sums"]) == ["k1"]
    attribution = found["attribution"]
    assert (attribution["kl"], attribution["n_tokens"]) == (4.5, 4)
    assert attribution["tokens"][0] == {
        "index": 0,
        "token": 2,
        "position": 1,
        "id": 3,
        "text": " cat",
        "kl": 3.0,
        "share": pytest.approx(3 / 4.5),
    }
    assert [token["text"] for token in attribution["tokens"]] == [" cat", " the", "\n", "7"]
    assert [(one["first"], one["last"], one["kl"]) for one in attribution["positions"]] == [
        (0, 0, 1.5),
        (1, 1, 3.0),
    ]
    assert [(one["name"], one["kl"]) for one in attribution["classes"]] == [
        ("word_start", 4.0),
        ("whitespace", 0.5),
        ("digits", 0.0),
    ]
    assert attribution["entropy"]["policy"] == pytest.approx(1 + 4.5 / 4)
    # Σ over the texts: (2 − 3) + (4 − 3) = 0 and (1.5 − 3) + (1 − 3) = −3.5, of 2 tokens each
    assert attribution["entropy"]["change"]["mean"] == pytest.approx(-3.5 / 4)
    assert attribution["ranks"] == {
        "risen": 0.75,
        "fallen": 0.0,
        "unchanged": 0.25,
        "median_ratio": pytest.approx(0.25),
    }


def test_attribution_to_vocabulary_items(client, scorer):
    scorer.answer = answering(drifted)
    vocabulary = post(client, BODY)["attribution"]["vocabulary"]
    assert vocabulary["top_k"] == 2
    assert vocabulary["coverage"] == pytest.approx(0.875)
    items = [(item["id"], item["text"], item["n_tokens"], item["kl"]) for item in vocabulary["items"]]
    assert items[:2] == [(3, " cat", 1, 2.25), (2, " the", 1, 0.75)]
    assert (9, None, 4, 0.5625) in items
    assert sum(item["share"] for item in vocabulary["items"]) == pytest.approx(0.875)
    assert {item["id"] for item in vocabulary["gainers"]} == {2, 3, 4, 5}
    assert [(item["id"], item["gain"]) for item in vocabulary["losers"]] == [(9, pytest.approx(-1.0))]


def test_attribution_of_one_text_and_of_no_drift(client, scorer):
    scorer.answer = answering(lambda item, names: drifted(item, names, scale=0.0, terms=False))
    found = post(client, BODY | {"input": "x the cat"})
    attribution = found["attribution"]
    assert (attribution["kl"], attribution["vocabulary"], found["summary"]) == (0.0, None, None)
    assert {one["share"] for one in attribution["tokens"] + attribution["classes"]} == {None}
    assert attribution["entropy"]["change"]["se"] is None
