"""Every code that `error` of a failed job may have, and whether the same request may end otherwise.

True where the machine, a service or chance stood in the way; False where the request itself must change: a client
that repeats such a job pays for the same failure again.
"""

RETRYABLE: dict[str, bool] = {
    # the worker or its machine
    "worker_lost": True,
    "crashed": True,
    "stalled": True,
    "host_oom": True,
    "oom_killed": True,
    "store_unavailable": True,
    "disk_full": True,
    "storage_failed": True,
    "reward_error": True,  # mostly an endpoint that did not answer
    # what was asked for
    "cuda_oom": False,  # after a replay with half the micro-batch
    "nan_loss": False,  # after a replay
    "kl_diverged": False,
    "timeout": False,
    "audit_failed": False,
    "dataset_error": False,
    "input_too_long": False,
    "empty_input": False,
    "unknown_token": False,
    "unusable_stop": False,
    "token_id_out_of_range": False,
    "no_chat_template": False,
    "chat_template_failed": False,
    "chat_template_mismatch": False,
    "tokenizer_mismatch": False,
    "model_load_failed": False,
    "unsafe_model": False,
    "path_not_allowed": False,
    "checkpoint_failed": False,
    "internal": False,
}


def retryable(code: str) -> bool:
    """True if a new job with the same request may succeed; of a code that is not known, False."""
    return RETRYABLE.get(code, False)
