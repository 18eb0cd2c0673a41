# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import (
    ATTENTION,
    DRAFT,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    FULL,
    HEAD,
    INPUTS,
    KV_HEADS,
    MLA,
    MLP,
    OUTPUTS,
    RECURRENT,
    ROUTER,
    VISION,
    VOCABULARY,
    WHOLE,
    WINDOW,
    Architecture,
    Layer,
    Memory,
    ModelError,
    Weight,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import Device, Settings
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import scheme_named
from ansible_collections.onprem.llm.plugins.module_utils._model_speed import (
    Workload,
    arithmetic_rate,
    erlang_c,
    expected_tokens,
    log_normal_sigma,
    prefill_seconds,
    profile,
    service,
    share_beyond,
    speculative,
    speed,
    step,
    workload_of,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

DATA = yaml.safe_load((Path(__file__).parents[2] / "plugins" / "plugin_utils" / "planning_speed.yml").read_text(encoding="utf-8"))
VLLM = DATA["engines"]["vllm"]


def dense(
    layers: int = 32,
    hidden: int = 4096,
    inner: int = 14336,
    heads: int = 32,
    kv_heads: int = 8,
    vocabulary: int = 128256,
    dim: int = 128,
    tied: bool = False,
    memory: Memory | None = None,
    more: tuple[Weight, ...] = (),
) -> Architecture:
    """A Llama; with its defaults Llama-3-8B."""
    every = tuple(range(layers))
    kept = memory or Memory(FULL, kv_heads, dim, dim, heads)
    weights = [
        Weight("model.embed_tokens", EMBEDDING, vocabulary, hidden, split=VOCABULARY, matrix=False),
        Weight("self_attn.q_proj", ATTENTION, heads * dim, hidden, every, split=OUTPUTS),
        Weight("self_attn.k_proj", ATTENTION, kv_heads * dim, hidden, every, split=KV_HEADS),
        Weight("self_attn.v_proj", ATTENTION, kv_heads * dim, hidden, every, split=KV_HEADS),
        Weight("self_attn.o_proj", ATTENTION, hidden, heads * dim, every, split=INPUTS),
        Weight("mlp.gate_proj", MLP, inner, hidden, every, split=OUTPUTS),
        Weight("mlp.up_proj", MLP, inner, hidden, every, split=OUTPUTS),
        Weight("mlp.down_proj", MLP, hidden, inner, every, split=INPUTS),
        *([] if tied else [Weight("lm_head", HEAD, vocabulary, hidden, split=VOCABULARY, end="last")]),
        *more,
    ]
    return Architecture(
        family="llama",
        name="LlamaForCausalLM",
        hidden_size=hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        intermediate_size=inner,
        max_context=131072,
        dtype="bfloat16",
        layers=tuple(Layer(kept) for _number in every),
        weights=tuple(weights),
        tied=tied,
    )


def mixture(layers: int = 48, experts: int = 128, used: int = 8, hidden: int = 2048, inner: int = 768) -> Architecture:
    """Like Qwen3-30B-A3B."""
    found = dense(layers, hidden, inner * used, heads=32, kv_heads=4, vocabulary=151936)
    every = tuple(range(layers))
    weights = [weight for weight in found.weights if weight.part != MLP]
    weights += [
        Weight("mlp.gate", ROUTER, experts, hidden, every, split=WHOLE),
        *(
            Weight(f"mlp.experts.{name}", EXPERT, inner, hidden, every, experts, split=EXPERTS)
            for name in ("gate_proj", "up_proj")
        ),
        Weight("mlp.experts.down_proj", EXPERT, hidden, inner, every, experts, split=EXPERTS),
    ]
    return replace(
        found,
        weights=tuple(weights),
        layers=tuple(replace(layer, experts=experts, experts_per_token=used) for layer in found.layers),
    )


def gpu(**changes: Any) -> Device:
    """An H100."""
    given = {
        "product": "h100",
        "name": "H100",
        "kind": "gpu",
        "memory": 85_000_000_000,
        "bandwidth": 3.352e12,
        "rates": {"bf16": 989.5e12, "fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
        "compute_capability": (9, 0),
        "link": "nvlink",
        "link_bandwidth": 450e9,
        "power_watts": 700.0,
    }
    return Device(**{**given, **changes})


A100 = gpu(
    name="A100", bandwidth=2.039e12, rates={"bf16": 312e12, "int8": 624e12}, compute_capability=(8, 0), link_bandwidth=300e9
)
LLAMA = dense()
NONE = scheme_named("none", "bfloat16")
FP8 = scheme_named("fp8", "bfloat16")
PLAIN = Settings(max_model_len=8192)
DRAFTED = {"method": "ngram", "acceptance": 0.5}
WORK: dict[str, Any] = {
    "requests_per_day": 350_000,
    "peak_factor": 3,
    "prompt_tokens": {"mean": 600, "p95": 1500},
    "answer_tokens": {"mean": 220, "p95": 480},
    "slo": {"ttft_ms": 450, "itl_ms": 50},
}


def work(**changes: Any) -> Workload:
    found = workload_of({**WORK, **changes})
    assert found
    return found


def holds(tokens: float = 400_000) -> Callable[[int], float]:
    return lambda length: tokens / length


def serve(workload: Workload | None = None, limit: Callable[[int], float] | None = None, **given: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"architecture": LLAMA, "scheme": NONE, "device": gpu(), "settings": PLAIN, "data": DATA, **given}
    return service(workload=workload or work(), concurrency_limit=limit or holds(), **values)


# --- the data --------------------------------------------------------------------------------------------------------


def figures(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, dict):
        if "value" in value:
            yield path, value
        for key, inner in value.items():
            yield from figures(inner, f"{path}.{key}")


def test_every_figure_has_a_unit_and_a_source_that_is_listed() -> None:
    found = [(path, figure) for path, figure in figures({k: v for k, v in DATA.items() if k != "documents"}) if path]
    assert len(found) > 50
    for path, figure in found:
        assert figure["unit"], path
        assert figure["source"] in DATA["documents"], path
        assert figure.get("low", figure["value"]) <= figure["value"] <= figure.get("high", figure["value"]), path
    assert all(document["title"] and document["url"] and document["date"] for document in DATA["documents"].values())


@pytest.mark.parametrize("engine", ["vllm", "vllm_cpu", "llama_cpp"])
def test_every_engine_has_the_same_figures(engine: str) -> None:
    assert DATA["engines"][engine].keys() == VLLM.keys()
    assert DATA["engines"][engine]["compute_efficiency"].keys() == VLLM["compute_efficiency"].keys()


# --- a step ----------------------------------------------------------------------------------------------------------


def test_one_request_reads_every_weight_but_the_table_of_embeddings() -> None:
    found = step(LLAMA, NONE, gpu(), PLAIN, DATA, 1, 0)
    parameters = LLAMA.parameters() - LLAMA.parameters([EMBEDDING])
    assert found.weights_seconds == pytest.approx(2 * parameters / (3.352e12 * VLLM["memory_efficiency"]["value"]), rel=1e-6)
    assert found.flops == pytest.approx(2 * parameters, rel=1e-3)
    assert found.bound == "memory"
    assert found.cache_seconds == 0


def test_a_table_that_is_the_head_too_is_read() -> None:
    counted = profile(dense(tied=True), NONE, gpu(), PLAIN, DATA)
    assert counted.head_bytes == 2 * 128256 * 4096
    assert counted.head_elements == 128256 * 4096


def test_a_vision_tower_takes_no_part_in_a_step() -> None:
    tower = Weight("vision.block", VISION, 4096, 4096, copies=100, matrix=False)
    assert (
        profile(dense(more=(tower,)), NONE, gpu(), PLAIN, DATA).dense_bytes
        == profile(LLAMA, NONE, gpu(), PLAIN, DATA).dense_bytes
    )


def test_a_long_prompt_is_bound_by_compute() -> None:
    found = step(LLAMA, NONE, gpu(), PLAIN, DATA, 0, 0, prefill_tokens=8192, prefill_context=4096)
    assert found.bound == "compute"
    matrices = 2 * (LLAMA.active_parameters() - 128256 * 4096) * 8192
    # Causal: each token looks back on half of the prompt.
    attention = 2 * 2 * 32 * 128 * 32 * 8192 * 4096
    assert found.flops == pytest.approx(matrices + attention + 2 * 128256 * 4096, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "context", "tokens"),
    [("full", 5000, 5000), ("window", 5000, 1024), ("window", 500, 500)],
)
def test_a_window_is_read_no_further_than_it_reaches(kind: str, context: int, tokens: int) -> None:
    memory = Memory(FULL, 8, 128, 128, 32) if kind == "full" else Memory(WINDOW, 8, 128, 128, 32, reach=1024)
    counted = profile(dense(memory=memory), NONE, gpu(), PLAIN, DATA)
    assert counted.step(1, context).cache_seconds == pytest.approx(32 * 2 * 8 * 128 * 2 * tokens / counted.bandwidth)


def test_the_compressed_vector_of_mla_is_read_by_every_gpu() -> None:
    model = dense(memory=Memory(MLA, 1, 576, 0, 32))
    alone, four = (profile(model, NONE, gpu(), replace(PLAIN, tensor_parallel=parts), DATA) for parts in (1, 4))
    assert four.step(8, 1000).cache_seconds == alone.step(8, 1000).cache_seconds
    halved = profile(LLAMA, NONE, gpu(), replace(PLAIN, tensor_parallel=4), DATA).step(8, 1000).cache_seconds
    assert halved == pytest.approx(profile(LLAMA, NONE, gpu(), PLAIN, DATA).step(8, 1000).cache_seconds / 4)


def test_a_prompt_of_mla_is_computed_with_its_vectors_taken_apart() -> None:
    counted = profile(dense(memory=Memory(MLA, 1, 576, 0, 32)), NONE, gpu(), PLAIN, DATA)
    (kind,) = counted.kinds
    assert kind.pair_flops == 2 * 32 * (576 + 576)
    assert kind.prompt_flops == 2 * 32 * (128 + 128)


def test_more_gpus_than_kv_heads_read_no_less_of_the_cache() -> None:
    eight, sixteen = (profile(LLAMA, NONE, gpu(), replace(PLAIN, tensor_parallel=parts), DATA) for parts in (8, 16))
    assert sixteen.step(8, 1000).cache_seconds == eight.step(8, 1000).cache_seconds


def test_a_state_is_read_and_written_however_long_the_context() -> None:
    memory = Memory(RECURRENT, state=((32, 128, 128),), state_types=("float32",), state_kind="gdn")
    counted = profile(dense(memory=memory), NONE, gpu(), PLAIN, DATA)
    assert counted.step(1, 10).cache_seconds == counted.step(1, 100_000).cache_seconds
    assert counted.step(1, 10).cache_seconds == pytest.approx(32 * 2 * 32 * 128 * 128 * 4 / counted.bandwidth)


def test_an_fp8_cache_is_read_in_half_the_time() -> None:
    half = profile(LLAMA, NONE, gpu(), replace(PLAIN, kv_cache_dtype="fp8"), DATA).step(8, 4000).cache_seconds
    assert half == pytest.approx(profile(LLAMA, NONE, gpu(), PLAIN, DATA).step(8, 4000).cache_seconds / 2)


@pytest.mark.parametrize("tokens", [1, 4, 64, 1000])
def test_a_batch_reads_the_experts_that_it_is_expected_to_meet(tokens: int) -> None:
    counted = profile(mixture(), NONE, gpu(), PLAIN, DATA)
    met = 128 * (1 - (1 - 8 / 128) ** tokens)
    expert = 2 * 3 * 2048 * 768
    read = counted.step(tokens, 0).weights_seconds * counted.bandwidth - counted.dense_bytes - counted.head_bytes
    assert read == pytest.approx(48 * met * expert, rel=1e-6)


def test_expert_parallel_gives_a_gpu_whole_experts_and_the_tokens_of_all() -> None:
    spread = replace(PLAIN, data_parallel=8, expert_parallel=True)
    counted = profile(mixture(), NONE, gpu(), spread, DATA)
    assert {group.held for group in counted.experts} == {16}
    read = counted.step(1, 0).weights_seconds * counted.bandwidth - counted.dense_bytes - counted.head_bytes
    assert read == pytest.approx(48 * 16 * (1 - (1 - 8 / 128) ** 8) * 2 * 3 * 2048 * 768, rel=1e-6)
    assert counted.step(1, 0).communication_seconds > 0


def test_fp8_arithmetic_falls_back_to_16_bits_on_older_gpus() -> None:
    assert arithmetic_rate(gpu(), "fp8") == ("fp8", 1979e12)
    assert arithmetic_rate(A100, "fp8") == ("bf16", 312e12)
    assert arithmetic_rate(gpu(), "fp4") == ("bf16", 989.5e12)
    assert arithmetic_rate(A100, "int8") == ("int8", 624e12)
    assert profile(LLAMA, FP8, A100, PLAIN, DATA).rate_name == "bf16"
    assert profile(LLAMA, FP8, gpu(), PLAIN, DATA).rate_name == "fp8"


def test_weight_only_formats_read_less_and_compute_in_16_bits() -> None:
    w4, plain = (step(LLAMA, scheme_named(name, "bfloat16"), gpu(), PLAIN, DATA, 1, 0) for name in ("awq", "none"))
    assert w4.weights_seconds < 0.4 * plain.weights_seconds
    assert w4.compute_seconds == pytest.approx(plain.compute_seconds)


def test_without_cuda_graphs_the_host_is_what_a_small_step_waits_for() -> None:
    graphs, eager = (step(LLAMA, NONE, gpu(), replace(PLAIN, cuda_graphs=on), DATA, 1, 100) for on in (True, False))
    assert eager.seconds >= 32 * VLLM["launch_seconds"]["value"] > graphs.seconds
    assert eager.bound == "overhead"
    many = [step(LLAMA, NONE, gpu(), replace(PLAIN, cuda_graphs=on), DATA, 0, 0, 8000, 4000).seconds for on in (True, False)]
    assert many[0] == many[1]


def test_tensor_parallel_pays_for_its_exchange_and_pcie_pays_more() -> None:
    four = replace(PLAIN, tensor_parallel=4)
    nvlink = step(LLAMA, NONE, gpu(), four, DATA, 1, 100)
    pcie = step(LLAMA, NONE, gpu(link="pcie", link_bandwidth=63e9), four, DATA, 1, 100)
    assert 0 < nvlink.communication_seconds < pcie.communication_seconds
    assert nvlink.seconds < step(LLAMA, NONE, gpu(), PLAIN, DATA, 1, 100).seconds


def test_a_pipeline_shares_layers_and_saves_one_request_no_time() -> None:
    one, four = (profile(LLAMA, NONE, gpu(), replace(PLAIN, pipeline_parallel=stages), DATA) for stages in (1, 4))
    assert four.step(1, 100).weights_seconds == pytest.approx(one.step(1, 100).weights_seconds / 4)
    assert four.interval(1, 100) >= one.interval(1, 100)
    # 64 requests on four stages: 16 in each, so that a token comes in less time than 64 take on one GPU.
    assert four.interval(256, 4000) < one.interval(256, 4000)


@pytest.mark.parametrize(
    ("device", "settings", "said"),
    [
        (gpu(bandwidth=0), PLAIN, "bandwidth"),
        (gpu(rates={}), PLAIN, "rates"),
        (gpu(link="none", link_bandwidth=0), replace(PLAIN, tensor_parallel=2), "link"),
        (gpu(), replace(PLAIN, engine="sglang"), "sglang"),
    ],
)
def test_a_device_without_figures_is_refused_by_name(device: Device, settings: Settings, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        profile(LLAMA, NONE, device, settings, DATA)


def test_data_that_lacks_a_figure_says_which() -> None:
    data = deepcopy(DATA)
    del data["engines"]["vllm"]["layer_seconds"]
    with pytest.raises(ModelError, match=r"planning_speed\.yml: engines\.vllm\.layer_seconds"):
        profile(LLAMA, NONE, gpu(), PLAIN, data)


def test_what_a_running_server_taught_scales_its_times() -> None:
    plain = profile(LLAMA, NONE, gpu(), PLAIN, DATA)
    taught = profile(LLAMA, NONE, gpu(), PLAIN, DATA, factors={"step_seconds": 1.2, "prefill_seconds": 0.9})
    assert taught.interval(8, 500) == pytest.approx(1.2 * plain.interval(8, 500))
    assert taught.prefill(900) == pytest.approx(0.9 * plain.prefill(900))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_computed_in_chunks() -> None:
    small = profile(LLAMA, NONE, gpu(), replace(PLAIN, max_num_batched_tokens=512), DATA)
    large = profile(LLAMA, NONE, gpu(), replace(PLAIN, max_num_batched_tokens=8192), DATA)
    assert prefill_seconds(8000, small) > prefill_seconds(8000, large)
    by_hand = sum(small.step(0, 0, 512, 512 * number + 256).seconds for number in range(4))
    assert prefill_seconds(2048, small) == pytest.approx(by_hand)


def test_what_the_prefix_cache_has_is_not_computed() -> None:
    counted = profile(LLAMA, NONE, gpu(), PLAIN, DATA)
    assert prefill_seconds(4000, counted, 0.75) < 0.4 * prefill_seconds(4000, counted)
    assert prefill_seconds(4000, counted, 1) > 0


# --- against what others measured, on rows that no constant was chosen by ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "found", "published"),
    [
        ("Llama-3-8B on one H100, vLLM pull request 16035", lambda: 1 / _interval(LLAMA, NONE, gpu(), 300), 128.64),
        (
            "DeepSeek-R1-Distill-Llama-8B on an L4, leaseweb",
            lambda: 1 / _interval(LLAMA, NONE, gpu(bandwidth=300e9, rates={"bf16": 121e12}), 300),
            16.7,
        ),
        (
            "Llama-2-7B on four A100, gpt-fast README",
            lambda: 1 / _interval(dense(inner=11008, kv_heads=32, vocabulary=32000), NONE, A100, 100, tensor_parallel=4),
            254.02,
        ),
        (
            "Llama-2-70B on eight A100, gpt-fast README",
            lambda: 1 / _interval(dense(80, 8192, 28672, 64, 8, 32000), NONE, A100, 100, tensor_parallel=8),
            62.5,
        ),
    ],
)
def test_decode_speeds_that_were_held_back_are_within_a_quarter(name: str, found: Callable[[], float], published: float) -> None:
    assert found() == pytest.approx(published, rel=0.25), name


def _interval(model: Architecture, scheme: Any, device: Device, context: float, **changes: Any) -> float:
    return profile(model, scheme, device, replace(PLAIN, **changes), DATA).interval(1, context)


@pytest.mark.parametrize(
    ("prompt", "answer", "published"),
    [(128, 128, 27911), (1000, 1000, 17744), (2048, 128, 3538), (5000, 500, 3902)],
)
def test_throughput_of_an_h200_that_was_held_back_is_within_a_quarter(prompt: int, answer: int, published: float) -> None:
    """Llama-3.1-8B in FP8 with an FP8 cache on one H200: TensorRT-LLM 1.0, perf-overview.md."""
    settings = replace(PLAIN, kv_cache_dtype="fp8", max_num_seqs=2048)
    # 0.9 of what weights and 3 GB for the engine leave of 150 GB, at 64 KiB a token.
    room = 0.9 * (150e9 - 9.1e9 - 3e9) / 65536
    running = min(2048, room / (prompt + answer / 2))
    load = work(prompt_tokens=prompt, answer_tokens=answer, slo={}, requests_per_day=1, peak_factor=1)
    found = serve(load, lambda length: running, scheme=FP8, device=gpu(bandwidth=4.8e12), settings=settings)
    assert found["requests_per_day_at_capacity"] / 86400 * answer == pytest.approx(published, rel=0.25)


# --- the workload ----------------------------------------------------------------------------------------------------


def test_a_workload_is_read_and_described_again() -> None:
    found = work(prefix_hit_ratio="0.25")
    assert found == Workload(350_000, 3, 600, 1500, 220, 480, 450, 50, 0, 0.25)
    assert found.peak_rate == pytest.approx(12.153, rel=1e-3)
    assert workload_of(found.described()) == found
    json.dumps(found.described())


def test_numbers_may_come_as_text() -> None:
    assert work(requests_per_day="350000", peak_factor="3", prompt_tokens="600").prompt_p95 == 600


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_workload_is_none(nothing: Any) -> None:
    assert workload_of(nothing) is None


def test_a_histogram_gives_mean_and_95th_percentile() -> None:
    found = work(prompt_tokens=[[100, 0.6], [1000, 0.36], ["4000", "0.04"]])
    assert found.prompt_mean == pytest.approx(0.6 * 100 + 0.36 * 1000 + 0.04 * 4000)
    assert found.prompt_p95 == 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"requests_per_day": 0}, r"workload\.requests_per_day: found 0; wanted a number above 0"),
        ({"requests_per_day": -5}, r"workload\.requests_per_day: found -5"),
        ({"requests_per_day": "many"}, r"workload\.requests_per_day: found 'many'"),
        ({"requests_per_day": float("nan")}, r"workload\.requests_per_day: found nan"),
        ({"requests_per_day": "inf"}, r"workload\.requests_per_day: found 'inf'"),
        ({"requests_per_day": True}, r"workload\.requests_per_day: found True"),
        ({"requests_per_day": None}, r"workload\.requests_per_day: is missing"),
        ({"peak_factor": 0.5}, r"workload\.peak_factor: found 0\.5; wanted a number from 1"),
        ({"peak_factor": ""}, r"workload\.peak_factor: is missing"),
        ({"peak_facter": 2}, r"workload\.peak_facter: there is no such input \(did you mean peak_factor"),
        (
            {"prompt_tokens": {"mean": 600, "p95": 500}},
            r"workload\.prompt_tokens\.p95: found 500, which is less than the mean 600",
        ),
        ({"prompt_tokens": {"p95": 500}}, r"workload\.prompt_tokens\.mean: is missing"),
        ({"prompt_tokens": {"mean": 600, "p59": 500}}, r"did you mean p95"),
        ({"prompt_tokens": []}, r"workload\.prompt_tokens: found an empty list"),
        ({"prompt_tokens": [[100]]}, r"workload\.prompt_tokens\[0\]: found \[100\]; wanted a pair"),
        ({"prompt_tokens": [[100, 0]]}, r"workload\.prompt_tokens: the shares add up to 0; wanted 1"),
        ({"prompt_tokens": [[100, 0.6], [1000, 0.3]]}, r"the shares add up to 0\.9; wanted 1"),
        ({"prompt_tokens": [[100, 60], [1000, 40]]}, r"the shares add up to 100; wanted 1"),
        ({"prompt_tokens": [[0, 1]]}, r"workload\.prompt_tokens\[0\]\[0\]: found 0"),
        ({"answer_tokens": 0}, r"workload\.answer_tokens: found 0; wanted a number from 1"),
        ({"prefix_hit_ratio": 1.5}, r"workload\.prefix_hit_ratio: found 1\.5; wanted a number from 0 to 1"),
        ({"slo": {"ttft_ms": 0}}, r"workload\.slo\.ttft_ms: found 0; wanted a number above 0"),
        ({"slo": {"ttft": 100}}, r"workload\.slo\.ttft: there is no such input \(did you mean"),
        ({"slo": 450}, r"workload\.slo: found 450; wanted a mapping"),
    ],
)
def test_a_wrong_workload_names_key_value_and_what_is_wanted(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        work(**changes)


def test_a_workload_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ModelError, match="workload: found 350000"):
        workload_of(350000)  # type: ignore[arg-type]


@given(st.floats(1, 10000), st.floats(1, 3.8))
def test_the_log_normal_has_the_percentile_that_was_given(mean: float, ratio: float) -> None:
    sigma = log_normal_sigma(mean, mean * ratio)
    assert math.exp(math.log(mean) - sigma**2 / 2 + 1.6449 * sigma) == pytest.approx(mean * ratio, rel=1e-6)


# --- service ---------------------------------------------------------------------------------------------------------


def test_requests_at_once_are_rate_times_time() -> None:
    found = serve()
    assert found["meets_slo"] is True
    steps = 220 * found["itl_ms"] / 1000
    assert found["concurrency"] == pytest.approx(work().peak_rate * steps, rel=1e-3)
    assert found["tokens_per_second"] == pytest.approx(work().peak_rate * 220)
    assert found["e2e_ms"] == pytest.approx(found["ttft_ms"] + 219 * found["itl_ms"])
    assert found["requests_per_day_at_slo"] > 350_000
    assert found["replicas_needed"] == 1


def test_waiting_grows_without_bound_toward_the_capacity() -> None:
    most = serve()["requests_per_day_at_capacity"]
    waits = [serve(work(requests_per_day=most * share))["ttft_ms"] for share in (0.2, 0.6, 0.9, 0.99)]
    assert waits == sorted(waits)
    assert waits[-1] > 3 * waits[0]
    beyond = serve(work(requests_per_day=most * 1.01))
    assert beyond["overloaded"] and not beyond["meets_slo"]
    assert beyond["ttft_ms"] is None and beyond["e2e_ms"] is None
    assert beyond["utilisation"] == pytest.approx(1.01)
    assert beyond["replicas_needed"] == 2


def test_the_rate_at_the_slo_is_where_it_just_holds() -> None:
    found = serve(work(slo={"itl_ms": 12}))
    assert found["limited_by"] == "itl"
    at = serve(work(slo={"itl_ms": 12}, requests_per_day=found["requests_per_day_at_slo"] * 0.999))
    above = serve(work(slo={"itl_ms": 12}, requests_per_day=found["requests_per_day_at_slo"] * 1.02))
    assert at["meets_slo"] and at["itl_p95_ms"] == pytest.approx(12, rel=0.01)
    assert not above["meets_slo"]


def test_an_slo_that_no_request_can_keep_is_said_with_the_best_there_is() -> None:
    found = serve(work(slo={"e2e_ms": 450}))
    assert found["requests_per_day_at_slo"] == 0
    assert found["replicas_needed"] is None
    assert found["meets_slo"] is False
    assert found["limited_by"] == "e2e"
    assert found["unattainable"]["e2e_ms"]["wanted"] == 450
    assert found["unattainable"]["e2e_ms"]["best"] > 2000


def test_a_small_cache_is_what_limits_and_none_is_said() -> None:
    small = serve(work(slo={}), holds(8000))
    assert small["limited_by"] == "memory"
    assert small["concurrency_limit"] == pytest.approx(8000 / 820)
    none = serve(work(), holds(500))
    assert none["limited_by"] == "memory" and none["requests_per_day_at_slo"] == 0 and none["meets_slo"] is False
    assert none["warnings"][0]["code"] == "no_request_fits"
    assert serve(work(slo={}), settings=replace(PLAIN, max_num_seqs=4))["limited_by"] == "max_num_seqs"
    assert serve(work(slo={}, prompt_tokens=4000, answer_tokens=20), holds(1e7))["limited_by"] == "compute"


def test_replicas_share_the_load() -> None:
    one, four = serve(), serve(replicas=4)
    assert four["requests_per_day_at_slo"] == pytest.approx(4 * one["requests_per_day_at_slo"])
    assert four["concurrency"] < one["concurrency"] / 3
    assert four["replicas_needed"] == one["replicas_needed"]


def test_the_curve_goes_to_the_limit_and_beyond_and_says_so() -> None:
    found = serve(limit=holds(820 * 20))["speed"]["points"]
    numbers = [point["concurrency"] for point in found]
    assert numbers == [1, 2, 4, 8, 16, 20, 32]
    assert [point["within_memory"] for point in found] == [True] * 6 + [False]
    rates = [point["tokens_per_second"] for point in found]
    assert rates == sorted(rates)
    assert found[0]["bound"] == "memory"


def test_without_a_workload_there_is_speed_and_no_service() -> None:
    found = service(LLAMA, NONE, gpu(), PLAIN, None, holds(), DATA)
    assert found["speed"]["prefill_tokens_per_second"] > 1000
    assert 100 < found["speed"]["single_stream_tokens_per_second"] < 200
    assert found["meets_slo"] is None and found["requests_per_day_at_slo"] is None
    counted = profile(LLAMA, NONE, gpu(), PLAIN, DATA)
    assert speed(counted, holds())["single_stream_tokens_per_second"] == found["speed"]["single_stream_tokens_per_second"]


def test_lengths_that_cannot_be_served_are_warned_of() -> None:
    codes = [
        warning["code"]
        for warning in serve(
            work(prompt_tokens={"mean": 600, "p95": 9000}, prefix_hit_ratio=0.5), settings=replace(PLAIN, prefix_caching=False)
        )["warnings"]
    ]
    assert codes == ["requests_too_long", "wide_distribution", "no_prefix_cache"]


def test_a_mean_request_beyond_max_model_len_is_not_served() -> None:
    found = serve(work(prompt_tokens=7000, answer_tokens=1193, requests_per_day=10, slo={}), limit=holds(1e7))
    assert found["meets_slo"] is False and found["limited_by"] == "max_model_len"
    assert found["requests_per_day_at_slo"] == found["requests_per_day_at_capacity"] == 0 and found["replicas_needed"] is None
    assert not any(point["meets_slo"] for point in found["speed"]["points"])
    (warning,) = found["warnings"]
    assert warning["code"] == "longer_than_max_model_len" and "8193" in warning["text"] and "8192" in warning["text"]
    fits = serve(work(prompt_tokens=7000, answer_tokens=1192, requests_per_day=10, slo={}), limit=holds(1e7))
    assert fits["meets_slo"] is True and fits["warnings"] == [] and fits["requests_per_day_at_slo"] > 10


def test_the_share_of_requests_that_are_too_long_is_that_of_a_log_normal() -> None:
    # The answer is next to nothing: one in twenty prompts is beyond their 95th percentile.
    assert share_beyond(work(prompt_tokens={"mean": 600, "p95": 1500}, answer_tokens=1), 1501) == pytest.approx(0.05, abs=0.001)
    assert share_beyond(work(prompt_tokens=600, answer_tokens=200), 799) == 1
    assert share_beyond(work(prompt_tokens=600, answer_tokens=200), 800) == 0
    # Against drawn lengths.
    both = work(prompt_tokens={"mean": 3000, "p95": 7000}, answer_tokens={"mean": 500, "p95": 1500})
    drawn = random.Random(5)
    sigmas = [log_normal_sigma(3000, 7000), log_normal_sigma(500, 1500)]
    lengths = [
        sum(drawn.lognormvariate(math.log(mean) - sigma**2 / 2, sigma) for mean, sigma in zip((3000, 500), sigmas, strict=True))
        for _ in range(40_000)
    ]
    share = sum(length > 8192 for length in lengths) / len(lengths)
    assert share_beyond(both, 8192) == pytest.approx(share, rel=0.1)
    (warning,) = serve(both, limit=holds(1e7))["warnings"]
    assert warning["code"] == "requests_too_long" and f"about {share_beyond(both, 8192):.1%} of all" in warning["text"]


def test_sources_of_figures_are_titles() -> None:
    sources = {figure["source"] for figure in serve()["figures"]}
    sources |= {figure["source"] for figure in speculative(LLAMA, NONE, gpu(), PLAIN, DRAFTED, DATA)["figures"]}
    titles = {document["title"] for document in DATA["documents"].values()}
    assert sources <= titles | {"the workload that was given"} and len(sources) == 3


def test_every_figure_has_a_formula_a_unit_and_a_source() -> None:
    found = serve()
    for figure in found["figures"]:
        assert figure["formula"] and figure["unit"] and figure["source"], figure
        if figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"], figure
    json.dumps(found, allow_nan=False)


def test_nothing_that_is_said_is_not_a_number() -> None:
    for limit in (holds(100), holds(1e9), lambda length: math.inf):
        for load in (work(), work(requests_per_day=1e9), work(requests_per_day=0.001)):
            json.dumps(serve(load, limit), allow_nan=False)


def test_a_large_mixture_is_not_counted_expert_by_expert() -> None:
    def seconds(experts: int) -> float:
        given_: dict[str, Any] = {"architecture": mixture(61, experts, 8, 7168, 2048), "scheme": FP8}
        given_["settings"] = replace(PLAIN, tensor_parallel=8)
        serve(**given_)
        began = time.process_time()
        for _turn in range(5):
            serve(**given_)
        return time.process_time() - began

    few, many = seconds(16), seconds(256)
    assert many < 3 * few


@pytest.mark.parametrize(("servers", "load", "share"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 20, 1.0)])
def test_erlang_c_is_that_of_the_tables(servers: int, load: float, share: float) -> None:
    assert erlang_c(servers, load) == pytest.approx(share)


# --- speculative decoding --------------------------------------------------------------------------------------------


def draft(**given: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"concurrency": 1, "context": 500, **given}
    at = {name: values.pop(name) for name in ("concurrency", "context")}
    settings = values.pop("settings", PLAIN)
    model = values.pop("architecture", LLAMA)
    return speculative(model, NONE, gpu(), settings, values, DATA, **at)


@pytest.mark.parametrize(("acceptance", "drafted", "tokens"), [(0.5, 1, 1.5), (0.8, 4, 3.3616), (0, 5, 1), (1, 5, 6)])
def test_expected_tokens_are_those_of_leviathan(acceptance: float, drafted: int, tokens: float) -> None:
    assert expected_tokens(acceptance, drafted) == pytest.approx(tokens)


def test_drafting_pays_for_one_request_and_not_for_many() -> None:
    one, many = (draft(acceptance=0.7, draft_tokens=4, relative_cost=0.05, context=50, concurrency=number) for number in (1, 512))
    assert one["pays"] and 1.5 < one["speedup"] < one["tokens_per_step"]
    assert not many["pays"]
    assert 1 <= one["pays_up_to_concurrency"] < 512
    assert one["best_tokens"] > many["best_tokens"]
    assert one["break_even_acceptance"] < 0.7 < many["break_even_acceptance"]


def test_at_the_break_even_acceptance_nothing_is_won_or_lost() -> None:
    even = draft(acceptance=0.5, draft_tokens=3, relative_cost=0.1)["break_even_acceptance"]
    assert draft(acceptance=even, draft_tokens=3, relative_cost=0.1)["speedup"] == pytest.approx(1, abs=1e-6)


def test_a_draft_model_as_dear_as_the_model_never_pays() -> None:
    found = draft(acceptance=1, draft=LLAMA)
    assert found["never_pays"] and found["break_even_acceptance"] is None and not found["pays"]


def test_a_small_draft_model_costs_what_its_steps_take() -> None:
    small = dense(4, 1024, 2816, 8, 8)
    found = draft(acceptance=0.7, draft=small, draft_tokens=4)
    assert 1 < found["speedup"] < draft(acceptance=0.7, method="ngram", draft_tokens=4)["speedup"]


def test_the_models_own_layers_can_draft() -> None:
    own = (
        Weight("eh_proj", DRAFT, 4096, 8192, end="last"),
        Weight("layer.mlp", DRAFT, 4096, 14336, copies=3, end="last"),
        Weight("embed_tokens", DRAFT, 128256, 4096, split=VOCABULARY, end="last", matrix=False),
    )
    found = draft(acceptance=0.85, method="mtp", draft_tokens=1, architecture=replace(dense(more=own), draft_layers=1))
    assert found["method"] == "mtp" and 1.3 < found["speedup"] < 1.85
    with pytest.raises(ModelError, match="no layers for multi-token prediction"):
        draft(acceptance=0.85, method="mtp")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({}, r"speculation\.acceptance: is missing"),
        ({"acceptance": 1.2}, r"speculation\.acceptance: found 1\.2; wanted a number from 0 to 1"),
        ({"acceptance": "no"}, r"speculation\.acceptance: found 'no'"),
        ({"acceptance": 0.7, "draft_tokens": 2.5}, r"speculation\.draft_tokens: found 2\.5; wanted a whole number"),
        ({"acceptance": 0.7, "draft_tokens": -1}, r"speculation\.draft_tokens: found -1"),
        ({"acceptance": 0.7, "relative_cost": -0.1}, r"speculation\.relative_cost: found -0\.1"),
        ({"acceptance": 0.7, "method": "ngrams"}, r"speculation\.method: found 'ngrams'.*did you mean ngram"),
        ({"acceptance": 0.7, "method": "draft_model"}, r"draft_model needs draft"),
        ({"acceptance": 0.7, "draft": "/models/small"}, r"speculation\.draft: found '/models/small'; wanted the architecture"),
        ({"acceptance": 0.7, "tokens": 4}, r"speculation\.tokens: there is no such input"),
    ],
)
def test_a_wrong_speculation_is_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        draft(**given_)


# --- what must hold for every model ----------------------------------------------------------------------------------


@st.composite
def models(draw: st.DrawFn) -> Architecture:
    heads = draw(st.sampled_from([8, 16, 32]))
    sizes = {
        "layers": draw(st.integers(1, 40)),
        "hidden": draw(st.sampled_from([512, 2048, 8192])),
        "inner": draw(st.sampled_from([1024, 8192, 28672])),
        "heads": heads,
        "kv_heads": draw(st.sampled_from([1, 4, heads])),
    }
    memory = draw(
        st.sampled_from(
            [
                None,
                Memory(MLA, 1, 576, 0, heads),
                Memory(WINDOW, sizes["kv_heads"], 128, 128, heads, reach=1024),
                Memory(RECURRENT, state=((32, 128, 128),), state_types=("auto",), state_kind="gdn"),
            ]
        )
    )
    if draw(st.booleans()):
        return dense(**sizes, memory=memory)
    return mixture(sizes["layers"], draw(st.sampled_from([8, 64])), draw(st.sampled_from([2, 8])))


SETTINGS = st.builds(
    Settings,
    max_model_len=st.just(32768),
    tensor_parallel=st.sampled_from([1, 2, 8]),
    pipeline_parallel=st.sampled_from([1, 2]),
    data_parallel=st.sampled_from([1, 4]),
    expert_parallel=st.booleans(),
    cuda_graphs=st.booleans(),
    max_num_batched_tokens=st.sampled_from([512, 2048, 8192]),
)
SCHEMES = st.sampled_from([NONE, FP8, scheme_named("awq", "bfloat16")])
# Comparisons of sums that are added up in another order.
SAME = 1 + 1e-9


@hypothesis_settings(max_examples=60)
@given(models(), SCHEMES, SETTINGS, st.integers(1, 512), st.integers(1, 30000), st.integers(0, 4000), st.floats(1, 4))
def test_more_bandwidth_is_never_slower(
    model: Architecture, scheme: Any, settings: Settings, batch: int, context: int, prompts: int, more: float
) -> None:
    slow = profile(model, scheme, gpu(), settings, DATA)
    for faster in (
        gpu(bandwidth=3.352e12 * more),
        gpu(link_bandwidth=450e9 * more),
        gpu(rates={"bf16": 989.5e12 * more, "fp8": 1979e12 * more}),
    ):
        fast = profile(model, scheme, faster, settings, DATA)
        assert fast.interval(batch, context, prompts, 500) <= slow.interval(batch, context, prompts, 500) * SAME
        assert fast.prefill(context) <= slow.prefill(context) * SAME


@hypothesis_settings(max_examples=60)
@given(models(), SCHEMES, SETTINGS, st.integers(1, 500), st.integers(1, 30000))
def test_a_larger_batch_never_lowers_throughput(
    model: Architecture, scheme: Any, settings: Settings, batch: int, context: int
) -> None:
    counted = profile(model, scheme, gpu(), settings, DATA)
    assert (batch + 1) / counted.interval(batch + 1, context) >= batch / counted.interval(batch, context) / SAME
    assert counted.interval(batch + 1, context) >= counted.interval(batch, context) / SAME


@hypothesis_settings(max_examples=60)
@given(models(), SCHEMES, SETTINGS, st.integers(1, 512), st.integers(1, 20000), st.integers(1, 10000))
def test_a_longer_context_is_never_faster(
    model: Architecture, scheme: Any, settings: Settings, batch: int, context: int, more: int
) -> None:
    counted = profile(model, scheme, gpu(), settings, DATA)
    assert counted.interval(batch, context + more) >= counted.interval(batch, context) / SAME
    assert counted.prefill(context + more) >= counted.prefill(context) / SAME


@hypothesis_settings(max_examples=60)
@given(models(), SETTINGS, st.integers(1, 20000), st.floats(0, 1), st.floats(0, 1))
def test_more_prefix_hits_are_never_slower(model: Architecture, settings: Settings, prompt: int, one: float, two: float) -> None:
    counted = profile(model, NONE, gpu(), settings, DATA)
    # Chunks begin where the hit ends, so that full ones look back further; a last one that waits for the weights hides what it
    # saves. The planner has that as an engine has it: 0.4 % at the most in three thousand examples.
    assert counted.prefill(prompt, max(one, two)) <= counted.prefill(prompt, min(one, two)) * 1.005


@hypothesis_settings(max_examples=40)
@given(models(), SETTINGS, st.integers(1, 10**7), st.floats(0, 0.9), st.integers(2000, 10**6))
def test_more_requests_never_wait_less_and_prefix_hits_never_serve_fewer(
    model: Architecture, settings: Settings, daily: int, hits: float, tokens: int
) -> None:
    given_: dict[str, Any] = {"architecture": model, "settings": settings, "limit": holds(tokens)}
    less, more = serve(work(requests_per_day=daily), **given_), serve(work(requests_per_day=daily * 1.5), **given_)
    if more["ttft_ms"] is not None:
        assert more["ttft_ms"] >= less["ttft_ms"] / (1 + 1e-6)
        assert more["itl_ms"] >= less["itl_ms"] / (1 + 1e-6)
    cached = serve(work(requests_per_day=daily, prefix_hit_ratio=hits), **given_)
    assert cached["requests_per_day_at_capacity"] >= less["requests_per_day_at_capacity"] / SAME


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 16))
def test_higher_acceptance_never_yields_fewer_tokens(one: float, two: float, drafted: int) -> None:
    low, high = expected_tokens(min(one, two), drafted), expected_tokens(max(one, two), drafted)
    assert 1 - 1e-9 <= low <= high * (1 + 1e-9) <= (drafted + 1) * (1 + 2e-9)


# --- published speeds ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Any:
    """tests/bench/speed.py, which writes the table of docs/planning.md."""
    path = Path(__file__).parents[1] / "bench" / "speed.py"
    spec = importlib.util.spec_from_file_location("bench_speed", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interval_of_a_time_holds_nine_in_ten_published_speeds(bench: Any) -> None:
    found = bench.on_gpu_engines(bench.compared())
    assert len(found) > 100 and len({one["row"]["gpu"] for one in found}) >= 8
    outside = [one["row"]["id"] for one in found if not one["inside"]]
    assert len(outside) <= 0.1 * len(found), outside
    held = [one["ratio"] for one in found if one["row"]["half"] == "held out"]
    # The rows that no constant saw: the median is near, and the spread is wider than the interval, as the document says.
    assert len(held) > 50 and bench.error(held) < 0.25 and 0.9 < statistics.median(held) < 1.15


def test_every_published_speed_has_a_source_and_a_half(bench: Any) -> None:
    data, rows = bench.published(), bench.rows()
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["source"] in data["documents"] and row["group"] in data["groups"] and row["measure"] in bench.MEASURES, row[
            "id"
        ]
        assert row["half"] in bench.HALVES and row["unit"] in ("tokens/s", "ms") and row["value"] > 0, row["id"]
    assert all(document["title"] and document["url"] for document in data["documents"].values())
    assert {row["id"] for row in rows if row["source"] == "not_known"} == {row["id"] for row in rows if row.get("left_out")}


def test_the_memory_of_a_cpu_s_host_is_given(bench: Any) -> None:
    assert bench.device("epyc_9654").memory == 2**38
    assert bench.device({"product": "epyc_9654", "memory_bytes": 5}).memory == 5
    assert bench.device("l4").memory < 2**35


def test_a_published_speed_is_compared_as_tokens_a_second(bench: Any) -> None:
    row = {**bench.rows()[0], "unit": "ms", "value": 20.0, "concurrency": 8, "context": 1000}
    assert bench.tokens_per_second(row) == 400
    found = bench.looked_at(row)
    assert found["ratio"] == pytest.approx(found["planned"] / 400)
    assert not bench.looked_at({**row, "value": 2.0})["inside"] and not bench.looked_at({**row, "value": 200.0})["inside"]
    with pytest.raises(ValueError, match="count: found 4"):
        bench.looked_at({**row, "count": 4})
