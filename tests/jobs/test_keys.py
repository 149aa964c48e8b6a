"""API keys: their form, and who passes."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import keys
from jobs.sql_store import SqlStore
from jobs.system import SystemRng


def test_only_the_issued_key_passes(store: SqlStore) -> None:
    mine, other = keys.new_key(SystemRng()), keys.new_key(SystemRng())
    grant = keys.Grant(owner="me", name="mine", scopes=frozenset({"score"}))
    store.create_key(mine.id, mine.secret_sha256, grant)
    assert keys.verify(store, str(mine)) == (mine.secret_sha256, "me", {"score"}, None)
    assert keys.verify(store, str(other)) is None
    assert keys.verify(store, str(mine._replace(secret=other.secret))) is None
    assert keys.verify(store, str(other._replace(secret=mine.secret))) is None
    assert mine.secret not in mine.secret_sha256


BASE64 = string.ascii_letters + string.digits + "_-"


@given(st.text("0123456789abcdef", min_size=8, max_size=8), st.text(BASE64, min_size=43, max_size=43))
def test_every_key_parses_to_itself(key_id: str, secret: str) -> None:
    key = keys.Key(key_id, secret)  # a secret may begin with or hold underscores
    assert keys.parse(str(key)) == key


def test_made_keys_have_the_form() -> None:
    assert all(keys.parse(str(key)) == key for key in (keys.new_key(SystemRng()) for _ in range(200)))


@pytest.mark.parametrize(
    "text",
    ["", "kl_", "kl_0123abcd_" + "a" * 42, "kl_0123abcd_" + "a" * 44, "kl_0123abcd_" + "a" * 43 + "\n",
     "KL_0123abcd_" + "a" * 43, "kl_0123abcg_" + "a" * 43, "kl_0123abcd_" + "é" * 43, "kl_٠123abcd_" + "a" * 43],
)  # fmt: skip
def test_nothing_else_is_a_key(text: str) -> None:
    assert keys.parse(text) is None


def test_job_ids_sort_by_time() -> None:
    ids = [SystemRng().job_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
