"""What each metric of a step is, and what TRL, verl and OpenRLHF call the same thing.

docs/algorithms.md shows both tables; `test_metric_names` holds them together, and to what a run reports.
"""

from typing import NamedTuple

MEANINGS = {
    "reward/mean": "mean score of the step's completions",
    "reward/se": "its standard error; completions of one prompt are one cluster",
    "reward/std": "standard deviation of the scores",
    "reward/adjusted_mean": "mean of score − Σ penalty: what was optimised",
    "reward/gold_mean": "mean score by the reward that is only watched",
    "reward/gold_se": "its standard error, by prompt",
    "reward/shaped_mean": "mean of the scores as `scores` has shaped them",
    "reward/shaped_std": "their standard deviation",
    "reward/whitening_std": "σ by which `scores.whiten` divided",
    "reward/clip_fraction": "share of the scores that `scores.clip` changed",
    "kl/sequence": "mean Σ_t of the exact KL, nats per sequence",
    "kl/sequence_se": "its standard error, by prompt",
    "kl/k1_sequence": "mean Σ_t k1, nats per sequence",
    "kl/k1_sequence_se": "its standard error, by prompt",
    "kl/penalty": "mean Σ_t of what was subtracted from the rewards, in their units",
    "kl/weighted_sequence": "mean Σ_t of the exact KL weighted by `kl.weights`, nats per sequence",
    "kl/beta": "β of the step, reward units per nat",
    "kl/beta_in_loss": "β as a loss term takes it: β/σ_A under whitening",
    "kl/target": "what the controller aims at, nats per sequence",
    "kl/eos_share": "share of Σ KL on stop tokens",
    "kl/top_decile_share": "share of Σ KL on the tenth of all tokens with most of it",
    "kl/first_quarter_share": "share of Σ KL on the first ⌈T/4⌉ of each completion's T tokens",
    "advantages/std": "σ_A before whitening, in reward units",
    "policy/entropy": "mean entropy per token, nats, exact",
    "policy/approx_kl": "mean of (r − 1) − ln r per token; r = new/old, old: the rollout's policy",
    "policy/clip_fraction": "share of the tokens whose ratio the policy loss clipped",
    "policy/ratio_max": "largest ratio of the step",
    "policy/generation_mismatch": "root mean square of log-probability in training − in generation",
    "loss/policy": "clipped policy loss",
    "loss/kl": "KL loss times β_L, as it is added",
    "loss/entropy": "entropy bonus, as it is added",
    "loss/ptx": "pretraining loss times its coefficient, as it is added, mean over minibatches",
    "ptx/nats_per_token": "cross-entropy of the pretraining mix's texts, at temperature 1, mean over minibatches",
    "value/loss": "clipped value loss",
    "value/clip_fraction": "share of the tokens whose value the value loss clipped",
    "value/explained_variance": "1 − Var(return − value)/Var(return) before the update",
    "grad/norm": "norm of the policy's gradient before clipping, mean over minibatches",
    "grad/snr": "signal to noise of one minibatch's gradient, from those of the first epoch",
    "lr": "learning rate of the policy",
    "update/minibatches": "optimizer steps taken; a stop by `target_kl` leaves the rest out",
    "rollout/truncated": "1 if not the whole softmax was sampled from, else 0",
    "length/mean": "tokens per completion, the stop token included",
    "length/eos_rate": "share of the completions that ended by themselves",
    "text/repeated_bigrams": "mean share of a completion's word pairs that occurred before in it",
    "eval/reward_mean": "mean score of the held-out prompts' completions",
    "eval/reward_se": "its standard error over prompts",
    "eval/gold_mean": "mean of the watched reward on them",
    "eval/gold_se": "its standard error over prompts",
    "eval/kl_sequence": "their mean Σ_t of the exact KL, nats per sequence",
    "eval/kl_sequence_se": "its standard error over prompts",
    "eval/length_mean": "their tokens per completion",
    "eval/repeated_bigrams": "their mean share of repeated word pairs",
}


PER_SEQUENCE, PER_TOKEN = "nats/sequence", "nats/token"
UNITS = {  # the rest are shares, counts, or in units of the reward
    "kl/sequence": PER_SEQUENCE,
    "kl/sequence_se": PER_SEQUENCE,
    "kl/k1_sequence": PER_SEQUENCE,
    "kl/k1_sequence_se": PER_SEQUENCE,
    "kl/weighted_sequence": PER_SEQUENCE,
    "kl/beta": "reward/nat",
    "kl/target": PER_SEQUENCE,
    "policy/entropy": PER_TOKEN,
    "policy/approx_kl": PER_TOKEN,
    "policy/generation_mismatch": PER_TOKEN,
    "ptx/nats_per_token": PER_TOKEN,
    "length/mean": "tokens",
    "eval/kl_sequence": PER_SEQUENCE,
    "eval/kl_sequence_se": PER_SEQUENCE,
    "eval/length_mean": "tokens",
}


class Alias(NamedTuple):
    """Ours for a name of theirs, and how theirs is another number; nothing: it is the same."""

    metric: str
    theirs: str = ""


ALIASES: dict[str, dict[str, Alias]] = {
    "TRL": {
        "objective/scores": Alias("reward/mean"),
        "objective/rlhf_reward": Alias("reward/adjusted_mean"),
        "objective/non_score_reward": Alias("kl/penalty", "negative"),
        "objective/kl": Alias("kl/k1_sequence"),
        "objective/kl_coef": Alias("kl/beta"),
        "policy/entropy_avg": Alias("policy/entropy", "over padding too"),
        "policy/approxkl_avg": Alias("policy/approx_kl", "½ ln² r, over padding too"),
        "policy/clipfrac_avg": Alias("policy/clip_fraction"),
        "loss/policy_avg": Alias("loss/policy"),
        "loss/value_avg": Alias("value/loss"),
        "val/clipfrac_avg": Alias("value/clip_fraction"),
        "lr": Alias("lr"),
    },
    "verl": {
        "critic/score/mean": Alias("reward/mean"),
        "critic/rewards/mean": Alias("reward/adjusted_mean"),
        "actor/reward_kl_penalty": Alias("kl/k1_sequence", "mean per token, its estimator configured"),
        "actor/reward_kl_penalty_coeff": Alias("kl/beta"),
        "actor/kl_coef": Alias("kl/beta_in_loss"),
        "actor/entropy": Alias("policy/entropy"),
        "actor/ppo_kl": Alias("policy/approx_kl", "−ln r"),
        "actor/pg_clipfrac": Alias("policy/clip_fraction"),
        "actor/pg_loss": Alias("loss/policy"),
        "critic/vf_loss": Alias("value/loss"),
        "critic/vf_clipfrac": Alias("value/clip_fraction"),
        "critic/vf_explained_var": Alias("value/explained_variance"),
        "actor/grad_norm": Alias("grad/norm"),
        "actor/lr": Alias("lr"),
        "response_length/mean": Alias("length/mean"),
        "response_length/clip_ratio": Alias("length/eos_rate", "share at the maximum length"),
    },
    "OpenRLHF": {
        "reward": Alias("reward/mean"),
        "return": Alias("reward/adjusted_mean"),
        "kl": Alias("kl/k1_sequence", "mean per token, its estimator configured"),
        "ppo_kl": Alias("policy/approx_kl", "−ln r"),
        "ppo_clip_ratio": Alias("policy/clip_fraction"),
        "policy_loss": Alias("loss/policy"),
        "critic_loss": Alias("value/loss"),
        "actor_lr": Alias("lr"),
        "response_length": Alias("length/mean"),
    },
}
