# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The search for deployments: what is on the front, what is chosen and why, and what is said where nothing can be."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _model_plan as planning
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import ModelError
from ansible_collections.onprem.llm.plugins.module_utils._model_deployment import Model, misaligned, model_of
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import Settings
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import scheme_named
from ansible_collections.onprem.llm.plugins.module_utils._model_search import (
    Point,
    Quality,
    _tell_apart,
    as_deployment,
    dominates,
    pareto,
    quality_of,
    search,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_speed import workload_of
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import hardware, planning_data
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

CONFIGS = Path(__file__).resolve().parents[1] / "fixtures/configs"
DATA = planning_data()
ENGINES = DATA["engines"]["engines"]
WORK = {
    "requests_per_day": 350000,
    "peak_factor": 3,
    "prompt_tokens": {"mean": 500, "p95": 1500},
    "answer_tokens": {"mean": 150, "p95": 400},
    "slo": {"ttft_ms": 2000, "itl_ms": 60},
}


@cache
def model(name: str, quantisation: str | None = None) -> Model:
    return model_of(str(CONFIGS / f"{name}.json"), quantisation)


def found(name: str, gpus: Any, workload: Any = None, limits: Any = None, **settings: Any) -> dict[str, Any]:
    return _found(name, gpus, json.dumps([workload, limits, settings]))


@cache
def _found(name: str, gpus: str, rest: str) -> dict[str, Any]:
    workload, limits, settings = json.loads(rest)
    device, count = hardware(gpus)
    return search(model(name), device, count, settings, DATA, workload, limits)


def everything(name: str, gpus: Any, workload: Any = None, **settings: Any) -> list[dict[str, Any]]:
    return found(name, gpus, workload, {"shown": 1000}, **settings)["deployments"]


# --- dominance and the front -----------------------------------------------------------------------------------------

LOSSES = {"none": 0.0, "fp8": 0.4, "w4a16": 1.1, "q4_k_m": 3.8, "mxfp4": None, "nvfp4": None}
KV_LOSSES = {"auto": 0.0, "fp8": 0.2, "odd": None}
values = some.one_of(some.sampled_from([1.0, 1.004, 1.02, 2.0]), some.floats(0.5, 1e6))


@some.composite
def points(draw: Any) -> Point:
    scheme, kv = draw(some.sampled_from(sorted(LOSSES))), draw(some.sampled_from(sorted(KV_LOSSES)))
    loss, kv_loss = LOSSES[scheme], KV_LOSSES[kv]
    total = None if loss is None or kv_loss is None else loss + kv_loss
    measure = "" if not total else "perplexity" if scheme == "q4_k_m" else "score"
    return Point(
        throughput=draw(some.one_of(some.none(), some.just(0.0), values)),
        itl=draw(some.one_of(some.none(), values)),
        e2e=draw(some.one_of(some.none(), values)),
        headroom=draw(some.sampled_from([-0.01, 0.0, 0.1, 0.104, 0.5])),
        quality=Quality(scheme, kv, total, kv_loss, measure),
        gpus=draw(some.sampled_from([None, 0, 1, 8])),
    )


@given(some.lists(points(), max_size=12))
def test_the_front_is_dominated_by_nothing_and_covers_everything(listed: list[Point]) -> None:
    members, better = pareto(listed)
    assert bool(members) is bool(listed)
    for place in members:
        assert not any(dominates(rival, listed[place]) for rival in listed)
    assert set(members) | set(better) == set(range(len(listed)))
    for place, above in better.items():
        assert above in members
        assert dominates(listed[above], listed[place]) or listed[above].key == listed[place].key
    # Of equals one is enough.
    assert len({listed[place].key for place in members}) == len(members)


@given(points(), points(), points())
def test_dominance_is_an_order(one: Point, two: Point, three: Point) -> None:
    assert not dominates(one, one)
    assert not (dominates(one, two) and dominates(two, one))
    if dominates(one, two) and dominates(two, three):
        assert dominates(one, three)


def point(
    throughput: float = 100.0, itl: float = 10.0, scheme: str = "none", loss: float | None = 0.0, kv: str = "auto"
) -> Point:
    return Point(throughput, itl, 100.0, 0.5, Quality(scheme, kv, loss, KV_LOSSES[kv], "score" if loss else ""))


def test_what_differs_by_less_than_a_percent_is_equal() -> None:
    members, better = pareto([point(100.0), point(100.2)])
    # The one that is not beaten exactly stands for both.
    assert members == [1]
    assert better == {0: 1}
    assert pareto([point(100.0), point(103.0)])[0] == [1]
    assert pareto([point(100.0, 10.0), point(103.0, 11.0)])[0] == [0, 1]


def test_an_unknown_loss_dominates_nothing_else_and_is_dominated_by_the_rest() -> None:
    known, unknown = point(100.0), point(200.0, scheme="mxfp4", loss=None)
    assert not dominates(unknown, known)
    assert pareto([known, unknown])[0] == [0, 1]
    assert dominates(point(300.0), unknown)
    # The same scheme costs the same, whatever that is; the KV cache's part may be known.
    assert dominates(point(300.0, scheme="mxfp4", loss=None), unknown)
    assert dominates(unknown, point(200.0, scheme="mxfp4", loss=None, kv="fp8"))
    assert not dominates(point(300.0, scheme="nvfp4", loss=None), unknown)


def test_losses_by_different_measures_are_not_added_or_compared() -> None:
    quality = DATA["quality"]
    assert quality_of("q4_k_m", "f16", quality).measure == "perplexity"
    assert quality_of("none", "q8_0", quality).loss == quality["kv_cache"]["q8_0"]["value"]
    assert quality_of("fp8", "fp8", quality).loss == pytest.approx(0.6)
    assert quality_of("fp8", "q8_0", quality).loss is None
    assert quality_of("never-heard-of", "auto", quality).loss is None
    score, perplexity = quality_of("w4a16", "auto", quality), quality_of("q8_0", "f16", quality)
    assert score.against(perplexity) is None
    assert quality_of("none", "auto", quality).against(perplexity) == 1


# --- searches of real models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpus", "workload", "settings"),
    [
        ("llama-2-13b", "8xA100-SXM4-80GB", WORK, {}),
        ("llama-3.1-70b", "8xL40S", None, {"max_model_len": 8192}),
        ("gpt-oss-120b", "8xH100-SXM5-80GB", WORK, {"max_model_len": 16384}),
        ("qwen3-30b-a3b", "4xB200-SXM6-180GB", None, {"max_model_len": 32768}),
    ],
)
def test_no_listed_deployment_beats_a_member_of_the_front(name: str, gpus: str, workload: Any, settings: dict[str, Any]) -> None:
    listed = everything(name, gpus, workload, **settings)
    front = [one for one in listed if one["front"]]
    assert front == listed[: len(front)]
    assert front

    def rates(one: dict[str, Any]) -> tuple[float, ...]:
        rate = one["requests_per_day_at_slo"] if workload else one["tokens_per_second"]
        late = [-math.inf if one[key] is None else -one[key] for key in ("itl_ms", "e2e_ms")]
        needed = 0 if not workload else math.inf if one["gpus_needed"] is None else one["gpus_needed"]
        return (rate, *late, one["headroom_share"], -needed)

    def no_worse(one: dict[str, Any], other: dict[str, Any], slack: float) -> bool:
        """By more than the tolerance where ``slack`` is negative."""
        if one["quality_loss"] is None and one["quantisation"] != other["quantisation"]:
            return False
        if one["quality_loss"] is not None and other["quality_loss"] is not None and one["quality_loss"] > other["quality_loss"]:
            return False
        if one["quality_loss"] is None and one["settings"]["kv_cache_dtype"] != other["settings"]["kv_cache_dtype"]:
            return False
        mine, theirs = rates(one), rates(other)
        room = (abs(theirs[0]) * slack, abs(theirs[1]) * slack, abs(theirs[2]) * slack, slack, 0)
        return all(a == b or a >= b - more for a, b, more in zip(mine, theirs, room))

    for member in front:
        for other in listed:
            assert other is member or not (no_worse(other, member, -0.011) and rates(other) != rates(member)), (member, other)
    for other in listed[len(front) :]:
        assert any(no_worse(member, other, 0.011) for member in front), other
        assert "to " in other["why"] or "than " in other["why"]


@pytest.mark.parametrize(
    ("name", "product", "counts", "settings"),
    [
        ("llama-2-13b", "A100-SXM4-80GB", (1, 2, 3, 4, 8), {}),
        ("mixtral-8x22b", "H100-SXM5-80GB", (2, 3, 4, 6, 8), {"max_model_len": 8192}),
        ("gemma-3-27b-it", "L40S", (1, 2, 4, 6, 8), {"max_model_len": 8192}),
        ("deepseek-v3", "H200-SXM5-141GB", (4, 8, 12, 16), {"max_model_len": 8192}),
    ],
)
@pytest.mark.parametrize("workload", [None, WORK], ids=["alone", "workload"])
def test_more_gpus_never_lower_the_best_throughput(
    name: str, product: str, counts: tuple[int, ...], settings: dict[str, Any], workload: Any
) -> None:
    best = 0.0
    for count in counts:
        listed = everything(name, f"{count}x{product}", workload, **settings)
        key = "requests_per_day_at_slo" if workload else "tokens_per_second"
        now = max((one[key] for one in listed if one["front"]), default=0.0)
        assert now >= best * (1 - 1e-6), count
        best = now
    assert best > 0


def test_the_choice_is_least_loss_then_fewest_gpus_and_says_why() -> None:
    result = found("llama-2-13b", "8xA100-SXM4-80GB", WORK)
    chosen = result["chosen"]
    assert chosen["chosen"] and chosen["front"] and chosen["meets_slo"] and not chosen["fits_narrowly"]
    assert result["nearest"] is None
    assert chosen["quality_loss"] == 0
    equal = [one for one in everything("llama-2-13b", "8xA100-SXM4-80GB", WORK) if one["quality_loss"] == 0 and one["meets_slo"]]
    assert chosen["gpus_needed"] == min(one["gpus_needed"] for one in equal)
    assert chosen["gpus_needed"] == chosen["replicas_needed"] * chosen["gpus"] <= 8
    assert "Least quality loss (none)" in chosen["why"]
    assert f"{chosen['gpus_needed']} of 8" in chosen["why"]
    assert chosen["why"].count(". ") == 0
    assert sum(one["chosen"] for one in result["deployments"]) == 1


def test_one_gpu_left_over_is_no_reason_for_a_pipeline() -> None:
    """A host's eighth GPU serves nothing else: the shorter answer decides, and then the rate."""
    work = {
        "requests_per_day": 100000,
        "peak_factor": 3,
        "prompt_tokens": {"mean": 500},
        "answer_tokens": {"mean": 150},
        "slo": {"ttft_ms": 1000},
    }
    listed = everything("qwen3-235b-a22b", "8xH100-SXM5-80GB", work)
    (chosen,) = (one for one in listed if one["chosen"])
    staged = [
        one for one in listed if one["settings"]["pipeline_parallel"] == 7 and one["quality_loss"] == chosen["quality_loss"]
    ]
    assert staged and all(one["meets_slo"] for one in staged)
    assert (chosen["settings"]["pipeline_parallel"], chosen["gpus_needed"]) == (1, 8)
    assert chosen["e2e_ms"] < min(one["e2e_ms"] for one in staged) / 3
    assert "smallest share of the host (all of it)" in chosen["why"]
    assert "within 5% of the highest throughput the shortest answer" in chosen["why"]

    alone = everything("llama-3.1-405b", "8xA100-SXM4-80GB")
    (chosen,) = (one for one in alone if one["chosen"])
    assert chosen["settings"]["tensor_parallel"] == 8
    rival = max(
        (one for one in alone if one["quality_loss"] == chosen["quality_loss"] and not one["fits_narrowly"]),
        key=lambda one: one["tokens_per_second"],
    )
    # The rival is faster by less than 5 % where it is full, and slower for one request.
    assert rival["settings"]["pipeline_parallel"] == 7
    assert 1 < rival["tokens_per_second"] / chosen["tokens_per_second"] < 1.05


@pytest.mark.parametrize(
    ("needs", "wanted"),
    # GPUs that TP 1, 2, 4 and 8 need of 8: what leaves half of the host free comes first, what leaves less does not.
    [({1: 7, 2: 8, 4: 8, 8: 8}, 8), ({1: 5, 2: 4, 4: 8, 8: 8}, 2), ({1: 3, 2: 4, 4: 4, 8: 8}, 4), ({1: 1, 2: 2, 4: 4, 8: 8}, 1)],
)
def test_fewer_gpus_count_where_they_leave_a_share_of_the_host(
    monkeypatch: pytest.MonkeyPatch, needs: dict[int, int], wanted: int
) -> None:
    def service(deployment: Any, *_rest: Any) -> dict[str, Any]:
        gpus = deployment.settings.gpus
        return {**served(deployment, 1e6), "replicas_needed": needs.get(gpus, 8) // gpus, "e2e_ms": 1000.0 / gpus}

    monkeypatch.setattr(planning, "_service", service)
    device, count = hardware("8xA100-SXM4-80GB")
    given = {"pipeline_parallel": 1}
    result = search(model("llama-2-13b"), device, count, given, DATA, WORK, {"quantisations": ["none"]})
    assert result["chosen"]["gpus"] == wanted


def test_a_rate_that_is_much_higher_comes_before_a_shorter_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(factor: float) -> int:
        def service(deployment: Any, *_rest: Any) -> dict[str, Any]:
            gpus = deployment.settings.gpus
            return {**served(deployment, 1e6 if gpus > 1 else factor * 1e6), "replicas_needed": 8 // gpus, "e2e_ms": 9e3 / gpus}

        monkeypatch.setattr(planning, "_service", service)
        device, count = hardware("8xA100-SXM4-80GB")
        return int(search(model("llama-2-13b"), device, count, {"pipeline_parallel": 1}, DATA, WORK)["chosen"]["gpus"])

    assert chosen(1.04) == 8
    assert chosen(1.07) == 1


@pytest.mark.parametrize(("name", "gpus"), [("gpt-oss-120b", "4xH100-SXM5-80GB"), ("deepseek-v3", "16xH200-SXM5-141GB")])
def test_a_checkpoint_as_published_loses_nothing_of_what_was_given(name: str, gpus: str) -> None:
    listed = everything(name, gpus, max_model_len=8192)
    plain = [one for one in listed if one["settings"]["kv_cache_dtype"] == "auto"]
    cached = [one for one in listed if one["settings"]["kv_cache_dtype"] == "fp8"]
    assert {(one["quality_loss"], one["quality_measure"]) for one in plain} == {(0, "as published")}
    assert {(one["quality_loss"], one["quality_measure"]) for one in cached} == {(0.2, "score")}
    (chosen,) = (one for one in listed if one["chosen"])
    assert "none beyond the checkpoint as published" in chosen["why"]
    # What was published of a scheme stays.
    awq = found("qwen2.5-72b-instruct-awq", "2xA100-SXM4-80GB", max_model_len=8192)["chosen"]
    assert awq["quality_loss"] == DATA["quality"]["methods"]["awq"]["value"] > 0


def test_labels_tell_deployments_apart() -> None:
    result = found(
        "llama-3.1-8b", "2xRTX-4090", None, {"kv_cache_dtypes": ["f16", "auto"]}, engine="llama_cpp", max_model_len=8192
    )
    labels = [one["label"] for one in result["deployments"]]
    assert len(set(labels)) == len(labels) and any("kv_cache_dtype auto" in text for text in labels)
    assert max(map(len, labels)) < 90
    assert sum(one["label"] == result["chosen"]["label"] for one in result["deployments"]) == 1

    rows = [{"label": "a" * 120, "settings": {"x": number}} for number in range(12)]
    _tell_apart(rows)
    assert len({str(row["label"]) for row in rows}) == 12
    assert max(len(str(row["label"])) for row in rows) < 90


def test_a_limit_on_quality_and_on_quantisations_is_kept() -> None:
    limited = found("llama-2-13b", "2xA100-SXM4-80GB", None, {"quality_loss": 0.5, "shown": 1000})
    assert {one["quantisation"] for one in limited["deployments"]} == {"none", "fp8"}
    assert limited["refused"] > 0
    none = found("llama-2-13b", "1xA100-SXM4-80GB", None, {"quality_loss": 0.5, "quantisations": ["w4a16"]})
    assert "and none keeps limits.quality_loss: w4a16" in none["reason"]
    assert none["nearest"]["quantisation"] == "w4a16"
    only = found("llama-2-13b", "2xA100-SXM4-80GB", None, {"quantisations": ["w4a16"], "gpus_per_replica": 1})
    assert {(one["quantisation"], one["gpus"], one["other_checkpoint"]) for one in only["deployments"]} == {("w4a16", 1, True)}


def test_what_the_operator_gave_stays() -> None:
    settings = {
        "tensor_parallel": 2,
        "max_num_seqs": 100,
        "max_num_batched_tokens": 4096,
        "kv_cache_dtype": "fp8",
        "max_model_len": 4000,
        "memory_utilization": 0.8,
        "replicas": 1,
        "cuda_graphs": False,
    }
    listed = everything("llama-3.1-8b", "4xH100-SXM5-80GB", WORK, **settings)
    assert listed
    for one in listed:
        assert {name: one["settings"][name] for name in settings} == settings
        assert one["replicas"] == 1
    assert len({one["quantisation"] for one in listed}) > 1


def test_a_quantised_checkpoint_stays_as_it_is() -> None:
    listed = everything("deepseek-v3", "16xH200-SXM5-141GB", WORK, max_model_len=8192)
    assert {one["quantisation"] for one in listed} == {"fp8_per_block"}
    assert not any(one["other_checkpoint"] for one in listed)
    assert any(one["settings"]["data_parallel"] > 1 and one["settings"]["expert_parallel"] for one in listed)
    with pytest.raises(ModelError, match=r"limits\.quantisations: found w4a16.*quantised already"):
        found("deepseek-v3", "16xH200-SXM5-141GB", None, {"quantisations": ["w4a16"]})


def test_what_a_gpu_cannot_serve_is_not_offered() -> None:
    hopper = {one["quantisation"] for one in everything("llama-3.1-8b", "1xH100-SXM5-80GB", max_model_len=8192)}
    ampere = everything("llama-3.1-8b", "1xA100-SXM4-80GB", max_model_len=8192)
    blackwell = {one["quantisation"] for one in everything("llama-3.1-8b", "1xB200-SXM6-180GB", max_model_len=8192)}
    assert hopper == {"none", "fp8", "w4a16"}
    assert {one["quantisation"] for one in ampere} == {"none", "fp8", "int8", "w4a16"}
    assert {one["settings"]["kv_cache_dtype"] for one in ampere} == {"auto"}
    assert blackwell == {"none", "fp8", "w4a16", "nvfp4"}


def test_a_gpu_without_bfloat16_gets_float16_unless_it_was_given() -> None:
    listed = everything("llama-3.1-8b", "4xT4", max_model_len=4096)
    assert {one["settings"]["dtype"] for one in listed} == {"float16"}
    assert "none" in {one["quantisation"] for one in listed}
    refused = found("llama-3.1-8b", "4xT4", max_model_len=4096, dtype="bfloat16")
    assert refused["chosen"] is None
    assert refused["reason"].startswith("Nothing would start: ") and "give dtype float16" in refused["reason"]
    assert refused["refused"] == refused["considered"] > 0
    assert "float16" in refused["nearest"]["lacks"][0]


def test_pipelines_are_for_slow_links_and_for_what_does_not_fit_without() -> None:
    def pipelines(gpus: str, name: str = "llama-3.1-70b") -> set[int]:
        return {one["settings"]["pipeline_parallel"] for one in everything(name, gpus, max_model_len=8192)}

    assert pipelines("4xL40S") >= {1, 2}
    assert pipelines("8xA100-SXM4-80GB", "llama-3.1-8b") == {1}
    # 32 heads do not divide by 3, and on 2 GPUs it does not fit in 16 bits.
    three = everything("mixtral-8x7b", "3xA100-SXM4-40GB", max_model_len=8192)
    assert {(one["settings"]["pipeline_parallel"], one["gpus"]) for one in three if one["quantisation"] == "none"} == {(3, 3)}


def test_matrices_are_not_divided_through_what_shares_a_scale() -> None:
    """Qwen3-235B in FP8 over 8 GPUs: 1536 / 8 = 192 is no multiple of 128 (vLLM issue 17569)."""
    architecture = model("qwen3-235b-a22b").architecture
    block, tensor = scheme_named("fp8_per_block", "bfloat16"), scheme_named("fp8", "bfloat16")
    assert "192" in misaligned(architecture, block, Settings(tensor_parallel=8))
    assert not misaligned(architecture, block, Settings(tensor_parallel=4))
    assert not misaligned(architecture, block, Settings(tensor_parallel=8, expert_parallel=True))
    assert not misaligned(architecture, tensor, Settings(tensor_parallel=8))
    # Qwen2.5 72B: an inner size of 29568 = 231 groups of 128 (vLLM issue 21695); the AWQ checkpoint is padded to 29696.
    dense, padded = model("qwen2.5-72b-instruct").architecture, model("qwen2.5-72b-instruct-awq").architecture
    awq = scheme_named("awq", "float16")
    assert "14784" in misaligned(dense, awq, Settings(tensor_parallel=2))
    assert not misaligned(dense, scheme_named("none", "float16"), Settings(tensor_parallel=2))
    assert not misaligned(padded, awq, Settings(tensor_parallel=8))
    # 13824 does not divide by 5, though 40 heads do.
    assert "13824" in misaligned(model("llama-2-13b").architecture, scheme_named("none", "float16"), Settings(tensor_parallel=5))
    # gpt-oss: the kernels pad 2880.
    oss = model("gpt-oss-120b")
    assert not misaligned(oss.architecture, oss.scheme, Settings(tensor_parallel=8))


def test_a_search_counts_what_it_left_out() -> None:
    result = found("qwen3-235b-a22b", "8xH100-SXM5-80GB", WORK, max_model_len=32768)
    assert result["considered"] == len(everything("qwen3-235b-a22b", "8xH100-SXM5-80GB", WORK, max_model_len=32768)) + (
        result["refused"] + result["do_not_fit"]
    )
    assert result["do_not_fit"] > 0
    assert {entry["code"] for entry in result["refusals"]} == {"not_divisible"}
    assert sum(entry["count"] for entry in result["refusals"]) == result["refused"]


def test_at_most_so_many_are_listed_beside_the_front() -> None:
    result = found("llama-2-13b", "8xA100-SXM4-80GB", WORK, {"shown": 3})
    assert sum(not one["front"] for one in result["deployments"]) == 3
    assert found("llama-2-13b", "8xA100-SXM4-80GB", WORK, {"shown": 0})["chosen"]


# --- where nothing can be chosen -------------------------------------------------------------------------------------


def test_where_nothing_fits_the_nearest_says_what_is_missing() -> None:
    result = found("llama-3.1-405b", "2xA100-SXM4-80GB", WORK, max_model_len=8192)
    assert result["deployments"] == []
    assert result["chosen"] is None
    nearest = result["nearest"]
    assert nearest["quantisation"] == "w4a16"
    assert nearest["missing_bytes"] > 2**30
    assert "GiB of memory on each GPU" in nearest["lacks"][0]
    assert any("tensor_parallel" in tip["change"] for tip in nearest["advice"])
    assert result["reason"].startswith("Nothing fits: the nearest (")
    assert f"misses {nearest['missing_bytes'] / 2**30:.2f} GiB on each GPU" in result["reason"]
    assert whole_plan(nearest, "llama-3.1-405b", "2xA100-SXM4-80GB", {"max_model_len": 8192})["missing_bytes"] > 2**30


def whole_plan(entry: dict[str, Any], name: str, gpus: str, settings: dict[str, Any]) -> dict[str, Any]:
    device, count = hardware(gpus)
    return planning.make_plan(as_deployment(entry, model(name), device, count, settings, ENGINES), DATA, workload_of(WORK))


def test_an_slo_that_nothing_keeps_is_said_with_the_best_there_is() -> None:
    result = found("llama-3.1-70b", "8xA100-SXM4-80GB", {**WORK, "slo": {"itl_ms": 1}}, max_model_len=8192)
    assert result["chosen"] is None
    assert result["deployments"]
    assert all(one["verdict"] == "FAIL" and one["meets_slo"] is False for one in result["deployments"])
    nearest = result["nearest"]
    assert any("itl" in text and "1 is wanted" in text for text in nearest["lacks"])
    assert "deployments fit, and none keeps the SLO: itl_ms of the nearest is " in result["reason"]
    assert "1 is wanted" in result["reason"]
    # The fastest for one request alone comes nearest, and a whole plan is made of it.
    assert nearest["settings"]["tensor_parallel"] == 8 and nearest["quantisation"] == "w4a16"
    plan = whole_plan(nearest, "llama-3.1-70b", "8xA100-SXM4-80GB", {"max_model_len": 8192})
    assert plan["fits"] and plan["service"]["meets_slo"] is not None

    first = found("llama-3.1-70b", "8xA100-SXM4-80GB", {**WORK, "slo": {"ttft_ms": 5}}, max_model_len=8192)
    assert "ttft_ms of the nearest is" in first["reason"] and "5 is wanted" in first["reason"]


def test_too_many_requests_are_said_with_the_gpus_that_would_do() -> None:
    result = found("llama-2-13b", "1xA100-SXM4-80GB", {**WORK, "requests_per_day": 5e6})
    nearest = result["nearest"]
    assert result["chosen"] is None
    assert nearest["requests_per_day_at_slo"] == max(one["requests_per_day_at_slo"] for one in result["deployments"])
    assert f"{nearest['gpus_needed']} GPUs would do" in nearest["lacks"][0]
    assert nearest["gpus_needed"] > 1
    assert f"serves {nearest['requests_per_day_at_slo']:,.0f} of 5,000,000 requests a day" in result["reason"]


def test_what_fits_only_by_the_expected_sizes_is_not_chosen() -> None:
    device, count = hardware("1xA100-SXM4-80GB")
    settings = {"max_model_len": 4096, "max_num_batched_tokens": 2048, "max_num_seqs": 256}
    roomy = search(model("llama-2-13b"), device, count, settings, DATA, None, {"quantisations": ["none"]})
    (one,) = roomy["deployments"]
    needed = one["cache_bytes"] - one["headroom_share"] * device.memory
    spare = round((one["cache_bytes"] - needed) / 0.92 - 2**27)
    tight = replace(device, memory=device.memory - spare, memory_low=device.memory - spare - 2**29, memory_high=0)
    result = search(model("llama-2-13b"), tight, count, settings, DATA, None, {"quantisations": ["none"]})
    (one,) = result["deployments"]
    assert one["fits_narrowly"] and one["verdict"] == "WARN"
    assert result["chosen"] is None
    assert "at the lower end of the interval" in result["nearest"]["lacks"][0]
    assert result["reason"].startswith("1 deployment fits only by the expected sizes")
    assert roomy["reason"] is None


def test_without_rates_of_the_gpu_no_slo_is_promised() -> None:
    result = found("llama-3.1-8b", "2xA10G", WORK, max_model_len=8192)
    assert result["chosen"] is None
    assert "speed" in result["nearest"]["lacks"][0]
    assert "of none a speed is known" in result["reason"]
    alone = found("llama-3.1-8b", "2xA10G", max_model_len=8192)
    assert alone["chosen"]["tokens_per_second"] is None
    assert alone["chosen"]["quality_loss"] == 0
    assert "its speed being unknown" in alone["chosen"]["why"]


def served(deployment: Any, rate: float) -> dict[str, Any]:
    return {
        "itl_ms": 10.0,
        "e2e_ms": 1000.0,
        "ttft_ms": 100.0,
        "concurrency": 5.0,
        "requests_per_day_at_slo": rate,
        "requests_per_day_at_capacity": 2 * rate,
        "meets_slo": True,
        "replicas_needed": 1,
        "limited_by": "compute",
    }


def test_one_speed_for_all_leaves_quality_and_memory_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_service", lambda deployment, *_rest: served(deployment, 1e6))
    device, count = hardware("2xA100-SXM4-80GB")
    result = search(model("llama-2-13b"), device, count, {}, DATA, WORK)
    chosen = result["chosen"]
    assert (chosen["quantisation"], chosen["gpus_needed"]) == ("none", 1)
    front = [one for one in result["deployments"] if one["front"]]
    for one in front:
        rivals = [other for other in front if other["gpus_needed"] <= one["gpus_needed"] and other is not one]
        assert not any(
            other["quality_loss"] <= one["quality_loss"] and other["headroom_share"] > one["headroom_share"] + 0.01
            for other in rivals
        )


def test_fewer_gpus_come_before_more_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_service", lambda deployment, *_rest: served(deployment, 1e6 * deployment.settings.gpus))
    device, count = hardware("8xA100-SXM4-80GB")
    result = search(model("llama-2-13b"), device, count, {}, DATA, WORK)
    assert result["chosen"]["gpus_needed"] == 1
    best = max(result["deployments"], key=lambda one: one["requests_per_day_at_slo"])
    assert best["gpus_needed"] == 8
    assert best["front"]


def test_ranks_each_run_as_many_requests_as_the_limit_says() -> None:
    listed = everything("gpt-oss-120b", "8xH100-SXM5-80GB", max_model_len=16384)
    assert any(one["settings"]["data_parallel"] > 1 and one["concurrency"] > one["settings"]["max_num_seqs"] for one in listed)
    assert not any("max_num_seqs" in one["warnings"] for one in listed)


def test_a_batch_holds_the_requests_of_a_step() -> None:
    listed = everything("llama-3.1-8b", "1xH100-SXM5-80GB", max_model_len=8192, max_num_seqs=4096)
    assert min(one["settings"]["max_num_batched_tokens"] for one in listed) >= 4096


# --- other engines ---------------------------------------------------------------------------------------------------


def test_llama_cpp_varies_slots_and_mixes() -> None:
    listed = everything("llama-3.1-8b", "2xRTX-4090", engine="llama_cpp", max_model_len=8192)
    assert {one["quantisation"] for one in listed} <= {"none", "Q8_0", "Q6_K", "Q4_K_M"}
    assert len({one["settings"]["slots"] for one in listed}) > 1
    assert all(one["settings"]["tensor_parallel"] == 1 for one in listed)
    many = max(listed, key=lambda one: one["tokens_per_second"])
    assert many["settings"]["slots"] > 1


def test_cpus_are_searched_too() -> None:
    device, count = hardware({"product": "xeon_8480", "memory_bytes": 256 * 2**30})
    result = search(model("qwen3-0.6b"), device, count, {"max_model_len": 4096}, DATA)
    assert result["chosen"]["settings"]["engine"] == "vllm_cpu"
    assert {one["quantisation"] for one in result["deployments"]} <= {"none", "int8", "awq"}


# --- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpus", "settings"),
    [
        ("llama-2-13b", "8xA100-SXM4-80GB", {}),
        ("gpt-oss-120b", "4xH100-SXM5-80GB", {"max_model_len": 16384}),
        ("llama-3.1-8b", "4xT4", {"max_model_len": 4096}),
        ("llama-3.1-8b", "2xRTX-4090", {"engine": "llama_cpp", "max_model_len": 8192}),
    ],
)
def test_an_entry_makes_a_whole_plan_with_the_same_numbers(name: str, gpus: str, settings: dict[str, Any]) -> None:
    device, count = hardware(gpus)
    work = workload_of({**WORK, "requests_per_day": 1000})
    result = search(model(name), device, count, settings, DATA, work, {"shown": 8})
    for entry in result["deployments"]:
        deployment = as_deployment(entry, model(name), device, count, settings, ENGINES)
        plan = planning.make_plan(deployment, DATA, work)
        assert not any(warning["code"].startswith(("tensor_parallel_does", "compute")) for warning in plan["warnings"])
        assert plan["fits"]
        assert plan["service"]["itl_ms"] == pytest.approx(entry["itl_ms"])
        assert plan["service"]["requests_per_day_at_slo"] == pytest.approx(entry["requests_per_day_at_slo"])
        assert plan["memory"]["kv_cache"]["bytes"] == entry["cache_bytes"]
        assert plan["settings"]["replicas"] == entry["replicas"]
        assert plan["quantisation"]["name"] == entry["quantisation"]
        assert not set(plan["settings"]["defaulted"]) & set(settings)


def test_the_result_is_plain_data_and_the_same_each_time() -> None:
    device, count = hardware("4xH100-SXM5-80GB")
    one, two = (search(model("gpt-oss-120b"), device, count, {"max_model_len": 16384}, DATA, WORK) for _turn in range(2))
    assert json.dumps(one, sort_keys=True, allow_nan=False) == json.dumps(two, sort_keys=True, allow_nan=False)
    assert {"deployments", "considered", "refused", "do_not_fit", "chosen", "nearest"} <= set(one)


def test_a_large_model_on_many_gpus_is_searched_quickly() -> None:
    known = model("deepseek-v3")
    device, count = hardware("16xH200-SXM5-141GB")
    begin = time.process_time()
    result = search(known, device, count, {}, DATA, WORK)
    assert time.process_time() - begin < 1.5
    assert result["considered"] <= 600


def test_corrections_reach_the_candidates() -> None:
    device, count = hardware("1xA100-SXM4-80GB")
    learnt = {"weights": {"factor": 1.5, "from": "a log"}}
    plain = search(model("llama-2-13b"), device, count, {}, DATA, None, {"quantisations": ["none"]})
    corrected = search(model("llama-2-13b"), device, count, {}, DATA, None, {"quantisations": ["none"]}, learnt)
    assert corrected["chosen"]["weights_bytes"] == pytest.approx(1.5 * plain["chosen"]["weights_bytes"])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"quantisation": ["fp8"]}, r"limits\.quantisation: there is no such limit \(did you mean quantisations"),
        ({"quantisations": "fp8"}, r"limits\.quantisations: found 'fp8'; wanted a list"),
        ({"quantisations": []}, r"limits\.quantisations: found \[\]; wanted a list"),
        ({"quantisations": ["fp9"]}, "'fp9' is not known; near are fp8"),
        ({"gpus_per_replica": 0}, r"limits\.gpus_per_replica: found 0; wanted a whole number from 1"),
        ({"quality_loss": -1}, r"limits\.quality_loss: found -1; wanted a number from 0 to 100"),
        ({"shown": "many"}, r"limits\.shown: found 'many'; wanted a whole number"),
    ],
)
def test_a_wrong_limit_is_named(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        found("llama-2-13b", "1xA100-SXM4-80GB", None, limits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel": 16}, "ask for 16 GPUs, and the host has 8"),
        ({"expert_parallel": True}, "has no experts to divide"),
        ({"tensor_paralel": 2}, "did you mean tensor_parallel"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        found("llama-2-13b", "8xA100-SXM4-80GB", None, None, **settings)


def test_more_replicas_than_gpus_are_refused_and_said() -> None:
    result = found("llama-2-13b", "2xA100-SXM4-80GB", None, None, replicas=3)
    assert result["chosen"] is None
    assert {entry["code"] for entry in result["refusals"]} == {"too_many_replicas"}
    assert "3 replicas of 1 GPUs are 3, more than the 2 of the host" in result["nearest"]["lacks"][0]


@effort(max_examples=20)
@given(
    count=some.integers(1, 12),
    memory=some.integers(8, 200),
    capability=some.sampled_from(["7.5", "8.0", "8.9", "9.0", "10.0"]),
    heads=some.sampled_from([8, 12, 32, 40]),
    experts=some.sampled_from([0, 8]),
    length=some.integers(256, 32768),
)
def test_any_search_keeps_its_promises(count: int, memory: int, capability: str, heads: int, experts: int, length: int) -> None:
    numbers = {
        "layers": 24,
        "hidden_size": heads * 128,
        "heads": heads,
        "kv_heads": heads // 4,
        "intermediate_size": heads * 384,
        "vocabulary": 32000,
        "max_context": 32768,
        **({"experts": experts, "experts_per_token": 2, "expert_intermediate_size": heads * 64} if experts else {}),
    }
    device, count = hardware(
        {
            "name": "x",
            "count": count,
            "memory_bytes": memory * 2**30,
            "bandwidth_gbps": 1000,
            "tflops": {"bf16": 200},
            "compute_capability": capability,
        }
    )
    result = search(model_of(numbers), device, count, {"max_model_len": length}, DATA, WORK)
    for one in result["deployments"]:
        assert one["gpus_used"] == one["replicas"] * one["gpus"] <= count
        assert one["cache_bytes"] > 0
        assert heads % one["settings"]["tensor_parallel"] == 0
        assert one["settings"]["max_model_len"] == length
        assert one["verdict"] in ("PASS", "WARN", "FAIL")
    chosen = result["chosen"]
    assert (chosen is None) is (result["nearest"] is not None) is (result["reason"] is not None)
    labels = [one["label"] for one in result["deployments"]]
    assert len(set(labels)) == len(labels)
    assert chosen is None or (chosen["meets_slo"] is True and not chosen["fits_narrowly"] and chosen["gpus_needed"] <= count)
    assert result["nearest"] is None or result["nearest"]["lacks"]
