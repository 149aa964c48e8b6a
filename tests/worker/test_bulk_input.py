"""The input of a score job: windows that depend on nothing but the file, and lines that fail alone."""

import hashlib
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.bulk import BulkItem, ScoreConfig
from jobs.lines import MAX_LINE_BYTES, BadLine, parse_line
from worker.bulk_input import Cursor, Line, Reader, count_items, open_input
from worker.failures import DatasetError

LINES = st.lists(
    st.sampled_from(['"a"', '{"text": "é"}', "", "  ", "{", '{"prompt": "b", "completion": "c"}'])
)


def windows(content: bytes, items: int, *, cursor: Cursor | None = None, first: int = 0) -> list[Any]:
    reader = Reader(io.BytesIO(content))
    if cursor is not None:
        reader.skip_to(cursor)
    return list(reader.windows(first, items))


@given(LINES, st.integers(1, 4), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_windows_are_the_same_from_wherever_one_begins(
    lines: list[str], items: int, newline: str, ended: bool
) -> None:
    content = (newline.join(lines) + newline * ended).encode()
    whole = windows(content, items)
    found = [line for window in whole for line in window.lines]
    assert [line.number for line in found] == [n for n, line in enumerate(lines, start=1) if line.strip()]
    assert all(len(window.lines) == items for window in whole[:-1])
    for window in whole:
        assert window.end.sha256 == hashlib.sha256(content[: window.end.bytes]).hexdigest()
        rest = windows(content, items, cursor=window.end, first=window.number + 1)
        assert rest == whole[window.number + 1 :]
    if found:
        file = io.BytesIO(content)
        assert (count_items(file), file.tell()) == (len(found), 0)


def test_no_more_than_a_window_is_read() -> None:
    class Counting(io.BytesIO):
        lines = 0

        def readline(self, *size: Any) -> bytes:
            self.lines += 1
            return super().readline(*size)

    file = Counting(b'"a"\n' * 1000)
    next(Reader(file).windows(0, 10))
    assert file.lines == 10


def test_a_line_that_is_too_long_fails_alone_and_is_never_held() -> None:
    content = b'"a"\n' + b"x" * (3 * MAX_LINE_BYTES) + b'\n"b"\n' + b"y" * (MAX_LINE_BYTES + 1)
    (window,) = windows(content, 9)
    codes = [line.item.code if isinstance(line.item, BadLine) else line.item.text for line in window.lines]
    assert codes == ["a", "line_too_long", "b", "line_too_long"]
    assert window.end == Cursor(4, len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("line", "item"),
    [
        (b'"a"', {"text": "a"}),
        (b'{"text": "a", "id": 7}', {"text": "a", "id": 7}),
        (b'{"prompt": "p", "completion": "c", "reward": -1}', {"prompt": "p", "text": "c", "reward": -1.0}),
        (b'{"token_ids": [1, 2], "score_from": 1}', {"token_ids": [1, 2], "score_from": 1}),
        (
            b'{"messages": [{"role": "user", "content": "hi"}]}',
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
    ],
)
def test_a_line_is_what_a_request_s_item_is(line: bytes, item: dict[str, Any]) -> None:
    found = parse_line(1, line)
    assert isinstance(found, BulkItem)
    assert found.model_dump(exclude_unset=True) == item


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "malformed_json"),
        (b"NaN", "malformed_json"),
        (b'"\xff"', "malformed_json"),
        (rb'"\ud800"', "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b"7", "validation_error"),
        (b"null", "validation_error"),
        (b'{"text": "SECRET", "token_ids": [1]}', "validation_error"),
        (b'{"text": 5, "SECRET": 1}', "validation_error"),
        (b'{"prompt": "SECRET", "token_ids": [1, 2]}', "validation_error"),
        (b'{"prompt": "SECRET", "messages": [{"role": "user", "content": "hi"}]}', "validation_error"),
        (b'{"text": "SECRET", "score_from": 2}', "validation_error"),
        (b'{"messages": [{"role": "user", "content": "SECRET"}], "score_from": 2}', "validation_error"),
        (b'{"text": "a", "completion": "SECRET"}', "validation_error"),
        (b'{"text": "a", "reward": "SECRET"}', "validation_error"),
        (b'{"text": "a", "reward": true}', "validation_error"),
    ],
)
def test_what_is_no_item_says_where_and_repeats_nothing(line: bytes, code: str) -> None:
    found = parse_line(17, line)
    assert isinstance(found, BadLine)
    assert found.code == code
    assert found.detail.startswith("line 17")
    assert "SECRET" not in found.detail


def test_the_request_s_own_items_are_read_as_a_file_is() -> None:
    config = ScoreConfig.model_validate({"items": ["a\nb", {"prompt": "p", "completion": "c", "id": "x"}]})
    with open_input(config, None) as file:
        (window,) = Reader(file).windows(0, 9)
    assert window.lines == [
        Line(1, BulkItem(text="a\nb")),
        Line(2, BulkItem(prompt="p", text="c", id="x")),
    ]


def test_a_shard_of_per_token_results_is_bounded_by_items_and_top_k() -> None:
    """4096 rows: 512 items of 1 + 7, or 195 of 1 + 20."""
    for every, top_k, most in ((512, 7, 512), (512, 8, 455), (195, 20, 195), (196, 20, 195), (4096, 0, 4096)):
        config = {"items": ["a"], "per_token": True, "top_k": top_k, "checkpoint": {"every_items": every}}
        if every <= most:
            ScoreConfig.model_validate(config)
            continue
        with pytest.raises(
            ValidationError, match=rf"\({every}\) .* \({1 + top_k}\) .* every_items may be {most}"
        ):
            ScoreConfig.model_validate(config)
    assert ScoreConfig.model_validate({"items": ["a"], "checkpoint": {"every_items": 4096}}).top_k == 0


def test_an_input_without_a_line_or_without_a_file_is_refused() -> None:
    with pytest.raises(DatasetError, match="no line"):
        count_items(io.BytesIO(b"\n \n"))
    with pytest.raises(DatasetError, match="cannot be read"):
        open_input(ScoreConfig(items_file="x"), "/nowhere/x")


@pytest.mark.parametrize("content", [b'"b"\n"b"\n', b'"a"', b""])
def test_what_was_read_may_not_change(content: bytes) -> None:
    (window, _) = windows(b'"a"\n"b"\n', 1)
    with pytest.raises(DatasetError, match="changed"):
        windows(content, 1, cursor=window.end)


def test_an_upload_must_be_what_it_was() -> None:
    content = b'"a"\n\n"b"'
    sha256 = hashlib.sha256(content).hexdigest()
    file = io.BytesIO(content)
    assert (count_items(file, sha256), file.tell()) == (2, 0)
    with pytest.raises(DatasetError, match="is not what was uploaded"):
        count_items(io.BytesIO(content + b"\n"), sha256)
