# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A plan beside what a running server reported: logs, metrics and GPUs; mismatches; corrections and their file."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.onprem.llm.plugins.action.model_plan_comparison import ActionModule
from ansible_collections.onprem.llm.plugins.module_utils import _plan_comparison as module
from ansible_collections.onprem.llm.plugins.module_utils._plan_comparison import (
    GIB,
    MIB,
    ComparisonError,
    PlanKey,
    Reading,
    Reported,
    check_store,
    compare,
    corrections_for,
    hints_for,
    learnt_from,
    load_store,
    merged,
    model_word,
    new_store,
    plan_key,
    read_gpu_info,
    read_log,
    read_metrics,
    samples,
    store_text,
    table,
    write_store,
)
from ansible_collections.onprem.llm.plugins.modules import model_plan_comparison as documented
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "tests" / "fixtures" / "engine_logs"


def log(name: str) -> Reported:
    return read_log((LOGS / name).read_text(encoding="utf-8"))


def gib(value: float) -> Any:
    """A figure that a log prints with two digits."""
    return pytest.approx(value * GIB, abs=0.005 * GIB)


def term(name: str, value: float, spread: float = 0.1) -> dict[str, Any]:
    return {
        "name": name,
        "bytes": int(value * GIB),
        "low_bytes": int(value * (1 - spread) * GIB),
        "high_bytes": int(value * (1 + spread) * GIB),
    }


def plan(**changes: Any) -> dict[str, Any]:
    """A plan of the server of vllm-0.32.0-gpu.log; keys with a dot change what is within."""
    made: dict[str, Any] = {
        "form": 1,
        "model": {
            "name": "qwen3-14b",
            "path": "/srv/plans/qwen3-14b",
            "family": "qwen3",
            "parameters": 14768307200,
            "layer_kinds": {"full": 40},
        },
        "hardware": {
            "product": "h100_sxm5_80gb",
            "name": "NVIDIA H100 80GB HBM3",
            "kind": "gpu",
            "count": 1,
            "memory_bytes": 85029158912,
        },
        "settings": {
            "engine": "vllm",
            "engine_version": "0.32.0",
            "dtype": "bfloat16",
            "kv_cache_dtype": "auto",
            "tensor_parallel": 1,
            "pipeline_parallel": 1,
            "data_parallel": 1,
            "expert_parallel": False,
            "max_model_len": 8192,
            "memory_utilization": 0.92,
            "max_num_batched_tokens": 8192,
            "max_num_seqs": 512,
            "cuda_graphs": True,
            "prefix_caching": True,
        },
        "quantisation": {"name": "none"},
        "memory": {
            "total_bytes": 85029158912,
            "terms": [
                term("weights", 27.51, 0.01),
                term("activation", 2.0),
                term("non_torch", 0.3),
                term("cuda_graphs", 1.3, 0.5),
                term("kv_cache", 41.75, 0.05),
                term("reserve", 6.3),
            ],
            "kv_cache": {
                "bytes": int(41.75 * GIB),
                "low_bytes": 40 * GIB,
                "high_bytes": 43 * GIB,
                "tokens": 273600,
                "low_tokens": 262144,
                "high_tokens": 281804,
            },
            "requests": [{"length": 8192, "bytes": 1342177280, "concurrency": 33.4, "low": 32.0, "high": 34.4}],
        },
        "speed": {
            "prefill_tokens_per_second": 15000.0,
            "points": [
                {"concurrency": 1, "itl_ms": 11.0, "ttft_ms": 90.0},
                {"concurrency": 4, "itl_ms": 12.0, "ttft_ms": 100.0},
                {"concurrency": 16, "itl_ms": 15.0, "ttft_ms": 160.0},
            ],
        },
        "service": {"concurrency": 16, "itl_ms": 15.0, "ttft_ms": 160.0},
        "corrections": [],
    }
    for path, value in changes.items():
        place = made
        *parents, last = path.replace("__", ".").split(".")
        for name in parents:
            place = place[name]
        place[last] = value
    return made


def rows(comparison: module.Comparison) -> dict[str, module.Row]:
    return {row.term: row for row in comparison.rows}


# --- logs ------------------------------------------------------------------------------------------------------------


def test_vllm_0_6_prints_the_peak_with_the_weights_and_blocks_in_place_of_tokens() -> None:
    found = log("vllm-0.6.4-gpu.log")
    assert (found.engine, found.engine_version) == ("vllm", "0.6.4.post1")
    assert found.terms["weights"].value == pytest.approx(14.9888 * GIB)
    assert found.terms["weights"].rounding == pytest.approx(0.00005 * GIB)
    assert found.terms["activation"].value == gib(17.06 - 14.9888)
    assert (found.terms["non_torch"].value, found.terms["kv_memory"].value) == (gib(0.35), gib(3.81))
    assert found.terms["cuda_graphs"].value == gib(0.28)
    assert found.terms["kv_blocks"].value == 1952
    assert found.terms["max_concurrency"].value == 1.56
    wanted = {"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 20000, "max_num_seqs": 256, "quantisation": "none"}
    assert {name: found.settings[name] for name in wanted} == wanted
    assert "max_num_batched_tokens" not in found.settings, "None in the arguments is no value"


def test_vllm_v0_of_two_processes_takes_the_worst_of_each_term() -> None:
    found = log("vllm-0.8.2-v0-tp2.log")
    assert found.terms["weights"].value == pytest.approx(13.9441 * GIB)
    assert found.terms["weights"].low == pytest.approx(13.9281 * GIB)
    # The process with most activation is not the one with most beyond PyTorch.
    assert (found.terms["activation"].value, found.terms["non_torch"].value) == (gib(1.48), gib(0.52))
    assert (found.terms["kv_memory"].value, found.terms["kv_memory"].high) == (gib(24.07), gib(24.12))
    assert found.terms["kv_blocks"].value == 32864, "the blocks of the CPU are not the cache"
    assert found.settings["kv_cache_dtype"] == "fp8" and found.settings["tensor_parallel"] == 2
    assert found.settings["quantisation"] == "none", "the compiler's configuration has a field of that name too"


def test_vllm_0_10_prints_each_term_once_the_graphs_are_there() -> None:
    found = log("vllm-0.10.2-gpu.log")
    assert {name: found.terms[name].value for name in ("kv_memory", "activation", "non_torch", "cuda_graphs")} == {
        "kv_memory": gib(58.53),
        "activation": gib(2.21),
        "non_torch": gib(0.24),
        "cuda_graphs": gib(0.47),
    }
    assert found.terms["kv_tokens"].value == 1096000
    assert found.settings["max_num_batched_tokens"] == 8192 and found.settings["memory_utilization"] == 0.95


def test_a_journal_with_colours_and_two_processes() -> None:
    found = log("vllm-0.19.0-tp2-journal.log")
    assert found.engine_version == "0.19.0"
    assert found.settings["model"] == "/var/lib/onprem/models/llama-3.1-8b-instruct/releases/1.2.0"
    weights = found.terms["weights"]
    assert (weights.value, weights.low, weights.count) == (gib(7.53), gib(7.51), 2)
    assert "7.51 GiB to 7.53 GiB; the most is taken" in weights.note
    assert (found.terms["kv_memory"].value, found.terms["non_torch"].value) == (gib(63.5), gib(2.31))
    assert "all alike" in found.terms["activation"].note


def test_vllm_0_32_counts_the_graphs_estimate_in_the_peak_and_weights_in_what_is_consumed() -> None:
    found = log("vllm-0.32.0-gpu.log")
    assert found.engine_version == "0.32.0"
    assert found.terms["cuda_graphs"].value == gib(1.03), "what the budget pays is the estimate"
    assert found.terms["activation"].value == pytest.approx((3.46 - 1.03) * GIB)
    assert found.terms["non_torch"].value == pytest.approx((27.9 - 27.52) * GIB)
    assert found.terms["activation"].rounding == pytest.approx(0.01 * GIB), "two roundings"
    assert any("0.71 GiB were used" in note for note in found.notes)
    assert (found.terms["kv_tokens"].value, found.terms["max_concurrency"].value) == (271968, 33.2)


def test_an_estimate_that_is_switched_off_is_not_in_the_peak() -> None:
    text = (LOGS / "vllm-0.32.0-gpu.log").read_text(encoding="utf-8")
    text = text.replace(
        "CUDA graph memory profiling is enabled (default since v0.21.0)", "CUDA graph memory profiling is disabled"
    )
    found = read_log(text)
    assert (found.terms["activation"].value, found.terms["cuda_graphs"].value) == (gib(3.46), gib(0.71))


def test_a_cpu_has_a_cache_of_the_size_that_was_given() -> None:
    found = log("vllm-0.32.0-cpu-journal.log")
    assert (found.engine, found.engine_version) == ("vllm_cpu", "0.32.0")
    assert found.terms["kv_memory"].value == GIB
    assert found.terms["kv_tokens"].value == 1398016
    assert "cuda_graphs" not in found.terms


def test_a_cpu_that_chose_its_cache_itself() -> None:
    found = read_log("Auto set (9.2/15.6) GiB for KV cache on node 0, with 14.35 GiB requested memory for the worker.")
    assert found.engine == "vllm_cpu" and found.terms["kv_memory"].value == gib(9.2)
    assert found.terms["kv_memory"].rounding == pytest.approx(0.005 * GIB), "zeros at the end are not printed"


def test_llama_cpp_sums_the_buffers_of_a_device_and_takes_the_fuller_one() -> None:
    found = log("llama_cpp-b6500-cuda2.log")
    assert (found.engine, found.engine_version) == ("llama_cpp", "b6500")
    assert found.terms["weights"].value == pytest.approx(8251.08 * MIB), "a file that is mapped takes no memory of a GPU"
    assert found.terms["kv_memory"].value == pytest.approx(1288 * MIB), "both kinds of layers"
    assert found.terms["activation"].value == pytest.approx(522.62 * MIB)
    assert found.terms["kv_tokens"].value == 16384, "not the slots' own 8192"
    assert (found.settings["max_model_len"], found.settings["slots"], found.settings["kv_cache_dtype"]) == (8192, 2, "f16")


def test_llama_cpp_of_2024_on_a_cpu() -> None:
    found = log("llama_cpp-b3600-cpu.log")
    assert (found.engine_version, found.settings["device"]) == ("b3600", "cpu")
    assert found.terms["weights"].value == pytest.approx(8137.64 * MIB)
    assert found.terms["kv_memory"].value == 512 * MIB, "the line of the total is not added to the buffer's"
    assert found.terms["activation"].value == pytest.approx(296.01 * MIB)


def test_a_compute_buffer_that_is_made_anew_is_not_added() -> None:
    lines = (
        "load_tensors:  CUDA0 model buffer size =  2048.00 MiB",
        *(f"sched_reserve:  CUDA0 compute buffer size =  {size}.00 MiB" for size in (300, 200)),
    )
    assert read_log("\n".join(lines)).terms["activation"].value == 300 * MIB


def test_what_one_process_prints_again_takes_the_place_of_the_first() -> None:
    found = read_log("Model loading took 10.0 GiB memory and 1 seconds\nModel loading took 12.0 GiB memory and 1 seconds")
    assert (found.terms["weights"].value, found.terms["weights"].count) == (12 * GIB, 1)
    assert found.notes == ["weights: one process printed it more than once; the last is taken"]


def test_layers_that_stay_on_the_cpu_are_told() -> None:
    found = read_log("load_tensors: offloaded 20/33 layers to GPU\nload_tensors:  CUDA0 model buffer size =  2048.00 MiB\n")
    assert found.notes == ["weights: 20 of 33 layers are on GPUs, the others on the CPU"]


def test_of_several_starts_the_last_one_is_read() -> None:
    first = (LOGS / "vllm-0.10.2-gpu.log").read_text(encoding="utf-8")
    second = (LOGS / "vllm-0.32.0-gpu.log").read_text(encoding="utf-8")
    found = read_log(first + second)
    assert found.engine_version == "0.32.0" and found.terms["weights"].value == gib(27.52)
    assert "the log is of several starts; the last one is read" in found.notes
    with pytest.raises(ComparisonError, match=r"of the last start \(1 lines\) has no figure"):
        read_log(first + "INFO 11-26 12:00:00 [api_server.py:1] vLLM API server version 0.32.0\n")


def test_api_servers_of_one_start_are_no_starts() -> None:
    text = (LOGS / "vllm-0.10.2-gpu.log").read_text(encoding="utf-8")
    found = read_log(text + "(ApiServer_1 pid=5) INFO 09-20 09:01:05 [api_server.py:1896] vLLM API server version 0.10.2\n")
    assert "weights" in found.terms


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("(EngineCore pid=1) INFO [core.py:1] GPU KV cache size: 449,6", "kv_tokens"),
        ("INFO [gpu_worker.py:1] Available KV cache memory: 54.9", "kv_memory"),
        ("INFO [gpu_model_runner.py:1] Model loading took 14.98", "weights"),
    ],
)
def test_half_a_line_is_no_figure(text: str, absent: str) -> None:
    whole = "INFO [kv_cache_utils.py:1] Maximum concurrency for 8,192 tokens per request: 6.71x\n"
    found = read_log(whole + text)
    assert absent not in found.terms and found.terms["max_concurrency"].value == 6.71


@pytest.mark.parametrize("text", ["", "\n\n", "nginx started\nready\n", "\x1b[0m", "Model loading took ages"])
def test_a_log_without_a_figure_says_what_was_looked_for(text: str) -> None:
    with pytest.raises(ComparisonError, match=r'has no figure of memory; looked for were, of vLLM "Model loading took"'):
        read_log(text)


def test_engines_that_refuse_and_caches_that_are_overridden_are_told() -> None:
    found = read_log(
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (5.2 GiB).\nOverriding num_gpu_blocks=100 with num_gpu_blocks_override=50"
    )
    assert found.terms["kv_memory"].value == gib(5.2)
    assert len(found.notes) == 2


@given(st.text(max_size=300))
def test_no_text_breaks_the_readers(text: str) -> None:
    for reader in (read_log, read_metrics):
        with contextlib.suppress(ComparisonError):
            reader(text)


@given(st.integers(0, 5000), st.sampled_from(sorted(path.name for path in LOGS.glob("*.log"))))
@settings(max_examples=60)
def test_a_log_that_is_cut_anywhere_gives_nothing_but_what_the_whole_has(end: int, name: str) -> None:
    text = (LOGS / name).read_text(encoding="utf-8")
    whole = read_log(text)
    try:
        part = read_log(text[:end])
    except ComparisonError:
        return
    summed_up = {"cuda_graphs", "activation", "weights", "kv_memory"}  # or of processes that may be missing
    for found in set(part.terms) - summed_up:
        assert part.terms[found].value in (whole.terms[found].low, whole.terms[found].high)
    for setting in set(part.settings) - {"device"}:
        assert part.settings[setting] == whole.settings[setting], setting
    assert part.engine_version in ("", whole.engine_version)


# --- metrics and GPUs ------------------------------------------------------------------------------------------------


def metrics(name: str) -> Reported:
    return read_metrics((LOGS / name).read_text(encoding="utf-8"))


def test_vllm_metrics_give_means_and_the_load_they_are_of() -> None:
    found = metrics("vllm-0.32.0.metrics")
    assert found.terms["kv_tokens"].value == 271968
    assert found.terms["itl"].value == pytest.approx(14.0)
    assert found.terms["ttft"].value == pytest.approx(150.0)
    assert found.terms["prefill"].value == pytest.approx(7500.0), "tokens of the prefix cache are not computed"
    assert found.load["mean_batch"] == 8.0
    assert found.load["requests"] == 200 and found.load["kv_usage"] == 0.0312
    assert found.settings["names"] == ["qwen3-14b"]


def test_of_several_engines_the_smaller_cache_counts_and_histograms_are_summed() -> None:
    text = (LOGS / "vllm-0.32.0.metrics").read_text(encoding="utf-8")
    other = text.replace('engine="0"', 'engine="1"').replace('"271968"', '"260000"').replace("557.2", "955.2")
    found = read_metrics(text + other)
    assert found.terms["kv_tokens"].value == 260000
    assert found.terms["itl"].value == pytest.approx((557.2 + 955.2) / (2 * 39800) * 1000)
    assert found.load["mean_batch"] == 16.0, "what one replica of two engines has under way"


def test_older_names_of_metrics() -> None:
    found = read_metrics(
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="100",cache_dtype="auto"} 1\n'
        'vllm:time_per_output_token_seconds_sum{model_name="a"} 3\nvllm:time_per_output_token_seconds_count{model_name="a"} 200\n'
        'vllm:gpu_cache_usage_perc{model_name="a"} 0.5\n'
    )
    assert found.terms["itl"].value == 15.0 and found.load["kv_usage"] == 0.5 and found.terms["kv_blocks"].value == 100


def test_speculative_decoding_hides_how_many_ran_at_once() -> None:
    text = (LOGS / "vllm-0.32.0.metrics").read_text(encoding="utf-8")
    found = read_metrics(text + 'vllm:spec_decode_num_drafts_total{engine="0"} 12\n')
    assert "mean_batch" not in found.load and "speculative decoding" in found.notes[0]


def test_llama_cpp_metrics() -> None:
    found = metrics("llama_cpp.metrics")
    assert found.terms["itl"].value == 25.0 and found.terms["prefill"].value == 2000.0
    assert found.load["mean_batch"] == 1.5


def test_metrics_of_something_else_are_refused() -> None:
    with pytest.raises(ComparisonError, match="has 1 metrics, none of which begins with vllm: or llamacpp:"):
        read_metrics("node_load1 0.5\n# comment\nbroken{\n")


def test_labels_may_hold_anything() -> None:
    text = 'vllm:x{model_name="a\\"b,c}\\n",other="\\\\"} 2.5 1700000000\nvllm:y NaN\nvllm:z{} +Inf'
    assert next(iter(samples(text))) == ("vllm:x", {"model_name": 'a"b,c}\n', "other": "\\"}, 2.5)


def gpu(index: int, used: float, *, processes: int = 1, name: str = "NVIDIA H100 80GB HBM3") -> dict[str, Any]:
    return {
        "index": index,
        "name": name,
        "memory": {"total_bytes": 85520809984, "used_bytes": int(used * GIB), "free_bytes": 0},
        "processes": [{"pid": number, "name": "VLLM::Worker", "used_bytes": 1} for number in range(processes)],
    }


def test_of_the_gpus_those_at_work_count_and_the_fullest_is_taken() -> None:
    found = read_gpu_info({"state": "read", "gpus": [gpu(0, 72.5), gpu(1, 73.0), gpu(2, 0.4, processes=0)]})
    used = found.terms["memory_used"]
    assert (used.value, used.low, used.count) == (73.0 * GIB, 72.5 * GIB, 2)


def test_several_processes_on_a_gpu_are_told() -> None:
    assert "several processes" in read_gpu_info({"gpus": [gpu(0, 72.5, processes=2)]}).notes[0]


@pytest.mark.parametrize(
    "given_info", [{}, {"gpus": None}, {"state": "no_library", "reason": "libnvidia-ml is not there", "gpus": []}, []]
)
def test_gpus_that_were_not_read_are_an_error(given_info: Any) -> None:
    with pytest.raises(ComparisonError, match="gpu_info: "):
        read_gpu_info(given_info)


def test_unreadable_memory_of_one_gpu_is_passed_over() -> None:
    lost = {"index": 1, "name": None, "memory": None}
    assert read_gpu_info({"gpus": [gpu(0, 1.0), lost]}).terms["memory_used"].count == 1


def test_reports_of_two_engines_are_not_merged() -> None:
    with pytest.raises(ComparisonError, match="one is of vllm, another of llama_cpp"):
        merged(log("vllm-0.10.2-gpu.log"), metrics("llama_cpp.metrics"))
    both = merged(metrics("vllm-0.32.0.metrics"), log("vllm-0.32.0-cpu-journal.log"))
    assert both.engine == "vllm_cpu", "metrics do not say what they run on"


# --- comparison ------------------------------------------------------------------------------------------------------


def test_rows_have_signed_errors_and_intervals() -> None:
    found = compare(plan(), merged(log("vllm-0.32.0-gpu.log"), metrics("vllm-0.32.0.metrics")))
    assert found.mismatches == []
    by_term = rows(found)
    assert by_term["activation"].error_percent == pytest.approx((2.0 - 2.43) / 2.43 * 100, abs=0.01)
    assert by_term["activation"].within_interval is False
    assert by_term["kv_tokens"].within_interval is True and by_term["kv_tokens"].error_percent == pytest.approx(0.6)
    assert by_term["max_concurrency"].planned == 33.4
    # Between the points of 4 and 16 requests, at 8.
    assert by_term["itl"].planned == pytest.approx(13.0) and "8.0 requests" in by_term["itl"].note
    assert by_term["ttft"].planned == pytest.approx(120.0)
    assert found.worst is not None and found.worst.term == "prefill"


def test_what_is_rounded_is_not_outside_the_interval() -> None:
    exact = plan()
    exact["memory"]["terms"][0].update(low_bytes=int(27.524 * GIB), high_bytes=int(27.6 * GIB))
    assert rows(compare(exact, log("vllm-0.32.0-gpu.log")))["weights"].within_interval is True


def test_blocks_are_tokens_only_where_all_layers_are_alike() -> None:
    of_blocks = log("vllm-0.6.4-gpu.log")
    found = rows(compare(plan(), of_blocks))["kv_tokens"]
    assert found.reported == 1952 * 16 and "1952 blocks of 16 tokens" in found.note
    hybrid = compare(plan(model__layer_kinds={"full": 10, "window": 30}), of_blocks)
    assert "kv_tokens" not in rows(hybrid)
    assert any("layers of several kinds (full, window)" in note for note in hybrid.notes)


def test_memory_in_use_is_the_sum_of_the_terms_without_the_reserve() -> None:
    row = rows(compare(plan(), read_gpu_info({"gpus": [gpu(0, 73.2)]})))["memory_used"]
    assert row.planned == pytest.approx((27.51 + 2.0 + 0.3 + 1.3 + 41.75) * GIB, abs=10)
    assert row.within_interval is True


def test_gpus_beside_a_server_on_the_cpu_are_passed_over() -> None:
    report = merged(log("vllm-0.32.0-cpu-journal.log"), read_gpu_info({"gpus": [gpu(0, 3.0)]}))
    found = compare(plan(hardware__kind="cpu"), report)
    assert "memory_used" not in rows(found) and "gpu" not in {item["setting"] for item in found.mismatches}


def test_without_a_known_load_the_planned_service_is_shown_and_nothing_learnt() -> None:
    report = Reported(engine="vllm", settings={"model": "qwen3-14b"}, terms={"itl": Reading(20.0, 20.0, 20.0)})
    found = compare(plan(), report)
    assert rows(found)["itl"].planned == 15.0 and "is not known" in rows(found)["itl"].note
    assert found.factors == {} and found.refused[0]["why"] == "under which load the server was is not known"


def test_negative_graphs_and_zero_weights_have_no_error() -> None:
    report = read_log("Model loading took 0.0 GiB memory and 0.4 seconds\nGraph capturing finished in 12 secs, took -0.42 GiB")
    by_term = rows(compare(plan(), report))
    assert by_term["weights"].error_percent is None and by_term["cuda_graphs"].error_percent is None
    assert by_term["weights"].within_interval is False


def test_a_report_without_a_term_is_refused() -> None:
    with pytest.raises(ComparisonError, match="has no term that can be compared"):
        compare(plan(), Reported(engine="vllm"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "plan: is NoneType"),
        ({}, "plan: form: is None; 1 is wanted"),
        ({"form": 2}, "plan: form: is 2; 1 is wanted"),
        ({**plan(), "memory": None}, "plan: memory: is None"),
        ({**plan(), "memory": {"terms": [{"name": "weights", "bytes": "many"}]}}, r"plan: memory.terms\[0\]"),
        (plan(model__parameters="14B"), "plan: model.parameters: is '14B'; a whole number is wanted"),
        (plan(settings__engine_version=0.32), "plan: settings.engine_version: is 0.32; a version is wanted"),
    ],
)
def test_a_plan_of_another_form_is_refused(broken: Any, message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        compare(broken, log("vllm-0.32.0-gpu.log"))


# --- mismatches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("model", {"model__name": "qwen3-32b", "model__path": "/srv/plans/qwen3-32b"}),
        ("engine", {"settings__engine": "vllm_cpu"}),
        ("engine_version", {"settings__engine_version": "0.31.1"}),
        ("max_model_len", {"settings__max_model_len": 32768}),
        ("tensor_parallel", {"settings__tensor_parallel": 2}),
        ("pipeline_parallel", {"settings__pipeline_parallel": 2}),
        ("data_parallel", {"settings__data_parallel": 2}),
        ("kv_cache_dtype", {"settings__kv_cache_dtype": "fp8"}),
        ("dtype", {"settings__dtype": "float16", "settings__kv_cache_dtype": "bfloat16"}),
        ("quantisation", {"quantisation": {"name": "fp8"}}),
        ("memory_utilization", {"settings__memory_utilization": 0.9}),
        ("max_num_seqs", {"settings__max_num_seqs": 256}),
        ("cuda_graphs", {"settings__cuda_graphs": False}),
        ("prefix_caching", {"settings__prefix_caching": False}),
    ],
)
def test_a_setting_that_differs_makes_the_comparison_void(setting: str, change: dict[str, Any]) -> None:
    found = compare(plan(**change), log("vllm-0.32.0-gpu.log"))
    assert [item["setting"] for item in found.mismatches] == [setting]
    assert found.void and found.factors == {}
    store, learnt = learnt_from(new_store(), found)
    assert store == new_store() and learnt == []


@pytest.mark.parametrize(
    "change",
    [
        {"settings__kv_cache_dtype": "bfloat16"},
        {"settings__engine_version": "0.32"},
        {"model__name": "Qwen/Qwen3-14B", "model__path": ""},
        {"model__name": "1.0.0", "model__path": "/plans/qwen3-14b/1.0.0/config.json"},
        {"model__name": "explicit numbers", "model__path": ""},
        {
            "model__name": "",
            "model__path": "/srv/cache/hub/models--Qwen--Qwen3-14B/snapshots/8268fe3026cb304910457689366670e803a6fd56",
        },
    ],
)
def test_other_words_for_the_same_are_no_mismatch(change: dict[str, Any]) -> None:
    assert compare(plan(**change), log("vllm-0.32.0-gpu.log")).mismatches == []


def test_a_release_number_names_no_model() -> None:
    assert model_word("/var/lib/onprem/models/licence-llama/releases/1.0.0") == "licence-llama"
    assert model_word("/m/Qwen2_5-7B-Q4_K_M-00001-of-00003.gguf") == "qwen2-5-7b-q4-k-m"
    assert model_word("1.0.0") == "" and model_word("/plans/llama-3.1-8b.json") == "llama-3.1-8b"
    found = compare(plan(model__name=None, model__path="/plans/gemma/2.0.0"), log("vllm-0.32.0-gpu.log"))
    assert [item["setting"] for item in found.mismatches] == ["model"]


@pytest.mark.parametrize(
    ("scheme", "method", "same"),
    [
        ("awq", "awq_marlin", True),
        ("gptq_int8", "gptq_marlin", True),
        ("gptq", "awq_marlin", False),
        ("fp8_per_block", "fp8", True),
        ("w4a16", "compressed-tensors", True),
        ("none", "compressed-tensors", False),
        ("nvfp4", "modelopt_fp4", True),
        ("nf4", "bitsandbytes", True),
        ("mxfp4", "gpt_oss_mxfp4", True),
        ("fp8", "none", False),
        ("gguf_q4_k_m", "Q4_K - Medium", True),
        ("Q4_K_M", "Q4_K - Medium", True),
        ("q4_k_m", "Q4_K - Small", False),
        ("q8_0", "Q8_0", True),
        ("none", "all F32", True),
    ],
)
def test_methods_of_quantisation_have_other_names_in_engines(scheme: str, method: str, same: bool) -> None:
    report = Reported(settings={"quantisation": method}, terms={"weights": Reading(1.0, 1.0, 1.0)})
    assert (compare(plan(quantisation={"name": scheme}), report).mismatches == []) is same


@pytest.mark.parametrize(
    ("name", "total", "mismatch"),
    [
        ("NVIDIA H100 80GB HBM3", 85520809984, None),
        ("NVIDIA A100-SXM4-80GB", 85520809984, "gpu"),
        ("NVIDIA H100 NVL", 100000000000, "gpu memory_bytes"),
    ],
)
def test_another_gpu_is_a_mismatch(name: str, total: int, mismatch: str | None) -> None:
    card = gpu(0, 70.0, name=name)
    card["memory"]["total_bytes"] = total
    found = compare(plan(), merged(log("vllm-0.32.0-gpu.log"), read_gpu_info({"gpus": [card]})))
    assert [item["setting"] for item in found.mismatches] == ([mismatch] if mismatch else [])


def test_llama_cpp_pads_its_context() -> None:
    changes = {
        "model__name": "gemma-3-27b-it-q4_k_m",
        "settings__engine": "llama_cpp",
        "settings__engine_version": "0.0",
        "settings__kv_cache_dtype": "f16",
        "settings__slots": 2,
        "quantisation": {"name": "gguf_q4_k_m"},
    }
    assert compare(plan(**changes, settings__max_model_len=8000), log("llama_cpp-b6500-cuda2.log")).mismatches == []
    fitting = plan(**changes)
    fitting["memory"]["requests"][0]["bytes"] = 700 * MIB
    by_term = rows(compare(fitting, log("llama_cpp-b6500-cuda2.log")))
    assert by_term["kv_memory"].planned == 1400 * MIB, "what two slots need, not what is left"
    found = compare(plan(**changes, settings__max_model_len=4096), log("llama_cpp-b6500-cuda2.log"))
    assert [item["setting"] for item in found.mismatches] == ["max_model_len"]


# --- what is learnt --------------------------------------------------------------------------------------------------


def server(weights: float = 27.52, **more: float) -> Reported:
    """A report with unrounded figures, in GiB."""
    terms = {name: Reading(value * GIB, value * GIB, value * GIB) for name, value in {"weights": weights, **more}.items()}
    return Reported(engine="vllm", engine_version="0.32.0", settings={"model": "qwen3-14b"}, terms=terms)


def test_factors_are_reported_over_planned() -> None:
    found = compare(plan(), merged(log("vllm-0.32.0-gpu.log"), metrics("vllm-0.32.0.metrics")))
    assert found.factors["activation"] == pytest.approx(2.43 / 2.0, rel=1e-6)
    assert found.factors["cuda_graphs"] == pytest.approx(1.03 / 1.3, rel=1e-6)
    assert found.factors["step_seconds"] == pytest.approx(14.0 / 13.0, rel=1e-6)
    assert set(found.factors) == {"weights", "activation", "non_torch", "cuda_graphs", "step_seconds"}
    assert found.refused[0]["term"] == "prefill_seconds" and "ran at once" in found.refused[0]["why"]


def test_a_corrected_plan_does_not_correct_the_correction() -> None:
    first = compare(plan(), server(activation=2.4))
    store, _learnt = learnt_from(new_store(), first, "run 1", "2026-11-26T12:00:00Z")
    factor = corrections_for(store, plan_key(plan()))["activation"]["factor"]
    assert factor == pytest.approx(1.2)
    corrected = plan(corrections=[{"term": "activation", "factor": factor}], uncorrected={"activation": 2 * GIB})
    corrected["memory"]["terms"][1]["bytes"] = int(2.4 * GIB)
    again = compare(corrected, server(activation=2.4))
    assert rows(again)["activation"].error_percent == pytest.approx(0.0, abs=0.01)
    assert again.factors["activation"] == pytest.approx(1.2), "not 1, which would undo it, and not 1.44"
    del corrected["uncorrected"]
    assert compare(corrected, server(activation=2.4)).factors["activation"] == pytest.approx(1.2, rel=1e-6)


def test_a_corrected_time_is_divided_by_its_factor() -> None:
    report = merged(server(), metrics("vllm-0.32.0.metrics"))
    once = compare(plan(), report).factors["step_seconds"]
    corrected = plan(corrections=[{"term": "step_seconds", "factor": once}])
    for point in corrected["speed"]["points"]:
        point["itl_ms"] *= once
    assert compare(corrected, report).factors["step_seconds"] == pytest.approx(once, rel=1e-6)


def test_prefill_is_learnt_of_long_prompts_one_at_a_time() -> None:
    text = (LOGS / "vllm-0.32.0.metrics").read_text(encoding="utf-8")
    quiet = text.replace(
        'vllm:iteration_tokens_total_count{engine="0",model_name="qwen3-14b"} 5000',
        'vllm:iteration_tokens_total_count{engine="0",model_name="qwen3-14b"} 39000',
    )
    found = compare(plan(speed__prefill_tokens_per_second=9000.0), merged(server(), read_metrics(quiet)))
    assert found.factors["prefill_seconds"] == pytest.approx(9000 / 7500)


def test_a_load_beyond_the_plan_teaches_nothing() -> None:
    report = merged(server(), metrics("vllm-0.32.0.metrics"))
    report.load["mean_batch"] = 64.0
    found = compare(plan(), report)
    assert "step_seconds" not in found.factors
    assert any("no point for the load" in item["why"] for item in found.refused)


@pytest.mark.parametrize("reported", [0.9, 4.1])
def test_a_wild_factor_is_refused(reported: float) -> None:
    found = compare(plan(), server(activation=reported))
    assert "activation" not in found.factors and "weights" in found.factors
    assert "something else must be wrong" in found.refused[0]["why"]


def test_wild_weights_make_all_of_it_worthless() -> None:
    found = compare(plan(), server(weights=60.0, activation=2.1))
    assert found.factors == {}
    assert {item["term"] for item in found.refused} == {"weights", "activation"}


def test_a_coarse_figure_is_not_learnt_from() -> None:
    report = merged(read_log("Model loading took 0.02 GiB memory and 0.4 seconds"), server())
    small = plan()
    small["memory"]["terms"][0].update(bytes=int(0.018 * GIB))
    found = compare(small, report)
    assert found.factors == {} and "too coarse" in found.refused[0]["why"]


def test_a_server_that_does_not_say_its_model_teaches_nothing() -> None:
    report = server()
    report.settings = {}
    found = compare(plan(), report)
    assert found.factors == {} and found.refused[0]["why"] == "no report says which model was served"


def test_the_median_of_nine_observations_counts() -> None:
    store = new_store()
    for number, reported in enumerate([2.0, 2.2, 3.9, 2.2, 2.2, 2.1, 2.3, 2.2, 2.2, 2.4, 2.4]):
        found = compare(plan(), server(activation=reported))
        store, learnt = learnt_from(store, found, f"run {number}", f"2026-11-26T12:00:{number:02}Z")
        assert {item["term"] for item in learnt} == {"weights", "activation"}
    activation = store["entries"][plan_key(plan()).text]["terms"]["activation"]
    assert activation["observations"] == 11 and len(activation["recent"]) == 9
    assert activation["factor"] == pytest.approx(1.1)
    told = corrections_for(store, plan_key(plan()))["activation"]
    assert corrections_for(store, plan())["activation"] == told, "a plan has its own key"
    assert told["observations"] == 11 and told["from"].endswith("last seen 2026-11-26T12:00:10Z")


def test_looking_twice_at_one_run_teaches_once() -> None:
    found = compare(plan(), server(activation=2.2))
    store, _learnt = learnt_from(new_store(), found, "run 1", "2026-11-26T12:00:00Z")
    again, learnt = learnt_from(store, found, "run 1", "2026-11-26T13:00:00Z")
    assert learnt == [] and store_text(again) == store_text(store)
    moved, learnt = learnt_from(store, compare(plan(), server(activation=2.3)), "run 1", "2026-11-26T14:00:00Z")
    assert [(item["term"], item["observations"]) for item in learnt] == [("activation", 1)]
    assert moved["entries"][found.key.text]["terms"]["activation"]["factor"] == pytest.approx(1.15)
    unnamed, _ = learnt_from(new_store(), found)
    assert learnt_from(unnamed, found)[1] == [], "the same figures count as the same run"


def test_another_gpu_is_a_hint_and_not_a_correction() -> None:
    store, _learnt = learnt_from(new_store(), compare(plan(), server(activation=2.2)), "run 1", "2026-11-26T12:00:00Z")
    elsewhere = plan_key(plan(hardware__product="a100_sxm4_80gb"))
    assert corrections_for(store, elsewhere) == {}
    hint = hints_for(store, elsewhere)[0]
    assert (
        hint["differs"] == ["gpu"] and "learnt with gpu h100_sxm5_80gb" in hint["text"] and "activation x 1.100" in hint["text"]
    )
    assert hints_for(store, plan_key(plan())) == [], "what is applied is no hint"
    assert hints_for(store, plan_key(plan(model__family="llama"))) == []
    divided = hints_for(store, plan_key(plan(settings__tensor_parallel=2, settings__engine_version="0.33.0")))
    assert divided[0]["differs"] == ["engine_version", "tensor_parallel"]


@given(
    base=st.floats(0.05, 70.0),
    factor=st.floats(0.51, 1.99),
    applied=st.floats(0.6, 1.6),
    named=st.sampled_from(["weights", "activation", "non_torch", "cuda_graphs"]),
)
def test_a_learnt_factor_makes_the_same_plan_say_what_was_reported(
    base: float, factor: float, applied: float, named: str
) -> None:
    uncorrected = base * GIB
    reported = uncorrected * factor
    made = plan(corrections=[{"term": named, "factor": applied}], uncorrected={named: uncorrected})
    made["memory"]["terms"] = [term("weights", 27.51), {"name": named, "bytes": uncorrected * applied}]
    report = Reported(engine="vllm", settings={"model": "qwen3-14b"}, terms={named: Reading(reported, reported, reported)})
    store, _learnt = learnt_from(new_store(), compare(made, report), "run 1", "2026-11-26T12:00:00Z")
    check_store(store, "store")
    learnt = corrections_for(store, plan_key(made))[named]["factor"]
    assert uncorrected * learnt == pytest.approx(reported, rel=1e-6)


# --- the file --------------------------------------------------------------------------------------------------------


def filled_store() -> dict[str, Any]:
    return learnt_from(new_store(), compare(plan(), server(activation=2.2)), "run 1", "2026-11-26T12:00:00Z")[0]


def test_the_file_is_sorted_readable_and_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corrections.json"
    before = os.umask(0o077)
    try:
        write_store(path, filled_store())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert load_store(path) == filled_store()

    def broken(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", broken)
    with pytest.raises(ComparisonError, match="cannot be written: No space left"):
        write_store(path, new_store())
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["corrections.json"], "nothing is left over"


def test_no_file_is_an_empty_store(tmp_path: Path) -> None:
    assert load_store(tmp_path / "none.json") == new_store()


def changed_store(path: str, value: Any) -> dict[str, Any]:
    store: dict[str, Any] = copy.deepcopy(filled_store())
    place: Any = store
    *parents, last = path.split(".")
    for name in parents:
        place = place[plan_key(plan()).text if name == "KEY" else int(name) if name.isdigit() else name]
    place[last] = value
    return store


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is a list"),
        (json.dumps({"form": 2, "entries": {}}), "form: is 2; 1 "),
        (json.dumps({"form": True, "entries": {}}), "form: is True; 1 "),
        (json.dumps({"form": 1, "entries": []}), r"entries: is \[\]; a dictionary"),
        (json.dumps({"form": 1, "entries": {"a": 1}}), r"entries\[a\]: is 1"),
        (json.dumps(changed_store("entries.KEY.key.parameters", "many")), "key.parameters: is 'many'; a int is wanted"),
        (json.dumps(changed_store("entries.KEY.key.gpu", "l4")), "the key that the entry is named after"),
        (json.dumps(changed_store("entries.KEY.terms.luck", {})), r"terms\.luck: is 'luck'; one of weights"),
        (json.dumps(changed_store("entries.KEY.terms.weights.factor", 1.9)), "factor: is 1.9; .* the median of recent"),
        (json.dumps(changed_store("entries.KEY.terms.weights.recent", [])), "recent: is"),
        (json.dumps(changed_store("entries.KEY.terms.weights.recent.0.factor", 7)), r"recent\[0\]: is .* a factor from 0.5 to 2"),
        (json.dumps(changed_store("entries.KEY.terms.weights.observations", 0)), "observations: is 0; a whole number from 1"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "corrections.json"
    path.write_text(content)
    with pytest.raises(ComparisonError, match=f"{re.escape(str(path))}: .*{message}"):
        load_store(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ComparisonError, match="is not UTF-8"):
        load_store(tmp_path / "a.json")
    with pytest.raises(ComparisonError, match="cannot be read"):
        load_store(tmp_path)


# --- for readers -----------------------------------------------------------------------------------------------------


def test_the_table_has_every_row_and_says_what_is_not_learnt() -> None:
    found = compare(plan(settings__max_num_seqs=256), merged(log("vllm-0.32.0-gpu.log"), metrics("vllm-0.32.0.metrics")))
    lines = table(found)
    assert lines[0].split() == ["term", "planned", "interval", "reported", "error", "within"]
    assert sum(1 for line in lines if line.startswith("weights ")) == 1
    assert any(re.match(r"kv_tokens \(tokens\) +273,600 +262,144 to 281,804 +271,968 +\+0.6 % +yes$", line) for line in lines)
    assert "mismatch: max_num_seqs: planned 256, reported 512" in lines
    assert any(line.startswith("not learnt: prefill_seconds") for line in lines)


def test_keys_name_what_they_are_of() -> None:
    key = PlanKey("qwen3_moe", 235093634560, "fp8", "vllm", "0.32.0", "h100_sxm5_80gb", 8, expert_parallel=True)
    assert key.text == "qwen3_moe 235093634560 fp8 | vllm 0.32.0 | h100_sxm5_80gb | tp8 pp1 dp1 ep"


# --- the module ------------------------------------------------------------------------------------------------------


def run(*, check_mode: bool = False, diff: bool = False, **arguments: Any) -> dict[str, Any]:
    """The action plugin, as a task runs it."""
    task = SimpleNamespace(args=arguments, check_mode=check_mode, diff=diff, async_val=0, action="model_plan_comparison")
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nonexistent"))
    return ActionModule(task, connection, None, None, None, None).run(task_vars={})


def inputs(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan()))
    return {"plan": str(path), "log_path": str(LOGS / "vllm-0.32.0-gpu.log")}


def test_the_module_compares_and_learns_only_when_told(tmp_path: Path) -> None:
    corrections = tmp_path / "reports" / "corrections.json"
    given_inputs = {**inputs(tmp_path), "corrections_file": str(corrections), "run": "a"}
    result = run(**given_inputs)
    assert not result["changed"] and result["mismatches"] == [] and result["learnt"] == []
    assert not corrections.parent.exists()
    predicted = run(**given_inputs, learn=True, check_mode=True, diff=True)
    assert predicted["changed"] and not corrections.parent.exists()
    learnt = run(**given_inputs, learn=True, diff=True)
    assert learnt["changed"] and [item["term"] for item in learnt["learnt"]] == [item["term"] for item in predicted["learnt"]]
    assert learnt["diff"]["after"] == corrections.read_text() and learnt["diff"]["before"] == ""
    assert predicted["diff"]["after_header"] == str(corrections)
    again = run(**given_inputs, learn=True, diff=True)
    assert not again["changed"] and "diff" not in again
    assert again["corrections"]["activation"]["factor"] == pytest.approx(2.43 / 2.0, rel=1e-6)


def test_the_module_does_not_learn_from_another_deployment(tmp_path: Path) -> None:
    other = plan(settings__tensor_parallel=2)
    result = run(plan=other, log_path=str(LOGS / "vllm-0.32.0-gpu.log"), corrections_file=str(tmp_path / "c.json"), learn=True)
    assert not result["changed"] and not (tmp_path / "c.json").exists()
    assert result["mismatches"] == [{"setting": "tensor_parallel", "planned": 2, "reported": 1}]


def test_all_reports_may_be_given_as_text(tmp_path: Path) -> None:
    result = run(
        plan=json.dumps(plan()),
        log=(LOGS / "vllm-0.32.0-gpu.log").read_text(encoding="utf-8"),
        metrics=(LOGS / "vllm-0.32.0.metrics").read_text(encoding="utf-8"),
        gpu_info={"state": "read", "gpus": [gpu(0, 73.2)]},
    )
    assert {row["term"] for row in result["rows"]} == set(module.UNITS)
    json.dumps(result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "/nowhere/plan.json"}, "plan: /nowhere/plan.json: cannot be read: No such file"),
        ({"plan": "{"}, "plan: is not JSON"),
        ({"plan": {"form": 9}}, "form: is 9"),
        ({"log_path": "/nowhere/log"}, "log_path: /nowhere/log: cannot be read"),
        ({"log_path": None}, "one of the following is required: log, log_path, metrics, gpu_info"),
        ({"log": "x"}, "mutually exclusive: log|log_path"),
        ({"learn": True}, "corrections_file"),
        ({"plan": None}, "plan"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = {name: value for name, value in {**inputs(tmp_path), **changes}.items() if value is not None}
    with pytest.raises(AnsibleActionFail, match=message):
        run(**arguments)


def test_a_damaged_file_is_neither_used_nor_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "corrections.json"
    path.write_text('{"form": 7}')
    with pytest.raises(AnsibleActionFail, match="form: is 7"):
        run(**inputs(tmp_path), corrections_file=str(path), learn=True)
    assert path.read_text() == '{"form": 7}'


def test_the_documentation_has_the_arguments_and_returns(tmp_path: Path) -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == {"plan", "log", "log_path", "metrics", "gpu_info", "corrections_file", "learn", "run"}
    returned = set(yaml.safe_load(documented.RETURN))
    assert set(run(**inputs(tmp_path))) - {"changed"} == returned


def test_the_playbook_reads_every_line_that_the_reader_needs_and_no_request() -> None:
    play = yaml.safe_load((ROOT / "playbooks" / "plan_compare.yml").read_text(encoding="utf-8"))[0]
    pattern = re.compile(play["vars"]["__plan_compare_lines"].replace("\n", "").replace(" |", "|"))
    for path in sorted(LOGS.glob("*.log")):
        text = path.read_text(encoding="utf-8")
        kept = "\n".join(line for line in text.splitlines() if pattern.search(line))
        assert read_log(kept) == read_log(text), path.name
    assert not pattern.search("INFO [logger.py:1] Received request cmpl-1: prompt: 'what is the KV cache size'")
    assert not pattern.search('INFO: 10.0.0.1:5000 - "POST /v1/completions HTTP/1.1" 200 OK')
