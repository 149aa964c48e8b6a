"""The piece of work that is disturbed: a tiny PPO job of real steps and real checkpoints."""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS = 45


def job(*, steps: int = STEPS, every_steps: int = 6, name: str | None = None) -> dict[str, Any]:
    """Equal jobs end in equal weights; `name` does not count."""
    return {
        "name": name,
        "limits": {"max_attempts": 50},
        "config": {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": ["the cat", "the dog", "learning"], "eval_prompts": ["the mat"]},
            "reward": {"kind": "length", "target_tokens": 8},
            "rollout": {"batch_size": 8, "max_new_tokens": 16},
            "kl": {"beta": 0.1, "controller": {"kind": "pi", "target_nats_per_sequence": 1.0}},
            "optimization": {"steps": steps, "learning_rate": 0.003, "epochs": 1},
            "checkpoint": {"every_steps": every_steps, "keep_last": 2},
        },
    }


def score_job() -> dict[str, Any]:
    """A handful of texts in shards of two, under the model against itself: exact KL 0."""
    texts = ["the cat sat on the mat", "the dog", "reinforcement learning", "the policy", "its reference"]
    return {
        "type": "score",
        "limits": {"max_attempts": 50},
        "config": {"policy": "tiny", "reference": "tiny", "items": texts, "checkpoint": {"every_items": 2}},
    }


def registry(folder: Path) -> Path:
    """A tiny model and the file that names it."""
    from tests.tiny_models import build

    folder.mkdir(parents=True, exist_ok=True)
    tiny = build(folder / "models")
    file = folder / "models.json"
    file.write_text(json.dumps({"models": {"tiny": {"source": str(tiny.base)}}}))
    return file
