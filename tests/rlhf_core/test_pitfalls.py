"""The twenty known pitfalls of RLHF code (engines.md §2.10), each with the tests that close it.

A test of one of them stands where its subject is tested; those of whole steps of training for this list alone in
test_pitfalls_in_training.py.
"""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest


class Pitfall(NamedTuple):
    """What goes wrong, and `module::name` of the tests that would see it; folders are below tests/."""

    trap: str
    tests: tuple[str, ...]


TRAINING = "rlhf_core/test_pitfalls_in_training"
PITFALLS = {
    1: Pitfall(
        "The temperature divides the logits of one model only, or of one pass.",
        (
            f"{TRAINING}::test_01_the_leash_at_a_temperature_holds_for_both_models",
            f"{TRAINING}::test_01_the_first_ratio_at_a_temperature_is_one",
            "rlhf_core/test_logprobs::test_temperature_divides_the_logits_of_both_models",
            "rlhf_core/test_objective::test_the_gradient_of_all_terms_is_that_of_the_definition",  # at .8
            "rlhf_core/test_audit::test_a_bug_is_found_by_its_check",
        ),
    ),
    2: Pitfall(
        "Tokens are sampled from a truncated distribution, and k1 and k3 estimate no KL.",
        (
            "rlhf_core/test_truncation::test_t4_no_estimate_of_kl_survives_truncation",
            "rlhf_core/test_truncation::test_a_truncated_run_says_so",
            "rlhf_core/test_config::test_a_refusal_names_its_reason",
        ),
    ),
    3: Pitfall(
        "A negative mean of k1 is taken for a KL: the text was not sampled from the policy.",
        (
            "rlhf_core/test_truncation::test_the_k1_of_greedy_text_is_no_kl",
            "rlhf_core/test_diagnosis::test_the_evidence_of_a_negative_kl",
            "api/test_statistics::test_other_texts_estimate_nothing",
        ),
    ),
    4: Pitfall(
        "The stop token is the padding token, and a mask `ids != pad` hides it.",
        (
            "rlhf_core/test_rollout::test_t20_a_response_is_what_was_said_up_to_the_stop_token",
            "rlhf_core/test_metrics::test_t20_the_trainers_kl_includes_the_stop_token_and_nothing_after_it",
        ),
    ),
    5: Pitfall(
        "Padding is on the side that the code does not expect.",
        (
            "rlhf_core/test_logprobs::test_the_logits_before_a_token_score_it_whatever_the_padding",
            "rlhf_core/test_packing::test_a_sequence_among_others_is_as_if_alone",
            "rlhf_core/test_rollout::test_the_cached_path_and_one_forward_agree_on_log_probabilities",
        ),
    ),
    6: Pitfall(
        "Functional dropout stays on in train(), where modules alone were silenced.",
        (
            "rlhf_core/test_trained_trunk::test_train_without_dropout_is_eval_to_the_bit",
            "rlhf_core/test_trained_trunk::test_with_its_dropout_train_is_not_eval",
            "rlhf_core/test_audit::test_a_bug_is_found_by_its_check",
        ),
    ),
    7: Pitfall(
        "Logits, weights or moments are bfloat16, whose spacing is .125 at 20.",
        (
            f"{TRAINING}::test_07_bfloat16_rounds_neither_logits_nor_small_steps",
            "rlhf_core/test_trained_trunk::test_bfloat16_is_of_the_products_alone",
            "rlhf_core/test_models::test_the_head_of_a_bfloat16_trunk_answers_in_float32",
        ),
    ),
    8: Pitfall(
        "The ratio of the first minibatch is not 1: old log-probabilities come from another pass.",
        (
            "rlhf_core/test_packing::test_t21_packed_minibatches_of_several_shapes_are_on_policy",
            "rlhf_core/test_trained_trunk::test_t21_the_first_ratio_is_one",
            "rlhf_core/test_fixed_points::test_t21_the_first_minibatch_is_exactly_on_policy",
            "rlhf_core/test_chunked_logprobs::test_to_the_bit_what_the_rollout_was_told",
        ),
    ),
    9: Pitfall(
        "Garbage is multiplied by a mask of 0 and becomes NaN.",
        (
            "rlhf_core/test_losses::test_masked_tokens_reach_neither_loss_nor_gradient",
            "rlhf_core/test_masking::test_garbage_under_the_mask_reaches_no_gradient",
            "rlhf_core/test_metrics::test_t19_garbage_under_the_mask_reaches_no_metric_and_no_sample",
        ),
    ),
    10: Pitfall(
        "k3 as exp(−d) − 1 + d cancels in float32 and is negative.",
        ("rlhf_core/test_kl::test_t17_k3_of_a_small_difference",),
    ),
    11: Pitfall(
        "The tails of k3 explode, in its value or in its backward pass.",
        (
            "rlhf_core/test_losses::test_t25_the_tails_of_k3",
            "rlhf_core/test_losses::test_r_k3_is_finite_where_k3_is_not",
            "rlhf_core/test_kl::test_infinite_estimates",
        ),
    ),
    12: Pitfall(
        "A hidden clamp of per-token values biases their sum.",
        ("rlhf_core/test_kl::test_t2_no_hidden_clamp",),
    ),
    13: Pitfall(
        "Pads are counted in the reported means.",
        (
            f"{TRAINING}::test_13_pads_change_no_metric_and_no_weight_of_a_step",
            "rlhf_core/test_packing::test_t22_columns_of_padding_change_no_metric",
            "rlhf_core/test_metrics::test_t22_columns_of_padding_change_no_metric_and_no_sample",
        ),
    ),
    14: Pitfall(
        "The KL that is reported is not the one that was subtracted.",
        ("rlhf_core/test_targets::test_what_is_logged_is_what_was_subtracted_to_the_bit",),
    ),
    15: Pitfall(
        "A mean of the means of micro-batches, where their tokens are not equally many.",
        (
            f"{TRAINING}::test_15_reported_means_are_over_the_tokens_of_uneven_minibatches",
            "rlhf_core/test_losses::test_micro_batches_change_no_gradient",
            "rlhf_core/test_losses::test_the_mean_is_over_tokens_not_over_rows",
            "rlhf_core/test_update::test_t14_micro_batches_change_no_gradient",
        ),
    ),
    16: Pitfall(
        "“Exact” KL of the top k, or of logits that were not normalised, is negative.",
        (
            "rlhf_core/test_kl::test_laws_of_divergences",
            "rlhf_core/test_scoring::test_top_terms_are_the_largest_parts_of_the_kl",
            "rlhf_core/test_kernels::test_t18_it_holds_the_bound_down_to_a_kl_of_1e_8",
        ),
    ),
    17: Pitfall(
        "An option that nobody has ever run raises when somebody does.",
        (
            "rlhf_core/test_config::test_trap_17_every_choice_is_run_by_steps_of_training",
            "rlhf_core/test_config::test_every_branch_is_found",
        ),
    ),
    18: Pitfall(
        "The adapter's base is not the reference: modules of its own, or an adapter below it.",
        (
            "rlhf_core/test_policies::test_training_moves_every_weight_of_the_policy_and_none_of_the_reference",
            "rlhf_core/test_policies::test_training_goes_on_from_no_adapter_of_the_head",
            "rlhf_core/test_models::test_an_adapter_of_the_head_is_refused",
            "rlhf_core/test_models::test_an_adapter_is_no_base",
        ),
    ),
    19: Pitfall(
        "Adam's ε stands elsewhere than in the implementation that one compares with.",
        (f"{TRAINING}::test_19_adams_epsilon_is_added_to_the_root_after_the_bias_correction",),
    ),
    20: Pitfall(
        "Numbers depend on the shape of the batch, so that a resumed run is another run.",
        (
            "rlhf_core/test_checkpoint::test_t26_resume_is_bit_identical_at_every_step_boundary",
            "faults/test_resume::test_a_run_stopped_inside_a_step_or_a_save_goes_on_to_the_bit",
            "rlhf_core/test_scoring::test_strict_is_the_same_to_the_bit_in_any_company",
        ),
    ),
}


@cache
def named(module: str) -> dict[str, str]:
    """A module's tests by name, with what decorates them."""
    tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text())
    return {
        node.name: " ".join(map(ast.unparse, node.decorator_list))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("item", range(1, 21))
def test_every_pitfall_has_tests_that_are_run(item: int) -> None:
    assert PITFALLS[item].tests
    for test in PITFALLS[item].tests:
        module, name = test.split("::")
        assert "skip" not in named(module)[name]
