"""/v1/tokenize and /v1/detokenize over the stand-in scorer: forms, units, refusals."""

import pytest

from api.schemas_tokenize import DetokenizedList, TokenizedList


def encode(client, status=200, **body):
    response = client.post("/v1/tokenize", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        TokenizedList.model_validate_json(response.content, strict=True)
    return response.json()


def decode(client, status=200, **body):
    response = client.post("/v1/detokenize", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        DetokenizedList.model_validate_json(response.content, strict=True)
    return response.json()


def test_texts_become_tokens(client, scorer):
    found = encode(client, input=["a日", ""], offsets="utf16", add_special_tokens=False)
    assert (found["model"], found["tokenizer"]) == ({"id": "tuned"}, {"sha256": "ab" * 32, "vocab_size": 256})
    first, second = found["data"]
    assert first["tokens"] == {
        "ids": [97, 230, 151, 165],
        "text": ["a", "�", "�", "�"],
        "special": [False] * 4,
        "start": [0, 1, 1, 1],
        "end": [1, 2, 2, 2],
    }
    assert (second["n_tokens"], second["tokens"]["ids"], second["index"]) == (0, [], 1)
    assert found["usage"] == {"input_tokens": 4}
    (asked,) = scorer.tokenized
    assert (asked.texts, asked.add_special_tokens, asked.model.base) == (["a日", ""], False, "org/base")


def test_ids_become_text_and_say_what_is_lost(client):
    whole, cut = decode(client, model="base", input=[[0, 97, 230, 151, 165], [230, 151]])["data"]
    assert (whole["text"], whole["lossless"]) == ("\0a日", True)
    assert whole["tokens"]["special"] == [True, False, False, False, False]
    assert (cut["text"], cut["lossless"], cut["index"]) == ("�", False, 1)
    assert "start" not in decode(client, input=[97], offsets="none")["data"][0]["tokens"]
    assert decode(client, input=[])["data"][0]["text"] == ""


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": [256]}, 422, "token_id_out_of_range"),
        ({"input": [-1]}, 422, "token_id_out_of_range"),
        ({"input": [1.0]}, 422, "validation_error"),
        ({"input": [True]}, 422, "validation_error"),
        ({"input": "a"}, 422, "validation_error"),
        ({"input": [1, [2]]}, 422, "validation_error"),
        ({"model": "none", "input": [1]}, 422, "unknown_model"),
        ({"model": "../../etc", "input": [1]}, 422, "path_not_allowed"),
        ({"input": [[1]] * 257}, 413, "too_many_items"),
    ],
)
def test_what_cannot_be_spelled(client, body, status, code):
    assert decode(client, status, **body)["code"] == code
    if code in ("unknown_model", "path_not_allowed"):
        assert encode(client, status, model=body["model"], input="a")["code"] == code
