"""POST /v1/divergences: worked numbers, laws against exact arithmetic, and refusals."""

import json
import math
from decimal import Decimal, getcontext

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from api.schemas_divergences import DivergencesRequest, SequenceDivergences

getcontext().prec = 60
LAWS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def compare(client, policy, reference):
    response = client.post("/v1/divergences", json={"policy": policy, "reference": reference})
    assert response.status_code == 200, response.text
    return response.json()


def sampled(client, ours, theirs, **rest):
    body = {"policy_logprobs": ours, "reference_logprobs": theirs, **rest}
    response = client.post("/v1/divergences", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def exact_kl(p, q):
    """Σ p ln(p/q) with 60 digits."""
    return sum((a * (a / b).ln() for a, b in zip(p, q, strict=True) if a), Decimal(0))


def softmax(logits):
    weights = [Decimal(x).exp() for x in logits]
    return [weight / sum(weights) for weight in weights]


def test_the_seed_s_coins(client):
    found = compare(client, {"probs": [0.7, 0.3]}, {"probs": [0.5, 0.5]})
    # .7 ln(.7/.5) + .3 ln(.3/.5); and .5 ln(.5/.7) + .5 ln(.5/.3)
    assert found["kl"] == pytest.approx(0.0822828785, abs=1e-10)
    assert found["kl_ref"] == pytest.approx(0.5 * math.log(0.25 / 0.21), abs=1e-14)
    assert found["tv"] == pytest.approx(0.2)
    assert found["entropy"] == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)))
    assert found["cross_entropy"] == pytest.approx(math.log(2))
    assert found["infinite"] is False
    assert (found["object"], found["unit"], found["size"]) == ("divergence", "nats", 2)


def test_t1(client):
    found = compare(client, {"probs": [0.5, 0.3, 0.2]}, {"probs": [0.4, 0.4, 0.2]})
    assert found["kl"] == pytest.approx(0.0252671539215706, abs=1e-15)


def test_the_seed_s_certainly(client):
    found = sampled(client, [math.log(0.25)], [math.log(0.05)])
    ln5 = 1.6094379124341003
    assert found["k1"] == [pytest.approx(ln5)]
    assert found["k2"] == [pytest.approx(ln5**2 / 2)]
    assert found["k3"] == [pytest.approx(1 / 5 - 1 + ln5)]
    assert found["sum"] == {name: pytest.approx(found[name][0]) for name in ("k1", "k2", "k3")}
    assert found["adjusted_reward"] is None


def test_adjusted_reward_is_reward_minus_beta_times_the_sum_of_k1(client):
    found = sampled(client, [-1.0, -2.0], [-1.5, -1.75], reward=2.0, beta=0.1)
    # Σ k1 = .5 − .25
    assert found["sum"]["k1"] == pytest.approx(0.25)
    assert found["adjusted_reward"] == pytest.approx(2.0 - 0.1 * 0.25)


def test_one_sided_zeros_are_infinite_and_never_nan(client):
    found = compare(client, {"probs": [0.5, 0.5, 0.0]}, {"probs": [1.0, 0.0, 0.0]})
    assert (found["kl"], found["cross_entropy"], found["infinite"]) == (None, None, True)
    assert found["kl_ref"] == pytest.approx(math.log(2))
    assert found["tv"] == pytest.approx(0.5)
    # m = (.75, .25, 0): ½(.5 ln(.5/.75) + .5 ln(.5/.25)) + ½ ln(1/.75)
    expected = 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) + 0.5 * math.log(4 / 3)
    assert found["js"] == pytest.approx(expected)


def test_disjoint_supports_reach_every_bound(client):
    found = compare(client, {"probs": [1.0, 0.0]}, {"probs": [0.0, 1.0]})
    assert (found["kl"], found["kl_ref"], found["entropy"]) == (None, None, 0.0)
    assert (found["tv"], found["js"]) == (1.0, pytest.approx(math.log(2)))


def test_a_logit_far_below_is_finite_although_its_probability_is_not(client):
    found = compare(client, {"logits": [0.0, 0.0]}, {"logits": [0.0, -5000.0]})
    assert found["kl"] == pytest.approx(2500 - math.log(2))
    assert compare(client, {"logits": [1e308, -1e308]}, {"logits": [0.0, 0.0]})["kl"] == pytest.approx(
        math.log(2)
    )


def test_a_ratio_that_overflows_is_null(client):
    found = sampled(client, [-2000.0], [0.0])
    assert (found["k1"], found["k3"], found["infinite"]) == ([-2000.0], [None], True)


@LAWS
@given(data=st.data(), size=st.integers(1, 8), closeness=st.sampled_from([1.0, 1e-3, 1e-7]))
def test_distributions_agree_with_exact_arithmetic(client, data, size, closeness):
    logits = st.lists(st.floats(-20, 20), min_size=size, max_size=size)
    ours = data.draw(logits)
    theirs = [a + closeness * b for a, b in zip(ours, data.draw(logits), strict=True)]
    found = compare(client, {"logits": ours}, {"logits": theirs})
    p, q = softmax(ours), softmax(theirs)
    mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    expected = {
        "kl": exact_kl(p, q),
        "kl_ref": exact_kl(q, p),
        "js": (exact_kl(p, mixture) + exact_kl(q, mixture)) / 2,
        "tv": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "entropy": -sum(a * a.ln() for a in p),
        "cross_entropy": -sum(a * b.ln() for a, b in zip(p, q, strict=True)),
    }
    for name in ("kl", "kl_ref", "js"):
        # No cancellation: what is left is the rounding of the logits' differences, 2^-53 · 40 each.
        assert found[name] >= 0
        exact = max(0.0, float(expected[name]))  # 60 digits leave −1e-59 of a difference that is 0
        bound = 1e-9 * exact + 1e-14 * math.sqrt(exact) + 1e-26
        assert abs(found[name] - exact) <= bound
    for name in ("tv", "entropy", "cross_entropy"):
        assert found[name] == pytest.approx(float(expected[name]), rel=1e-9, abs=1e-13)
    swapped = compare(client, {"logits": theirs}, {"logits": ours})
    assert (swapped["kl"], swapped["kl_ref"]) == (found["kl_ref"], found["kl"])
    assert swapped["js"] == pytest.approx(found["js"], rel=1e-12)


@LAWS
@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=8))
def test_probabilities_their_logarithms_and_shifted_logits_are_one_distribution(client, weights):
    probs = [weight / math.fsum(weights) for weight in weights]
    logs = [math.log(p) for p in probs]
    reference = {"probs": [1 / len(probs)] * len(probs)}
    forms = [{"probs": probs}, {"logprobs": [min(x, 0.0) for x in logs]}, {"logits": [x + 7 for x in logs]}]
    first, *others = (compare(client, form, reference) for form in forms)
    for other in others:
        assert other["kl"] == pytest.approx(first["kl"], abs=1e-12)
    assert compare(client, forms[0], forms[0])["kl"] == 0.0


@LAWS
@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=8))
def test_estimators_agree_with_exact_arithmetic(client, pairs):
    found = sampled(client, [a for a, _ in pairs], [b for _, b in pairs])
    for k1, k2, k3, (a, b) in zip(found["k1"], found["k2"], found["k3"], pairs, strict=True):
        d = Decimal(a) - Decimal(b)
        assert k1 == pytest.approx(float(d), rel=1e-15)
        assert k2 == pytest.approx(float(d * d / 2), rel=1e-15)
        assert k3 == pytest.approx(float((-d).exp() - 1 + d), rel=1e-12, abs=1e-15)
        assert min(k2, k3) >= 0


COIN = {"probs": [0.5, 0.5]}
REFUSED = {
    "sum": {"policy": {"probs": [0.5, 0.4]}, "reference": COIN},
    "logprobs that do not sum": {"policy": {"logprobs": [-1.0, -1.0]}, "reference": COIN},
    "negative": {"policy": {"probs": [1.5, -0.5]}, "reference": COIN},
    "lengths": {"policy": {"probs": [1.0]}, "reference": COIN},
    "no form": {"policy": {}, "reference": COIN},
    "two forms": {"policy": {"probs": [0.5, 0.5], "logits": [0.0, 0.0]}, "reference": COIN},
    "empty": {"policy": {"probs": []}, "reference": {"probs": []}},
    "no reference": {"policy": COIN},
    "unknown field": {"policy": COIN, "reference": COIN, "unit": "bits"},
    "strings": {"policy": {"probs": ["0.5", "0.5"]}, "reference": COIN},
    "booleans": {"policy": {"probs": [True, False]}, "reference": COIN},
    "both kinds": {"policy": COIN, "reference": COIN, "policy_logprobs": [-1.0]},
    "token lengths": {"policy_logprobs": [-1.0], "reference_logprobs": [-1.0, -2.0]},
    "above 0": {"policy_logprobs": [0.5], "reference_logprobs": [-1.0]},
    "reward without beta": {"policy_logprobs": [-1.0], "reference_logprobs": [-1.0], "reward": 1.0},
    "negative beta": {"policy_logprobs": [-1.0], "reference_logprobs": [-1.0], "reward": 1.0, "beta": -1.0},
    "a list": [1, 2],
    "null": None,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_pair_of_distributions_is_refused(client, body):
    response = client.post(
        "/v1/divergences", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")


# -- several texts --------------------------------------------------------------------------------

OURS = [[-1.0, -2.0], [-1.0], [-0.5, -0.5, -0.5]]
THEIRS = [[-1.5, -1.75], [-3.0], [-1.0, -0.5, -0.25]]  # Σ k1 = .25, 2, .25


def test_several_texts_have_sums_and_rewards(client):
    found = sampled(client, OURS, THEIRS, reward=[1.0, 2.0, 3.0], beta=0.1)
    SequenceDivergences.model_validate(found, strict=True)
    assert [one["n_tokens"] for one in found["data"]] == [2, 1, 3]
    assert [one["sums"]["k1"] for one in found["data"]] == [0.25, 2.0, 0.25]
    assert found["data"][2]["means"]["k1"] == pytest.approx(0.25 / 3)
    assert found["data"][1]["sums"]["k3"] == pytest.approx(math.exp(-2) + 1)
    assert [one["adjusted_reward"] for one in found["data"]] == [0.975, pytest.approx(1.8), 2.975]
    assert (found["unit"], found["data"][0]["infinite"]) == ("nats", False)


def test_a_text_among_others_has_the_sums_it_has_alone(client):
    found = sampled(client, OURS, THEIRS)
    for one, ours, theirs in zip(found["data"], OURS, THEIRS, strict=True):
        assert {name: one["sums"][name] for name in ("k1", "k2", "k3")} == sampled(client, ours, theirs)[
            "sum"
        ]


def test_their_summary(client):
    summary = sampled(client, OURS, THEIRS)["summary"]
    # Σ k1 = .25, 2, .25: mean 5/6, SE = sd/√3 = √(2 · (7/12)² + (7/6)²)/√2/√3 = 7/12; t = 4.30265… for 2 degrees
    assert summary["sums"]["k1"] == {
        "mean": pytest.approx(5 / 6),
        "se": pytest.approx(7 / 12),
        "low": pytest.approx(5 / 6 - 4.30265272974946 * 7 / 12),
        "high": pytest.approx(5 / 6 + 4.30265272974946 * 7 / 12),
    }
    assert summary["means"]["k1"]["mean"] == pytest.approx(2.5 / 6)
    assert (summary["n_items"], summary["n_clusters"], summary["n_scored"]) == (3, 3, 6)
    assert summary["sequence_kl"]["rao_blackwell"] is None
    assert summary["sequence_kl"]["k1"] == summary["sums"]["k1"]
    assert summary["sequence_kl"]["estimates"] is None


def test_texts_of_one_cluster_count_once(client):
    summary = sampled(client, OURS, THEIRS, clusters=["a", "b", "a"])["summary"]
    # Σx = (.5, 2), T = (2, 1): R = 5/6, SE² = 2/1 · ((.5 − 5/3)² + (2 − 5/6)²)/9 = 4 · (7/6)²/9
    assert summary["n_clusters"] == 2
    assert summary["sums"]["k1"]["se"] == pytest.approx(7 / 9)
    assert sampled(client, OURS, THEIRS, clusters=[7, 7, 7])["summary"]["sums"]["k1"]["se"] is None


def test_exact_kl_that_the_client_brings(client):
    kl = [[0.1, 0.2], [0.4], [0.1, 0.1, 0.0]]
    found = sampled(client, OURS, THEIRS, kl=kl, sampled_from="policy")
    block = found["summary"]["sequence_kl"]
    assert block["estimates"] == "kl"
    assert block["rao_blackwell"]["mean"] == pytest.approx(0.3)  # (.3 + .4 + .2)/3, sd .1
    assert block["rao_blackwell"]["se"] == pytest.approx(0.1 / math.sqrt(3))
    assert block["variance_ratio"] == pytest.approx(3 * (7 / 12) ** 2 / 0.1**2)
    weights = [math.exp(-x) for x in (0.25, 2.0, 0.25)]
    size = sum(weights) ** 2 / sum(w * w for w in weights)
    assert found["summary"]["ess"] == {
        "size": pytest.approx(size),
        "share": pytest.approx(size / 3),
        "towards": "reference",
    }
    assert found["data"][0]["sums"]["kl"] == pytest.approx(0.3)
    assert "estimate KL(policy ‖ reference)" in found["note"]


def test_the_reference_s_texts_need_the_other_direction(client):
    kl = [[0.1, 0.2], [0.4], [0.1, 0.1, 0.0]]
    without = sampled(client, OURS, THEIRS, kl=kl, sampled_from="reference")["summary"]["sequence_kl"]
    assert (without["estimates"], without["rao_blackwell"]) == ("kl_ref", None)
    found = sampled(client, OURS, THEIRS, kl_ref=kl, sampled_from="reference")["summary"]
    assert found["sequence_kl"]["rao_blackwell"]["mean"] == pytest.approx(0.3)
    assert found["sequence_kl"]["k1"]["mean"] == pytest.approx(-5 / 6)
    # k3 of −k1: expm1(d) − d over the six d
    d = [a - b for ours, theirs in zip(OURS, THEIRS, strict=True) for a, b in zip(ours, theirs, strict=True)]
    assert found["sequence_kl"]["k3"]["mean"] == pytest.approx(sum(math.expm1(x) - x for x in d) / 3)
    assert found["ess"]["towards"] == "policy"


def test_one_list_has_no_summary_and_infinities_are_null(client):
    assert sampled(client, [[-1.0]], [[-2.0]])["summary"] is None
    found = sampled(client, [[-2000.0], [-1.0]], [[0.0], [-1.0]])
    assert (found["data"][0]["sums"]["k3"], found["data"][0]["infinite"]) == (None, True)
    assert found["summary"]["sums"]["k3"] == {"mean": None, "se": None, "low": None, "high": None}
    huge = sampled(client, OURS, THEIRS, kl=[[1e308, 1e308], [0.0], [0.0, 0.0, 0.0]])
    assert huge["data"][0]["sums"]["kl"] is None


PAIR = {"policy_logprobs": [[-1.0], [-2.0, -3.0]], "reference_logprobs": [[-1.0], [-2.0, -3.0]]}
REFUSED_TEXTS = {
    "fewer texts": (
        {"reference_logprobs": [[-1.0]]},
        "policy_logprobs has 2 texts and reference_logprobs has 1",
    ),
    "lengths": (
        {"reference_logprobs": [[-1.0], [-2.0]]},
        "text 1: policy_logprobs has 2 entries and reference_logprobs has 1",
    ),
    "kl lengths": ({"kl": [[0.1], [0.1]]}, "text 1: policy_logprobs has 2 entries and kl has 1"),
    "labels": ({"clusters": ["a"]}, "policy_logprobs has 2 texts and clusters has 1"),
    "rewards": ({"reward": [1.0], "beta": 0.1}, "policy_logprobs has 2 texts and reward has 1"),
    "one reward": ({"reward": 1.0, "beta": 0.1}, "valid list"),
    "no beta": ({"reward": [1.0, 2.0]}, "give reward and beta together"),
    "negative kl": ({"kl": [[-0.1], [0.1, 0.1]]}, "greater than or equal to -0.0001"),
    "empty text": ({"policy_logprobs": [[-1.0], []]}, "at least 1 item"),
    "mixed": ({"policy_logprobs": [[-1.0], -2.0]}, "valid list"),
    "one list": ({"policy_logprobs": [-1.0, -2.0]}, "valid list"),
    "above 0": ({"policy_logprobs": [[0.5], [-2.0, -3.0]]}, "less than or equal to"),
    "a label that is none": ({"clusters": [1.5, None]}, "/clusters/0"),
    "too many": ({"policy_logprobs": [[-1.0]] * 4097}, "at most 4096 items"),
    "who wrote them": ({"sampled_from": "me"}, "'policy', 'reference' or 'unknown'"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED_TEXTS.values(), ids=REFUSED_TEXTS.keys())
def test_several_texts_that_do_not_fit_are_refused(client, change, reason):
    response = client.post("/v1/divergences", json=PAIR | change)
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert reason in response.text


def test_lists_of_wrong_elements_cost_one_error_each():
    wrong = [[None] * 1000] * 1000
    for name in ("policy_logprobs", "kl", "kl_ref"):
        with pytest.raises(ValidationError) as refused:
            TypeAdapter(DivergencesRequest).validate_python(PAIR | {name: wrong})
        assert refused.value.error_count() == 1
