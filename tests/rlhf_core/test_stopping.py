"""Stop strings and stop tokens, against the definition: the first token after which the decoded text holds one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf_core.config.ppo import PPOConfig, RolloutConfig
from rlhf_core.errors import UnknownToken, UnusableStop
from rlhf_core.experience import assess, sample
from rlhf_core.policies import LoraPolicy, TokenizerCodec, new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.rollout import Rollout, generate, response_ids
from rlhf_core.stopping import StopStrings
from rlhf_core.targets import make_targets
from rlhf_core.update import fresh_state
from tests.tiny_models import byte_level_tokenizer

PROMPTS = ("The cat", "A lovely", "The quick brown", "Naïve")
WORDS = ("th", "oo")


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: ▁ for a space, of which decoding drops the first, and bytes for what has no token."""
    pieces = ["</s>", "▁", "▁a", "a", "b", "▁ab", "b▁", "\n", *(f"<0x{n:02X}>" for n in range(256))]
    tokenizer = Tokenizer(models.BPE({p: n for n, p in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


CODECS = {
    name: TokenizerCodec(tokenizer, frozenset({0}), 0)
    for name, tokenizer in {"bytes": byte_level_tokenizer(400), "pieces": sentencepiece_like()}.items()
}
PIECES = {  # tokens that make spaces, characters of several bytes and garbage likely
    "bytes": [0, *CODECS["bytes"].encode("the cat 語é👩 \n"), *range(2, 260)],
    "pieces": [0, *[1, 2, 3, 4, 5, 6, 7] * 12, *(8 + b for b in "語é👩\x80\xff".encode()), 8 + 0x80],
}


def end_of(ids: list[int], strings: tuple[str, ...], decode: Any) -> int | None:
    """How many tokens it takes until the text, decoded anew, holds one of the strings."""
    found = (n for n in range(1, len(ids) + 1) if any(s in decode(ids[:n]) for s in strings))
    return next(found, None)


@pytest.mark.parametrize("kind", CODECS)
@settings(max_examples=120)
@given(data=st.data())
def test_the_token_that_completes_a_stop_string_is_found_as_it_comes(kind: str, data: st.DataObject) -> None:
    """Strings are pieces of the text itself, so that they straddle tokens and characters, and others."""
    decode = CODECS[kind].decode
    ids = data.draw(st.lists(st.sampled_from(PIECES[kind]), min_size=1, max_size=24))
    text = decode(ids)
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    cuts = data.draw(st.lists(places, min_size=1, max_size=3))
    strings = tuple(text[a : a + n].replace("\ufffd", "") or "zz" for a, n in cuts)
    stop = StopStrings(strings, decode)
    row = torch.tensor([0])
    said = [n for n, token in enumerate(ids, 1) if bool(stop.completed_by(row, torch.tensor([token])))]
    assert (said[0] if said else None) == end_of(ids, strings, decode)


def test_a_step_decodes_a_few_tokens_however_long_the_completion_is() -> None:
    widths: list[int] = []

    def decode(ids: list[int]) -> str:
        widths.append(len(ids))
        return CODECS["bytes"].decode(ids)

    stop = StopStrings(("never said",), decode)
    for token in CODECS["bytes"].encode("the cat 日本語の文章 café 👩‍👩‍👧 ") * 10 + [0] * 50:
        assert not stop.completed_by(torch.tensor([7]), torch.tensor([token]))
    assert max(widths) <= 8  # two runs of the bytes of one character


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> LoraPolicy:
    return new_policy(str(tiny_model), PPOConfig.model_validate(options()).model, seed=0)


def options(**rollout: Any) -> dict[str, Any]:
    return {
        "model": {"name": "tiny", "lora": {"rank": 2}},
        "data": {"prompts": PROMPTS},
        "reward": {"kind": "length", "target_tokens": 4},
        "scores": {"missing_eos_penalty": 5.0},
        "rollout": {"batch_size": 8, "max_new_tokens": 12} | rollout,
        "optimization": {"steps": 2, "learning_rate": 0.01, "minibatches": 2},
    }


def rolled(policy: LoraPolicy, texts: list[str], **rollout: Any) -> Rollout:
    config = RolloutConfig(max_new_tokens=20, **rollout)
    return sample(policy, texts, config, torch.Generator().manual_seed(3))


def cut(ids: list[int], strings: tuple[str, ...], stop_ids: set[int], decode: Any) -> tuple[list[int], bool]:
    """What is left of a completion sampled without either, and whether it ended."""
    by_string = end_of(ids, strings, decode)
    by_token = next((n for n, token in enumerate(ids, 1) if token in stop_ids), None)
    ends = [n for n in (by_string, by_token) if n is not None]
    return (ids[: min(ends)], True) if ends else (ids, False)


def straddling(said: list[list[int]], decode: Any) -> Iterator[tuple[int, int, str]]:
    """Row, place and text of the end of one token with the beginning of the next, which no token holds."""
    for row, ids in enumerate(said):
        for place in range(2, len(ids)):
            string = decode([ids[place - 1]])[-1:] + decode([ids[place]])[:1]
            whole = len(string) == 2 and "\ufffd" not in string
            in_one = any(string in decode([token]) for token in ids)
            if whole and not in_one and end_of(ids, (string,), decode) == place + 1:
                yield row, place, string


def test_t20_a_completion_is_what_it_would_be_up_to_the_token_that_stops_it(policy: LoraPolicy) -> None:
    """Rows stop at different steps, by string, by token or not at all; nobody's tokens change."""
    texts = list(PROMPTS) * 3
    free = rolled(policy, texts)
    said = response_ids(free)
    decode = policy.codec.decode
    row, place, across = next(straddling(said, decode))
    other = next(ids for n, ids in enumerate(said) if n != row and len(ids) > 9)
    strings, stop_ids = (across, *WORDS), {other[6]}
    stopped = rolled(policy, texts, stop=strings, stop_token_ids=tuple(stop_ids))
    expected = [cut(ids, strings, stop_ids | policy.codec.eos_ids, decode) for ids in said]
    assert response_ids(stopped) == [ids for ids, _ in expected]
    assert stopped.ended.tolist() == [ended for _, ended in expected]
    assert response_ids(stopped)[row] == said[row][: place + 1]
    lengths = [len(ids) for ids, _ in expected]
    assert len(set(lengths)) > 3
    assert not all(ended for _, ended in expected)
    width = max(lengths)
    assert stopped.response_mask.tolist() == [[n < length for n in range(width)] for length in lengths]
    mask = stopped.response_mask
    torch.testing.assert_close(
        stopped.sampled_logprob[mask], free.sampled_logprob[:, :width][mask], rtol=0, atol=2e-5
    )


def test_each_row_alone_says_the_same_with_its_own_random_numbers(policy: LoraPolicy) -> None:
    """Alone, a row draws one number a step: those of the others are drawn between the steps."""
    texts = list(PROMPTS)
    said = response_ids(rolled(policy, texts))
    written = [policy.codec.decode(ids).replace("\ufffd", "") for ids in said[:3]]
    strings = tuple(text[4 * n + 2] for n, text in enumerate(written))
    together = response_ids(rolled(policy, texts, stop=strings))
    assert len({len(ids) for ids in together}) > 2
    for row, text in enumerate(texts):
        random = torch.Generator().manual_seed(3)
        steps: list[int] = []

        def skip(*_: Any, row: int = row, steps: list[int] = steps, random: Any = random) -> None:
            others = len(texts) - 1 if steps else row
            torch.rand(others, generator=random, dtype=torch.float64)
            steps.append(others)

        with policy.policy() as model:
            hook = model.trunk.register_forward_hook(skip)
            alone = generate(
                model,
                [policy.codec.encode(text)],
                max_new_tokens=20,
                temperature=1.0,
                eos_ids=policy.codec.eos_ids,
                pad_id=0,
                generator=random,
                stop=StopStrings(strings, policy.codec.decode),
            )
            hook.remove()
        assert response_ids(alone) == [together[row]]


def steps_of(model: Path, **rollout: Any) -> tuple[list[StepResult], list[str]]:
    """A run whose reward is the number of characters, with the texts that it was asked about."""
    config = PPOConfig.model_validate(options(**rollout))
    policy = new_policy(str(model), config.model, seed=0)
    asked: list[str] = []

    def reward(_: Any, completions: Any, __: Any) -> list[float]:
        asked.extend(completions)
        return [float(len(text)) for text in completions]

    state = fresh_state(policy, config)
    steps = train(policy, state, config, prompts=PROMPTS, eval_prompts=PROMPTS[:2], reward=reward)
    return list(steps), asked


def test_training_sees_a_completion_up_to_its_stop_and_no_further(
    tiny_model: Path, policy: LoraPolicy
) -> None:
    """Reward, samples and evaluation see the text of all tokens, the stop string in it; a stop has ended."""
    decode, strings, stop_id = policy.codec.decode, ("e", "a"), policy.codec.encode("o")[0]
    (first, *steps), asked = steps_of(tiny_model, stop=strings, stop_token_ids=[stop_id])
    assert first.evaluation is not None
    assert steps[-1].evaluation is not None
    seen = [*first.evaluation.completions]
    for step in steps:
        completed = []
        for said in step.samples:
            ids = said.data["token_ids"]
            assert cut(ids, strings, {stop_id, 0}, decode) == (ids, said.data["ended"])
            assert said.data["ended"] or len(ids) == 12
            assert said.completion == decode(ids)
            assert said.data["kl"] == pytest.approx(sum(said.data["token_kl"]), rel=1e-5, abs=1e-6)
            completed.append(said.data["ended"])
            seen.append(said.completion)
        assert step.metrics["length/eos_rate"] == sum(completed) / 8
        # The missing-EOS penalty of 5 is taken where nothing stopped, and nowhere else.
        rewards = [len(said.completion) for said in step.samples]
        assert step.metrics["reward/shaped_mean"] == pytest.approx(
            (sum(rewards) - 5 * (8 - sum(completed))) / 8
        )
        assert sum(completed) > 0
    assert any(text.endswith(strings) for text in seen)
    assert asked == [*seen, *steps[-1].evaluation.completions]


def test_the_score_lands_on_the_token_that_completes_the_string(policy: LoraPolicy) -> None:
    """With γ = λ = 1 and V = 0 the return of the last token is its reward: score − β k1; before it, + the rest."""
    config = PPOConfig.model_validate(options() | {"advantages": {"gae_lambda": 1.0}})
    rollout = rolled(policy, list(PROMPTS) * 2, stop=("e", "a"))
    head = torch.nn.Linear(policy.hidden_size, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    seen = assess(policy, head, rollout, [torch.arange(8)], 1.0)
    seen = seen._replace(k1=torch.where(rollout.response_mask, 0.25, 0.0))
    returns = make_targets(seen, torch.full((8,), 3.0), 0.5, config).returns
    for row, ids in zip(returns.tolist(), response_ids(rollout), strict=True):
        left = range(len(ids), 0, -1)
        assert row == [*(3 - 0.125 * n for n in left), *[0.0] * (len(row) - len(ids))]


def test_what_no_completion_can_hold_is_refused(policy: LoraPolicy) -> None:
    vocab = len(policy.tokenizer)
    with pytest.raises(UnknownToken, match=f"stop_token_ids: {vocab} is none of the model's {vocab} tokens"):
        rolled(policy, ["The"], stop_token_ids=(3, vocab))
    for string in ("<|end|>", "a<|end|>b"):  # decoding leaves special tokens out
        with pytest.raises(UnusableStop, match=r"rollout\.stop: .*belong in rollout\.stop_token_ids"):
            rolled(policy, ["The"], stop=("a", string))
    ended = rolled(policy, ["The"], stop=(" a", "\n\n", "語", "|end|>"), stop_token_ids=range(vocab))
    assert ended.response_mask.sum() == 1


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_string_that_can_be_written_is_not_refused(codec: TokenizerCodec) -> None:
    for string in (" ab", "ab", "b ", "\n\n", "é"):
        assert string in codec.decode(codec.encode("." + string))


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ({"stop": [""]}, "at least 1 character"),
        ({"stop": ["a"] * 17}, "at most 16 items"),
        ({"stop": ["a" * 257]}, "at most 256 characters"),
        ({"stop": "a"}, "valid tuple"),
        ({"stop_token_ids": [-1]}, "greater than or equal to 0"),
        ({"stop_token_ids": [True]}, "valid integer"),
    ],
)
def test_the_configuration_refuses_what_is_no_stop(rollout: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RolloutConfig.model_validate(rollout)
    assert RolloutConfig.model_validate({"stop": ["a"] * 16, "stop_token_ids": [0]}).stop == ("a",) * 16
