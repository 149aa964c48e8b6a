import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kleash import render
from tests.kleash.scripted import a_finding, a_job, a_score

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202eevil\u200b[red]not markup[/red]"
SGR = re.compile("\x1b\\[[0-9;]*m")


def printed(what: object, *, colour: bool, width: int = 100) -> str:
    out = Console(
        file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None, width=width,
        markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    out.print(what)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@given(st.text(st.characters()))
def test_visible_text_cannot_steer_a_terminal(text: str) -> None:
    assert render.visible(text).isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_visible_leaves_printable_text_alone(text: str) -> None:
    assert render.visible(text) == text


def test_visible_keeps_different_controls_apart() -> None:
    assert render.visible("a\nb\x1bc\u202ed e") == "a⏎b␛c\\u{202e}d e"


@pytest.mark.parametrize("colour", [True, False])
def test_a_hostile_token_brings_no_escape_of_its_own_and_no_markup(colour: bool) -> None:
    text = printed(render.score_view(a_score(HOSTILE), "Oh " + HOSTILE), colour=colour)
    rest = SGR.sub("", text)
    assert all(line.isprintable() for line in rest.split("\n"))
    assert "␛]0;title" in rest
    assert "[red]" in rest
    assert bool(SGR.search(text)) is colour


def test_the_numbers_behind_the_colours() -> None:
    text = printed(render.score_view(a_score(), "Oh certainly"), colour=False)
    assert "Oh certainly(+1.6)" in text  # the seed's token, k1 = ln(.25/.05)
    assert re.search(r"certainly +-1\.386 +-2\.996 +\+1\.609 +0\.5000", text)
    assert "1 tokens scored   Σ k1 = +1.609 nats   Σ exact KL = 0.5000 nats" in text


def test_colour_follows_exact_kl_and_not_the_sign_of_k1() -> None:
    backgrounds = []
    for kl in (0.0, 0.05, 0.2, 0.5, 2.0, 30.0):
        token = render.Token(b"x", -1.0, -1.0, -5.0, kl)
        backgrounds.append(str(render.running_text([token]).spans[0].style) if kl >= 0.02 else "")
    assert backgrounds == list(render.KL_STYLES)


def test_a_character_of_several_tokens_is_whole_in_the_text_and_bytes_in_the_table() -> None:
    pieces = (b"\xe6\x97", b"\xa5")  # 日
    first, last = (render.Token(raw, -1.0, -1.0, 0.0, kl) for raw, kl in zip(pieces, (2.0, 0.0), strict=True))
    line = render.running_text([first, last])
    assert line.plain == "日"
    assert line.spans[0].style == render.KL_STYLES[4]  # of 2.0, the larger of the two
    text = printed(render.token_table([first, last]), colour=False)
    assert "\\xe6\\x97" in text
    assert "\\xa5" in text


def test_an_id_is_never_cut() -> None:
    job = a_job("cancelling", 3, id="job_" + "0" * 32, name="a name that does not fit beside the rest of it")
    assert job["id"] in printed(render.job_table([job]), colour=False, width=80)


def test_an_item_without_scores_says_why() -> None:
    score = {"index": 0, "error": {"code": "input_too_long", "detail": "3000 tokens\x1b"}}
    assert "not scored: 3000 tokens␛ (input_too_long)" in printed(render.score_view(score, "x"), colour=False)


def test_a_job_in_a_line() -> None:
    job = a_job("running", 2, phase="rollout\x1b")
    assert render.job_line(job) == "running (rollout␛)  step 2/4  reward +0.250  KL/seq 1.50"


def test_findings_stand_below_the_line_in_plain_words() -> None:
    job = a_job("running", 2, diagnosis=[a_finding(), a_finding("eos_lost", "No end.\x1b[2J")])
    line, first, second = render.job_view(job).split("\n")
    assert line == render.job_line(job)
    assert first == (
        "! kl_off_target: The KL stays away. (2.5, threshold 2; steps 81–100: mean kl/sequence 15) "
        "A lower learning rate."
    )
    assert second.startswith("! eos_lost: No end.␛[2J (")
    for nothing in ([], None):
        assert render.job_view(a_job("running", 2, diagnosis=nothing)) == render.job_line(job)


def test_a_failed_job_shows_its_reason_and_its_last_words() -> None:
    error = {
        "code": "nan_loss",
        "detail": "NaN in the loss",
        "hint": "Lower lr.",
        "log_tail": ["a", "\x1b[2J"],
    }
    line = render.job_line(a_job("failed", 1, error=error))
    assert line.endswith("nan_loss: NaN in the loss Lower lr.\n    a\n    ␛[2J")


def test_a_score_job_counts_items_and_may_not_know_its_end_yet() -> None:
    job = a_job("running", 0)
    job["phase"], job["progress"]["total_steps"], job["progress"]["latest"] = None, None, {}
    assert render.job_line(job) == "running  step 0/?"
    counted = {"items_done": 1024, "items_failed": 3, "tokens_per_s": 412.7, "kl/token": 0.1}
    job["progress"] |= {"step": 2, "total_steps": 9, "latest": counted}
    assert render.job_line(job) == "running  step 2/9  1024 items  3 failed  413 tokens/s"
