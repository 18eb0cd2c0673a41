# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One way to serve a model, and whether it fits: the model as it was found, the hardware, the settings, the memory of the fullest
GPU, what an engine would refuse, and what would make it fit. Sizes are bytes on one GPU.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._model_architecture import ATTENTION, EXPERT, EXPERTS, INPUTS, MLP, OUTPUTS, SHARED_EXPERT, Architecture, ModelError
from ._model_families import architecture as architecture_of_config
from ._model_families import explicit
from ._model_files import ModelFiles, compare_with, read_model
from ._model_gguf import architecture_of as architecture_of_gguf
from ._model_memory import (
    Amount,
    Context,
    Device,
    Pool,
    Settings,
    activation,
    cache,
    cuda_graphs,
    non_torch,
    of_version,
    weights,
)
from ._model_quantisation import DOWN, Scheme, scheme_for, scheme_named, scheme_of_gguf
from ._model_settings import NO_FLOAT16, settings_of

GIB = 2**30
# What the guide asks of the links between the GPUs of one host, bytes/s of both directions together.
HOST_BANDWIDTH = 600e9


@dataclass(frozen=True)
class Model:
    """A model as it was found: what it is made of, how it is stored, and where that was read."""

    name: str
    path: str
    architecture: Architecture
    scheme: Scheme
    files: ModelFiles | None = None
    notes: tuple[str, ...] = ()
    kv_cache_dtype: str = ""  # what the checkpoint has scales for, which the engine then takes by itself


@dataclass(frozen=True)
class Deployment:
    """One way to serve a model; everything that a prediction depends on."""

    model: Model
    scheme: Scheme
    device: Device
    count: int  # GPUs (or sockets) of the host
    settings: Settings
    replicas: int
    defaulted: tuple[str, ...] = ()
    corrections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def corrected(self, term: str, amount: Amount) -> Amount:
        """A term as this site's own servers showed it to be."""
        found = self.corrections.get(term)
        if not found:
            return amount
        factor = float(found["factor"])
        return replace(
            amount,
            bytes=round(amount.bytes * factor),
            low=round(min(amount.low, amount.bytes) * factor),
            high=round(max(amount.high, amount.bytes) * factor),
            formula=f"({amount.formula}) x {factor:.3f}, learnt from {found.get('from', 'a running server')}",
        )


# --- input -----------------------------------------------------------------------------------------------------------


def model_of(given: Any, quantisation: str | None = None, dtype: str | None = None) -> Model:
    """A model from a directory, a config.json, a GGUF file, or numbers; ``quantisation`` is what is to be made of it."""
    if isinstance(given, Mapping) and "model_type" not in given and "architectures" not in given:
        architecture = explicit({name: _whole(value) for name, value in given.items()})
        return _model(
            "explicit numbers", "", architecture, scheme_for(None, quantisation, dtype or architecture.dtype, architecture)
        )
    if isinstance(given, Mapping):
        architecture = architecture_of_config(given)
        scheme = scheme_for(given.get("quantization_config"), quantisation, dtype or architecture.dtype, architecture)
        found = _model(str(given.get("_name_or_path") or architecture.name), "", architecture, scheme)
        return replace(found, kv_cache_dtype=_declared(given.get("quantization_config")))
    files = read_model(str(given))
    name = _named(os.path.abspath(str(given)))
    if files.gguf is not None:
        if quantisation not in (None, "auto"):
            raise ModelError(
                f"quantisation: {files.path} is a GGUF file, whose quantisation is what it is; leave {quantisation!r} out."
            )
        architecture = architecture_of_gguf(files.gguf)
        return replace(_model(name, files.path, architecture, scheme_of_gguf(files.gguf)), files=files)
    architecture = architecture_of_config(files.config, f"{files.path}")
    stored = scheme_for(files.quantization_config, None, architecture.dtype, architecture)
    notes = compare_with(files, architecture, stored)
    scheme = scheme_for(files.quantization_config, quantisation, dtype or architecture.dtype, architecture)
    declared = _declared(files.quantization_config)
    found = _model(name, files.path, architecture, scheme)
    return replace(found, files=files, notes=tuple(notes), kv_cache_dtype=declared)


def _declared(quantization: Mapping[str, Any] | None) -> str:
    """fp8 where the checkpoint brings scales for such a KV cache (vllm/utils/torch_utils.py, resolve_kv_cache_dtype_string)."""
    values = quantization or {}
    nested = values.get("quantization")
    algorithm = values.get("kv_cache_quant_algo") or (nested.get("kv_cache_quant_algo") if isinstance(nested, Mapping) else "")
    scheme = values.get("kv_cache_scheme")
    by_scheme = isinstance(scheme, Mapping) and scheme.get("num_bits") == 8 and scheme.get("type") == "float"
    return "fp8" if str(algorithm).lower() == "fp8" or by_scheme else ""


def _named(path: str) -> str:
    """The folder's name, or that of the folder above where the folder is a release."""
    *above, last = path.removesuffix("/config.json").split("/")
    if re.fullmatch(r"v?\d+([.-]\d+)*", last) and above and above[-1]:
        return above[-1]
    return last.removesuffix(".json")


def _whole(value: Any) -> Any:
    """A whole number where it came as text or as 13e9, as ``-e`` hands it on; anything else is judged where it is used."""
    try:
        return int(float(value)) if not isinstance(value, bool) and float(value).is_integer() else value
    except (TypeError, ValueError, OverflowError):
        return value


def _model(name: str, path: str, architecture: Architecture, scheme: Scheme) -> Model:
    # Names come from files of others: what would move a terminal's cursor does not get into a plan.
    plain = replace(architecture, family=printable(architecture.family), name=printable(architecture.name))
    return Model(printable(name), path, plain, scheme.fitted(architecture))


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def deployment_of(
    model: Model,
    device: Device,
    count: int,
    given: Mapping[str, Any],
    engines: Mapping[str, Any],
    corrections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Deployment:
    """A deployment of this model from an operator's settings; GPUs that one server does not take make replicas."""
    if model.scheme.stored and not given.get("engine"):
        given = {**given, "engine": "llama_cpp"}
    settings, replicas, defaulted = settings_of(given, model.architecture, device, engines)
    if settings.engine == "llama_cpp" and device.kind == "gpu" and "pipeline_parallel" not in given:
        # llama.cpp gives each GPU some of the layers (--split-mode layer).
        share = max(1, count // max(1, replicas))
        settings = replace(settings, pipeline_parallel=min(share, len(model.architecture.layers)))
    scheme = model.scheme if model.scheme.quantised else scheme_named("none", settings.dtype)
    if settings.kv_cache_dtype == "auto" and settings.engine == "vllm" and model.kv_cache_dtype:
        settings = replace(settings, kv_cache_dtype=model.kv_cache_dtype)
    if settings.gpus > count:
        raise ModelError(
            f"settings: tensor, pipeline and data parallel ask for {settings.gpus} GPUs, and the host has {count} "
            f"({device.name}); make them smaller, or name more GPUs."
        )
    return Deployment(
        model, scheme, device, count, settings, replicas or count // settings.gpus, tuple(defaulted), corrections or {}
    )


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Where the bytes of the fullest GPU go."""

    total: Amount
    budget: int
    terms: dict[str, Amount]
    by_part: dict[str, int]
    cache: Amount  # what is left for keys and values; below zero where nothing is
    held: Pool | Context

    def taken(self, size: int, longest: int) -> int:
        """Bytes of the cache itself: vLLM takes all that is left, llama.cpp what its context needs."""
        return min(size, self.held.needed(longest)) if isinstance(self.held, Context) else size

    @property
    def reserve(self) -> int:
        return self.total.bytes - sum(max(0, amount.bytes) for amount in (*self.terms.values(), self.cache))


def memory_of(deployment: Deployment, engines: Mapping[str, Any]) -> Memory:
    """The memory of one GPU, by term, with the interval of each."""
    settings, device, architecture = deployment.settings, deployment.device, deployment.model.architecture
    engine = engines[settings.engine]
    total = Amount(device.memory, device.memory_low or device.memory, device.memory_high or device.memory, "as the driver tells",
                   device.sources.get("memory", "given"))  # fmt: skip
    by_part = weights(architecture, deployment.scheme, settings)
    size = sum(by_part.values())
    terms = {
        "weights": Amount(size, round(size * 0.99), round(size * 1.01), "sum over the tensors of one GPU, with their scales",
                          deployment.scheme.source),
        "activation": activation(architecture, settings, engine),
    }  # fmt: skip
    held = cache(architecture, settings)
    outside = 0
    if settings.engine == "vllm":
        terms["non_torch"] = non_torch(settings, engine)
        terms["cuda_graphs"] = cuda_graphs(architecture, settings, engine)
    elif settings.engine == "vllm_cpu":
        process = engine["process"]
        terms["non_torch"] = Amount(
            process["value"], process["low"], process["high"], "the engine's processes", process["source"]
        )
    else:
        outside = engine["margin_bytes"] if device.kind == "gpu" else 0
    terms = {name: deployment.corrected(name, amount) for name, amount in terms.items()}
    inside = [
        amount
        for name, amount in terms.items()
        if name != "cuda_graphs" or of_version(engine["cuda_graphs"], settings.engine_version)["in_budget"]
    ]
    budget = math.ceil(total.bytes * settings.memory_utilization) - outside
    if settings.cache_bytes:
        left = Amount(settings.cache_bytes, settings.cache_bytes, settings.cache_bytes, "as asked for", "settings.cache_bytes")
    else:
        share = settings.memory_utilization
        left = Amount(
            budget - sum(amount.bytes for amount in inside),
            math.ceil(total.low * share) - outside - sum(amount.high for amount in inside),
            math.ceil(total.high * share) - outside - sum(amount.low for amount in inside),
            f"{share:g} x total - " + " - ".join(name for name, amount in terms.items() if amount in inside),
            engine["source"],
        )
    return Memory(total, budget, terms, by_part, left, held)


def fits(deployment: Deployment, memory: Memory) -> int:
    """Bytes that are missing on the fullest GPU for one request of the longest length; 0 or less where it fits."""
    short = memory.held.needed(deployment.settings.max_model_len) - memory.cache.bytes
    if deployment.settings.cache_bytes:
        # A cache of a given size must itself fit beside all else.
        whole = sum(amount.bytes for amount in memory.terms.values()) + memory.cache.bytes
        short = max(short, whole - memory.total.bytes)
    return short


# --- warnings and advice ---------------------------------------------------------------------------------------------


def refusals(deployment: Deployment) -> Iterator[tuple[str, str]]:
    """Why an engine would not start, whatever the memory."""
    settings, architecture, device, scheme = (
        deployment.settings,
        deployment.model.architecture,
        deployment.device,
        deployment.scheme,
    )
    parallel = settings.tensor_parallel
    if settings.engine != "llama_cpp" and architecture.heads % parallel:
        near_sizes = [size for size in range(1, 65) if architecture.heads % size == 0]
        yield (
            "tensor_parallel_does_not_divide_heads",
            f"tensor_parallel {parallel} does not divide the {architecture.heads} attention heads; {_listed(near_sizes)} do.",
        )
    for heads in sorted({memory.kv_heads for layer in architecture.layers for memory in layer.memories if memory.kv_heads}):
        if settings.engine != "llama_cpp" and (heads % parallel if parallel <= heads else parallel % heads):
            yield (
                "tensor_parallel_does_not_divide_kv_heads",
                f"tensor_parallel {parallel} neither divides the {heads} KV heads nor is a multiple of them.",
            )
    taken = deployment.replicas * settings.gpus
    if device.kind == "gpu" and taken > deployment.count:
        yield (
            "too_many_replicas",
            f"{deployment.replicas} replicas of {settings.gpus} GPUs are {taken}, more than the {deployment.count} of the host.",
        )
    if settings.pipeline_parallel > len(architecture.layers):
        yield (
            "pipeline_parallel_over_layers",
            f"pipeline_parallel {settings.pipeline_parallel} is more than {len(architecture.layers)} layers.",
        )
    engine = "vllm" if settings.engine == "vllm_cpu" else settings.engine
    if engine not in scheme.engines:
        yield "engine_lacks_quantisation", f"{settings.engine} does not serve {scheme.name}; {', '.join(scheme.engines)} does."
    capability = capability_of(device)
    if lacks_bfloat16(deployment):
        yield (
            "no_bfloat16",
            f"{device.name} (compute capability {capability}) has no bfloat16, which came with 8.0; give dtype float16.",
        )
    elif device.kind == "gpu" and engine == "vllm" and capability < scheme.served_from:
        yield (
            "compute_capability",
            f"{scheme.name} needs compute capability {scheme.served_from} or newer, and {device.name} has {capability}.",
        )
    if device.kind == "gpu" and engine == "vllm" and scheme.refused_from and capability >= scheme.refused_from:
        yield (
            "compute_capability",
            f"vLLM does not serve {scheme.name} from compute capability {scheme.refused_from} on, and {device.name} has "
            f"{capability}.",
        )
    if engine == "vllm":
        text = misaligned(architecture, scheme, settings)
        if text:
            yield "not_divisible", text
    if engine == "vllm" and settings.dtype == "float16" and architecture.family in NO_FLOAT16:
        yield "no_float16", f"vLLM does not serve {architecture.family} in float16, whose range is too small; give another dtype."
    if device.kind == "gpu" and settings.element == 1 and settings.kv_cache_dtype != "auto" and capability < 8.0:
        yield (
            "no_fp8_cache",
            f"a KV cache in {settings.kv_cache_dtype} needs compute capability 8.0, and {device.name} has {capability}.",
        )
    if architecture.max_context and settings.max_model_len > architecture.max_context:
        yield (
            "beyond_context",
            f"max_model_len {settings.max_model_len} is more than the {architecture.max_context} tokens that the model was made "
            "for.",
        )


def misaligned(architecture: Architecture, scheme: Scheme, settings: Settings) -> str:
    """Why vLLM cannot divide the matrices among GPUs, empty where it can.

    It divides without padding, and not through what shares a scale: "not divisible by weight quantization block_n" (vLLM issue
    17569), "not aligned with the quantized weight shape" (issue 21695). Kernels that pad experts say so in their scheme.
    """
    for weight in architecture.weights:
        if weight.part not in (ATTENTION, MLP, EXPERT, SHARED_EXPERT) or weight.inputs == 1:
            continue
        parts, across = settings.tensor_parallel, weight.split == INPUTS
        if weight.split == EXPERTS and not settings.expert_parallel:
            parts, across = settings.tensor_parallel * settings.data_parallel, bool(DOWN.search(weight.name))
        elif weight.split not in (INPUTS, OUTPUTS):
            continue
        size = weight.inputs if across else weight.outputs
        if parts == 1:
            continue
        if size % parts:
            return f"{weight.name}: {size} is not divisible by {parts} GPUs."
        if weight.part not in scheme.parts or scheme.expert_padding:
            continue
        step = _alone(scheme.group, across)
        if size // parts % step:
            share = f"{size} over {parts} GPUs is {size // parts}"
            return f"{weight.name}: {share}, no multiple of the {step} that share a scale ({scheme.name})."
    return ""


def _alone(group: Any, across: bool) -> int:
    """Elements along the divided dimension that share a scale, and so cannot be parted."""
    if isinstance(group, tuple):
        return int(group[1 if across else 0])
    return group if across and isinstance(group, int) else 1


def lacks_bfloat16(deployment: Deployment) -> bool:
    """vLLM: "Bfloat16 is only supported on GPUs with compute capability of at least 8.0", whatever the weights are in."""
    device, settings = deployment.device, deployment.settings
    return (
        settings.engine == "vllm" and settings.dtype == "bfloat16" and device.kind == "gpu" and device.compute_capability < (8, 0)
    )


def cautions(deployment: Deployment, memory: Memory, served: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What works, and not as somebody may expect."""
    settings, architecture, device, scheme = (
        deployment.settings,
        deployment.model.architecture,
        deployment.device,
        deployment.scheme,
    )
    if device.kind == "gpu" and scheme.native_from and capability_of(device) < scheme.native_from and not scheme.weight_only:
        yield (
            "no_native_arithmetic",
            f"{device.name} (compute capability {capability_of(device)}) has no {scheme.arithmetic} arithmetic, which needs "
            f"{scheme.native_from}: {scheme.name} saves memory there, and products run at the 16-bit rate (weight-only).",
        )
    if settings.tensor_parallel > 1 and device.link == "pcie":
        yield (
            "tensor_parallel_over_pcie",
            f"tensor_parallel {settings.tensor_parallel} over PCIe ({device.link_bandwidth / 1e9:.0f} GB/s one way): every layer "
            "waits for two all-reduces; replicas or pipeline_parallel use the link less.",
        )
    if settings.tensor_parallel > 1 and 2 * device.link_bandwidth < HOST_BANDWIDTH:
        yield (
            "low_link_bandwidth",
            f"the GPUs of the host reach each other with {2 * device.link_bandwidth / 1e9:.0f} GB/s (both directions), under the "
            f"{HOST_BANDWIDTH / 1e9:.0f} GB/s that are asked of a host for tensor parallelism.",
        )
    if architecture.kv_heads and settings.tensor_parallel > architecture.kv_heads:
        times = settings.tensor_parallel // architecture.kv_heads
        yield (
            "kv_heads_repeated",
            f"tensor_parallel {settings.tensor_parallel} is more than {architecture.kv_heads} KV heads: each is kept {times} "
            "times, and more GPUs add no KV cache per GPU.",
        )
    if latent(architecture) and settings.tensor_parallel > 1:
        yield (
            "latent_repeated",
            "the compressed keys of MLA are the same on every GPU of a tensor-parallel group; data_parallel with "
            "expert_parallel divides the requests instead.",
        )
    if settings.data_parallel > 1 and not architecture.experts:
        yield "data_parallel_without_experts", "data_parallel of a dense model is the same as replicas, behind one address."
    if isinstance(memory.held, Pool) and memory.cache.low < memory.held.needed(settings.max_model_len) <= memory.cache.bytes:
        yield "fits_narrowly", "it fits by the expected sizes, and not at the lower end of the interval; leave more room."
    if deployment.count % settings.gpus and deployment.replicas * settings.gpus < deployment.count:
        yield (
            "gpus_left_over",
            f"{deployment.count - deployment.replicas * settings.gpus} of {deployment.count} GPUs serve nothing.",
        )
    running = ((served or {}).get("concurrency") or 0) / settings.data_parallel
    if running > settings.max_num_seqs:
        yield (
            "max_num_seqs",
            f"the workload asks for {running:.0f} requests at a time of one engine, and max_num_seqs is {settings.max_num_seqs}.",
        )
    if not device.rates or not device.bandwidth:
        yield (
            "unknown_rates",
            f"no arithmetic rate or bandwidth of {device.name} is known, and so no speed is predicted and no SLO judged; give "
            "gpus.tflops and gpus.bandwidth_gbps.",
        )
    if scheme.quantised and not scheme.online and not deployment.model.scheme.quantised and settings.engine != "llama_cpp":
        yield (
            "needs_quantised_checkpoint",
            f"no engine makes {scheme.name} of 16-bit weights while it loads: a checkpoint in {scheme.name} is needed.",
        )
    if scheme.online:
        yield (
            "quantised_while_loading",
            f"{scheme.name} is made while the engine loads: the 16-bit files are needed, and their time.",
        )
    yield from (
        (f"note_{number}", note) for number, note in enumerate((*architecture.notes, *deployment.model.notes, *scheme.notes))
    )


def latent(architecture: Architecture) -> bool:
    return any(memory.kind == "mla" for layer in architecture.layers for memory in layer.memories)


def capability_of(device: Device) -> float:
    return float(f"{device.compute_capability[0]}.{device.compute_capability[1]}")


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}" if len(values) > 1 else str(values[0])


def advice(deployment: Deployment, memory: Memory, engines: Mapping[str, Any]) -> list[dict[str, str]]:
    """What would make it fit: each change was planned, starts, and fits at the lower end of the interval too."""
    found: list[dict[str, str]] = []
    settings, architecture, device = deployment.settings, deployment.model.architecture, deployment.device

    def tried(change: str, scheme: Scheme = deployment.scheme, **changes: Any) -> bool:
        other = replace(settings, **changes)
        count = max(deployment.count, other.gpus) if device.kind == "gpu" else deployment.count
        changed = replace(deployment, scheme=scheme, settings=other, count=count, replicas=max(1, count // other.gpus))
        if any(True for _refusal in refusals(changed)):
            return False
        held = memory_of(changed, engines)
        spare = held.cache.low - held.held.needed(other.max_model_len)
        if spare < 0 or fits(changed, held) > 0:
            return False
        tokens = held.held.tokens(held.cache.bytes, other.max_model_len)
        found.append({"change": change, "effect": f"fits, with {gib(spare)} or more to spare and {tokens:,} tokens of KV cache"})
        return True

    limit = min(settings.max_model_len, architecture.max_context or settings.max_model_len)
    longest = memory.held.longest(max(0, memory.cache.low), limit)
    if 0 < longest < settings.max_model_len:
        shorter = longest // 256 * 256 or longest
        tried(f"max_model_len {shorter} instead of {settings.max_model_len}", max_model_len=shorter)
    if settings.kv_cache_dtype == "auto" and settings.engine == "vllm":
        tried("kv_cache_dtype fp8", kv_cache_dtype="fp8")
    schemes = []
    if not deployment.scheme.quantised and settings.engine == "vllm":
        schemes = [scheme_for(None, name, settings.dtype, architecture).fitted(architecture) for name in ("fp8", "w4a16")]
    any(tried(f"weights in {scheme.name}", scheme) for scheme in schemes)
    kind = "pipeline_parallel" if settings.engine == "llama_cpp" else "tensor_parallel"
    sizes = [getattr(settings, kind) * factor for factor in (2, 4, 8, 16)] if device.kind == "gpu" else []
    gpus = {size: settings.gpus // getattr(settings, kind) * size for size in sizes if size <= 64}
    any(tried(f"{kind} {size} ({taken} GPUs)", **{kind: size}) for size, taken in gpus.items())
    if not found:
        short = max(512, limit // 8)
        tried(f"max_model_len {short}", max_model_len=short)
        any(
            tried(f"{kind} {size}, weights in {scheme.name}, max_model_len {short}", scheme, max_model_len=short, **{kind: size})
            for size in gpus
            for scheme in (*schemes, deployment.scheme)
        )
    return found


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
