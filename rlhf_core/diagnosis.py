"""What a run's metrics warn of: each rule gives a number, its threshold, the evidence and what to try.

Standard library and numpy; the job's document computes it from the stored rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_core import symptoms
from rlhf_core.history import History, Row


@dataclass(frozen=True)
class Rule:
    """A check with its name, in plain words, and with advice."""

    name: str
    says: str
    advice: str
    check: symptoms.Check


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that fired: `value` is past `threshold`, over the steps from `first_step` to `last_step`."""

    rule: str
    message: str
    value: float
    threshold: float
    first_step: int
    last_step: int
    numbers: dict[str, float]
    advice: str


RULES = (
    Rule(
        "negative_kl",
        "The estimated KL is negative beyond its error: texts are not sampled from the policy as it is scored.",
        "Compare sampling with scoring: temperature, truncation (top-k, top-p), padding and end token, dropout.",
        symptoms.negative_kl,
    ),
    Rule(
        "kl_off_target",
        "The KL per sequence stays away from its target.",
        "Above it: a lower learning rate, fewer epochs or a controller that reacts faster. Below it: a lower β, a "
        "higher learning rate or a nearer target.",
        symptoms.kl_off_target,
    ),
    Rule(
        "kl_running_away",
        "The KL per sequence is far out and still grows.",
        "Go on from an earlier checkpoint with a higher β or a lower learning rate, or with a controller of β.",
        symptoms.kl_running_away,
    ),
    Rule(
        "gold_reward_falling",
        "The training reward rises while the gold reward falls: the reward is being exploited.",
        "Go back to the checkpoint of the highest gold reward, and mend the reward: a higher β only delays this.",
        symptoms.gold_reward_falling,
    ),
    Rule(
        "held_out_reward_falling",
        "The training reward rises while that of the held-out prompts falls.",
        "Go back to the checkpoint of the best evaluation; train on more prompts or for fewer steps.",
        symptoms.held_out_reward_falling,
    ),
    Rule(
        "past_the_peak",
        "√KL is past the peak of the fitted law R(d) = R(0) + d(a − b ln d), and the reward has fallen since.",
        "More drift buys less: go back to the checkpoint nearest to the peak and set the KL target there.",
        symptoms.past_the_peak,
    ),
    Rule(
        "length_drift",
        "Completions have become much longer or much shorter since the start.",
        "Read samples: does the reward pay for length? Divide it by length, or judge a fixed number of tokens.",
        symptoms.length_drift,
    ),
    Rule(
        "repetition",
        "Completions repeat themselves.",
        "Read samples: the reward pays for a phrase. Raise β, or take repetition off the reward.",
        symptoms.repetition,
    ),
    Rule(
        "entropy_collapse",
        "The policy's entropy has fallen by four fifths or more: it hardly explores any more.",
        "Raise β or lower the learning rate; go on from a checkpoint before the fall.",
        symptoms.entropy_collapse,
    ),
    Rule(
        "eos_lost",
        "Completions no longer end by themselves.",
        "Read samples: if they run on to the limit of tokens, raise the limit or let a missing end cost reward.",
        symptoms.eos_lost,
    ),
    Rule(
        "kl_on_few_tokens",
        "More than four fifths of the KL lie on a tenth of the tokens.",
        "Score a sample and look at its tokens: the policy has learnt a word or a phrase, not a manner.",
        symptoms.share_above("kl/top_decile_share", 0.8),
    ),
    Rule(
        "kl_on_eos",
        "Most of the KL lies on the end token: the policy has mainly learnt when to stop.",
        "See whether the reward pays for short or long texts; judge texts of one length.",
        symptoms.share_above("kl/eos_share", 0.5),
    ),
    Rule(
        "clip_fraction_high",
        "More than half of the tokens are clipped: the update is larger than PPO can use.",
        "A lower learning rate, fewer epochs or larger minibatches.",
        symptoms.mean_above("policy/clip_fraction", 0.5),
    ),
    Rule(
        "ratio_high",
        "Single tokens become many times as likely within one step.",
        "A lower learning rate or fewer epochs.",
        symptoms.median_above("policy/ratio_max", 20.0),
    ),
    Rule(
        "value_useless",
        "The value head explains less of the returns than a constant would.",
        "A higher value learning rate, or larger batches; advantages are noisy without it.",
        symptoms.value_useless,
    ),
    Rule(
        "generation_mismatch",
        "Generation and training disagree about the log-probabilities of the same tokens.",
        "Run both at the same precision and temperature; half precision needs a float32 head.",
        symptoms.mean_above("policy/generation_mismatch", 0.05),
    ),
    Rule(
        "reward_constant",
        "Every completion gets the same reward: there is nothing to learn from.",
        "Try the reward on a few samples; choose prompts on which it differs.",
        symptoms.reward_constant,
    ),
)


def diagnose(rows: Iterable[Row]) -> list[Finding]:
    """The rules that fire, in the order of RULES.

    `rows` are the run's metrics in any order: its first steps, its last hundred, and between them as many as there
    are for the fit of the frontier.
    """
    history = History(rows)
    return [
        Finding(rule=rule.name, message=rule.says, advice=rule.advice, **found._asdict())
        for rule in RULES
        if (found := rule.check(history)) is not None
    ]
