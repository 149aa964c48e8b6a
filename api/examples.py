"""Requests that work, for the OpenAPI document: each by a name, as a person would begin."""

from typing import Any

SCORES: dict[str, Any] = {
    "text": {"summary": "One text", "value": {"input": "The film was a quiet pleasure."}},
    "completions": {
        "summary": "Completions of a prompt, with rewards",
        "value": {
            "input": [
                {"prompt": "The film was", "completion": " a quiet pleasure."},
                {"prompt": "The film was", "completion": " long."},
            ],
            "reward": [1.0, 0.2],
            "beta": 0.05,
            "sampled_from": "policy",
        },
    },
    "alternatives": {
        "summary": "A conversation, and which tokens carry its KL",
        "value": {
            "input": {
                "messages": [
                    {"role": "user", "content": "How was it?"},
                    {"role": "assistant", "content": "A quiet pleasure."},
                ]
            },
            "top_k": 3,
            "offsets": "utf16",
        },
    },
}
TOKENIZE: dict[str, Any] = {
    "texts": {"summary": "Two texts", "value": {"input": ["The film was long.", "日本 👩‍👩‍👧"]}},
    "utf16": {
        "summary": "Offsets as JavaScript counts",
        "value": {"input": "a 👩‍👩‍👧", "add_special_tokens": False, "offsets": "utf16"},
    },
}
DETOKENIZE: dict[str, Any] = {
    "ids": {"summary": "One list of ids", "value": {"input": [72, 105]}},
    "lists": {"summary": "Two lists", "value": {"input": [[72, 105], [72]]}},
}
DIVERGENCES: dict[str, Any] = {
    "coins": {
        "summary": "Two distributions",
        "value": {"policy": {"probs": [0.7, 0.3]}, "reference": {"probs": [0.5, 0.5]}},
    },
    "log-probabilities": {
        "summary": "Log-probabilities of three texts' tokens, two of one prompt",
        "value": {
            "policy_logprobs": [[-1.0, -2.0], [-0.5], [-1.5]],
            "reference_logprobs": [[-1.5, -1.75], [-1.0], [-1.25]],
            "clusters": ["a", "a", "b"],
            "sampled_from": "policy",
        },
    },
}
JOBS: dict[str, Any] = {
    "ppo": {
        "summary": "A training run on a leash",
        "value": {
            "name": "cheerful-openings",
            "metadata": {"team": "rl"},
            "config": {
                "model": {"name": "smollm2-135m-instruct", "lora": {"rank": 8}},
                "data": {"prompts": ["The song on the radio was", "The old cinema was"]},
                "reward": {"kind": "sentiment"},
                "kl": {"controller": {"kind": "pi", "target_nats_per_sequence": 6.0}},
                "rollout": {"batch_size": 8, "max_new_tokens": 16},
                "optimization": {"steps": 20},
            },
        },
    },
    "score": {
        "summary": "Many texts to score",
        "value": {
            "type": "score",
            "config": {"items": ["A quiet film.", {"prompt": "The book", "completion": " was not."}]},
        },
    },
}
API_KEYS: dict[str, Any] = {
    "week": {
        "summary": "A key for a week",
        "value": {"name": "nightly runs", "scopes": ["jobs:read", "jobs:write"], "expires_in_s": 604_800},
    },
    "team": {
        "summary": "A key of another owner, until it is revoked",
        "value": {"name": "laptop", "owner": "team-a", "scopes": ["score", "jobs:read", "models:read"]},
    },
}
JOB_PATCHES: dict[str, Any] = {
    "labels": {
        "summary": "Another name, one more label, one less",
        "value": {"name": "second try", "metadata": {"run": "2", "draft": None}},
    },
    "first": {"summary": "To the front of the queue", "value": {"priority": 9}},
}
JOB_STOPS: dict[str, Any] = {"why": {"summary": "With a reason", "value": {"reason": "The reward is wrong."}}}
JOB_CANCELS: dict[str, Any] = {
    **JOB_STOPS,
    "patient": {"summary": "Two minutes for its last checkpoint", "value": {"grace_period_s": 120}},
    "now": {"summary": "Killed at once", "value": {"save_checkpoint": False}},
}
CHECKPOINT_CHANGES: dict[str, Any] = {
    "keep": {"summary": "Kept whatever the job's keep_last", "value": {"pinned": True}},
    "expire": {"summary": "Gone by itself", "value": {"expires_at": "2035-01-31T12:00:00Z"}},
}
WEBHOOKS: dict[str, Any] = {
    "ends": {
        "summary": "How jobs end",
        "value": {
            "url": "https://hooks.example/kleash",
            "event_types": ["job.succeeded", "job.failed"],
            "description": "Tell the dashboard.",
        },
    },
    "all": {"summary": "All that happens to jobs", "value": {"url": "https://hooks.example/kleash"}},
}
WEBHOOK_PATCHES: dict[str, Any] = {
    "off": {"summary": "Messages wait", "value": {"enabled": False}},
    "more": {"summary": "Other events", "value": {"event_types": ["job.*"]}},
}
