# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A capacity plan: a model, hardware and an engine's settings in, and out what fits, how fast it is, and what it costs.

Everything is computed from what is given and from the data files; nothing is asked of a network or a device. Sizes are bytes on
one GPU, times seconds unless a name says milliseconds. A plan is a mapping that JSON can hold; docs/planning.md describes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ._model_architecture import ModelError
from ._model_cost import cost_of
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
    latent,
    memory_of,
    model_of,
    refusals,
)
from ._model_inputs import known_keys
from ._model_memory import Amount, Context, Device, Pool, local_heads, page_bytes, stages
from ._model_speed import Workload, service, speculative, workload_of
from ._verdict import FAIL, PASS, WARN

FORM = 1
SPECS, DIVISION = "vllm/v1/kv_cache_interface.py", "vllm/v1/core/kv_cache_utils.py"
# Terms of a plan that a correction learnt from a running server may change.
CORRECTABLE = ("weights", "activation", "non_torch", "cuda_graphs", "step_seconds", "prefill_seconds")

# --- the plan --------------------------------------------------------------------------------------------------------


def make_plan(
    deployment: Deployment,
    data: Mapping[str, Mapping[str, Any]],
    workload: Workload | Mapping[str, Any] | None = None,
    speculation: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    whole: bool = True,
) -> dict[str, Any]:
    """Everything that is known of one deployment. ``whole=False`` leaves out what a search has no need of."""
    engines = data["engines"]["engines"]
    work = workload if isinstance(workload, Workload) or workload is None else workload_of(workload)
    memory = memory_of(deployment, engines)
    short = fits(deployment, memory)
    refused = [{"code": code, "text": text} for code, text in refusals(deployment)]
    sound = short <= 0 and not refused
    served = _service(deployment, memory, work, data, whole) if sound else None
    plan: dict[str, Any] = {
        "form": FORM,
        "settings": _settings(deployment),
        "quantisation": _quantisation(deployment, data["quality"]),
        "memory": _memory(deployment, memory, whole),
        "fits": short <= 0,
        "missing_bytes": max(0, short),
        "spare_bytes": max(0, -short),
        "service": served,
        "uncorrected": _uncorrected(deployment, engines, data, work) if deployment.corrections and whole else {},
    }
    if not whole:
        (served or {}).pop("figures", None)
        return {**plan, "refused": refused}
    warnings = [{"code": code, "text": text} for code, text in cautions(deployment, memory, served)]
    warnings += (served or {}).pop("warnings", [])
    plan.update(
        model=_described(deployment.model),
        hardware=_hardware(deployment),
        workload=None if work is None else work.described(),
        speed=None if served is None else served.pop("speed"),
        speculative=None,
        cost=None,
        corrections=[{"term": term, **found} for term, found in sorted(deployment.corrections.items()) if term in CORRECTABLE],
        warnings=[*refused, *warnings],
        advice=[] if sound else advice(deployment, memory, engines),
    )
    rows = [*memory_figures(deployment, memory, plan, data["engines"]["documents"]), *(served or {}).pop("figures", [])]
    if speculation is not None and served:
        plan["speculative"] = speculative(
            deployment.model.architecture,
            deployment.scheme,
            deployment.device,
            deployment.settings,
            _drafting(speculation),
            data["speed"],
            concurrency=served["concurrency"],
            context=served["context"],
        )
        rows += plan["speculative"].pop("figures", [])
    if cost is not None and served and work:
        plan["cost"] = cost_of(cost, deployment.device, deployment.count, work, served, data["speed"])
        rows += plan["cost"].pop("figures", [])
    plan["figures"] = rows
    plan["verdict"], plan["summary"] = verdict_of(deployment, plan, refused)
    return plan


def _drafting(speculation: Mapping[str, Any]) -> dict[str, Any]:
    """A draft model may be given as any model is."""
    found = dict(speculation)
    if found.get("draft"):
        try:
            draft = model_of(found["draft"])
        except ModelError as error:
            raise ModelError(f"speculation.draft: {error}") from error
        found.update(draft=draft.architecture, draft_scheme=draft.scheme)
    return found


def verdict_of(deployment: Deployment, plan: Mapping[str, Any], refused: list[dict[str, str]]) -> tuple[str, str]:
    settings, served = deployment.settings, plan["service"]
    stored = "16 bits" if deployment.scheme.name == "none" else deployment.scheme.name
    each = f"{settings.gpus} x {deployment.device.name}"
    where = (
        f"{deployment.model.name} ({stored}) on {f'{deployment.replicas} servers of ' if deployment.replicas > 1 else ''}{each}"
    )
    if refused:
        return FAIL, f"{where}: {settings.engine} would not start: {refused[0]['text']}"
    if not plan["fits"]:
        place = "each GPU" if deployment.device.kind == "gpu" else "the host"
        return (
            FAIL,
            f"{where} does not fit: {gib(plan['missing_bytes'])} are missing on {place} for one request of "
            f"{settings.max_model_len:,} tokens.",
        )
    tokens = plan["memory"]["kv_cache"]["tokens"]
    text = f"{where} fits, with {tokens:,} tokens of KV cache{' in each' if deployment.replicas > 1 else ''}"
    if served and plan["workload"]:
        rate = served.get("requests_per_day_at_slo")
        if served.get("meets_slo") is False:
            return FAIL, f"{text}, and does not serve the workload: {served.get('limited_by')} is the limit" + (
                f" ({rate:,.0f} requests a day within the SLO, {plan['workload']['requests_per_day']:,.0f} wanted)."
                if rate is not None
                else "."
            )
        if rate is not None:
            text += f" and room for {rate:,.0f} requests a day within the SLO"
    serious = [warning for warning in plan["warnings"] if not warning["code"].startswith("note_")]
    return (WARN if serious else PASS), text + "."


def _service(
    deployment: Deployment, memory: Memory, work: Workload | None, data: Mapping[str, Any], curve: bool = True
) -> dict[str, Any] | None:
    if not deployment.device.bandwidth or not deployment.device.rates:
        return None
    size = max(0, memory.cache.bytes)
    held, settings = memory.held, deployment.settings

    def limit(length: int) -> float:
        most = settings.slots if settings.engine == "llama_cpp" else settings.max_num_seqs
        return min(held.concurrency(size, min(length, settings.max_model_len)), most)

    factors = {term: float(found["factor"]) for term, found in deployment.corrections.items() if term.endswith("_seconds")}
    return service(
        deployment.model.architecture,
        deployment.scheme,
        deployment.device,
        settings,
        work,
        limit,
        data["speed"],
        replicas=deployment.replicas,
        factors=factors,
        curve=curve,
    )


def _uncorrected(
    deployment: Deployment, engines: Mapping[str, Any], data: Mapping[str, Any], work: Workload | None
) -> dict[str, float]:
    """The same terms as the formulas alone give them, from which a comparison learns."""
    plain = replace(deployment, corrections={})
    memory = memory_of(plain, engines)
    served = _service(plain, memory, work, data, False)
    found: dict[str, float] = {name: amount.bytes for name, amount in memory.terms.items()}
    found["kv_cache"] = memory.cache.bytes
    if served:
        found.update({name: served[name] for name in ("step_seconds", "prefill_seconds") if name in served})
    return found


def _settings(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.settings
    names = (
        *("engine", "dtype", "kv_cache_dtype", "tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel"),
        *("max_model_len", "memory_utilization", "max_num_batched_tokens", "max_num_seqs", "block_size", "cuda_graphs"),
        *("prefix_caching", "cache_bytes", "draft_tokens", "slots", "vision"),
    )
    return {
        **{name: getattr(settings, name) for name in names},
        "engine_version": ".".join(map(str, settings.engine_version)),
        "replicas": deployment.replicas,
        "gpus": settings.gpus,
        "defaulted": list(deployment.defaulted),
    }


def _quantisation(deployment: Deployment, quality: Mapping[str, Any]) -> dict[str, Any]:
    scheme = deployment.scheme
    capability = capability_of(deployment.device)
    arithmetic = scheme.arithmetic_on(capability) if deployment.device.kind == "gpu" else scheme.arithmetic
    return {
        "name": scheme.name,
        "method": scheme.method,
        "weight_bits": scheme.bits or scheme.weight_bits or None,
        "arithmetic": arithmetic,
        "weight_only": scheme.weight_only or arithmetic != scheme.arithmetic,
        "online": scheme.online,
        "quality": _quality(scheme.name, quality["methods"], quality["documents"]),
        "kv_cache_quality": _quality(deployment.settings.kv_cache_dtype, quality["kv_cache"], quality["documents"]),
    }


def _quality(name: str, table: Mapping[str, Any], documents: Mapping[str, Any]) -> dict[str, Any] | None:
    found = table.get(name.lower())
    if not found:
        return None
    measure = "percent of a benchmark's score lost" if found["measure"] == "score" else "percent more perplexity"
    titles = [documents[source]["title"] for source in found["sources"]]
    return {"value": found["value"], "low": found["low"], "high": found["high"], "unit": measure, "sources": titles}


def _described(model: Model) -> dict[str, Any]:
    architecture = model.architecture
    kinds: dict[str, int] = {}
    for memory in (memory for layer in architecture.layers for memory in layer.memories):
        kinds[memory.kind] = kinds.get(memory.kind, 0) + 1
    names = (
        *("family", "hidden_size", "vocabulary", "heads", "kv_heads", "head_dim", "max_context", "experts", "experts_per_token"),
        *("vision", "dtype", "tied"),
    )
    return {
        "name": model.name,
        "path": model.path,
        "class": architecture.name,
        **{name: getattr(architecture, name) for name in names},
        "parameters": architecture.parameters(),
        "active_parameters": architecture.active_parameters(),
        "parameters_by_part": architecture.by_part(),
        "layers": len(architecture.layers),
        "layer_kinds": kinds,
        "notes": [*architecture.notes, *model.notes],
    }


def _hardware(deployment: Deployment) -> dict[str, Any]:
    device = deployment.device
    return {
        "product": device.product,
        "name": device.name,
        "kind": device.kind,
        "count": deployment.count,
        "memory_bytes": device.memory,
        "bandwidth_bytes_per_second": device.bandwidth,
        "rates": dict(device.rates),
        "compute_capability": ".".join(map(str, device.compute_capability)) if device.kind == "gpu" else None,
        "link": device.link,
        "link_bandwidth_bytes_per_second": device.link_bandwidth,
        "power_watts": device.power_watts,
        "sources": dict(device.sources),
    }


def _memory(deployment: Deployment, memory: Memory, whole: bool) -> dict[str, Any]:
    settings, held = deployment.settings, memory.held
    longest = settings.max_model_len
    sizes = {
        name: max(0, size)
        for name, size in zip(("value", "low", "high"), (memory.cache.bytes, memory.cache.low, memory.cache.high))
    }
    value, low, high = (memory.taken(size, longest) for size in (memory.cache.bytes, memory.cache.low, memory.cache.high))
    concurrency = held.concurrency(sizes["value"], longest)
    reserve = memory.reserve + max(0, memory.cache.bytes) - max(0, value)
    found: dict[str, Any] = {
        "total_bytes": memory.total.bytes,
        "budget_bytes": memory.budget,
        "unit": "bytes on one GPU" if deployment.device.kind == "gpu" else "bytes on the host",
        "terms": [
            *(
                {"name": name, "bytes": amount.bytes, "low_bytes": amount.low, "high_bytes": amount.high}
                for name, amount in memory.terms.items()
            ),
            {"name": "kv_cache", "bytes": value, "low_bytes": low, "high_bytes": high},
        ],
        "weights_by_part": dict(memory.by_part),
        "kv_cache": {
            "bytes": value,
            "low_bytes": low,
            "high_bytes": high,
            "bytes_per_token": bytes_per_token(deployment),
            "tokens": held.tokens(sizes["value"], longest),
            "low_tokens": held.tokens(sizes["low"], longest),
            "high_tokens": held.tokens(sizes["high"], longest),
            "concurrency": min(concurrency, settings.slots) if isinstance(held, Context) else concurrency,
        },
    }
    if reserve > 0:
        found["terms"].append({"name": "reserve", "bytes": reserve, "low_bytes": reserve, "high_bytes": reserve})
    if whole:
        lengths = sorted({min(2**power, longest) for power in range(9, 40) if 2 ** (power - 1) < longest})
        found["requests"] = [
            {
                "length": length,
                "bytes": held.request_bytes(length),
                **{
                    name: held.concurrency(sizes[bound], length)
                    for name, bound in (("concurrency", "value"), ("low", "low"), ("high", "high"))
                },
            }
            for length in lengths
        ]
        limit = max(longest, deployment.model.architecture.max_context)
        found["largest_context"] = held.longest(sizes["value"], limit)
        found["largest_context_low"] = held.longest(sizes["low"], limit)
    return found


def bytes_per_token(deployment: Deployment) -> int:
    """Bytes that one more token of a request takes on one GPU, over all layers that keep every token."""
    settings = deployment.settings
    widest = max(stages(len(deployment.model.architecture.layers), settings.pipeline_parallel), key=len)
    total = 0
    for number in widest:
        for memory in deployment.model.architecture.layers[number].memories:
            if memory.kind != "recurrent":
                total += page_bytes(memory, settings, 1) + memory.index_bytes
    return total


def memory_figures(
    deployment: Deployment, memory: Memory, plan: Mapping[str, Any], documents: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The figures of model and memory, each with its formula and where that is from."""
    architecture, settings, kept = deployment.model.architecture, deployment.settings, plan["memory"]["kv_cache"]
    read = deployment.model.path or "the operator's numbers"
    cells = "llama.cpp src/llama-kv-cache.cpp"
    page, division = (cells, cells) if settings.engine == "llama_cpp" else (SPECS, DIVISION)
    fitting = plan["memory"]
    rows = [
        _row("parameters", architecture.parameters(), "parameters", "sum over all tensors of the architecture", read),
        _row("active parameters", architecture.active_parameters(), "parameters", "those that one token meets", read),
        *(
            _row(f"parameters: {part}", count, "parameters", "sum over the tensors of this part", read)
            for part, count in architecture.by_part().items()
        ),
        _amount("memory of one GPU", memory.total),
        *(_amount(name.replace("_", " "), amount) for name, amount in memory.terms.items()),
        _amount("KV cache", memory.cache),
        _row("KV cache of a token", kept["bytes_per_token"], "bytes", _cache_formula(deployment), page),
        _row("KV cache tokens", kept["tokens"], "tokens", _tokens_formula(memory.held), division, *_bounds(kept)),
        _row("longest requests at a time", round(kept["concurrency"], 2), "requests", "cache / blocks of such a one", division),
        _row(
            "largest context",
            fitting["largest_context"],
            "tokens",
            "the longest request that fits alone",
            division,
            fitting["largest_context_low"],
        ),
    ]
    # Sources that are keys of the data file, in words.
    return [{**row, "source": documents.get(row["source"], {}).get("title", row["source"])} for row in rows]


def _bounds(kept: Mapping[str, Any]) -> tuple[int, int]:
    return kept["low_tokens"], kept["high_tokens"]


def _amount(name: str, amount: Amount) -> dict[str, Any]:
    return _row(name, amount.bytes, "bytes", amount.formula, amount.source, amount.low, amount.high)


def _row(name: str, value: Any, unit: str, formula: str, source: str, low: Any = None, high: Any = None) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "low": low, "high": high, "formula": formula, "source": source}


def _cache_formula(deployment: Deployment) -> str:
    architecture, settings = deployment.model.architecture, deployment.settings
    if latent(architecture):
        return f"layers x (kv_lora_rank + qk_rope_head_dim) x {settings.element:g} bytes, whole on each GPU"
    heads = local_heads(architecture.kv_heads, settings.tensor_parallel)
    return f"layers x {heads} KV heads of one GPU x (key + value dimension) x {settings.element:g} bytes"


def _tokens_formula(held: Pool | Context) -> str:
    if isinstance(held, Context):
        return "cells of the context, in steps of 256"
    if held.counts_requests:
        return "blocks / blocks of the longest request x its length"
    return f"blocks / {len(held.groups)} groups x {held.block_tokens}"


def plan_from(
    request: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]], hardware: Callable[[Any], tuple[Device, int]]
) -> dict[str, Any]:
    """A plan of an operator's request: model, gpus, quantisation, settings, workload, speculation, cost, corrections."""
    model, device, count = opened(request, hardware)
    deployment = deployment_of(
        model, device, count, request.get("settings") or {}, data["engines"]["engines"], request.get("corrections")
    )
    return make_plan(deployment, data, request.get("workload"), request.get("speculation"), request.get("cost"))


def opened(request: Mapping[str, Any], hardware: Callable[[Any], tuple[Device, int]]) -> tuple[Model, Device, int]:
    known = ("model", "gpus", "quantisation", "settings", "workload", "speculation", "cost", "corrections", "search")
    known_keys("", request, known)
    for name in ("model", "gpus"):
        if not request.get(name):
            raise ModelError(
                "model: is needed: a directory, a config.json, a GGUF file or numbers."
                if name == "model"
                else "gpus: is needed, such as 8xA100-SXM4-80GB."
            )
    device, count = hardware(request["gpus"])
    settings = request.get("settings") or {}
    return model_of(request["model"], request.get("quantisation"), settings.get("dtype")), device, count
