# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as an operator reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._page import number

GIB = 2**30
TERMS = {
    "weights": "weights",
    "activation": "activation peak",
    "non_torch": "CUDA, NCCL",
    "cuda_graphs": "CUDA graphs",
    "kv_cache": "KV cache",
    "reserve": "left to others",
    "positions": "positions",
}


def _line(name: str, value: str, more: str = "") -> str:
    return f"  {name:<26} {value:>18}  {more}".rstrip()


def _many(count: float) -> str:
    return f"{count / 1e9:,.2f} billion" if count >= 1e8 else f"{count / 1e6:,.2f} million"


def _size(value: float) -> str:
    return f"{value / GIB:,.2f} GiB"


def _between(low: float, high: float) -> str:
    return f"({low / GIB:,.2f} to {high / GIB:,.2f})" if low != high else ""


def summary_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """The table that ``playbooks/plan.yml`` prints."""
    model, hardware, settings, memory = plan["model"], plan["hardware"], plan["settings"], plan["memory"]
    yield ""
    yield f"{model['name']} on {hardware['count']} x {hardware['name']}: {plan['verdict']}"
    yield _line("parameters", _many(model["parameters"]), _active(model))
    yield _line("layers", str(model["layers"]), ", ".join(f"{count} {kind}" for kind, count in model["layer_kinds"].items()))
    yield _line("weights are", plan["quantisation"]["name"], _arithmetic(plan["quantisation"]))
    yield _line("engine", f"{settings['engine']} {settings['engine_version']}", _parallel(settings))
    yield _line("longest request", f"{settings['max_model_len']:,} tokens")
    yield f"memory of one {'GPU' if hardware['kind'] == 'gpu' else 'host'} ({_size(memory['total_bytes'])}):"
    for term in memory["terms"]:
        between = _between(term["low_bytes"], term["high_bytes"])
        # On a CPU it is what the processes of the engine take.
        name = "engine" if (hardware["kind"], term["name"]) == ("cpu", "non_torch") else TERMS[term["name"]]
        yield _line(name, _size(term["bytes"]) if term["bytes"] >= 0 else "nothing left", between)
    kept = memory["kv_cache"]
    yield _line("KV cache", f"{kept['tokens']:,} tokens", f"({kept['low_tokens']:,} to {kept['high_tokens']:,})")
    yield _line("such requests at a time", f"{kept['concurrency']:,.1f}")
    yield _line("largest context", f"{memory['largest_context']:,} tokens")
    if not plan["fits"]:
        yield _line(f"missing on {'each GPU' if hardware['kind'] == 'gpu' else 'the host'}", _size(plan["missing_bytes"]))
    yield from _speed_lines(plan)
    for warning in plan["warnings"]:
        yield f"  warning: {warning['text']}"
    for tip in plan["advice"]:
        yield f"  would do: {tip['change']}: {tip['effect']}"
    for learnt in plan["corrections"]:
        yield f"  corrected: {learnt['term']} x {float(learnt['factor']):.3f}, from {learnt.get('from', 'a running server')}"
    yield plan["summary"]


def _active(model: Mapping[str, Any]) -> str:
    draft = model["parameters_by_part"].get("multi_token_prediction", 0)
    told = [f"{_many(model['active_parameters'])} active"] if model["experts"] else []
    return ", ".join(told + ([f"{draft / 1e9:,.2f} billion of them for multi-token prediction, not loaded"] if draft else []))


def _arithmetic(found: Mapping[str, Any]) -> str:
    return f"{found['arithmetic']} arithmetic" + (", weight-only" if found["weight_only"] else "")


def _parallel(settings: Mapping[str, Any]) -> str:
    sizes = [
        (short, settings[name])
        for short, name in (("TP", "tensor_parallel"), ("PP", "pipeline_parallel"), ("DP", "data_parallel"))
    ]
    told = " ".join(f"{short} {size}" for short, size in sizes if size > 1) or "one GPU"
    return f"{told}{', expert parallel' if settings['expert_parallel'] else ''}, replicas {settings['replicas']}"


def _speed_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    served, speed, work = plan.get("service"), plan.get("speed"), plan.get("workload")
    if speed:
        yield "speed of one replica:"
        yield _line("prefill", f"{number(speed['prefill_tokens_per_second'])} tokens/s")
        yield _line("one request alone", f"{number(speed['single_stream_tokens_per_second'])} tokens/s")
    if served and work:
        yield f"workload ({number(work['requests_per_day'])} requests a day, peak factor {number(work['peak_factor'])}):"
        for name, key, unit in (
            ("requests at a time", "concurrency", ""),
            ("time to first token", "ttft_ms", " ms"),
            ("between tokens", "itl_ms", " ms"),
            ("whole answer", "e2e_ms", " ms"),
            ("requests a day at the SLO", "requests_per_day_at_slo", ""),
            ("replicas needed", "replicas_needed", ""),
        ):
            if served.get(key) is not None:
                yield _line(name, f"{number(served[key])}{unit}")
        yield _line("limited by", str(served.get("limited_by")))
    if plan.get("cost"):
        for row in plan["cost"].get("summary", []):
            yield _line(row["name"], f"{number(row['value'])} {row['unit']}")


def search_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """The front of a search, best first."""
    if not found:
        return
    yield f"search: {found['considered']} deployments considered, {found['do_not_fit']} do not fit; the Pareto front:"
    yield f"  {'deployment':<68} {'tokens/s':>10} {'ITL ms':>8} {'room':>6} {'loss %':>7}"
    for one in found["deployments"]:
        if one["front"]:
            loss = "?" if one["quality_loss"] is None else f"{one['quality_loss']:.1f}"
            rate = number(one["tokens_per_second"]) if one["tokens_per_second"] is not None else "?"
            mark = "*" if one["chosen"] else " "
            interval, room = number(one["itl_ms"] or 0), one["headroom_share"]
            yield f"{mark} {one['label'][:68]:<68} {rate:>10} {interval:>8} {room:>6.0%} {loss:>7}"
    yield f"* {found['chosen']['why']}" if found["chosen"] else "none of them serves the workload within its SLO"
