"""The law of offsets, over HTTP: what tokens span is the text again, in each unit, for texts and for any ids."""

import random
from itertools import pairwise
from typing import Any

from starlette.testclient import TestClient

COLUMNS = ("ids", "text", "start", "end")
UNITS = ("byte", "codepoint", "utf16")
HARD_TEXTS = [
    "plain words",
    "👩‍👩‍👧‍👦 👍🏽🇨🇭 ZWJ, skin and flags",
    "日本語と中文和한국어𠮷",
    "e\u0301 a\u0308\u0323 n\u0303 combining",
    "שלום, עולם \u202eand\u202c مرحبا",
    "a<|end|>b<｜begin｜> \t\n \u200d\ufe0f\u00a0",
]


def sliced(text: str, unit: str, start: int, end: int) -> str:
    """text[start:end] as a client of that unit would take it."""
    if unit == "byte":
        return text.encode()[start:end].decode("utf-8", "surrogateescape")
    if unit == "codepoint":
        return text[start:end]
    return text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")


def size(text: str, unit: str) -> int:
    sizes = {"byte": len(text.encode()), "codepoint": len(text), "utf16": len(text.encode("utf-16-le")) // 2}
    return sizes[unit]


def assert_tiles(text: str, tokens: dict[str, Any], unit: str) -> None:
    """The tokens' slices, without what an earlier one already spans, are the text; so are the pieces if whole."""
    spans = [span for span in zip(tokens["start"], tokens["end"], strict=True) if span[0] < span[1]]
    assert (spans[0][0] if spans else 0) == 0
    assert all(before[1] >= after[0] and before[0] <= after[0] for before, after in pairwise(spans))
    assert (spans[-1][1] if spans else 0) == size(text, unit)
    joined, reached = b"", 0
    for start, end in spans:
        part = sliced(text, unit, max(start, reached), end)
        joined, reached = joined + part.encode("utf-8", "surrogateescape"), max(reached, end)
        if unit != "byte":
            part.encode()  # no slice cuts a character
    assert joined == text.encode()
    if unit == "byte":
        assert all(before[1] == after[0] for before, after in pairwise(spans))
    if not any("\ufffd" in piece for piece in tokens["text"]):
        assert "".join(tokens["text"]) == text


def answer(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def assert_offsets_hold(client: TestClient, text: str) -> None:
    """/v1/scores, /v1/tokenize and /v1/detokenize agree on the tokens, and their spans hold the text."""
    for unit in UNITS:
        (scored,) = answer(client, "/v1/scores", input=text, offsets=unit, quantities=["k1"])["data"]
        assert_tiles(text, scored["tokens"], unit)
        (plain,) = answer(client, "/v1/tokenize", input=text, offsets=unit)["data"]
        for column in COLUMNS:
            assert plain["tokens"][column] == scored["tokens"][column]
        ids = plain["tokens"]["ids"]
        (back,) = answer(client, "/v1/detokenize", input=ids, offsets=unit)["data"]
        assert (back["text"], back["lossless"], back["tokens"]) == (text, True, plain["tokens"])


def assert_any_ids_hold(client: TestClient, *, count: int = 12, seed: int = 1) -> None:
    """Random ids cut characters anywhere: spans are in order, and tile whatever the ids spell if that is text."""
    draw, size_of = random.Random(seed), answer(client, "/v1/tokenize", input="")["tokenizer"]["vocab_size"]
    lists = [[draw.randrange(size_of) for _ in range(draw.randrange(2, 12))] for _ in range(count)]
    for unit in UNITS:
        scored = answer(client, "/v1/scores", input=lists, offsets=unit, quantities=["k1"])["data"]
        spelled = answer(client, "/v1/detokenize", input=lists, offsets=unit)["data"]
        for item, score in zip(spelled, scored, strict=True):
            tokens = item["tokens"]
            assert [tokens[name] for name in COLUMNS] == [score["tokens"][name] for name in COLUMNS]
            spans = list(zip(tokens["start"], tokens["end"], strict=True))
            assert spans[0][0] == 0
            assert all(start <= end for start, end in spans)
            assert all(before[0] <= after[0] <= before[1] for before, after in pairwise(spans))
            if item["lossless"]:
                assert_tiles(item["text"], tokens, unit)
