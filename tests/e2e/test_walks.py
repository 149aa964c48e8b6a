"""Both walks over HTTP on the real stack and model, against a computation that shares no code with ours."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kleash import Client
from tests.stack import Stack, nobody_is_left

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "The film was a quiet pleasure — 東京 👩‍👩‍👧."
JOB = {
    "name": "e2e",
    "config": {
        "model": {"name": "smollm2-135m-instruct", "lora": {"rank": 2}},
        "data": {
            "prompts": ["The hotel room was", "My first day at work was", "The soup is", "Our garden is"],
            "eval_prompts": ["The weather was", "The book is"],
        },
        "reward": {"kind": "sentiment"},
        "rollout": {"batch_size": 4, "max_new_tokens": 8},
        "kl": {"beta": 0.05, "controller": {"kind": "pi", "target_nats_per_sequence": 3.0}},
        "optimization": {"steps": 2, "learning_rate": 0.001},
    },
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default pair, prepared as `make demo` does."""
    file = tmp_path_factory.mktemp("registry") / "models.json"
    subprocess.run([sys.executable, EXAMPLES / "prepare_model.py", "--registry", file], check=True)
    return file


@pytest.fixture(scope="module")
def client(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    data = tmp_path_factory.mktemp("stack") / "data"
    stack = Stack(data, registry, "--port", "0", "--unsafe-no-auth")
    with Client(stack.ready()["url"], timeout_s=120) as client:
        yield client
    stack.end(signal.SIGTERM)
    assert nobody_is_left(data)


@pytest.fixture(scope="module")
def job(client: Client) -> dict[str, Any]:
    """A PPO job of two steps, finished."""
    job = client.jobs.wait(client.jobs.create(JOB)["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module")
def weights(client: Client, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's final checkpoint, downloaded as any client would."""
    folder = tmp_path_factory.mktemp("weights")
    pieces = client.checkpoints.archive(job["result"]["checkpoint_id"])
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{job['id']}-final"


def logits64(ids: list[int], base: str, adapter: str | None) -> torch.Tensor:
    """Full logits in float64, by transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def expected(ids: list[int], base: str, adapter: str) -> dict[str, torch.Tensor]:
    """What /v1/scores must say of tokens 1, 2, …: entry t is about the distribution that predicts token t."""
    policy, reference = (logits64(ids, base, which)[:-1].log_softmax(-1) for which in (adapter, None))
    token = torch.tensor(ids[1:])[:, None]
    ours, theirs = policy.gather(1, token)[:, 0], reference.gather(1, token)[:, 0]
    return {
        "policy_logprob": ours,
        "reference_logprob": theirs,
        "k1": ours - theirs,
        "k3": torch.expm1(theirs - ours) + ours - theirs,
        "kl": (policy.exp() * (policy - reference)).sum(-1),
        "entropy": -(policy.exp() * policy).sum(-1),
    }


def check(item: dict[str, Any], text: str, base: str, adapter: str) -> None:
    tokens = item["tokens"]
    assert tokens["ids"] == AutoTokenizer.from_pretrained(base)(text)["input_ids"]
    raw = text.encode()
    pieces = [raw[a:b] for a, b in zip(tokens["start"], tokens["end"], strict=True)]
    assert b"".join(pieces) == raw  # the byte offsets tile the text, emoji and all
    truth = expected(tokens["ids"], base, adapter)
    for name, values in truth.items():
        got = tokens[name]
        assert got[0] is None
        # ∂k3/∂d = −expm1(−d): where the reference finds a token far likelier, k3 magnifies float32's rounding.
        slope = torch.expm1(-truth["k1"]).clamp(min=1.0) if name == "k3" else torch.ones_like(values)
        assert ((torch.tensor(got[1:], dtype=torch.float64) - values).abs() <= 1e-4 * slope).all(), name
        assert item["sums"][name] == pytest.approx(float(values.sum()), abs=1e-3)


def sources(registry: Path) -> tuple[str, str]:
    models = json.loads(registry.read_text())["models"]
    return models["smollm2-135m-instruct"]["source"], models["smollm2-135m-cheerful"]["source"]


def test_the_default_pair_scores_as_float64_transformers_does(client: Client, registry: Path) -> None:
    answer = client.scores.create([TEXT])
    check(answer["data"][0], TEXT, *sources(registry))


def test_a_finished_job_is_a_model_to_score(
    client: Client, job: dict[str, Any], registry: Path, weights: Path
) -> None:
    answer = client.scores.create([TEXT], policy=job["result"]["model"], reference="smollm2-135m-instruct")
    assert answer["data"][0]["sums"]["kl"] > 0
    check(answer["data"][0], TEXT, sources(registry)[0], str(weights))


def test_the_exported_checkpoint_says_what_our_policy_says(
    job: dict[str, Any], registry: Path, weights: Path
) -> None:
    """Greedy text of AutoModelForCausalLM + PEFT on the exported folder equals that of our own loop."""
    from peft import PeftModel

    from rlhf_core.config.ppo import ModelConfig
    from rlhf_core.policies import load_policy
    from rlhf_core.rollout import generate, response_ids

    base = sources(registry)[0]
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), weights)
    named = exported.peft_config["default"].base_model_name_or_path
    assert named == job["config"]["model"]["name"], "and no folder of the server"
    tokenizer = AutoTokenizer.from_pretrained(weights)
    inputs = tokenizer("The weather was", return_tensors="pt")
    theirs = exported.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    policy = load_policy(base, weights, ModelConfig(name=base))
    with policy.policy() as model:
        ours = generate(
            model,
            [policy.codec.encode("The weather was")],
            max_new_tokens=12,
            temperature=1.0,
            eos_ids=policy.codec.eos_ids,
            pad_id=policy.codec.pad_id,
            generator=None,
        )
    assert response_ids(ours)[0] == theirs[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_job_reported_on_itself(client: Client, job: dict[str, Any]) -> None:
    rows = client.jobs.metric_rows(job["id"])
    assert [row["step"] for row in rows] == [1, 2]
    first, second = (row["metrics"] for row in rows)
    assert first["kl/sequence"] == 0.0  # the adapter starts as nothing: the policy is its reference
    assert second["kl/sequence"] > 0
    assert second["kl/beta"] < first["kl/beta"] == 0.05  # below target, the leash loosens
    assert job["progress"] | {"step": 2, "total_steps": 2, "percent": 100.0} == job["progress"]
    assert job["result"]["evaluation"]["reward_difference"]["n"] == 2
    samples = client.jobs.samples(job["id"], kind="eval", step=0)["data"]
    assert [sample["prompt"] for sample in samples] == JOB["config"]["data"]["eval_prompts"]  # type: ignore[index]
    names = [checkpoint["name"] for checkpoint in client.jobs.checkpoints(job["id"])["data"]]
    assert names == ["step-1", "final"]
    events = [event["type"] for event in client.jobs.events(job["id"])["data"]]
    assert events[0] == "job.created"
    assert events[-1] == "job.succeeded"
