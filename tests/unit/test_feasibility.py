# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Which kind of deployment is recommended, and that no input leads to one that the level forbids."""

from __future__ import annotations

import itertools
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.onprem.llm.plugins.action.feasibility import ActionModule
from ansible_collections.onprem.llm.plugins.plugin_utils import _feasibility
from ansible_collections.onprem.llm.plugins.plugin_utils._feasibility import feasibility, problems, sized
from ansible_collections.onprem.llm.plugins.plugin_utils._sensitivity import FILE, LEVELS, SensitivityError, controls_of
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = yaml.safe_load(FILE.read_text(encoding="utf-8"))["feasibility"]
NEEDS, OPERATIONS, CRITERIA = list(DATA["needs"]), list(DATA["capabilities"]), list(DATA["criteria"])
ALL = list(itertools.product(LEVELS, NEEDS, OPERATIONS))

weights = st.dictionaries(st.sampled_from(CRITERIA), st.integers(0, 1000)).filter(
    lambda given: any({**{name: about["weight"] for name, about in DATA["criteria"].items()}, **given}.values())
)


def possible(answer: dict[str, Any]) -> set[str]:
    return {option["name"] for option in answer["options"] if not option["excluded"]}


def option(answer: dict[str, Any], name: str) -> dict[str, Any]:
    return next(option for option in answer["options"] if option["name"] == name)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(SensitivityError) as caught:
        feasibility(*arguments, **options)
    return str(caught.value)


def run(variables: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """The action plugin, as a task runs it."""
    loader = DataLoader()
    task = SimpleNamespace(args=arguments, check_mode=False, diff=False, async_val=0, action="feasibility")
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nonexistent"))
    task_vars = variables or {}
    action = ActionModule(task, connection, None, loader, Templar(loader=loader, variables=task_vars), None)
    return action.run(task_vars=task_vars)


# Every combination.


@pytest.mark.parametrize(("level", "need", "operations"), ALL)
def test_every_combination_has_an_answer(level: str, need: str, operations: str) -> None:
    answer = feasibility(level, need, operations)
    assert {item["name"] for item in answer["options"]} == set(DATA["options"])
    assert answer["recommended"] and answer["recommendation"].endswith(".")
    best = option(answer, answer["recommended"][0])
    assert not best["excluded"] and 0 < best["score"] <= 100
    assert all(bool(item["exclusions"]) is item["excluded"] for item in answer["options"])
    assert all((item["score"] is None) is item["excluded"] for item in answer["options"])
    assert all(item["operations"]["effort"] and item["operations"]["people"] for item in answer["options"])
    assert all(score["reason"] for item in answer["options"] for score in item["scores"])
    # The best first, what is excluded last.
    order = [(item["excluded"], -(item["score"] or 0)) for item in answer["options"]]
    assert order == sorted(order)
    assert answer == feasibility(level, need, operations)


@given(need=st.sampled_from(NEEDS), operations=st.sampled_from(OPERATIONS), weighed=weights)
@settings(max_examples=60)
def test_the_highest_level_is_air_gapped_whatever_the_weights(need: str, operations: str, weighed: dict[str, int]) -> None:
    answer = feasibility("L4", need, operations, weighed)
    assert answer["recommended"] == ["airgapped_cluster"] and possible(answer) == {"airgapped_cluster"}


@given(need=st.sampled_from(NEEDS), operations=st.sampled_from(OPERATIONS), weighed=weights)
@settings(max_examples=60)
def test_a_higher_level_adds_no_option(need: str, operations: str, weighed: dict[str, int]) -> None:
    left = [possible(feasibility(level, need, operations, weighed)) for level in LEVELS]
    assert left[0] >= left[1] >= left[2] >= left[3]
    assert "public_api" in left[1] and "public_api" not in left[2]


@given(level=st.sampled_from(LEVELS), need=st.sampled_from(NEEDS), weighed=weights)
@settings(max_examples=60)
def test_more_capable_operations_never_lower_a_score(level: str, need: str, weighed: dict[str, int]) -> None:
    answers = [feasibility(level, need, operations, weighed) for operations in OPERATIONS]
    for less, more in itertools.pairwise(answers) if hasattr(itertools, "pairwise") else zip(answers, answers[1:]):
        for name in possible(less):
            assert option(less, name)["score"] <= option(more, name)["score"]
            assert set(option(less, name)["operations"]["missing"]) >= set(option(more, name)["operations"]["missing"])


@given(
    level=st.sampled_from(LEVELS), need=st.sampled_from(NEEDS), operations=st.sampled_from(OPERATIONS), factor=st.integers(1, 9)
)
@settings(max_examples=30)
def test_only_proportions_of_weights_matter(level: str, need: str, operations: str, factor: int) -> None:
    plain = {name: about["weight"] for name, about in DATA["criteria"].items()}
    first, second = (
        feasibility(level, need, operations, {key: value * by for key, value in plain.items()}) for by in (1, factor)
    )
    assert [item["score"] for item in first["options"]] == [item["score"] for item in second["options"]]


# Single answers.


def test_a_score_can_be_computed_again_from_what_is_shown() -> None:
    for item in feasibility("L2", "medium", "basic")["options"]:
        total = sum(score["weight"] * score["score"] for score in item["scores"])
        assert item["score"] == pytest.approx(total / sum(score["weight"] for score in item["scores"]) * 10, abs=0.05)


@pytest.mark.parametrize(
    ("level", "need", "operations", "recommended"),
    [
        ("L1", "small", "none", ["public_api"]),
        ("L2", "small", "basic", ["single_node"]),
        ("L2", "medium", "skilled", ["cluster"]),
        ("L3", "medium", "basic", ["single_node"]),
        ("L3", "large", "expert", ["cluster"]),
        ("L4", "small", "none", ["airgapped_cluster"]),
    ],
)
def test_who_is_told_what(level: str, need: str, operations: str, recommended: list[str]) -> None:
    assert feasibility(level, need, operations)["recommended"] == recommended


def test_an_excluded_option_says_why() -> None:
    answer = feasibility("L3", "large", "skilled")
    assert option(answer, "public_api")["exclusions"][0].startswith("not for L3 (confidential): Prompts leave")
    assert option(answer, "single_node")["exclusions"] == ["does not carry the need large (more than eight GPUs)"]
    both = option(feasibility("L4", "large", "skilled"), "single_node")
    assert len(both["exclusions"]) == 2 and both["scores"] == []


def test_what_operations_do_not_carry_is_named() -> None:
    answer = feasibility("L4", "medium", "basic")
    needs = option(answer, "airgapped_cluster")["operations"]
    assert needs["carried"] is False and needs["gap"] == 2 and answer["carried"] is False
    assert needs["missing"] == DATA["capabilities"]["skilled"]["adds"] + DATA["capabilities"]["expert"]["adds"]
    assert "(basic) do not carry" in answer["recommendation"]
    assert "around the clock" in answer["recommendation"]
    assert "hire, train or contract first" in answer["recommendation"] and answer["alternative"] is None


def test_what_operations_carry_today_is_named_beside_it() -> None:
    answer = feasibility("L2", "large", "none")
    assert answer["recommended"] == ["cluster"] and answer["alternative"] == "public_api"
    assert "What they carry today: Public API" in answer["recommendation"]


def test_what_is_carried_misses_nothing() -> None:
    answer = feasibility("L3", "medium", "skilled")
    assert answer["carried"] is True and answer["alternative"] is None
    assert option(answer, answer["recommended"][0])["operations"]["missing"] == []
    assert "do not carry" not in answer["recommendation"]


def test_a_tie_is_named_as_one() -> None:
    alone = {name: 0 for name in CRITERIA} | {"data_control": 1}
    answer = feasibility("L1", "medium", "expert", alone)
    assert answer["tie"] is True and answer["recommended"] == list(DATA["options"])
    assert answer["recommendation"].startswith("A tie: Public API and ")
    assert feasibility("L1", "medium", "expert")["tie"] is False


def test_weights_change_what_is_recommended() -> None:
    assert feasibility("L2", "medium", "expert")["recommended"] == ["cluster"]
    answer = feasibility("L2", "medium", "expert", {"time_to_service": 500})
    assert answer["recommended"] == ["public_api"] and answer["weights"]["time_to_service"] == 500
    assert answer["weights"]["data_control"] == 30


def test_the_controls_of_the_level_come_with_it() -> None:
    answer = feasibility("L3", "small", "basic")
    assert answer["controls"] == controls_of("L3")
    assert answer["variables"]["host_journal_max_days"] == 184
    assert answer["variables"]["host_apt_sources_exclusive"] is True
    assert len(answer["variables"]["model_store_models"]) == 3
    assert set(answer["attest"]) == {"encryption_at_rest", "central_audit_trail", "role_based_access"}


# The need.


@pytest.mark.parametrize(
    ("need", "size", "gpus"),
    [
        ({"gpus": 1}, "small", 1),
        ({"gpus": 2}, "medium", 2),
        ({"gpus": "8"}, "medium", 8),
        ({"gpus": 9}, "large", 9),
        # 350,000 x 300 x 3 / 86400 = 3646 tokens/s
        ({"requests_per_day": 350000, "answer_tokens_per_request": 300}, "medium", 8),
        ({"requests_per_day": 350000, "answer_tokens_per_request": 300, "tokens_per_second_per_gpu": 3645}, "medium", 2),
        ({"requests_per_day": 350000, "answer_tokens_per_request": 300, "peak_factor": 6}, "large", 15),
        ({"requests_per_day": 1, "answer_tokens_per_request": 1}, "small", 1),
    ],
)
def test_a_need_in_numbers(need: dict[str, Any], size: str, gpus: int) -> None:
    found = sized(need)
    assert (found["class"], found["gpus"]) == (size, gpus)


def test_assumptions_are_named() -> None:
    need = {"requests_per_day": 86400, "answer_tokens_per_request": 100, "peak_factor": 2}
    assert sized(need)["derivation"] == "200 answer tokens/s at the peak, 500 a GPU; assumed: tokens_per_second_per_gpu 500"
    assert "assumed" not in sized({**need, "tokens_per_second_per_gpu": 1000})["derivation"]


@given(requests=st.integers(1, 10**8), tokens=st.integers(1, 5000), more=st.integers(1, 10**6))
@settings(max_examples=100)
def test_more_requests_never_need_less(requests: int, tokens: int, more: int) -> None:
    few, many = (
        sized({"requests_per_day": number, "answer_tokens_per_request": tokens}) for number in (requests, requests + more)
    )
    assert few["gpus"] <= many["gpus"] and NEEDS.index(few["class"]) <= NEEDS.index(many["class"])


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("L5", "small", "basic"), "level: is 'L5'; one of L1 (public)"),
        ((None, "small", "basic"), "level: is missing or null"),
        (("L1", "smal", "basic"), "need: is 'smal' (did you mean small?); one of small, medium, large is wanted"),
        (("L1", None, "basic"), "need: is missing or null"),
        (("L1", 3, "basic"), "need: is 3"),
        (("L1", "small", "experts"), "operations: is 'experts' (did you mean expert?)"),
        (("L1", "small", "basic", {"costs": 3}), "weights.costs: is no criterion (did you mean cost?)"),
        (("L1", "small", "basic", {"cost": -1}), "weights.cost: is -1; a number of 0 or more is wanted"),
        (("L1", "small", "basic", {"cost": True}), "weights.cost: is True"),
        (("L1", "small", "basic", {"cost": "nan"}), "weights.cost: is 'nan'"),
        (("L1", "small", "basic", {"cost": float("inf")}), "weights.cost: is inf"),
        (("L1", "small", "basic", dict.fromkeys(CRITERIA, 0)), "weights: all are 0"),
        (("L1", "small", "basic", [1]), "weights: is [1]; a mapping"),
        (("L1", {"gpus": 0}, "basic"), "need.gpus: is 0; a number above 0 is wanted"),
        (("L1", {"gpus": 1.5}, "basic"), "need.gpus: is 1.5; a whole number is wanted"),
        (("L1", {"gpu": 1}, "basic"), "need.gpu: is unknown (did you mean gpus?)"),
        (("L1", {"gpus": 1, "peak_factor": 2}, "basic"), "need: has gpus and also"),
        (("L1", {"requests_per_day": 5}, "basic"), "need.answer_tokens_per_request: is missing"),
        (("L1", {"requests_per_day": "many", "answer_tokens_per_request": 1}, "basic"), "need.requests_per_day: is 'many'"),
        (
            ("L1", {"requests_per_day": 5, "answer_tokens_per_request": 1, "peak_factor": 0.5}, "basic"),
            "need.peak_factor: is 0.5; the peak over the mean of a day is 1 or more",
        ),
        (("L1", {}, "basic"), "need.requests_per_day: is missing"),
    ],
)
def test_bad_input_is_named(arguments: tuple[Any, ...], said: str) -> None:
    assert said in refused(*arguments)


def test_a_sites_own_controls_are_looked_at_too() -> None:
    assert "log_retention" in refused("L1", "small", "basic", None, {"log_retention": {"condition": "true"}})


# The data.


def test_the_shipped_data_has_no_problems() -> None:
    assert problems(DATA) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("operations_gap", {0: 10}, "operations_gap: has 0; 0 to 3 are wanted"),
        ("needs/large/gpus", 64, "needs: end at 1, 8, 64 GPUs"),
        ("options/cluster/highest_level", "L5", "options.cluster.highest_level: is 'L5'"),
        ("options/cluster/highest_level_reason", "", "options.cluster.highest_level_reason: is missing"),
        ("options/cluster/demands", "good", "options.cluster.demands: is 'good'"),
        ("options/cluster/effort", "", "options.cluster.effort: is missing"),
        ("options/cluster/scores/cost/reason", "", "options.cluster.scores.cost.reason: is missing"),
        ("options/cluster/scores/cost/small", 11, "options.cluster.scores.cost.small: is 11; 0 to 10"),
        ("options/cluster/scores/cost/huge", 1, "options.cluster.scores.cost: has small, medium, large, reason, huge"),
        ("options/airgapped_cluster/needs", ["small"], "options: none is left for L4 and the need medium"),
    ],
)
def test_data_that_contradicts_itself_is_refused(path: str, value: Any, said: str) -> None:
    data = deepcopy(DATA)
    *parts, last = path.split("/")
    at: Any = data
    for part in parts:
        at = at[part]
    at[last] = value
    assert any(said in text for text in problems(data))


def test_public_options_are_excluded_in_the_data_itself() -> None:
    assert DATA["options"]["public_api"]["highest_level"] == "L2"
    assert [name for name, found in DATA["options"].items() if found["highest_level"] == "L4"] == ["airgapped_cluster"]


# The action.


def test_the_action_returns_the_answer() -> None:
    result = run(level="L3", need="medium", operations="skilled")
    assert result["changed"] is False and result["recommended"] == ["cluster"]
    assert {**feasibility("L3", "medium", "skilled"), "changed": False} == {key: result[key] for key in result}


def test_the_action_takes_the_level_of_the_inventory_and_a_need_from_the_command_line() -> None:
    result = run({"onprem_llm_data_sensitivity": "L2"}, need='{"gpus": 4}', operations="basic", weights={"cost": "20"})
    assert result["level"] == "L2" and result["need"]["gpus"] == 4 and result["weights"]["cost"] == 20


def test_the_action_says_what_is_wrong() -> None:
    with pytest.raises(AnsibleActionFail, match="level: is missing or null"):
        run(need="small", operations="basic")
    with pytest.raises(AnsibleActionFail, match="one of none, basic, skilled, expert"):
        run(level="L1", need="small", operations="many")


def test_no_reader_can_change_the_data() -> None:
    feasibility("L1", "small", "basic")["options"][0]["operations"]["missing"].append("x")
    feasibility("L4", "small", "basic")["controls"].clear()
    assert _feasibility._data() == DATA
