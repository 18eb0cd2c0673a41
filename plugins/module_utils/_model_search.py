# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which deployments of a model on one host are worth having: the Pareto front over settings, parallelism, quantisation, replicas.

Deployments are looked at by how many GPUs one replica takes. In each such group every shape (tensor, pipeline, data parallel)
meets every quantisation first; then KV cache type and batch sizes vary around the group's best. What is looked at in a group does
not depend on how many GPUs the host has, and so more GPUs never lose a deployment. An engine that would not start, and what does
not fit, is counted and left out before any speed is predicted.

Rates are of the whole host, times milliseconds, shares from 0 to 1, quality losses percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

# The speed is asked for through the module, where it may be replaced.
from . import _model_plan as planning
from ._model_architecture import ModelError
from ._model_deployment import (
    Deployment,
    Memory,
    Model,
    advice,
    capability_of,
    cautions,
    deployment_of,
    fits,
    gib,
    lacks_bfloat16,
    memory_of,
    refusals,
)
from ._model_inputs import known_keys, quantity
from ._model_memory import Device, Settings
from ._model_quantisation import Scheme, scheme_named
from ._model_speed import DAY, Workload, workload_of
from ._verdict import FAIL, PASS, WARN

# Two values that differ by less than this are the same: predictions are no better.
TOLERANCE = 0.01
# What is tried where nobody said: neighbours of the engine's own default on these ladders.
BATCHES = (2048, 8192, 16384)
SEQUENCES = (64, 256, 1024)
SLOTS = (1, 4, 16, 64)
# Deployments whose speed is predicted for one number of GPUs a replica: of all shapes, and around the best; fewer for numbers
# that are no power of two.
FIRST, AROUND = 16, 12
ODD_FIRST, ODD_AROUND = 4, 2
MOST_CONSIDERED = 600
MOST_GPUS = 64  # of one replica
SHOWN = 40
# Rates that differ by less than this do not decide between two deployments; the time of an answer does.
SAME_RATE = 0.05
LONGEST_LABEL = 89
AS_PUBLISHED = "as published"
KV_FP8_FROM = 8.9  # compute capability
LIMITS = ("quantisations", "kv_cache_dtypes", "gpus_per_replica", "quality_loss", "shown")
OBJECTIVES = {
    "throughput": "requests a day within the SLO on the whole host; tokens/s of the whole host where there is no workload",
    "latency": "time between two tokens, and time of a whole answer, at the workload's concurrency",
    "headroom": "share of a GPU's memory that is free beside one request of the longest length",
    "quality": "published loss by the weights' quantisation, plus that by the KV cache's type",
    "gpus": "GPUs that the workload needs, where there is one; for the choice: the whole host, half of it, a quarter, ...",
}


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """What quantisation costs, in percent of ``measure``; None where nobody published it."""

    scheme: str
    kv: str
    loss: float | None  # of weights and KV cache together
    kv_loss: float | None = None
    measure: str = ""  # score or perplexity; empty where nothing is lost; "as published" where only that is known

    @property
    def key(self) -> tuple[Any, ...]:
        return (
            ("", "", self.loss, self.measure if self.loss else "") if self.loss is not None else (self.scheme, self.kv, None, "")
        )

    def against(self, other: Quality) -> int | None:
        """1: better, 0: no worse, -1: worse than another; None where that is not known.

        What is unknown is never no worse than something else; the same scheme costs the same, whatever that is.
        """
        mine, theirs = self.loss, other.loss
        if self.scheme == other.scheme:
            if self.kv == other.kv:
                return 0
            mine, theirs = self.kv_loss, other.kv_loss
        elif mine and theirs and self.measure != other.measure:
            return None
        if mine is None:
            return None
        if theirs is None or mine == theirs:
            return 0
        return 1 if mine < theirs else -1


@dataclass(frozen=True)
class Point:
    """What a deployment is compared by. None: not known, which counts as the worst."""

    throughput: float | None
    itl: float | None
    e2e: float | None
    headroom: float
    quality: Quality
    gpus: float | None = 0  # that the workload needs; the same for all where there is none

    @cached_property
    def exact(self) -> tuple[float, ...]:
        """More is better in each."""
        late = tuple(-math.inf if value is None else -value for value in (self.itl, self.e2e))
        needed = -math.inf if self.gpus is None else -float(self.gpus)
        return (-math.inf if self.throughput is None else self.throughput, *late, self.headroom, needed)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The same in steps of the tolerance: what is in one step is equal, and dominance stays transitive."""
        rate, itl, e2e, headroom, needed = self.exact
        return (_step(rate), -_step(-itl), -_step(-e2e), round(headroom / TOLERANCE), needed)

    @property
    def key(self) -> tuple[Any, ...]:
        """Points with the same key are equal."""
        return (self.levels, self.quality.key)


def _step(value: float) -> float:
    if not math.isfinite(value):
        return value
    return round(math.log(value) / math.log1p(TOLERANCE)) if value > 0 else -math.inf


def dominates(one: Point, other: Point, exactly: bool = False) -> bool:
    """Whether ``one`` is as good in all and better in something, beyond the tolerance unless ``exactly``."""
    better = one.quality.against(other.quality)
    if better is None or better < 0:
        return False
    mine, theirs = (one.exact, other.exact) if exactly else (one.levels, other.levels)
    return all(a >= b for a, b in zip(mine, theirs)) and (better > 0 or mine != theirs)


def pareto(points: Sequence[Point]) -> tuple[list[int], dict[int, int]]:
    """Places of the front's members, and for each other place that of a member which dominates or equals it.

    Of equal points the first that no other of them beats exactly is the member.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, point in enumerate(points):
        groups.setdefault(point.key, []).append(place)
    chosen = {
        key: next(place for place in places if not any(dominates(points[rival], points[place], True) for rival in places))
        for key, places in groups.items()
    }
    members = [
        place for place in chosen.values() if not any(dominates(points[rival], points[place]) for rival in chosen.values())
    ]
    better: dict[int, int] = {}
    for key, places in groups.items():
        own = chosen[key]
        above = own if own in members else next(place for place in members if dominates(points[place], points[own]))
        better.update({place: above for place in places if place != above})
    return sorted(members), better


# --- candidates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How one replica is spread over GPUs."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def mixed(self) -> bool:
        return self.tensor > 1 and self.data > 1


@dataclass(frozen=True)
class Candidate:
    """A deployment that starts and fits, with what was predicted of it."""

    deployment: Deployment
    memory: Memory
    served: Mapping[str, Any] | None
    point: Point
    tokens_per_second: float | None
    fits_low: bool  # at the lower end of the memory's interval too
    order: int  # in which they were found: simple ones first

    @property
    def meets(self) -> bool | None:
        return None if self.served is None else self.served.get("meets_slo")

    @property
    def gpus_needed(self) -> int | None:
        """GPUs that the workload needs, which may be fewer than the host has."""
        return gpus_needed(self.served, self.deployment.settings)

    @property
    def share(self) -> float:
        """Throughput of one replica, which is the same whatever the host has."""
        return (self.point.throughput or 0.0) / self.deployment.replicas


class _Search:
    """One search: what may vary, what was found, and why the rest was not."""

    def __init__(
        self,
        model: Model,
        device: Device,
        count: int,
        given: Mapping[str, Any],
        data: Mapping[str, Mapping[str, Any]],
        work: Workload | None,
        limits: Mapping[str, Any],
        corrections: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        self.given = {name: value for name, value in given.items() if value not in (None, "", "auto")}
        self.base = deployment_of(model, device, count, given, data["engines"]["engines"], corrections)
        if lacks_bfloat16(self.base) and "dtype" not in self.given:
            # What vLLM does by itself where nobody says.
            self.base = replace(self.base, settings=replace(self.base.settings, dtype="float16"))
        self.model, self.device, self.count, self.data, self.work = model, device, count, data, work
        self.engines = data["engines"]["engines"]
        self.engine = self.base.settings.engine
        self.limits = limits
        self.found: list[Candidate] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.considered = self.do_not_fit = self.left_out = 0
        self.refused: dict[str, dict[str, Any]] = {}
        self.nearest_size: tuple[int, Deployment, Memory] | None = None
        self.examples: dict[str, Deployment] = {}  # one for each refusal
        # Schemes that fit on so few GPUs, or fewer, without a pipeline.
        self.without_pipeline: set[str] = set()

    # What varies.

    def free(self, name: str) -> bool:
        return name not in self.given

    def schemes(self) -> list[Scheme]:
        """The checkpoint as it is, and where it has 16 bits what may be made of it."""
        own, asked = self.model.scheme, self.limits.get("quantisations")
        if own.quantised:
            if asked and own.name.lower() not in [str(name).lower() for name in asked]:
                raise ModelError(
                    f"limits.quantisations: found {', '.join(map(str, asked))}, and the checkpoint is quantised already "
                    f"({own.name}); wanted that, or a checkpoint of 16 bits."
                )
            return [own]
        # A scheme of 16 bits knows which 16 bits: the settings say.
        architecture, dtype = self.model.architecture, self.base.settings.dtype
        found = [scheme_named(str(name), dtype, architecture).fitted(architecture) for name in asked or self.usual()]
        capability = capability_of(self.device)
        return [
            scheme for scheme in found if not scheme.refused_from or self.device.kind == "cpu" or capability < scheme.refused_from
        ]

    def usual(self) -> list[str]:
        """Quantisations that this device gains from; w4a16 stands for all of 4 bits by weight only (AWQ, GPTQ)."""
        if self.engine == "llama_cpp":
            return ["none", "q8_0", "q6_k", "q4_k_m"]
        if self.engine == "vllm_cpu":
            return ["none", "int8", "awq"]
        capability, rates = self.device.compute_capability, self.device.rates
        fp8 = rates.get("fp8", 0) if capability >= (8, 9) else 0
        # Eight-bit integers lose more than FP8, and so are for GPUs where they are faster.
        return [
            "none",
            "fp8",
            *(["int8"] if rates.get("int8", 0) > fp8 else []),
            "w4a16",
            *(["nvfp4"] if capability >= (10, 0) else []),
        ]

    def cache_types(self) -> list[str]:
        asked = self.limits.get("kv_cache_dtypes")
        if not self.free("kv_cache_dtype"):
            return [self.base.settings.kv_cache_dtype]
        if asked:
            return [str(name) for name in asked]
        if self.engine == "llama_cpp":
            return ["f16", "q8_0"]
        capability = capability_of(self.device)
        return ["auto", "fp8"] if self.engine == "vllm" and capability >= KV_FP8_FROM else ["auto"]

    def shapes(self) -> dict[int, list[Shape]]:
        """All shapes by their number of GPUs, the plainest first."""
        architecture, given, own = self.model.architecture, self.given, self.base.settings
        most = min(self.count, MOST_GPUS, int(self.limits.get("gpus_per_replica") or MOST_GPUS))
        fixed = {
            name: None if self.free(name) else getattr(own, name)
            for name in ("tensor_parallel", "pipeline_parallel", "data_parallel")
        }
        powers = [2**power for power in range(int(math.log2(most)) + 1)]
        if self.engine == "llama_cpp":
            layers = len(architecture.layers)
            pipelines = sorted({size for size in (*powers, most) if size <= layers})
            return _grouped(
                [Shape(1, size) for size in ([fixed["pipeline_parallel"]] if fixed["pipeline_parallel"] else pipelines)]
            )
        tensors = [size for size in range(1, most + 1) if architecture.heads and architecture.heads % size == 0] or [1]
        tensors = [fixed["tensor_parallel"]] if fixed["tensor_parallel"] else tensors
        experts = [False, True] if architecture.experts and self.engine == "vllm" else [False]
        experts = [own.expert_parallel] if "expert_parallel" in given else experts
        ranks = powers if architecture.experts and self.engine == "vllm" and experts != [False] else [1]
        ranks = [fixed["data_parallel"]] if fixed["data_parallel"] else ranks
        pipelines = [fixed["pipeline_parallel"]] if fixed["pipeline_parallel"] else list(range(1, most + 1))
        found = []
        for tensor in tensors:
            for data in ranks:
                for spread in experts:
                    # Without other GPUs there is nobody to share experts with; data parallel of experts that are not spread is
                    # what replicas do better.
                    if "expert_parallel" not in given and ((spread and tensor * data == 1) or (data > 1 and not spread)):
                        continue
                    found += [
                        Shape(tensor, pipeline, data, spread)
                        for pipeline in pipelines
                        if tensor * pipeline * data <= most
                        and (pipeline == 1 or fixed["pipeline_parallel"] or (data == 1 and not spread))
                    ]
        if not found:
            raise ModelError(
                f"limits.gpus_per_replica: found {most}; the settings ask for {own.gpus} GPUs, and wanted is at least so many."
            )
        return _grouped(found)

    def wanted(self, shape: Shape, scheme: Scheme) -> bool:
        """Pipelines are for links that are slow, and for what does not fit without one."""
        if shape.pipeline == 1 or not self.free("pipeline_parallel") or self.engine == "llama_cpp":
            return True
        if self.device.link == "pcie" and shape.pipeline & (shape.pipeline - 1) == 0:
            return True
        return scheme.name not in self.without_pipeline

    def variants(self, candidate: Candidate) -> Iterator[Settings]:
        """The neighbours of a deployment: one setting changed."""
        own = candidate.deployment.settings
        for kind in self.cache_types():
            if kind != own.kv_cache_dtype:
                yield replace(own, kv_cache_dtype=kind)
        if self.engine == "llama_cpp":
            for size in _neighbours(SLOTS, own.slots) if self.free("slots") else []:
                yield self.with_slots(own, size)
            return
        for size in _neighbours(BATCHES, own.max_num_batched_tokens) if self.free("max_num_batched_tokens") else []:
            if size >= own.max_num_seqs:
                yield replace(own, max_num_batched_tokens=size)
        for size in _neighbours(SEQUENCES, own.max_num_seqs) if self.free("max_num_seqs") else []:
            if size <= own.max_num_batched_tokens:
                yield replace(own, max_num_seqs=size)

    def with_slots(self, settings: Settings, slots: int) -> Settings:
        """llama.cpp runs as many requests as it has slots."""
        return replace(settings, slots=slots, max_num_seqs=slots if self.free("max_num_seqs") else settings.max_num_seqs)

    # Looking at one.

    def look(self, scheme: Scheme, settings: Settings) -> Candidate | None:
        """A candidate, or None where the engine would not start or it does not fit, which is noted."""
        key = (scheme.name, settings)
        if key in self.seen or self.considered >= MOST_CONSIDERED:
            return None
        self.seen.add(key)
        self.considered += 1
        replicas = self.base.replicas if not self.free("replicas") else self.count // settings.gpus
        deployment = replace(self.base, scheme=scheme, settings=settings, replicas=replicas)
        try:
            reason = next(refusals(deployment), None)
            if reason is None:
                memory = memory_of(deployment, self.engines)
                missing = fits(deployment, memory)
                if missing > 0:
                    self.do_not_fit += 1
                    if self.nearest_size is None or missing < self.nearest_size[0]:
                        self.nearest_size = (missing, deployment, memory)
                    return None
                served = planning._service(deployment, memory, self.work, self.data, self.work is None)
                candidate = self.candidate(deployment, memory, served)
                limit = self.limits.get("quality_loss")
                if limit is not None and (candidate.point.quality.loss is None or candidate.point.quality.loss > limit):
                    reason = (
                        "quality_loss",
                        f"{scheme.name} with KV cache {settings.kv_cache_dtype} loses more than {limit:g} %, or nobody knows.",
                    )
                else:
                    self.found.append(candidate)
                    return candidate
        except ModelError as error:
            reason = ("not_computable", str(error))
        code, text = reason
        self.examples.setdefault(code, deployment)
        entry = self.refused.setdefault(code, {"code": code, "count": 0, "text": text})
        entry["count"] += 1
        return None

    def candidate(self, deployment: Deployment, memory: Memory, served: Mapping[str, Any] | None) -> Candidate:
        needed = memory.held.needed(deployment.settings.max_model_len)
        full = full_load(served)
        rate = capacity(served, self.work, deployment.replicas)
        throughput = rate
        if served is not None and self.work is not None:
            throughput = _finite(served.get("requests_per_day_at_slo")) or 0.0
        # Without a workload a server is looked at as full as memory and settings let it be.
        served = served if served is None or self.work is not None else {**served, **(full or {})}
        point = Point(
            throughput=throughput,
            itl=_finite((served or {}).get("itl_ms")),
            e2e=_finite((served or {}).get("e2e_ms")),
            headroom=(memory.cache.bytes - needed) / memory.total.bytes,
            quality=self.quality(deployment),
            gpus=gpus_needed(served, deployment.settings) if self.work is not None else 0,
        )
        low = memory.cache.low >= needed
        if deployment.settings.cache_bytes:
            low = (
                needed <= memory.cache.bytes
                and sum(amount.high for amount in memory.terms.values()) + memory.cache.high <= memory.total.low
            )
        return Candidate(deployment, memory, served, point, rate, low, len(self.found))

    def quality(self, deployment: Deployment) -> Quality:
        """A quantised checkpoint whose scheme has no published loss loses nothing of what was given; its KV cache may."""
        scheme = deployment.scheme
        found = quality_of(scheme.name, deployment.settings.kv_cache_dtype, self.data["quality"])
        published = scheme.name.lower() in self.data["quality"]["methods"]
        if scheme is not self.model.scheme or not scheme.quantised or published or found.kv_loss is None:
            return found
        if not found.kv_loss:
            return replace(found, loss=0.0, measure=AS_PUBLISHED)
        cached = quality_of("none", deployment.settings.kv_cache_dtype, self.data["quality"])
        return replace(found, loss=cached.loss, measure=cached.measure)

    @property
    def commonest(self) -> list[dict[str, Any]]:
        return sorted(self.refused.values(), key=lambda entry: (-entry["count"], entry["code"]))

    # All of them.

    def run(self) -> None:
        schemes, types = self.schemes(), self.cache_types()
        for gpus, shapes in sorted(self.shapes().items()):
            even = gpus & (gpus - 1) == 0
            begin = len(self.found)
            self.first(shapes, schemes, types, FIRST if even else ODD_FIRST)
            self.around(begin, AROUND if even else ODD_AROUND)

    def first(self, shapes: list[Shape], schemes: list[Scheme], types: list[str], budget: int) -> None:
        """Every shape with every quantisation; the KV cache in fewer bits only where it does not fit otherwise."""
        begin = len(self.found)
        for shape in sorted(shapes, key=lambda one: (one.pipeline > 1, one.mixed, one.experts, one.data)):
            for scheme in schemes:
                if not self.wanted(shape, scheme):
                    continue
                if len(self.found) - begin >= budget:
                    self.left_out += 1
                    continue
                settings = replace(
                    self.base.settings,
                    tensor_parallel=shape.tensor,
                    pipeline_parallel=shape.pipeline,
                    data_parallel=shape.data,
                    expert_parallel=shape.experts,
                )
                if self.engine == "llama_cpp" and self.free("slots"):
                    settings = self.with_slots(settings, SLOTS[1])
                for kind in types:
                    if self.look(scheme, replace(settings, kv_cache_dtype=kind)):
                        if shape.pipeline == 1:
                            self.without_pipeline.add(scheme.name)
                        break

    def around(self, begin: int, budget: int) -> None:
        """Vary the settings of the group's fastest, and of the fastest of those that lose least, one at a time."""
        known = len(self.found)
        while len(self.found) - known < budget:
            group = self.found[begin:]
            if not group or not any(self.look(leader.deployment.scheme, settings) for leader, settings in self.untried(group)):
                return

    def untried(self, group: list[Candidate]) -> Iterator[tuple[Candidate, Settings]]:
        fastest = max(group, key=_speed)
        least = min(_loss_key(one) for one in group)
        careful = max((one for one in group if _loss_key(one) == least), key=_speed)
        ways = [list(self.variants(leader)) for leader in (fastest, careful)]
        for turn in range(max(map(len, ways))):
            for leader, settings in zip((fastest, careful), ways):
                if turn < len(settings) and (leader.deployment.scheme.name, settings[turn]) not in self.seen:
                    yield leader, settings[turn]


def _grouped(shapes: Iterable[Shape]) -> dict[int, list[Shape]]:
    found: dict[int, list[Shape]] = {}
    for shape in shapes:
        found.setdefault(shape.gpus, []).append(shape)
    return found


def _neighbours(ladder: Sequence[int], value: int) -> list[int]:
    """The next larger and the next smaller."""
    above = [step for step in ladder if step > value][:1]
    below = [step for step in ladder if step < value][-1:]
    return above + below


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _speed(candidate: Candidate) -> tuple[float, int]:
    # Six digits: a rate that was multiplied and divided again is the same rate.
    return (float(f"{candidate.share:.6g}"), -candidate.order)


def _loss_key(candidate: Candidate) -> tuple[bool, float, float]:
    """What is known to lose least comes first; then what loses least in the KV cache."""
    quality = candidate.point.quality
    return (quality.loss is None, quality.loss or 0.0, math.inf if quality.kv_loss is None else quality.kv_loss)


def capacity(served: Mapping[str, Any] | None, work: Workload | None, replicas: int) -> float | None:
    """Tokens/s of all answers on the whole host, with as many requests as memory and settings allow; None where not known."""
    if served is not None and work is not None and served.get("requests_per_day_at_capacity") is not None:
        return float(served["requests_per_day_at_capacity"]) * work.peak_factor / DAY * work.answer_mean
    full = full_load(served)
    return None if full is None else float(full["tokens_per_second"]) * replicas


def gpus_needed(served: Mapping[str, Any] | None, settings: Settings) -> int | None:
    needed = (served or {}).get("replicas_needed")
    return None if needed is None else int(needed) * settings.gpus


def full_load(served: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What one replica does with as many requests as memory and settings allow; None where no speed is known."""
    points = [] if served is None else (served.get("speed") or {}).get("points") or []
    allowed = [point for point in points if point.get("within_memory", True)]
    if not allowed:
        return None
    names = ("concurrency", "itl_ms", "ttft_ms", "e2e_ms", "tokens_per_second")
    return {name: max(allowed, key=lambda point: point["concurrency"]).get(name) for name in names}


def quality_of(scheme: str, kv: str, table: Mapping[str, Any]) -> Quality:
    """What the data file says of weights and KV cache together; losses by different measures are not added."""
    kind = {"bfloat16": "auto", "float16": "auto", "f16": "auto", "bf16": "auto", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}.get(
        kv, kv
    )
    weights, cached = table["methods"].get(scheme.lower()), table["kv_cache"].get(kind)
    kv_loss = None if cached is None else float(cached["value"])
    if weights is None or cached is None:
        return Quality(scheme, kv, None, kv_loss)
    measures = {entry["measure"] for entry in (weights, cached) if entry["value"]}
    if len(measures) > 1:
        return Quality(scheme, kv, None, kv_loss)
    return Quality(scheme, kv, round(float(weights["value"]) + float(cached["value"]), 6), kv_loss, "".join(measures))


# --- choosing --------------------------------------------------------------------------------------------------------


def eligible(candidate: Candidate, work: Workload | None) -> bool:
    """Whether it may be chosen: it fits at the lower end of the interval too, and keeps the SLO where there is a workload."""
    return candidate.fits_low and (work is None or candidate.meets is True)


def halvings(candidate: Candidate, count: int) -> int:
    """How often the host can be halved and still serve the workload: 0 where it needs more than half of the GPUs."""
    needed = candidate.gpus_needed
    return 0 if not needed else max(0, int(math.log2(max(1, count // needed))))


def alone(candidate: Candidate) -> float | None:
    """Milliseconds of a whole answer where one request runs alone; None where no speed is known."""
    points = ((candidate.served or {}).get("speed") or {}).get("points") or []
    return _finite(min(points, key=lambda point: point["concurrency"]).get("e2e_ms")) if points else None


def choose(candidates: Sequence[Candidate], count: int, work: Workload | None) -> Candidate | None:
    """The one to take, None of none. What decides, in this order:

    1. the least quality loss;
    2. whether the workload needs the whole host, at most half of it, a quarter, ...: fewer GPUs than the next such share leave
       nothing free that another replica could use;
    3. the throughput, where it is more than 5 % below the highest of those that are left;
    4. the shorter answer: at the workload's concurrency, or of one request alone where there is no workload, since full servers
       run different numbers of requests;
    5. the throughput.
    """
    if not candidates:
        return None
    first = min((*_loss_key(one), -halvings(one, count)) for one in candidates)
    equal = [one for one in candidates if (*_loss_key(one), -halvings(one, count)) == first]
    top = max(_rate(one) for one in equal)

    def order(one: Candidate) -> tuple[float, ...]:
        late = alone(one) if work is None else one.point.e2e
        needed = one.gpus_needed
        return (
            math.inf if late is None else _step(late),
            -_step(_rate(one)),
            math.inf if needed is None else needed,
            one.order,
        )

    return min((one for one in equal if _rate(one) >= top * (1 - SAME_RATE)), key=order)


def _rate(candidate: Candidate) -> float:
    """Throughput; tokens of KV cache on the whole host where no speed is known."""
    rate, settings = candidate.point.throughput, candidate.deployment.settings
    if rate is not None:
        return rate
    return float(
        candidate.memory.held.tokens(max(0, candidate.memory.cache.bytes), settings.max_model_len) * candidate.deployment.replicas
    )


def search(
    model: Model,
    device: Device,
    count: int,
    settings: Mapping[str, Any] | None,
    data: Mapping[str, Mapping[str, Any]],
    workload: Workload | Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    corrections: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The deployments of a model on a host of ``count`` GPUs that are worth having, and the one to take.

    ``settings``: what the operator decided, which stays; ``data``: the planning files by name. ``limits``: quantisations and
    kv_cache_dtypes to try in place of the usual ones, gpus_per_replica and quality_loss (percent) not to be exceeded, shown (how
    many beside the front are listed). Where nothing is chosen, ``reason`` says why in a sentence, and ``nearest`` is what comes
    nearest, of which ``as_deployment`` makes a whole plan. Raises ModelError for inputs that cannot be.
    """
    work = workload if isinstance(workload, Workload) or workload is None else workload_of(workload)
    hunt = _Search(model, device, count, settings or {}, data, work, _limits(limits), corrections)
    hunt.run()
    found = hunt.found
    members, better = pareto([candidate.point for candidate in found])
    able = [candidate for candidate in found if eligible(candidate, work)]
    best = [candidate for candidate in able if candidate.order in members]
    chosen = choose(best or able, count, work)
    rows = {candidate.order: _row(candidate, hunt, candidate.order in members, candidate is chosen) for candidate in found}
    _tell_apart(list(rows.values()))
    for place, row in rows.items():
        row["why"] = _why(found, place, members, better, rows)
    if chosen is not None:
        rows[chosen.order]["why"] = _reason(chosen, able, hunt)

    def by_rate(place: int) -> tuple[Any, ...]:
        return (
            not eligible(found[place], work),
            -(found[place].point.throughput or 0.0),
            found[place].point.itl or math.inf,
            place,
        )

    front = sorted(members, key=lambda place: by_rate(place)[1:])
    others = sorted((place for place in rows if place not in members), key=by_rate)
    if chosen is not None and chosen.order in others:
        others.sort(key=lambda place: place != chosen.order)
    shown = int(hunt.limits.get("shown", SHOWN))
    return {
        "deployments": [rows[place] for place in (*front, *others[:shown])],
        "considered": hunt.considered,
        "refused": sum(entry["count"] for entry in hunt.refused.values()),
        "do_not_fit": hunt.do_not_fit,
        "left_out": hunt.left_out,
        "chosen": None if chosen is None else rows[chosen.order],
        "reason": _nothing(hunt) if chosen is None else None,
        "nearest": _nearest(hunt, rows) if chosen is None else None,
        "refusals": hunt.commonest,
        "objectives": dict(OBJECTIVES),
        "tolerance": TOLERANCE,
    }


def _limits(given: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known_keys("limits", given or {}, LIMITS, "limit")
    for name, value in (given or {}).items():
        if value in (None, ""):
            continue
        if name in ("quantisations", "kv_cache_dtypes"):
            if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or not value:
                raise ModelError(f"limits.{name}: found {value!r}; wanted a list of names with at least one.")
            found[name] = list(value)
        elif name == "quality_loss":
            found[name] = quantity("limits.quality_loss", value, 0, 100)
        else:
            found[name] = quantity(f"limits.{name}", value, 0 if name == "shown" else 1, 10000, whole=True)
    return found


def label(deployment: Deployment) -> str:
    """A deployment in a few words, for instance ``2 x TP 4, fp8, KV cache fp8, batch 8192, requests 256``."""
    settings = deployment.settings
    words = [f"TP {settings.tensor_parallel}"] if settings.engine != "llama_cpp" else []
    words += [f"PP {settings.pipeline_parallel}"] if settings.pipeline_parallel > 1 or not words else []
    words += [f"DP {settings.data_parallel}"] if settings.data_parallel > 1 else []
    words += ["EP"] if settings.expert_parallel else []
    sizes = (
        f"slots {settings.slots}"
        if settings.engine == "llama_cpp"
        else f"batch {settings.max_num_batched_tokens}, requests {settings.max_num_seqs}"
    )
    kept = "" if settings.kv_cache_dtype in ("auto", "f16") else f", KV cache {settings.kv_cache_dtype}"
    return f"{deployment.replicas} x {' '.join(words)}, {deployment.scheme.name}{kept}, {sizes}"


def _tell_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Make the labels different: the settings that differ are added, or a number where that is too long."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["label"], []).append(row)
    taken = set(groups)
    for text, same in groups.items():
        if len(text) <= LONGEST_LABEL and len(same) == 1:
            continue
        differ = [name for name in same[0]["settings"] if len({str(row["settings"][name]) for row in same}) > 1]
        for turn, row in enumerate(same, 1):
            longer = ", ".join([text, *(f"{name} {row['settings'][name]}" for name in differ)])
            if len(longer) > LONGEST_LABEL or longer in taken:
                number_text = f" #{turn}"
                longer = text[: LONGEST_LABEL - len(number_text)] + number_text
                while longer in taken:
                    turn += 1
                    longer = text[: LONGEST_LABEL - len(f" #{turn}")] + f" #{turn}"
            taken.add(longer)
            row["label"] = longer


def settings_for(deployment: Deployment) -> dict[str, Any]:
    """The settings as an operator would give them to get this deployment."""
    own = deployment.settings
    names = [
        *("engine", "dtype", "kv_cache_dtype", "tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel"),
        *("max_model_len", "memory_utilization", "max_num_batched_tokens", "max_num_seqs", "block_size", "cuda_graphs"),
        *("prefix_caching", "vision"),
        *(["cache_bytes"] if own.cache_bytes else []),
        *(["slots"] if own.engine == "llama_cpp" else []),
    ]
    return {
        **{name: getattr(own, name) for name in names},
        "engine_version": ".".join(map(str, own.engine_version)),
        "replicas": deployment.replicas,
    }


def as_deployment(
    entry: Mapping[str, Any],
    model: Model,
    device: Device,
    count: int,
    given: Mapping[str, Any] | None,
    engines: Mapping[str, Any],
    corrections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Deployment:
    """The deployment of an entry of ``search``, for a whole plan of it; ``given`` are the settings that the search had."""
    found = deployment_of(model, device, count, {**(given or {}), **entry["settings"]}, engines, corrections)
    scheme = model.scheme
    if entry["quantisation"] != scheme.name or not scheme.quantised:
        scheme = scheme_named(entry["quantisation"], found.settings.dtype, model.architecture).fitted(model.architecture)
    plain = deployment_of(model, device, count, given or {}, engines)
    same = (name for name in plain.defaulted if getattr(plain.settings, name) == getattr(found.settings, name))
    return replace(found, scheme=scheme, defaulted=tuple(same))


def _row(candidate: Candidate, hunt: _Search, front: bool, chosen: bool) -> dict[str, Any]:
    deployment, served, point = candidate.deployment, candidate.served or {}, candidate.point
    settings, scheme = deployment.settings, deployment.scheme
    tokens = candidate.memory.held.tokens(max(0, candidate.memory.cache.bytes), settings.max_model_len)
    # The limit of requests is of one engine, and each data-parallel rank is one.
    running = (served.get("concurrency") or 0) / settings.data_parallel if hunt.work else 0
    codes = [
        code
        for code, _text in cautions(deployment, candidate.memory, {**served, "concurrency": running})
        if not code.startswith("note_")
    ]
    verdict = FAIL if candidate.meets is False else WARN if codes or not candidate.fits_low else PASS
    return {
        "label": label(deployment),
        "settings": settings_for(deployment),
        "quantisation": scheme.name,
        "online": scheme.online,
        # Weights of another precision than those of the checkpoint that was planned for, and that no engine makes by itself.
        "other_checkpoint": scheme is not hunt.model.scheme and scheme.quantised and not scheme.online,
        "replicas": deployment.replicas,
        "gpus": settings.gpus,
        "gpus_used": deployment.replicas * settings.gpus,
        "replicas_needed": served.get("replicas_needed"),
        "gpus_needed": candidate.gpus_needed,
        "tokens_per_second": candidate.tokens_per_second,
        "requests_per_day_at_slo": _finite(served.get("requests_per_day_at_slo")) if hunt.work else None,
        "itl_ms": point.itl,
        "ttft_ms": _finite(served.get("ttft_ms")),
        "e2e_ms": point.e2e,
        "limited_by": served.get("limited_by"),
        "concurrency": _finite(served.get("concurrency")),
        "headroom_share": point.headroom,
        "kv_tokens": tokens * settings.data_parallel * deployment.replicas,
        "cache_bytes": candidate.memory.taken(candidate.memory.cache.bytes, settings.max_model_len),
        "weights_bytes": candidate.memory.terms["weights"].bytes,
        "quality_loss": point.quality.loss,
        "quality_measure": point.quality.measure or None,
        "meets_slo": candidate.meets if hunt.work else None,
        "fits_narrowly": not candidate.fits_low,
        "front": front,
        "chosen": chosen,
        "verdict": verdict,
        "warnings": codes,
        "why": "",
    }


BEST = ("highest throughput", "lowest time between tokens", "shortest answer", "most headroom", "fewest GPUs for the workload")


def _why(
    found: list[Candidate], place: int, members: list[int], better: Mapping[int, int], rows: Mapping[int, Mapping[str, Any]]
) -> str:
    """One sentence: what a member of the front has for it, or what leaves another behind."""
    if place in better:
        name, above = rows[better[place]]["label"], found[better[place]].point
        if found[place].point.key == above.key:
            return f"Equal within {TOLERANCE:.0%} to {name}."
        return f"No better in anything than {name}, and worse in {_listed(_differences(above, found[place].point))}."
    front = [found[member].point for member in members]
    own = found[place].point
    best = [
        name
        for index, name in enumerate(BEST[: len(BEST) if any(point.gpus for point in front) else -1])
        if math.isfinite(own.levels[index]) and own.levels[index] == max(point.levels[index] for point in front)
    ]
    known = [point.quality.loss for point in front if point.quality.loss is not None]
    if own.quality.loss is not None and own.quality.loss == min(known):
        best.append("least quality loss")
    unknown = "" if own.quality.loss is not None else " Nobody published what it loses in quality."
    return (f"On the front: {_listed(best)}." if best else "On the front: a compromise that none beats in everything.") + unknown


def _differences(above: Point, below: Point) -> list[str]:
    names = ("throughput", "time between tokens", "time of an answer", "headroom", "GPUs for the workload")
    found = [name for name, mine, theirs in zip(names, above.levels, below.levels) if mine > theirs]
    return found + (["quality"] if above.quality.against(below.quality) == 1 else [])


def _listed(words: list[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def _reason(chosen: Candidate, able: list[Candidate], hunt: _Search) -> str:
    """Why this one, in one sentence."""
    work, quality, rate = hunt.work, chosen.point.quality, chosen.point.throughput
    among = (
        f"the {len(able)} deployments that "
        + ("keep the SLO and " if work else "")
        + "fit at the lower end of the memory interval"
    )
    if quality.loss is None:
        text = (
            f"Of {among}, none has a published quality loss; this one loses nothing more by its KV cache"
            if not quality.kv_loss
            else (f"Of {among}, none has a published quality loss; this one loses least by its KV cache")
        )
    else:
        unit = {"score": " % of a benchmark's score", "perplexity": " % more perplexity"}.get(quality.measure, "")
        none = "none beyond the checkpoint as published" if quality.measure == AS_PUBLISHED else "none"
        text = f"Least quality loss ({f'{quality.loss:g}{unit}' if quality.loss else none}) of {among}"
    if work is not None and chosen.gpus_needed is not None:
        replicas, share = chosen.gpus_needed // chosen.deployment.settings.gpus, 2 ** halvings(chosen, hunt.count)
        text += (
            f"; of those the smallest share of the host ({'all of it' if share == 1 else f'at most 1/{share}'}) for "
            f"{work.requests_per_day:,.0f} requests a day ({chosen.gpus_needed} of {hunt.count} GPUs, {replicas} of the "
            f"{chosen.deployment.replicas} replicas that fit)"
        )
    if rate is None:
        return f"{text}; of those the most KV cache, its speed being unknown."
    late = alone(chosen) if work is None else chosen.point.e2e
    answer = "" if late is None else f" ({late / 1000:,.1f} s{'' if work else ' where it runs alone'})"
    return (
        f"{text}; of those within {SAME_RATE:.0%} of the highest throughput the shortest answer{answer}, with {rate:,.0f} "
        f"{'requests a day' if work else 'tokens/s'} on the whole host."
    )


def _closest(hunt: _Search) -> Candidate:
    """Of what fits, the nearest to what can be chosen: the best in the goal that all of them miss."""
    work = hunt.work
    keeping = [one for one in hunt.found if work is None or one.meets is True]
    if keeping:
        return min(keeping, key=lambda one: (_short(one), -_rate(one), one.order))
    able = [one for one in hunt.found if one.fits_low] or hunt.found
    return min(able, key=lambda one: (-(one.point.throughput or 0.0), _miss(one)[0], *_loss_key(one), one.order))


def _miss(candidate: Candidate) -> tuple[float, str]:
    """How many times the wanted value the best of one request alone is, of the goal that is missed most, and its name."""
    missed = (candidate.served or {}).get("unattainable") or {}
    ratios = [(target["best"] / target["wanted"], name) for name, target in missed.items()]
    return max(ratios, default=(math.inf, ""))


def _short(candidate: Candidate) -> int:
    """Bytes that are missing on a GPU at the lower end of the memory's interval; 0 or less where none are."""
    memory, settings = candidate.memory, candidate.deployment.settings
    needed = memory.held.needed(settings.max_model_len)
    if not settings.cache_bytes:
        return needed - memory.cache.low
    whole = sum(amount.high for amount in memory.terms.values()) + memory.cache.high
    return max(needed - memory.cache.bytes, whole - memory.total.low)


def _nothing(hunt: _Search) -> str:
    """Why nothing was chosen, in one sentence."""
    work = hunt.work
    if not hunt.found:
        over = hunt.refused.get("quality_loss")
        if over is not None:
            return f"{_deployments(over['count'], 'fits', 'fit')}, and none keeps limits.quality_loss: {over['text']}"
        if hunt.nearest_size is not None:
            missing, deployment, _memory = hunt.nearest_size
            return (
                f"Nothing fits: the nearest ({label(deployment)}) misses {gib(missing)} on each GPU for one request of "
                f"{deployment.settings.max_model_len:,} tokens."
            )
        if not hunt.refused:
            return "Nothing was looked at: no shape of the model and quantisation is left by the settings and limits."
        entry = hunt.commonest[0]
        begin = "Nothing can be computed" if entry["code"] == "not_computable" else "Nothing would start"
        return f"{begin}: {entry['text']}"
    closest = _closest(hunt)
    keeping = [one for one in hunt.found if work is None or one.meets is True]
    if keeping:
        one, many = ("fits", "fit") if work is None else ("keeps the SLO and fits", "keep the SLO and fit")
        return (
            f"{_deployments(len(keeping), one, many)} only by the expected sizes: at the lower end of the memory "
            f"interval the nearest misses {gib(_short(closest))} on each GPU."
        )
    begin, served = _deployments(len(hunt.found), "fits", "fit"), closest.served
    if served is None:
        return f"{begin}, and of none a speed is known that could be held against the SLO."
    ratio, goal = _miss(closest)
    rate = closest.point.throughput or 0.0
    if rate > 0 and work is not None:
        share = f"{rate:,.0f} of {work.requests_per_day:,.0f} requests a day" if rate < work.requests_per_day else "not the peak"
        return f"{begin}, and none keeps the SLO: the nearest serves {share} within it (limited by {served.get('limited_by')})."
    if math.isfinite(ratio):
        target = served["unattainable"][goal]
        return (
            f"{begin}, and none keeps the SLO: {goal} of the nearest is {_figure(target['best'])} for one request alone, and "
            f"{target['wanted']:g} is wanted."
        )
    return f"{begin}, and none keeps the SLO at any rate: the nearest is limited by {served.get('limited_by')}."


def _deployments(number_of: int, one: str, many: str) -> str:
    return f"1 deployment {one}" if number_of == 1 else f"{number_of} deployments {many}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _nearest(hunt: _Search, rows: Mapping[int, dict[str, Any]]) -> dict[str, Any] | None:
    """What comes nearest where nothing can be chosen, with what it lacks."""
    if hunt.found:
        closest = _closest(hunt)
        return {**rows[closest.order], "lacks": list(_lacks(closest, hunt.work)), "advice": []}
    texts = [entry["text"] for entry in hunt.commonest]
    over = hunt.examples.get("quality_loss")
    if over is not None:
        return {**_bare(over), "lacks": [hunt.refused["quality_loss"]["text"]], "advice": []}
    if hunt.nearest_size is not None:
        missing, deployment, memory = hunt.nearest_size
        text = f"{gib(missing)} of memory on each GPU for one request of {deployment.settings.max_model_len:,} tokens"
        return {
            **_bare(deployment),
            "missing_bytes": missing,
            "lacks": [text],
            "advice": advice(deployment, memory, hunt.engines),
        }
    if hunt.commonest:
        return {**_bare(hunt.examples[hunt.commonest[0]["code"]]), "lacks": texts, "advice": []}
    return None


def _bare(deployment: Deployment) -> dict[str, Any]:
    return {
        "label": label(deployment),
        "settings": settings_for(deployment),
        "quantisation": deployment.scheme.name,
        "replicas": deployment.replicas,
        "gpus": deployment.settings.gpus,
    }


def _lacks(candidate: Candidate, work: Workload | None) -> Iterator[str]:
    served, settings = candidate.served, candidate.deployment.settings
    if work is not None and served is None:
        yield "a speed: no arithmetic rate or memory bandwidth of the device is known, and so no SLO can be held against it"
    elif work is not None and served is not None and candidate.meets is not True:
        rate = served.get("requests_per_day_at_slo") or 0.0
        limit = f"limited by {served.get('limited_by')}"
        for name, target in (served.get("unattainable") or {}).items():
            yield f"{name}: {target['wanted']:g} is wanted, and {_figure(target['best'])} is the best of one request alone"
        if rate <= 0 and not served.get("unattainable"):
            yield f"a rate at which the SLO is kept: there is none ({limit})"
        elif 0 < rate < work.requests_per_day:
            needed = candidate.gpus_needed
            yield f"throughput: {rate:,.0f} of {work.requests_per_day:,.0f} requests a day within the SLO ({limit})" + (
                f"; {needed // settings.gpus} replicas on {needed} GPUs would do" if needed else ""
            )
        elif rate > 0:
            yield f"the SLO at the peak of the workload ({limit})"
    if not candidate.fits_low:
        length = f"one request of {settings.max_model_len:,} tokens"
        yield f"memory: at the lower end of the interval {gib(_short(candidate))} are missing on each GPU for {length}"
