"""`python -m tests.http_contract.generated --cases 10000 [--seed N]`: schemathesis on our own OpenAPI document.

All its phases and checks, for each role in turn: the owner of what is there, a stranger, and nobody; with fewer
examples the owner's key that may only score, one that is revoked and one that has expired. The last line is a JSON
object with the cases and failures of each role; the exit code is 1 if there are any. Below 10,000 cases the phase
that covers each constraint of the document by itself is left out, and there are fewer examples.

A request that fits the schema may still break a rule between fields (`reward` and `beta` go together), which JSON
Schema says badly: operations with such rules may answer 422, which counts as declared and is checked as a problem.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.http_contract.served import Served, served

SEMANTIC = (
    *("scores_create", "scores_stream", "tokens_encode", "tokens_decode", "divergences_create"),
    *("jobs_create", "jobs_change", "files_create", "checkpoints_update"),
    *("api_keys_create", "webhooks_create", "webhooks_update"),
)
WHOLE = 10_000  # cases from which on all phases are run
EXAMPLES = {"owner": 40, "stranger": 40, "nobody": 10, "narrow": 10, "revoked": 3, "expired": 3}
# Of each role: examples for each operation in a whole run.
REFUSED = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "422", "429"]
ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "410", "412", "413", "416", "429", "503"]


def config(server: Served, role: str) -> str:
    """schemathesis.toml: real ids, the role's key, and which operations have rules between fields."""
    lines = ['hooks = "tests.http_contract.checks"']
    if headers := server.headers(role):
        lines.append(f"headers = {{ Authorization = {json.dumps(headers['Authorization'])} }}")
    for name, values in server.ids.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines += ["[checks.positive_data_acceptance]", f"expected-statuses = {json.dumps(ACCEPTED)}"]
    lines += ["[checks.negative_data_rejection]", f"expected-statuses = {json.dumps(REFUSED)}"]
    lines.append("[parameters]")
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.8 }}' for name in server.ids]
    for operation in SEMANTIC:
        lines += [
            "[[operations]]",
            f'include-operation-id = "{operation}"',
            "[operations.checks.positive_data_acceptance]",
            f"expected-statuses = {json.dumps([*ACCEPTED, '422'])}",
        ]
    lines += [
        "[[operations]]",
        'include-operation-id = ["jobs_events_stream", "events_stream"]',
        "enabled = false",
    ]  # they have no end
    return "\n".join(lines) + "\n"


def run(server: Served, role: str, *, seed: int, share: float, folder: Path) -> dict[str, Any]:
    """One run with that share of the examples; schemathesis' own report."""
    (folder / "schemathesis.toml").write_text(config(server, role))
    report = folder / "report.json"
    command = [
        *(sys.executable, "-W", "ignore", "-m", "schemathesis.cli"),
        *("--config-file", str(folder / "schemathesis.toml"), "run", f"{server.url}/openapi.json"),
        *("--checks", "all", "--exclude-checks", "use_after_free"),  # deleted_stays_deleted instead
        *("--seed", str(seed), "--max-examples", str(max(1, round(share * EXAMPLES[role])))),
        *(() if share == 1 else ("--phases", "examples,fuzzing,stateful")),
        *("--report", "json", "--report-json-path", str(report), "--continue-on-failure"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    told: dict[str, Any] = json.loads(report.read_text())
    if told["failures"] or told["errors"]:
        sys.stdout.write(done.stdout)
    return told


def main() -> int:
    """Rounds of all roles until there were enough cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    cases, failures = dict.fromkeys(EXAMPLES, 0), dict.fromkeys(EXAMPLES, 0)
    share = min(1.0, given.cases / WHOLE)
    seed = given.seed
    while sum(cases.values()) < given.cases:
        with served() as server, tempfile.TemporaryDirectory() as folder:
            for role in EXAMPLES:
                told = run(server, role, seed=seed, share=share, folder=Path(folder))
                cases[role] += told["test_cases"]["generated"]
                failures[role] += len(told["failures"]) + len(told["errors"])
        seed += 1
    sys.stdout.write(json.dumps({"seed": given.seed, "cases": cases, "failures": failures}) + "\n")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
