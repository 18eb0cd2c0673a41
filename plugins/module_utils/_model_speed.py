# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How fast an engine serves a model: a roofline of one engine step, and the steady state of many requests made of such steps.

A step is a row of kernels that run one after another. Each kernel reads while it computes, so that it takes as long as the slower
of the two; kernels do not overlap each other, so that their times add up: the matrices outside the experts, those of the experts,
attention of tokens that are decoded, attention of prompts, element-wise work, then what GPUs exchange and what the host and the
launches take. Efficiencies and latencies come with their sources from ``plugin_utils/planning_speed.yml`` (argument ``data``).

Times are seconds, sizes bytes, rates FLOP/s or bytes/s. What is said of requests is for one replica unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ._model_architecture import (
    DRAFT,
    EMBEDDING,
    EXPERT,
    HEAD,
    MLA,
    RECURRENT,
    VISION,
    VOCABULARY,
    Architecture,
    Memory,
    ModelError,
    Weight,
)
from ._model_inputs import known_keys, near, quantity, shown
from ._model_memory import Device, Settings, local_heads, page_bytes, state_bytes
from ._model_quantisation import DTYPE_BYTES, Scheme, scheme_named, sharded_bytes

DAY = 86400
# Requests that wait longer than all but one in twenty: the share that p95 leaves out, and its distance from the mean of a normal
# distribution in standard deviations.
TAIL, NORMAL_P95 = 0.05, 1.6449
# How far the shares of a histogram may be from 1.
SHARES_TOLERANCE = 0.01
# Fields of the workload's mapping.
WORKLOAD = ("requests_per_day", "peak_factor", "prompt_tokens", "answer_tokens", "slo", "prefix_hit_ratio")
# What a plan without a workload is told for, in tokens.
REFERENCE_PROMPT, REFERENCE_ANSWER = 1024, 256
MOST_DRAFT_TOKENS = 8
GIVEN_WORKLOAD = "the workload that was given"

Limit = Callable[[int], float]


def row(
    name: str,
    value: Any,
    unit: str,
    formula: str,
    source: str,
    bounds: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """A figure as a plan lists it; ``bounds`` are factors of the value."""
    low, high = (value * bounds[0], value * bounds[1]) if bounds and value is not None else (None, None)
    return {"name": name, "value": value, "unit": unit, "low": low, "high": high, "formula": formula, "source": source}


# --- the workload ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What is asked of a deployment. Lengths are tokens; the targets are milliseconds, 0 where there is none.

    Between mean and 95th percentile lengths are taken as log-normal.
    """

    requests_per_day: float
    peak_factor: float  # the busiest time's rate over the day's mean
    prompt_mean: float
    prompt_p95: float
    answer_mean: float
    answer_p95: float
    slo_ttft_ms: float = 0.0
    slo_itl_ms: float = 0.0
    slo_e2e_ms: float = 0.0
    prefix_hit_ratio: float = 0.0  # share of the prompts' tokens that the prefix cache has

    @property
    def peak_rate(self) -> float:
        """Requests per second at the busiest time."""
        return self.requests_per_day / DAY * self.peak_factor

    @property
    def computed(self) -> float:
        """Tokens of a mean prompt that are not in the prefix cache; the last token is always computed."""
        return max(1.0, self.prompt_mean * (1 - self.prefix_hit_ratio))

    def described(self) -> dict[str, Any]:
        """As a plan holds it, which ``workload_of`` reads again."""
        return {
            "requests_per_day": self.requests_per_day,
            "peak_factor": self.peak_factor,
            "peak_requests_per_second": self.peak_rate,
            "prompt_tokens": {"mean": self.prompt_mean, "p95": self.prompt_p95},
            "answer_tokens": {"mean": self.answer_mean, "p95": self.answer_p95},
            "prefix_hit_ratio": self.prefix_hit_ratio,
            "slo": {"ttft_ms": self.slo_ttft_ms or None, "itl_ms": self.slo_itl_ms or None, "e2e_ms": self.slo_e2e_ms or None},
        }


def _lengths(where: str, value: Any) -> tuple[float, float]:
    """Mean and 95th percentile of a length in tokens, from {mean, p95}, one number for all, or a list of [tokens, share]."""
    if isinstance(value, Mapping):
        known_keys(where, value, ("mean", "p95"))
        if "mean" not in value:
            raise ModelError(f"{where}.mean: is missing; wanted the mean length in tokens")
        mean = quantity(f"{where}.mean", value["mean"], 1)
        if value.get("p95") in (None, ""):
            return mean, mean
        p95 = quantity(f"{where}.p95", value["p95"], 1)
        if p95 < mean:
            raise ModelError(f"{where}.p95: found {p95:g}, which is less than the mean {mean:g}; wanted at least the mean")
        return mean, p95
    if isinstance(value, (list, tuple)):
        return _histogram(where, value)
    mean = quantity(where, value, 1)
    return mean, mean


def _histogram(where: str, value: Sequence[Any]) -> tuple[float, float]:
    if not value:
        raise ModelError(f"{where}: found an empty list; wanted pairs of [tokens, share]")
    pairs = []
    for number, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ModelError(f"{where}[{number}]: found {shown(pair)}; wanted a pair of [tokens, share]")
        pairs.append((quantity(f"{where}[{number}][0]", pair[0], 1), quantity(f"{where}[{number}][1]", pair[1], 0)))
    total = sum(share for _length, share in pairs)
    if abs(total - 1) > SHARES_TOLERANCE:
        raise ModelError(f"{where}: the shares add up to {total:g}; wanted 1, as every request has some length")
    mean = sum(length * share for length, share in pairs) / total
    seen, p95 = 0.0, max(length for length, _share in pairs)
    for length, share in sorted(pairs):
        seen += share / total
        if seen >= 1 - TAIL - 1e-9:
            p95 = length
            break
    # A few very long requests can lie beyond the 95th percentile and lift the mean above it.
    return mean, max(mean, p95)


def workload_of(mapping: Mapping[str, Any] | None) -> Workload | None:
    """The workload that an operator describes; None where there is none.

    Raises ModelError that names the key, the value found and what is wanted.
    """
    if mapping is None or (isinstance(mapping, Mapping) and not mapping):
        return None
    if not isinstance(mapping, Mapping):
        raise ModelError(f"workload: found {shown(mapping)}; wanted a mapping of {', '.join(WORKLOAD)}")
    known_keys("workload", mapping, (*WORKLOAD, "peak_requests_per_second"))
    wanted = {
        "requests_per_day": "requests of a whole day, all replicas together",
        "peak_factor": "the busiest hour's rate over the mean of 24 hours (1 is an even load, 3 what is done within eight hours)",
        "prompt_tokens": "{mean, p95} in tokens, one number, or a list of [tokens, share]",
        "answer_tokens": "{mean, p95} in tokens, one number, or a list of [tokens, share]",
    }
    for key, meaning in wanted.items():
        if mapping.get(key) in (None, ""):
            raise ModelError(f"workload.{key}: is missing; wanted {meaning}")
    slo = mapping.get("slo") or {}
    if not isinstance(slo, Mapping):
        raise ModelError(f"workload.slo: found {shown(slo)}; wanted a mapping of ttft_ms, itl_ms and e2e_ms")
    known_keys("workload.slo", slo, ("ttft_ms", "itl_ms", "e2e_ms"))
    targets = {
        f"slo_{key}": quantity(f"workload.slo.{key}", slo[key], 0, above=True)
        for key in ("ttft_ms", "itl_ms", "e2e_ms")
        if slo.get(key) not in (None, "")
    }
    prompt, answer = (
        _lengths("workload.prompt_tokens", mapping["prompt_tokens"]),
        _lengths("workload.answer_tokens", mapping["answer_tokens"]),
    )
    hits = mapping.get("prefix_hit_ratio")
    return Workload(
        quantity("workload.requests_per_day", mapping["requests_per_day"], 0, above=True),
        quantity("workload.peak_factor", mapping["peak_factor"], 1),
        *prompt,
        *answer,
        prefix_hit_ratio=quantity("workload.prefix_hit_ratio", 0 if hits in (None, "") else hits, 0, 1),
        **targets,
    )


def log_normal_sigma(mean: float, p95: float) -> float:
    """Sigma of the log-normal distribution with this mean and 95th percentile; the widest there is where none has both."""
    ratio = math.log(max(1.0, p95 / mean))
    # ln p95 = mu + z sigma and ln mean = mu + sigma^2 / 2; beyond p95 = 3.87 x mean there is no solution.
    return NORMAL_P95 - math.sqrt(max(0.0, NORMAL_P95**2 - 2 * ratio))


# --- what a step costs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One engine step on the GPUs of one pipeline stage. ``seconds`` is not the sum of all others: reading overlaps computing.

    weights_seconds, cache_seconds, compute_seconds: what reading weights, reading the KV cache, and all arithmetic would take by
    themselves. linear_seconds and attention_seconds: the slower of reading and computing for matrices, and for attention.
    """

    seconds: float
    weights_seconds: float
    cache_seconds: float
    compute_seconds: float
    communication_seconds: float
    overhead_seconds: float
    linear_seconds: float
    attention_seconds: float
    bytes: float  # read and written on one GPU
    flops: float  # on one GPU
    bound: str  # memory, compute, communication or overhead: what most of the time goes to


@dataclass(frozen=True)
class _Experts:
    """Layers whose experts are alike, on one GPU."""

    layers: int
    held: float  # experts of one layer on this GPU
    chance: float  # that a token goes to a given expert
    size: float  # bytes of one expert on this GPU
    elements: float
    rate: float  # FLOP/s with efficiency


@dataclass(frozen=True)
class _Kind:
    """Layers that remember alike, on one GPU."""

    layers: int
    token_bytes: float
    reach: int  # 0: everything
    pair_flops: float  # of one query with one remembered token, all heads
    prompt_flops: float  # the same in a prompt, where latent vectors are taken apart first
    state: float  # bytes of a state for one request
    state_flops: float  # of one token with the state

    def seen(self, context: float) -> float:
        return min(context, self.reach) if self.reach else context


@dataclass(frozen=True)
class Profile:
    """What a model costs on a device under settings, counted once: steps of every size are computed from it in microseconds.

    Sums are over all layers, on one GPU of a tensor-parallel group.
    """

    settings: Settings
    device: Device
    bandwidth: float  # bytes/s that are reached
    attention_rate: float
    dense_bytes: float
    dense_seconds: float  # arithmetic of one token
    dense_elements: float
    head_bytes: float
    head_seconds: float
    head_elements: float
    experts: tuple[_Experts, ...]
    kinds: tuple[_Kind, ...]
    activation_bytes: float  # element-wise traffic of one token
    hidden: int
    layers: int
    all_reduces: int
    exchanges: int  # dispatch and combine of expert parallelism across data-parallel ranks
    experts_per_token: int
    link_latency: float
    link_bandwidth: float
    logits: float  # elements of one token's logits on one GPU
    kernel_seconds: float  # starts and ends of kernels that CUDA graphs do not hide, all layers
    launch_seconds: float  # of the host, all layers; 0 with CUDA graphs
    step_seconds: float
    sequence_seconds: float
    imbalance: float  # the longest pipeline stage over the mean
    bounds: tuple[float, float]  # factors of a time between which nine measurements in ten were
    prefill_bounds: tuple[float, float]  # the same of the time of prompts
    rate_name: str  # arithmetic of the quantised matrices
    source: str
    decode_factor: float = 1.0  # what a running server taught about these times
    prefill_factor: float = 1.0

    def step(
        self, batch: float, context: float, prefill_tokens: float = 0.0, prefill_context: float = 0.0, queries: float = 1.0
    ) -> Step:
        """One step: ``batch`` requests decode ``queries`` tokens each, and ``prefill_tokens`` of prompts are computed.

        ``context``: tokens that a decoding request remembers; ``prefill_context``: tokens that a token of a prompt looks back on,
        on average (half of the prompt where it is computed at once). All for one pipeline stage's share of requests.
        """
        decoded = batch * queries
        tokens = decoded + prefill_tokens
        sampled = decoded + min(1.0, prefill_tokens)
        # Matrices: dense ones, those of the experts, the head.
        weights, linear, compute, flops = self.dense_bytes + self.head_bytes, 0.0, 0.0, 0.0
        dense = self.dense_seconds * tokens
        head = self.head_seconds * sampled
        linear += max(self.dense_bytes / self.bandwidth, dense) + max(self.head_bytes / self.bandwidth, head)
        compute += dense + head
        flops += 2 * (self.dense_elements * tokens + self.head_elements * sampled)
        routed = tokens * (self.settings.data_parallel if self.settings.expert_parallel else 1)
        for group in self.experts:
            met = group.held * (1 - (1 - group.chance) ** routed)
            read = group.layers * met * group.size
            done = 2 * group.layers * group.held * group.chance * routed * group.elements
            weights += read
            flops += done
            compute += done / group.rate
            linear += max(read / self.bandwidth, done / group.rate)
        # Attention: of requests that decode, then of prompts.
        read_cache = written = decode_flops = prompt_flops = 0.0
        for kind in self.kinds:
            seen = kind.seen(context)
            read_cache += kind.layers * batch * (kind.token_bytes * seen + 2 * kind.state)
            decode_flops += kind.layers * decoded * (kind.pair_flops * seen + kind.state_flops)
            prompt_flops += kind.layers * prefill_tokens * (kind.prompt_flops * kind.seen(prefill_context) + kind.state_flops)
            written += kind.layers * tokens * kind.token_bytes
        moved = self.activation_bytes * tokens + written
        cache = read_cache / self.bandwidth
        attention = max(cache, decode_flops / self.attention_rate) + prompt_flops / self.attention_rate
        compute += (decode_flops + prompt_flops) / self.attention_rate
        flops += decode_flops + prompt_flops
        moving = moved / self.bandwidth
        # One stage of a pipeline has its share of all this.
        share = self.imbalance / self.settings.pipeline_parallel
        communication = self._communication(tokens, sampled, share)
        busy = (linear + attention + moving + self.kernel_seconds) * share
        waiting = max(0.0, self.launch_seconds * share - busy - communication)
        overhead = self.kernel_seconds * share + waiting + self.step_seconds + self.sequence_seconds * batch
        seconds = (linear + attention + moving) * share + communication + overhead
        reading = (weights + read_cache + moved) / self.bandwidth * share
        parts = {"communication": communication, "overhead": overhead}
        parts["memory" if reading >= compute * share else "compute"] = (linear + attention + moving) * share
        return Step(
            seconds=seconds,
            weights_seconds=weights / self.bandwidth * share,
            cache_seconds=cache * share,
            compute_seconds=compute * share,
            communication_seconds=communication,
            overhead_seconds=overhead,
            linear_seconds=linear * share,
            attention_seconds=attention * share,
            bytes=(weights + read_cache + moved) * share,
            flops=flops * share,
            bound=max(parts, key=lambda name: parts[name]),
        )

    def _communication(self, tokens: float, sampled: float, share: float) -> float:
        settings = self.settings
        ranks = settings.tensor_parallel
        vector = self.hidden * 2.0
        total = 0.0
        if ranks > 1:
            ring = (ranks - 1) / ranks
            total += self.all_reduces * share * (self.link_latency + 2 * ring * tokens * vector / self.link_bandwidth)
            total += self.link_latency + ring * sampled * self.logits * ranks * 2 / self.link_bandwidth
        if self.exchanges:
            spread = settings.tensor_parallel * settings.data_parallel
            volume = tokens / ranks * self.experts_per_token * vector * (spread - 1) / spread
            total += self.exchanges * share * (self.link_latency + volume / self.link_bandwidth)
        if settings.pipeline_parallel > 1:
            total += self.link_latency + tokens * vector / self.link_bandwidth
        return total

    def interval(
        self, running: float, context: float, prefill_tokens: float = 0.0, prefill_context: float = 0.0, queries: float = 1.0
    ) -> float:
        """Seconds between two tokens of a request while ``running`` requests decode on all stages of a pipeline.

        What is computed of prompts meanwhile goes into the same steps, and into more of them where one has no room.
        """
        stages = self.settings.pipeline_parallel
        batch = max(1.0, running / stages)
        room = max(1.0, self.settings.max_num_batched_tokens - batch * queries)
        chunk = prefill_tokens / stages
        total = self.step(batch, context, min(chunk, room), prefill_context, queries).seconds
        if chunk > room:
            # Decoding goes on in the additional steps too, but for the requests that run anyway.
            total += (chunk - room) / room * self.step(0.0, 0.0, room, prefill_context).seconds
        return total * stages * self.decode_factor

    def prefill(self, prompt: float, hit_ratio: float = 0.0, running: float = 0.0, context: float = 0.0) -> float:
        """Seconds until a prompt is computed, in chunks, while ``running`` other requests go on decoding."""
        stages = self.settings.pipeline_parallel
        batch = running / stages
        room = max(1.0, self.settings.max_num_batched_tokens - batch)
        cached = prompt - max(1.0, prompt * (1 - hit_ratio))
        left, total = prompt - cached, 0.0
        whole = int(left // room)
        # Chunks differ by what they look back on, linearly unless a window ends it: the middle one stands for all full ones.
        if whole:
            total += whole * self.step(batch, context, room, cached + whole * room / 2).seconds
        rest = left - whole * room
        if rest > 0:
            total += self.step(batch, context, rest, cached + whole * room + rest / 2).seconds
        # The first chunk passes all stages; the others follow it closely.
        chunks = max(1, whole + (1 if rest > 0 else 0))
        return total * (1 + (stages - 1) / chunks) * self.prefill_factor


def _setting(data: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = data
    for number, key in enumerate(path):
        if not isinstance(found, Mapping) or key not in found:
            raise ModelError(f"planning_speed.yml: {'.'.join(path[: number + 1])}: is missing; wanted a figure")
        found = found[key]
    return dict(found)


def title_of(data: Mapping[str, Any], source: Any) -> str:
    """The title of a document of the data file, as a reader of a figure wants it."""
    return str(data.get("documents", {}).get(source, {}).get("title") or source)


def value_of(data: Mapping[str, Any], *path: str) -> float:
    """The value of a figure of the data file."""
    return float(_setting(data, *path)["value"])


def sixteen_bit_rate(device: Device) -> float:
    rate = device.rates.get("bf16") or device.rates.get("fp16") or 0.0
    if rate <= 0:
        raise ModelError(f"{device.name}: rates: there is no rate for bf16 or fp16; wanted FLOP/s of dense matrix products")
    return float(rate)


def arithmetic_rate(device: Device, arithmetic: str) -> tuple[str, float]:
    """The arithmetic that a device really does where this is asked for, and its FLOP/s.

    FP8 needs compute capability 8.9, FP4 10.0; what a device has no rate for is done in 16 bits after widening the weights.
    """
    if arithmetic == "fp32":
        for name in ("fp32", "tf32"):
            if device.rates.get(name):
                return name, float(device.rates[name])
        return "fp32", sixteen_bit_rate(device) / 2
    lacking = device.kind == "gpu" and (
        (arithmetic == "fp8" and device.compute_capability < (8, 9))
        or (arithmetic == "fp4" and device.compute_capability < (10, 0))
    )
    if arithmetic in ("fp8", "int8", "fp4") and not lacking and device.rates.get(arithmetic):
        return arithmetic, float(device.rates[arithmetic])
    return "bf16", sixteen_bit_rate(device)


def profile(
    architecture: Architecture,
    scheme: Scheme,
    device: Device,
    settings: Settings,
    data: Mapping[str, Any],
    draft: bool = False,
    factors: Mapping[str, float] | None = None,
) -> Profile:
    """Counts what steps cost. ``draft``: of the model's own layers for multi-token prediction in place of the model.

    ``factors``: what was learnt from a running server, by ``step_seconds`` and ``prefill_seconds``.

    Raises ModelError for a device without bandwidth or rates, and for several GPUs without a link.
    """
    if device.bandwidth <= 0:
        raise ModelError(f"{device.name}: bandwidth: found {device.bandwidth:g}; wanted its memory bandwidth in bytes/s")
    if settings.engine not in data.get("engines", {}):
        known = ", ".join(data.get("engines", {}))
        raise ModelError(f"settings.engine: there are no speeds for {settings.engine!r}; wanted one of {known}")
    where = ("engines", settings.engine)
    bandwidth = device.bandwidth * value_of(data, *where, "memory_efficiency")
    capability = device.compute_capability[0] + device.compute_capability[1] / 10
    asked = scheme.arithmetic if device.kind == "cpu" else scheme.arithmetic_on(capability)
    name, peak = arithmetic_rate(device, asked)

    def reached(kind: str, speed: float) -> float:
        return speed * value_of(data, *where, "compute_efficiency", "bf16" if kind in ("fp32", "tf32") else kind)

    quantised = reached(name, peak)
    plain_name, plain_peak = arithmetic_rate(device, "fp32" if settings.dtype == "float32" else "bf16")
    plain = reached(plain_name, plain_peak)
    counts = _Counts(architecture, scheme, settings, quantised, plain, value_of(data, *where, "experts_efficiency"))
    for weight in architecture.weights:
        if (weight.part == DRAFT) == draft and weight.part != VISION:
            counts.add(weight, draft)
    if draft and counts.found and not any(weight.part == DRAFT and "head" in weight.name for weight in architecture.weights):
        # The layers share the model's head, which is read for each drafted token.
        for weight in architecture.weights:
            if weight.part in (EMBEDDING, HEAD):
                counts.add(weight, draft)
    if draft and not counts.found:
        raise ModelError(f"{architecture.name}: has no layers for multi-token prediction; wanted a draft model or n-grams")
    layers = max(1, architecture.draft_layers) if draft else len(architecture.layers)
    kinds = () if draft else _kinds(architecture, settings)
    latency, link = _link(device, settings, data)
    moe_layers = sum(1 for layer in architecture.layers if layer.experts) if not draft else 0
    across = settings.expert_parallel and settings.data_parallel > 1 and moe_layers > 0
    launch = 0.0 if settings.cuda_graphs or device.kind == "cpu" else value_of(data, *where, "launch_seconds")
    inner = architecture.intermediate_size / settings.tensor_parallel
    error, prefill_error = _setting(data, *where, "error"), _setting(data, *where, "prefill_error")
    stages = settings.pipeline_parallel
    return Profile(
        settings=settings,
        device=device,
        bandwidth=bandwidth,
        attention_rate=sixteen_bit_rate(device) * value_of(data, *where, "attention_efficiency"),
        dense_bytes=counts.dense_bytes,
        dense_seconds=counts.dense_seconds,
        dense_elements=counts.dense_elements,
        head_bytes=counts.head_bytes,
        head_seconds=counts.head_seconds,
        head_elements=counts.head_elements,
        experts=tuple(counts.experts),
        kinds=kinds,
        activation_bytes=layers
        * DTYPE_BYTES[settings.dtype]
        * (value_of(data, *where, "activation_vectors") * architecture.hidden_size + 3 * inner),
        hidden=architecture.hidden_size,
        layers=layers,
        all_reduces=2 * layers - (moe_layers if across else 0),
        exchanges=2 * moe_layers if across else 0,
        experts_per_token=architecture.experts_per_token,
        link_latency=latency,
        link_bandwidth=link,
        logits=architecture.vocabulary / settings.tensor_parallel,
        kernel_seconds=value_of(data, *where, "layer_seconds") * layers
        + value_of(data, *where, "expert_layer_seconds") * moe_layers,
        launch_seconds=launch * layers,
        step_seconds=0.0 if draft else value_of(data, *where, "step_seconds"),
        sequence_seconds=0.0 if draft else value_of(data, *where, "sequence_seconds"),
        imbalance=1.0 if draft else math.ceil(layers / stages) * stages / max(1, layers),
        bounds=(float(error["low"]), float(error["high"])),
        prefill_bounds=(float(prefill_error["low"]), float(prefill_error["high"])),
        rate_name=name,
        source=title_of(data, error["source"]),
        decode_factor=float((factors or {}).get("step_seconds", 1.0)),
        prefill_factor=float((factors or {}).get("prefill_seconds", 1.0)),
    )


class _Counts:
    """Bytes, elements and seconds of arithmetic of the matrices on one GPU."""

    def __init__(
        self, architecture: Architecture, scheme: Scheme, settings: Settings, quantised: float, plain: float, experts: float
    ) -> None:
        self.architecture = architecture
        self.scheme = scheme
        self.settings = settings
        self.rates = (quantised, plain)
        self.experts_efficiency = experts
        self.size = DTYPE_BYTES[settings.dtype]
        self.spread = settings.tensor_parallel * settings.data_parallel if settings.expert_parallel else 0
        self.dense_bytes = self.dense_seconds = self.dense_elements = 0.0
        self.head_bytes = self.head_seconds = self.head_elements = 0.0
        self.groups: dict[tuple[int, float, float], list[float]] = {}
        self.found = 0

    def sharded(self, weight: Weight, scheme: Scheme, size: int) -> int:
        return sharded_bytes(
            weight,
            scheme,
            size,
            self.settings.tensor_parallel,
            expert_parallel=self.spread,
            kv_heads=self.architecture,
        )

    def add(self, weight: Weight, draft: bool) -> None:
        """A table of embeddings is not read, unless it is the head too. Of a draft layer's experts those of one token count."""
        tied = self.architecture.tied and weight.part == EMBEDDING and weight.split == VOCABULARY
        if (weight.part == EMBEDDING and not tied) or (weight.part == DRAFT and "embed" in weight.name):
            return
        self.found += 1
        stored = float(self.sharded(weight, self.scheme, self.size))
        elements = self.sharded(weight, PLAIN, 2) / 2
        # A weight that is stored in fewer bytes than the model's type is a quantised one.
        rate = self.rates[0] if stored < 0.95 * elements * self.size else self.rates[1]
        if weight.part == EXPERT and weight.layers:
            self._expert(weight, stored, elements, rate)
            return
        if draft and weight.copies > 1 and self.architecture.experts_per_token:
            part = min(1.0, self.architecture.experts_per_token / weight.copies)
            stored, elements = stored * part, elements * part
        counted = elements if weight.matrix or tied else 0.0
        if weight.part == HEAD or tied:
            self.head_bytes += stored
            self.head_elements += counted
            self.head_seconds += 2 * counted / rate
        else:
            self.dense_bytes += stored
            self.dense_elements += counted
            self.dense_seconds += 2 * counted / rate

    def _expert(self, weight: Weight, stored: float, elements: float, rate: float) -> None:
        layers = len(weight.layers)
        total = weight.copies
        held = math.ceil(total / self.spread) if self.spread else total
        used = max(1, self.architecture.layers[weight.layers[0]].experts_per_token)
        key = (layers, float(held), min(1.0, used / total))
        group = self.groups.setdefault(key, [0.0, 0.0, 0.0])
        group[0] += stored / layers / held
        group[1] += elements / layers / held
        group[2] += elements / layers / held / (rate * self.experts_efficiency)

    @property
    def experts(self) -> list[_Experts]:
        return [
            _Experts(layers, held, chance, size, elements, elements / seconds if seconds else math.inf)
            for (layers, held, chance), (size, elements, seconds) in self.groups.items()
        ]


PLAIN = scheme_named("none", "bfloat16")


def _kinds(architecture: Architecture, settings: Settings) -> tuple[_Kind, ...]:
    counted: dict[Memory, int] = {}
    for layer in architecture.layers:
        for memory in layer.memories:
            counted[memory] = counted.get(memory, 0) + 1
    return tuple(_kind(memory, number, architecture, settings) for memory, number in counted.items())


def _kind(memory: Memory, layers: int, architecture: Architecture, settings: Settings) -> _Kind:
    if memory.kind == RECURRENT:
        elements = sum(math.ceil(shape[0] / settings.tensor_parallel) * math.prod(shape[1:]) for shape in memory.state)
        # Decay, the outer product that is added, and the product with the query: three multiplications and additions each.
        return _Kind(layers, 0.0, 0, 0.0, 0.0, float(state_bytes(memory, settings)), 6.0 * elements)
    heads = (memory.query_heads or architecture.heads) / settings.tensor_parallel
    against = memory.query_dim or memory.key_dim
    if memory.kind == MLA:
        # The compressed vector is key and value at once, save for its rotary part; it is not divided among GPUs.
        size = float(page_bytes(memory, settings, 1)) + memory.index_bytes
        pair = 2 * heads * (against + memory.key_dim)
        apart = 2 * heads * 2 * architecture.head_dim if architecture.head_dim else pair
        return _Kind(layers, size, 0, pair, min(pair, apart), 0.0, 0.0)
    size = local_heads(memory.kv_heads, settings.tensor_parallel) * (memory.key_dim + memory.value_dim) * settings.element
    pair = 2 * heads * (against + (memory.value_dim or memory.key_dim))
    return _Kind(layers, float(size), memory.reach, pair, pair, 0.0, 0.0)


def _link(device: Device, settings: Settings, data: Mapping[str, Any]) -> tuple[float, float]:
    """Latency of a small collective, and the bytes/s that one reaches."""
    together = settings.tensor_parallel * settings.pipeline_parallel
    if settings.expert_parallel:
        together *= settings.data_parallel
    if together == 1:
        return 0.0, math.inf
    if device.link_bandwidth <= 0 or device.link not in data.get("links", {}):
        raise ModelError(
            f"{device.name}: link: found {device.link!r} of {device.link_bandwidth:g} bytes/s for {together} that work together; "
            f"wanted {' or '.join(data.get('links', {}))} and its bytes/s in one direction"
        )
    where = ("links", device.link)
    return value_of(data, *where, "latency_seconds"), device.link_bandwidth * value_of(data, *where, "efficiency")


def step(
    architecture: Architecture,
    scheme: Scheme,
    device: Device,
    settings: Settings,
    data: Mapping[str, Any],
    batch: float,
    context: float,
    prefill_tokens: float = 0.0,
    prefill_context: float = 0.0,
) -> Step:
    """One engine step; see ``Profile.step``. For many steps make a ``profile`` once."""
    return profile(architecture, scheme, device, settings, data).step(batch, context, prefill_tokens, prefill_context)


def prefill_seconds(prompt: float, counted: Profile, hit_ratio: float = 0.0) -> float:
    """Seconds to compute a prompt on an engine that does nothing else."""
    return counted.prefill(quantity("prompt", prompt, 1), quantity("prefix_hit_ratio", hit_ratio, 0, 1))


# --- many requests ---------------------------------------------------------------------------------------------------


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that have to wait for one of so many servers, at a load in Erlang (M/M/c)."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


@dataclass(frozen=True)
class _State:
    """An engine in steady state with so many requests running."""

    running: float
    rate: float  # requests/s of one engine
    itl: float
    itl_p95: float
    ttft: float
    ttft_p95: float
    e2e: float
    e2e_p95: float


class _Engine:
    """One engine (a data-parallel rank) under a workload's mix of requests."""

    def __init__(self, counted: Profile, workload: Workload, slots: float) -> None:
        self.counted = counted
        self.workload = workload
        self.slots = max(1.0, slots)
        self.context = workload.prompt_mean + workload.answer_mean / 2
        self.cached = workload.prompt_mean - workload.computed
        self.sigma = log_normal_sigma(workload.prompt_mean, workload.prompt_p95)
        self.full_rate = self.rate(self.slots)

    def interval(self, running: float) -> float:
        work = self.workload
        prompts = running * work.computed / work.answer_mean
        return self.counted.interval(running, self.context, prompts, self.cached + work.computed / 2)

    def rate(self, running: float) -> float:
        """Requests/s that so many running requests make: each ends after its answer's steps."""
        return running / (self.workload.answer_mean * self.interval(running))

    def running(self, rate: float) -> float:
        """Requests that run at this rate; more than the slots where the rate cannot be served."""
        if rate >= self.full_rate:
            return math.inf
        low, high = 0.0, self.slots
        for _turn in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.rate(middle) < rate else (low, middle)
        return high

    def state(self, running: float, open_queue: bool = True) -> _State:
        """``open_queue``: requests come at random at the rate that this makes; else so many clients send one after another."""
        work, counted = self.workload, self.counted
        rate = self.rate(running)
        itl = self.interval(running)
        peak = min(self.slots, running + NORMAL_P95 * math.sqrt(running)) if open_queue else running
        itl_p95 = max(itl, self.interval(peak))
        own = counted.prefill(work.prompt_mean, work.prefix_hit_ratio, running, self.context)
        own_p95 = counted.prefill(max(work.prompt_mean, work.prompt_p95), work.prefix_hit_ratio, peak, self.context)
        # Prompts queue for the token budget of steps (M/G/1): time for one prompt's tokens where steps are full of them.
        room = max(1.0, counted.settings.max_num_batched_tokens - running)
        per_token = (
            counted.step(running, self.context, room, self.cached + work.computed / 2).seconds / room * counted.prefill_factor
        )
        service_time = work.computed * per_token
        busy = min(0.999999, rate * service_time)
        wait = busy * service_time * math.exp(self.sigma**2) / (2 * (1 - busy))
        wait_p95 = wait / busy * math.log(busy / TAIL) if busy > TAIL else 0.0
        if open_queue:
            slot, slot_p95 = self._slot(rate)
        else:
            wait = min(wait, max(0.0, running - 1) * service_time / 2)
            wait_p95 = min(max(wait, wait_p95), max(0.0, running - 1) * service_time)
            slot = slot_p95 = 0.0
        # A request comes somewhere within a step of those that run already.
        residual = itl / 2 * min(1.0, running)
        ttft = own + wait + residual + slot
        ttft_p95 = max(ttft, own_p95 + max(wait, wait_p95) + 2 * residual + max(slot, slot_p95))
        steps, steps_p95 = max(0.0, work.answer_mean - 1), max(0.0, work.answer_p95 - 1)
        return _State(
            running,
            rate,
            itl,
            itl_p95,
            ttft,
            ttft_p95,
            ttft + steps * itl,
            max(ttft_p95 + steps * itl, ttft + steps_p95 * itl_p95),
        )

    def _slot(self, rate: float) -> tuple[float, float]:
        """Waiting for room in the KV cache: mean and 95th percentile (M/M/c, Erlang C)."""
        servers = max(1, int(self.slots))
        full = self.rate(servers)
        if rate >= full:
            return math.inf, math.inf
        share = erlang_c(servers, rate / full * servers)
        slack = full - rate
        return share / slack, (math.log(share / TAIL) / slack if share > TAIL else 0.0)

    def misses(self, state: _State) -> list[str]:
        """Targets of the SLO that this state misses at the 95th percentile."""
        work = self.workload
        pairs = (
            ("ttft", state.ttft_p95, work.slo_ttft_ms),
            ("itl", state.itl_p95, work.slo_itl_ms),
            ("e2e", state.e2e_p95, work.slo_e2e_ms),
        )
        return [name for name, found, wanted in pairs if wanted and found * 1000 > wanted]

    def most(self, utilisation: float) -> tuple[float, list[str]]:
        """The most requests that may run with every target kept and this utilisation not exceeded, and what ends it."""
        top = self.running(self.full_rate * utilisation)
        top = self.slots * utilisation if math.isinf(top) else top
        missed = self.misses(self.state(top))
        if not missed:
            return top, []
        low, high = 0.0, top
        if self.misses(self.state(1e-6)):
            return 0.0, self.misses(self.state(1e-6))
        for _turn in range(24):
            middle = (low + high) / 2
            found = self.misses(self.state(middle))
            if found:
                high, missed = middle, found
            else:
                low = middle
        return low, missed


def _slots(settings: Settings, workload: Workload, concurrency_limit: Limit) -> tuple[float, float, str]:
    """Requests of the mean length that one engine holds, what memory allows, and which of the two it is limited by."""
    length = math.ceil(workload.prompt_mean + workload.answer_mean)
    if settings.max_model_len:
        length = min(length, settings.max_model_len)
    memory = concurrency_limit(length)
    allowed = settings.slots if settings.engine == "llama_cpp" else settings.max_num_seqs
    if memory < allowed:
        return max(0.0, memory), memory, "memory"
    return float(allowed), memory, "slots" if settings.engine == "llama_cpp" else "max_num_seqs"


def points(counted: Profile, workload: Workload, concurrency_limit: Limit) -> list[dict[str, Any]]:
    """The curve of throughput against latency, for one replica: 1, 2, 4 ... requests at once, up to the limit and beyond it.

    Clients that send one request after another, so that nothing waits for memory; beyond the limit as if there were more of it.
    """
    settings = counted.settings
    ranks = settings.data_parallel
    slots, _memory, _limited = _slots(settings, workload, concurrency_limit)
    last = min(4096.0, max(4.0, slots * 2))
    numbers = [2.0**power for power in range(13) if 2.0**power <= last]
    inside = min(math.floor(slots), 4096)
    if inside >= 1 and float(inside) not in numbers:
        numbers = sorted([*numbers, float(inside)])
    found = []
    for running in numbers:
        engine = _Engine(counted, workload, running)
        state = engine.state(running, open_queue=False)
        stages = settings.pipeline_parallel
        at = counted.step(
            max(1.0, running / stages),
            engine.context,
            running * workload.computed / workload.answer_mean / stages,
            engine.context / 2,
        )
        found.append(
            {
                "concurrency": int(running * ranks),
                "itl_ms": state.itl * 1000,
                "ttft_ms": state.ttft * 1000,
                "e2e_ms": state.e2e * 1000,
                "itl_p95_ms": state.itl_p95 * 1000,
                "ttft_p95_ms": state.ttft_p95 * 1000,
                "e2e_p95_ms": state.e2e_p95 * 1000,
                "tokens_per_second": state.rate * workload.answer_mean * ranks,
                "requests_per_second": state.rate * ranks,
                "bound": at.bound,
                "within_memory": running <= slots,
                "meets_slo": not engine.misses(state),
            }
        )
    return found


def _inverse(bounds: tuple[float, float]) -> tuple[float, float]:
    """Factors of a rate, from those of its time."""
    return 1 / bounds[1], 1 / bounds[0]


def speed(
    counted: Profile,
    concurrency_limit: Limit,
    workload: Workload | None = None,
    curve: bool = True,
) -> dict[str, Any]:
    """The ``speed`` of a plan; without a workload for requests of 1024 tokens that are answered with 256."""
    work = workload or Workload(1, 1, REFERENCE_PROMPT, REFERENCE_PROMPT, REFERENCE_ANSWER, REFERENCE_ANSWER)
    settings = counted.settings
    prompt = float(max(work.prompt_mean, settings.max_num_batched_tokens))
    if settings.max_model_len:
        prompt = min(prompt, float(settings.max_model_len))
    prefill = prompt / counted.prefill(prompt) * settings.data_parallel
    single = counted.interval(1, work.prompt_mean + work.answer_mean / 2)
    inverse, inverse_prefill = _inverse(counted.bounds), _inverse(counted.prefill_bounds)
    figures = [
        row(
            "prefill",
            prefill,
            "tokens/s of one replica",
            f"a prompt of {prompt:g} tokens over the time of its steps: 2 x active parameters x tokens / rate + attention",
            counted.source,
            inverse_prefill,
        ),
        row(
            "decode of one request",
            1 / single,
            "tokens/s",
            "1 / (bytes of active weights and of the KV cache on one GPU / bandwidth reached + exchange + overhead)",
            counted.source,
            inverse,
        ),
        row("memory bandwidth reached", counted.bandwidth, "bytes/s", "datasheet x memory efficiency", counted.source),
    ]
    return {
        "prefill_tokens_per_second": prefill,
        "single_stream_tokens_per_second": 1 / single,
        "prompt_tokens": work.prompt_mean,
        "answer_tokens": work.answer_mean,
        "arithmetic": counted.rate_name,
        "low_factor": inverse[0],
        "high_factor": inverse[1],
        "points": points(counted, work, concurrency_limit) if curve else [],
        "figures": figures,
    }


def service(
    architecture: Architecture,
    scheme: Scheme,
    device: Device,
    settings: Settings,
    workload: Workload | None,
    concurrency_limit: Limit,
    data: Mapping[str, Any],
    replicas: int = 1,
    factors: Mapping[str, float] | None = None,
    curve: bool = True,
) -> dict[str, Any]:
    """What ``replicas`` deployments do under a workload at its busiest time, and the most that they could do within the SLO.

    ``concurrency_limit(length)``: requests of so many tokens that the KV cache of one engine holds. ``factors``: see ``profile``.
    Latencies without a suffix are means; an SLO is held against the 95th percentiles. Concurrency and tokens_per_second are those
    of one replica, requests of a day and requests per second of all. ``speed`` is the plan's part of that name, without its
    points where ``curve`` is false. Without a workload there is the speed alone.
    """
    if replicas < 1:
        raise ModelError(f"replicas: found {replicas}; wanted at least 1")
    counted = profile(architecture, scheme, device, settings, data, factors=factors)
    work = workload or Workload(1, 1, REFERENCE_PROMPT, REFERENCE_PROMPT, REFERENCE_ANSWER, REFERENCE_ANSWER)
    shown_speed = speed(counted, concurrency_limit, workload, curve)
    found: dict[str, Any] = {
        **dict.fromkeys(SERVICE),
        "replicas": replicas,
        "concurrency": 0.0,
        "context": work.prompt_mean + work.answer_mean / 2,
        "prefill_seconds": counted.prefill(work.prompt_mean, work.prefix_hit_ratio),
        "step_seconds": counted.interval(1, work.prompt_mean + work.answer_mean / 2),
        "unattainable": {},
        "warnings": [] if workload is None else _warnings(settings, workload),
        "speed": shown_speed,
        "figures": shown_speed.pop("figures"),
    }
    if workload is None:
        found["concurrency"] = 1.0
        return found
    slots, _memory, limited = _slots(settings, workload, concurrency_limit)
    ranks = settings.data_parallel
    found["concurrency_limit"] = slots * ranks
    if slots < 1:
        text = f"The KV cache holds {slots:.2f} requests of the mean length; not one runs."
        found["warnings"].append({"code": "no_request_fits", "text": text})
        nothing = ("requests_per_second", "tokens_per_second", "requests_per_second_at_slo", "requests_per_day_at_slo")
        found.update(dict.fromkeys((*nothing, "concurrency_at_slo", "requests_per_day_at_capacity"), 0.0))
        found.update(overloaded=True, meets_slo=False, limited_by="memory")
        return found
    found.update(_served(counted, workload, slots, limited, replicas, value_of(data, "queue", "utilisation_limit")))
    if _too_long(settings, workload):
        # An engine refuses what is longer, however fast it would be.
        found.update(dict.fromkeys(REFUSED, 0.0), meets_slo=False, limited_by="max_model_len", replicas_needed=None)
        for point in shown_speed.get("points") or ():
            point["meets_slo"] = False
    found["figures"] += _service_figures(found, workload, counted, value_of(data, "queue", "utilisation_limit"))
    return found


# What is nothing where the mean request is refused.
REFUSED = (
    *("requests_per_second", "tokens_per_second", "requests_per_second_at_slo", "requests_per_day_at_slo", "concurrency_at_slo"),
    "requests_per_day_at_capacity",
)


# What a service says; null where it cannot be told.
SERVICE = (
    *("concurrency", "concurrency_limit", "context", "itl_ms", "ttft_ms", "e2e_ms", "itl_p95_ms", "ttft_p95_ms", "e2e_p95_ms"),
    *("best_itl_ms", "best_ttft_ms", "best_e2e_ms", "step_seconds", "prefill_seconds", "utilisation", "overloaded"),
    *("requests_per_second", "tokens_per_second", "requests_per_second_at_slo", "requests_per_day_at_slo", "concurrency_at_slo"),
    *("requests_per_day_at_capacity", "limited_by", "meets_slo", "replicas", "replicas_needed", "unattainable"),
)


def _served(
    counted: Profile, workload: Workload, slots: float, limited: str, replicas: int, utilisation: float
) -> dict[str, Any]:
    ranks = counted.settings.data_parallel
    engines = replicas * ranks
    engine = _Engine(counted, workload, slots)
    rate = workload.peak_rate / engines
    running = engine.running(rate)
    overloaded = math.isinf(running)
    state = engine.state(slots if overloaded else running, open_queue=not overloaded)
    alone = engine.state(1e-6)
    most, missed = engine.most(utilisation)
    best = engine.rate(most)
    capacity = engine.full_rate
    # More room would help unless the steps' arithmetic has no more to give.
    room = limited if _Engine(counted, workload, slots * 2).full_rate > 1.1 * capacity else "compute"
    waits = ("ttft_ms", "e2e_ms", "ttft_p95_ms", "e2e_p95_ms")
    found: dict[str, Any] = {
        "concurrency": state.running * ranks,
        "itl_ms": state.itl * 1000,
        "ttft_ms": state.ttft * 1000,
        "e2e_ms": state.e2e * 1000,
        "itl_p95_ms": state.itl_p95 * 1000,
        "ttft_p95_ms": state.ttft_p95 * 1000,
        "e2e_p95_ms": state.e2e_p95 * 1000,
        "best_itl_ms": alone.itl * 1000,
        "best_ttft_ms": alone.ttft * 1000,
        "best_e2e_ms": alone.e2e * 1000,
        "step_seconds": state.itl,
        "utilisation": rate / capacity,
        "overloaded": overloaded,
        "requests_per_second": min(rate, capacity) * engines,
        "tokens_per_second": min(rate, capacity) * ranks * workload.answer_mean,
        "requests_per_second_at_slo": best * engines,
        "requests_per_day_at_slo": best * engines * DAY / workload.peak_factor,
        "concurrency_at_slo": most * ranks,
        "requests_per_day_at_capacity": capacity * engines * DAY / workload.peak_factor,
        "limited_by": missed[0] if missed else room,
        "meets_slo": not overloaded and rate <= best * (1 + 1e-9) and not engine.misses(state),
        "replicas_needed": math.ceil(workload.peak_rate / (best * ranks) - 1e-9) if best > 0 else None,
        "unattainable": _unattainable(workload, alone) if best <= 0 else {},
    }
    # A queue that never empties has no mean.
    found.update(dict.fromkeys(waits) if overloaded else {name: _finite(found[name]) for name in waits})
    return found


def _service_figures(found: Mapping[str, Any], workload: Workload, counted: Profile, utilisation: float) -> list[dict[str, Any]]:
    low, high = counted.bounds
    source = counted.source
    return [
        row("peak rate", workload.peak_rate, "requests/s", "requests a day / 86400 x peak factor", GIVEN_WORKLOAD),
        row("requests at once at the peak", found["concurrency"], "requests", "n with n / (answer x interval(n)) = rate", source),
        row(
            "inter-token latency, mean",
            found["itl_ms"],
            "ms",
            "time of a step with n requests and their prompts",
            source,
            (low, high),
        ),
        row(
            "time to first token, mean",
            found["ttft_ms"],
            "ms",
            "steps of the prompt + half a step + M/G/1 wait for steps + M/M/c wait for KV cache",
            source,
            counted.prefill_bounds,
        ),
        row("answer complete, mean", found["e2e_ms"], "ms", "time to first token + (answer - 1) x interval", source, (low, high)),
        row(
            "requests a day within the SLO",
            found["requests_per_day_at_slo"],
            "requests/day",
            f"largest rate whose 95th percentiles keep the SLO, at most {utilisation:.0%} of capacity, x 86400 / peak factor",
            source,
            (1 / high, 1 / low),
        ),
        row(
            "utilisation at the peak",
            found["utilisation"],
            "share",
            "peak rate / rate with every slot taken",
            source,
            (low, high),
        ),
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _too_long(settings: Settings, workload: Workload) -> bool:
    return bool(settings.max_model_len) and workload.prompt_mean + workload.answer_mean > settings.max_model_len


def share_beyond(workload: Workload, length: float) -> float:
    """The share of requests whose prompt and answer together are longer, from 0 to 1.

    Both lengths are log-normal and independent; their sum is taken as log-normal with its own mean and variance.
    """
    pairs = ((workload.prompt_mean, workload.prompt_p95), (workload.answer_mean, workload.answer_p95))
    mean = sum(one for one, _p95 in pairs)
    variance = sum(one**2 * math.expm1(log_normal_sigma(one, p95) ** 2) for one, p95 in pairs)
    sigma = math.sqrt(math.log1p(variance / mean**2))
    if sigma <= 0:
        return float(mean > length)
    return math.erfc((math.log(length / mean) + sigma**2 / 2) / (sigma * math.sqrt(2))) / 2


def _warnings(settings: Settings, workload: Workload) -> list[dict[str, str]]:
    found = []
    longest, mean_length = workload.prompt_p95 + workload.answer_p95, workload.prompt_mean + workload.answer_mean
    if _too_long(settings, workload):
        text = (
            f"The mean request has {mean_length:g} tokens, more than max_model_len {settings.max_model_len}: it is refused, and "
            "nothing counts as served."
        )
        found.append({"code": "longer_than_max_model_len", "text": text})
    elif settings.max_model_len and longest > settings.max_model_len:
        share = share_beyond(workload, settings.max_model_len)
        text = (
            f"Requests of {longest:g} tokens (95th percentiles) are longer than max_model_len {settings.max_model_len}: about "
            f"{share:.1%} of all are refused or cut short, by log-normal lengths."
        )
        found.append({"code": "requests_too_long", "text": text})
    for name, mean, p95 in (
        ("prompt_tokens", workload.prompt_mean, workload.prompt_p95),
        ("answer_tokens", workload.answer_mean, workload.answer_p95),
    ):
        if p95 / mean > math.exp(NORMAL_P95**2 / 2):
            text = f"workload.{name}: p95 {p95:g} over mean {mean:g} is wider than any log-normal; the widest is taken."
            found.append({"code": "wide_distribution", "text": text})
    if workload.prefix_hit_ratio and not settings.prefix_caching:
        found.append({"code": "no_prefix_cache", "text": "workload.prefix_hit_ratio is given, and prefix_caching is off."})
    return found


def _unattainable(workload: Workload, alone: _State) -> dict[str, dict[str, float]]:
    """The targets that not even one request alone keeps, and the best there is (95th percentile, ms)."""
    pairs = (
        ("ttft_ms", workload.slo_ttft_ms, alone.ttft_p95),
        ("itl_ms", workload.slo_itl_ms, alone.itl_p95),
        ("e2e_ms", workload.slo_e2e_ms, alone.e2e_p95),
    )
    return {name: {"wanted": wanted, "best": best * 1000} for name, wanted, best in pairs if wanted and best * 1000 > wanted}


# --- speculative decoding --------------------------------------------------------------------------------------------


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens that a step yields when each of so many drafted tokens is accepted with this probability.

    Leviathan et al. 2023, arXiv 2211.17192, equation 1.
    """
    if acceptance >= 1:
        return drafted + 1.0
    return (1 - acceptance ** (drafted + 1)) / (1 - acceptance)


# How a speculation's mapping may be given.
SPECULATION = ("method", "acceptance", "draft_tokens", "relative_cost", "draft", "draft_scheme")
METHODS = ("draft_model", "mtp", "ngram")


def speculative(
    architecture: Architecture,
    scheme: Scheme,
    device: Device,
    settings: Settings,
    speculation: Mapping[str, Any],
    data: Mapping[str, Any],
    concurrency: float = 1.0,
    context: float = REFERENCE_PROMPT,
    factors: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What speculative decoding gains with so many requests at once (of one replica) at this context.

    ``speculation``: ``acceptance``, the probability that a drafted token is accepted; ``draft_tokens`` a step, or none for the
    best up to 8; and what drafts: ``method`` draft_model with ``draft`` (an Architecture, and its ``draft_scheme``) or
    ``relative_cost``, a drafted token's time over that of a decode step; mtp, the model's own layers; or ngram, which is free.
    ``break_even_acceptance`` is null where so many tokens never pay; ``never_pays`` is about every number of tokens up to 8.
    Raises ModelError that names the input, the value found and what is wanted.
    """
    known_keys("speculation", speculation, SPECULATION)
    if speculation.get("acceptance") in (None, ""):
        raise ModelError(
            "speculation.acceptance: is missing; wanted the probability that a drafted token is accepted, from 0 to 1"
        )
    acceptance = quantity("speculation.acceptance", speculation["acceptance"], 0, 1)
    asked = quantity("speculation.draft_tokens", speculation.get("draft_tokens") or 0, 0, 64, whole=True)
    counted = profile(architecture, scheme, device, settings, data, factors=factors)
    draft, relative, method = _drafting(architecture, scheme, device, settings, speculation, data)
    running = max(1.0, concurrency / settings.data_parallel)

    def ratio(requests: float, tokens: int) -> float:
        """Time of a step that drafts and verifies over that of a plain one."""
        plain = counted.interval(requests, context)
        cost = relative * plain if draft is None else draft.interval(requests, context)
        return (counted.interval(requests, context, queries=tokens + 1) + tokens * cost) / plain

    def gain(requests: float, tokens: int) -> float:
        return expected_tokens(acceptance, tokens) / ratio(requests, tokens)

    best = max(range(1, MOST_DRAFT_TOKENS + 1), key=lambda tokens: gain(running, tokens))
    tokens = int(asked) or best
    by_concurrency = [
        {
            "concurrency": 2**power * settings.data_parallel,
            "speedup": gain(2.0**power, tokens),
            "break_even_acceptance": _break_even(ratio(2.0**power, tokens), tokens),
        }
        for power in range(10)
    ]
    paying = [entry["concurrency"] for entry in by_concurrency if entry["speedup"] > 1]
    every = [_break_even(ratio(running, number), number) for number in range(1, MOST_DRAFT_TOKENS + 1)]
    lowest = min((found for found in every if found is not None), default=None)
    even = _break_even(ratio(running, tokens), tokens)
    source = title_of(data, _setting(data, "speculative", "expected_tokens")["source"])
    found: dict[str, Any] = {
        "method": method,
        "concurrency": running * settings.data_parallel,
        "acceptance": acceptance,
        "tokens": tokens,
        "tokens_per_step": expected_tokens(acceptance, tokens),
        "step_ratio": ratio(running, tokens),
        "speedup": gain(running, tokens),
        "pays": gain(running, tokens) > 1,
        "break_even_acceptance": even,
        "best_tokens": best,
        "best_speedup": gain(running, best),
        "lowest_break_even_acceptance": lowest,
        "never_pays": lowest is None,
        "pays_up_to_concurrency": max(paying, default=0),
        "by_concurrency": by_concurrency,
    }
    found["figures"] = [
        row("tokens a step yields", found["tokens_per_step"], "tokens", "(1 - a^(k+1)) / (1 - a)", source),
        row(
            "speculative speedup",
            found["speedup"],
            "times",
            "tokens a step yields x plain step / (verifying step + k x draft)",
            source,
        ),
        row("break-even acceptance", even, "probability", "a with tokens a step yields = time ratio of the steps", source),
    ]
    return found


def _drafting(
    architecture: Architecture,
    scheme: Scheme,
    device: Device,
    settings: Settings,
    speculation: Mapping[str, Any],
    data: Mapping[str, Any],
) -> tuple[Profile | None, float, str]:
    """What drafts: its profile, or the relative cost of a drafted token; and its name."""
    given, cost = speculation.get("draft"), speculation.get("relative_cost")
    method = str(speculation.get("method") or ("ngram" if given is None and cost in (None, "") else "draft_model"))
    if method not in METHODS:
        raise ModelError(f"speculation.method: found {shown(method)}; wanted one of {', '.join(METHODS)}{near(method, METHODS)}")
    if cost not in (None, ""):
        return None, quantity("speculation.relative_cost", cost, 0), method
    if method == "ngram":
        return None, 0.0, method
    if method == "mtp":
        return profile(architecture, scheme, device, settings, data, draft=True), 0.0, method
    if given is None:
        raise ModelError(
            "speculation: draft_model needs draft, a model, or relative_cost, a drafted token's time over a decode step's"
        )
    if not isinstance(given, Architecture):
        raise ModelError(f"speculation.draft: found {shown(given)}; wanted the architecture of a model that was read")
    own = speculation.get("draft_scheme") or scheme_named("none", given.dtype)
    # The draft model is sharded as the model is; it has no pipeline and no experts of its own to spread.
    sharded = replace(settings, dtype=given.dtype, pipeline_parallel=1, expert_parallel=False)
    return profile(given, own, device, sharded, data), 0.0, method


def _break_even(wanted: float, tokens: int) -> float | None:
    """The acceptance with which so many tokens yield what they cost; None where even certain acceptance does not."""
    if wanted > tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _turn in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(middle, tokens) < wanted else (low, middle)
    return high
