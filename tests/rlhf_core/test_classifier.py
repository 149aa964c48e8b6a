"""A sequence classifier as a reward: what it reads, what is refused, and that a resumed run judges alike."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_core import classifier
from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.classifier import Classifiers, load_classifier
from rlhf_core.classifier_labels import output_index
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.config.rewards import ClassifierReward, RewardPart, WeightedReward
from rlhf_core.errors import ModelLoadError
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import TrainState, fresh_state
from tests.tiny_classifiers import CONTEXT, LABELS, save_decoder, save_encoder

pytestmark = pytest.mark.usefixtures("no_shape_checks")
PROMPTS = ["the cat ", "a ", "the policy and its reference ", "q"]
COMPLETIONS = ["sat on the mat", "dog", "日本", "the log and the learning from"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("classifiers") / "encoder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("classifiers") / "decoder")


def logits_one_by_one(folder: Path, texts: list[str]) -> torch.Tensor:
    """transformers itself, without padding; of a text longer than the context, its last tokens."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [torch.tensor([tokenizer(text)["input_ids"][-CONTEXT:]]) for text in texts]
    with torch.no_grad():
        return torch.cat([model(input_ids=one).logits for one in ids])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_reward_is_the_label_s_logit(kind: str, batch_size: int, encoder: Path, decoder: Path) -> None:
    folder = encoder if kind == "encoder" else decoder
    label = "good" if kind == "encoder" else None
    texts = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = logits_one_by_one(folder, texts)[:, LABELS.index("good") if label else 0]
    reward = make_reward(ClassifierReward(model=str(folder), label=label, batch_size=batch_size))
    scores = reward(PROMPTS, COMPLETIONS, [1] * 4)
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(scores) - min(scores) > 0.1  # it does tell them apart


def test_a_label_has_a_name_and_an_index(encoder: Path) -> None:
    by_name, by_index, other = (
        make_reward(ClassifierReward(model=str(encoder), label=label))(PROMPTS, COMPLETIONS, [1] * 4)
        for label in ("good", 2, "bad")
    )
    assert by_name == by_index != other


def test_of_a_long_text_the_end_is_read(encoder: Path) -> None:
    reward = make_reward(ClassifierReward(model=str(encoder), label="good"))
    middle = " the cat sat on the mat" * 20
    one, same, other = reward(["A", "B", "A"], [middle, middle, middle + "!"], [1] * 3)
    assert one == same != other


def test_a_name_stands_for_a_folder_and_each_is_loaded_once(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def load(path: str, *, device: str) -> classifier.Classifier:
        opened.append(path)
        return load_classifier(path, device=device)

    monkeypatch.setattr(classifier, "load_classifier", load)
    classifiers = Classifiers({"tone": str(encoder)})
    parts = tuple(
        RewardPart(name=label, weight=1.0, reward=ClassifierReward(model="tone", label=label))
        for label in LABELS
    )
    make_reward(WeightedReward(parts=parts), classifiers)
    make_reward(ClassifierReward(model="tone", label=0), classifiers)
    assert opened == [str(encoder)]


def test_loading_draws_no_random_number(encoder: Path) -> None:
    """Else a resumed run, which loads after its generators are restored, would differ."""

    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore

    load_classifier(str(encoder))
    before = states()
    load_classifier(str(encoder))
    assert states() == before


def without_padding(folder: Path) -> None:
    save_decoder(folder, pads=False)


def pickled(folder: Path) -> None:
    save_encoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_decoder(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "score.weight"},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def with_code(folder: Path) -> None:
    save_decoder(folder)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoModelForSequenceClassification": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": code}))


def adapter(folder: Path) -> None:
    save_decoder(folder)
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (without_padding, "no padding token, so batch_size must be 1"),
        (pickled, "as pickles only"),
        (headless, r"its weights lack score\.weight"),
        (with_code, "code of its own"),
        (adapter, "an adapter, where a full model is needed"),
    ],
)
def test_what_is_no_whole_classifier_is_refused(make: Any, reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        make_reward(ClassifierReward(model=str(tmp_path)))


def test_a_language_model_has_no_label(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match="its weights lack score"):  # not a head of random numbers
        make_reward(ClassifierReward(model=str(tiny_model)))


KIND = {"architectures": ["BertForSequenceClassification"]}
NAMED = KIND | {"id2label": {"1": "good", "0": "bad"}}


@pytest.mark.parametrize(
    ("config", "label", "index"),
    [
        (NAMED, "good", 1),
        (NAMED, 0, 0),
        (KIND, "LABEL_1", 1),  # transformers writes no id2label where it has its default
        (KIND | {"num_labels": 1}, None, 0),
        (KIND | {"id2label": {"0": "LABEL_0"}}, None, 0),
    ],
)
def test_which_output_a_label_is(config: Mapping[str, Any], label: str | int | None, index: int) -> None:
    assert output_index(config, label) == index


@pytest.mark.parametrize(
    ("config", "label", "reason"),
    [
        (NAMED, None, "has 2 labels: label must name one of bad, good"),
        (NAMED, "joy", "no such label, by name or index; it has bad, good"),
        (NAMED, 2, "no such label"),
        ({"architectures": ["XForSequenceClassification"], "num_labels": 10**12}, 0, "at most 10000"),
        (NAMED, "1", "no such label"),  # an index is a number
        (KIND | {"id2label": dict(enumerate("abcdefghijkl"))}, "x", "h, i, j, …"),
        ({"architectures": ["LlamaForCausalLM"]}, 0, "is no sequence classifier"),
        ({}, 0, "is no sequence classifier"),
        (KIND | {"auto_map": {}}, 0, "custom code"),
        (KIND | {"id2label": ["a"]}, 0, "cannot be read"),
        (KIND | {"id2label": {"a": "b"}}, 0, "cannot be read"),
        (KIND | {"num_labels": "many"}, 0, "cannot be read"),
        ({"architectures": 3}, 0, "cannot be read"),
    ],
)
def test_a_label_that_is_not_there_is_refused(
    config: Mapping[str, Any], label: str | int | None, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        output_index(config, label)


def options(encoder: Path, decoder: Path) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS[:2]},
            "reward": {"kind": "classifier", "model": str(encoder), "label": "good"},
            "scores": {"missing_eos_penalty": 0.1, "whiten": True, "clip": 1.5},
            "rollout": {"batch_size": 4, "max_new_tokens": 4},
            "optimization": {"steps": 3, "learning_rate": 0.01, "minibatches": 2},
            "evaluation": {"gold_reward": {"kind": "classifier", "model": str(decoder)}, "every_steps": 2},
        }
    )


def advance(policy: LoraPolicy, state: TrainState, config: PPOConfig, until: int) -> list[str]:
    """As a new process goes on: it loads its classifiers anew. Metrics of each step as JSON."""
    classifiers = Classifiers()
    assert config.evaluation.gold_reward is not None
    lines = []
    for step in train(
        policy,
        state,
        config,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        reward=make_reward(config.reward, classifiers),
        gold=make_reward(config.evaluation.gold_reward, classifiers),
    ):
        if step.step:
            lines.append(json.dumps(step.metrics))
        if step.step == until:
            break
    return lines


def digest(folder: Path) -> str:
    names = ("adapter_model.safetensors", "trainer.safetensors", "trainer.json")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def saved(policy: LoraPolicy, state: TrainState, folder: Path) -> Path:
    folder.mkdir()
    write_checkpoint(folder, policy, state)
    return folder


def test_t26_a_resumed_run_is_judged_to_the_bit_alike(
    tiny_model: Path, encoder: Path, decoder: Path, tmp_path: Path
) -> None:
    config, source = options(encoder, decoder), str(tiny_model)
    policy = new_policy(source, config.model, seed=0)
    state = fresh_state(policy, config)
    first = advance(policy, state, config, 1)
    middle = saved(policy, state, tmp_path / "middle")
    rest = advance(policy, state, config, 3)
    expected = digest(saved(policy, state, tmp_path / "whole"))

    torch.manual_seed(99)  # whatever the new process did before
    policy, state = read_checkpoint(middle, config, source=source)
    assert state.baseline is not None
    assert len(state.baseline.gold) == 2  # the gold scores of the evaluation are part of the checkpoint
    assert advance(policy, state, config, 3) == rest
    assert digest(saved(policy, state, tmp_path / "resumed")) == expected
    assert json.loads(first[0])["reward/gold_mean"] != json.loads(first[0])["reward/mean"]
