"""Synthetic metrics of healthy runs, for rules to leave alone."""

import numpy as np

from rlhf_core.history import Row


def healthy(steps=120, *, seed=0, target=6.0, arrives=60, evaluated_every=10):
    """KL rises to its target and reward to a plateau, with the scatter that 24 completions a step have."""
    random = np.random.default_rng(seed)

    def noisy(mean, scatter):
        return float(mean + scatter * random.normal())

    rows = []
    for step in range(1, steps + 1):
        way = min(step / arrives, 1.0)
        kl = target * way**1.5
        se = float(np.sqrt(2 * kl / 24)) + 1e-3  # of Σk1: its variance is about 2 KL
        d = np.sqrt(kl)
        metrics = {
            "reward/mean": noisy(0.3 * d, 0.06),
            "reward/std": abs(noisy(0.3, 0.02)),
            "reward/gold_mean": noisy(0.2 * d, 0.06),
            "kl/sequence": abs(noisy(kl, 0.1 * kl)),
            "kl/sequence_se": 0.1 * kl,
            "kl/k1_sequence": noisy(kl, se),
            "kl/k1_sequence_se": se,
            "kl/target": target,
            "kl/beta": 0.05,
            "kl/eos_share": abs(noisy(0.05, 0.02)),
            "kl/top_decile_share": noisy(0.6, 0.05),
            "text/repeated_bigrams": abs(noisy(0.05, 0.02)),
            "policy/entropy": noisy(3.5 - 0.8 * way, 0.2),
            "policy/clip_fraction": abs(noisy(0.13, 0.02)),
            "policy/ratio_max": 3 + float(random.exponential(3.0)),
            "policy/generation_mismatch": 1e-5,
            "value/explained_variance": noisy(0.3 * way, 0.15),
            "length/mean": noisy(30, 1.0),
            "length/eos_rate": noisy(0.5, 0.1),
        }
        if step % evaluated_every == 0:
            metrics["eval/reward_mean"] = noisy(0.28 * d, 0.02)
            metrics["eval/reward_se"] = 0.04
            metrics["eval/kl_sequence"] = abs(noisy(kl, 0.1 * kl))
        rows.append(Row(step, metrics))
    return rows
