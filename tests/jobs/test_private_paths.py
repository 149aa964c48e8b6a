"""What a failed job says of paths: their last part."""

import pytest

from jobs.private_paths import for_clients, without_folders
from jobs.spec import JobFailure


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot load /srv/models/x: no config.json", "cannot load …/x: no config.json"),
        ("[Errno 2] No such file: '/data/jobs/my job/a.json'", "[Errno 2] No such file: '…/a.json'"),
        ('  File "/app/worker/run.py", line 3, in run', '  File "…/run.py", line 3, in run'),
        ("(/a/b/), [/c/d], x=/e/f;", "(…/), […/d], x=…/f;"),
        ("file:///srv/models/x is empty", "…/x is empty"),
        ("'file:///srv/my models/x'", "'…/x'"),
        ("~/.cache/kleash/x", "~…/x"),
        ("/a/b and /c/d/e", "…/b and …/e"),
        # no path of the machine
        ("org/name, ./x/y, 3/4, tokens/s, and/or", "org/name, ./x/y, 3/4, tokens/s, and/or"),
        ("see GET /v1/models", "see GET /v1/models"),
        ("https://example.org/a/b?c=/d", "https://example.org/a/b?c=/d"),
        ("step 3 / 4, 5 tokens /s", "step 3 / 4, 5 tokens /s"),
        ("…/x", "…/x"),
    ],
)
def test_the_folders_of_an_absolute_path_are_left_out(text: str, shown: str) -> None:
    assert without_folders(text) == shown
    assert without_folders(shown) == shown


def test_a_failure_is_cut_and_keeps_the_rest() -> None:
    failure = JobFailure(code="c", detail="no /a/b", hint="h", step=3, log_tail=("x", "at /a/b/c"))
    shown = JobFailure(code="c", detail="no …/b", hint="h", step=3, log_tail=("x", "at …/c"))
    assert for_clients(failure) == shown
