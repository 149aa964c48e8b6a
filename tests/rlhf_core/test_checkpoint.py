"""A run that stops at any step and goes on from its checkpoint is, to the bit, a run that never stopped."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_core.checkpoint import MANIFEST, read_checkpoint, verify_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import CheckpointError
from rlhf_core.policies import Policy, new_policy, public_name
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, fresh_state

pytestmark = pytest.mark.usefixtures("no_shape_checks")
PROMPTS = ("The cat", "A lovely", "The quick brown", "Naïve")
STEPS = 4


LORA: dict[str, Any] = {"lora": {"rank": 2}}
FULL: dict[str, Any] = {"lora": None}
VALUE = LORA | {"value_adapter": {"rank": 2}}
BFLOAT16 = FULL | {"dtype": "bfloat16", "gradient_checkpointing": True}


def config(controller: dict[str, Any], model: dict[str, Any] = LORA, *, penalty: str = "k1") -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", **model},
            "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS[:2]},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "kl": {"beta": 0.1, "penalty": penalty, "controller": controller},
            "optimization": {"steps": STEPS, "learning_rate": 0.01, "minibatches": 2},
        }
    )


def advance(policy: Policy, state: TrainState, options: PPOConfig, until: int) -> list[dict[str, float]]:
    """Run up to step `until`; returns the metrics of the steps."""
    lines = []
    for step in train(
        policy,
        state,
        options,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        reward=make_reward(options.reward),
    ):
        if step.step:
            lines.append(step.metrics)
        if step.step == until:
            break
    return lines


def digest(policy: Policy, state: TrainState, folder: Path) -> str:
    """One hash over everything a checkpoint holds but its manifest (which names files, not the run)."""
    folder.mkdir()
    write_checkpoint(folder, policy, state)
    whole = hashlib.sha256()
    weights = "model" if (folder / "model.safetensors").exists() else "adapter_model"
    for name in (f"{weights}.safetensors", "trainer.safetensors", "trainer.json"):
        whole.update((folder / name).read_bytes())
    return whole.hexdigest()


SCHEDULE: dict[str, Any] = {"kind": "schedule", "final_beta": 0.3, "steps": 3, "shape": "cosine"}
ADAPTIVE: dict[str, Any] = {"kind": "adaptive", "target_nats_per_sequence": 0.5, "horizon": 40}


@pytest.mark.parametrize(
    ("controller", "model", "penalty"),
    [
        ({"kind": "fixed"}, LORA, "k1"),
        (SCHEDULE, LORA, "k1"),
        (ADAPTIVE, LORA, "k1"),
        ({"kind": "pi"}, LORA, "k1"),
        ({"kind": "pi"}, LORA, "exact"),
        ({"kind": "pi"}, VALUE, "k1"),
        ({"kind": "pi"}, FULL, "k1"),
        ({"kind": "pi"}, BFLOAT16, "k1"),
    ],
    ids=[
        "lora-fixed",
        "lora-schedule",
        "lora-adaptive",
        "lora-pi",
        "lora-exact",
        "value-adapter",
        "full",
        "full-bfloat16",
    ],
)
def test_t26_resume_is_bit_identical_at_every_step_boundary(
    tiny_model: Path, tmp_path: Path, controller: dict[str, Any], model: dict[str, Any], penalty: str
) -> None:
    options, source = config(controller, model, penalty=penalty), str(tiny_model)
    torch.manual_seed(11)  # the process's own generator is part of the state
    policy = new_policy(source, options.model, seed=0)
    state = fresh_state(policy, options)
    undisturbed: list[dict[str, float]] = []
    for boundary in range(1, STEPS):
        undisturbed += advance(policy, state, options, boundary)
        folder = tmp_path / f"step-{boundary}"
        folder.mkdir()
        write_checkpoint(folder, policy, state)
    undisturbed += advance(policy, state, options, STEPS)
    expected = digest(policy, state, tmp_path / "undisturbed")

    for boundary in range(1, STEPS):
        torch.manual_seed(99)  # whatever the new process did before
        policy, state = read_checkpoint(tmp_path / f"step-{boundary}", options, source=source)
        resumed = advance(policy, state, options, STEPS)
        assert json.dumps(resumed) == json.dumps(undisturbed[boundary:])
        assert digest(policy, state, tmp_path / f"resumed-{boundary}") == expected


@pytest.mark.parametrize("model", [LORA, VALUE, FULL], ids=["lora", "value-adapter", "full"])
def test_no_file_tells_where_the_base_lies(
    tiny_model: Path, tmp_path: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are downloaded. They say instead what the job calls the model, and nobody is asked for that."""
    folder, again = tmp_path / "first", tmp_path / "again"
    base = tmp_path / "canary" / "tiny"
    shutil.copytree(tiny_model, base)
    options = config({"kind": "pi"}, model)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", None)
    policy = new_policy(str(base), options.model, seed=0)
    for place, made in ((folder, policy), (again, None)):
        place.mkdir()
        if made is None:
            made, state = read_checkpoint(folder, options, source=str(base))
        else:
            state = fresh_state(made, options)
        digest = write_checkpoint(place, made, state)
        verify_checkpoint(place, digest)
        for file in place.iterdir():
            assert b"canary" not in file.read_bytes(), file.name
        assert json.loads((place / "manifest.json").read_text())["base"] == options.model.name
    if options.model.lora is not None:
        named = json.loads((folder / "adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == options.model.name
        assert f"base_model: {options.model.name}\n" in (folder / "README.md").read_text()
    assert public_name("org/name", options.model) == "org/name"


def test_a_checkpoint_that_still_names_a_folder_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """As those written before did; the folder may have gone since."""
    options = config({"kind": "pi"})
    policy = new_policy(str(tiny_model), options.model, seed=0)
    write_checkpoint(tmp_path, policy, fresh_state(policy, options))
    file = tmp_path / "adapter_config.json"
    old = json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/since"}
    file.write_text(json.dumps(old))
    again, _ = read_checkpoint(tmp_path, options, source=str(tiny_model))
    assert again.base == options.model.name


def test_the_generators_of_the_process_go_on_where_they_were(tiny_model: Path, tmp_path: Path) -> None:
    """A reward may draw from Python's, numpy's or torch's generator: each is part of the state."""

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    options = config({"kind": "pi"})
    policy = new_policy(str(tiny_model), options.model, seed=0)
    write_checkpoint(tmp_path, policy, fresh_state(policy, options))
    expected = draws()
    assert draws() != expected
    read_checkpoint(tmp_path, options, source=str(tiny_model))
    assert draws() == expected


@pytest.fixture
def saved(tiny_model: Path, tmp_path: Path) -> tuple[Path, str]:
    options = config({"kind": "pi"})
    policy = new_policy(str(tiny_model), options.model, seed=0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return folder, write_checkpoint(folder, policy, fresh_state(policy, options))


def test_every_damaged_or_missing_file_is_found(saved: tuple[Path, str]) -> None:
    folder, recorded = saved
    verify_checkpoint(folder, recorded)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for damage in (content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):
            path.write_bytes(damage)
            with pytest.raises(CheckpointError):
                verify_checkpoint(folder, recorded)
        path.unlink()
        with pytest.raises(CheckpointError):
            verify_checkpoint(folder, recorded)
        path.write_bytes(content)
    assert verify_checkpoint(folder, recorded)["step"] == 0


def test_a_checkpoint_is_safetensors_and_json_and_says_what_made_it(saved: tuple[Path, str]) -> None:
    folder, _ = saved
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}
    environment = json.loads((folder / MANIFEST).read_text())["environment"]
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()


def test_peft_and_transformers_load_it(saved: tuple[Path, str], tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), saved[0])
    assert model.peft_config["default"].r == 2
