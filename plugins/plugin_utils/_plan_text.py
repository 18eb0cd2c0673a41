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
    stored = plan["quantisation"]["name"]
    yield _line("weights are in", settings["dtype"] if stored == "none" else stored, _arithmetic(plan["quantisation"]))
    version = "" if settings["engine"] == "llama_cpp" else settings["engine_version"]
    yield _line("engine", f"{settings['engine']} {version}".rstrip(), _parallel(settings))
    yield _line("longest request", f"{settings['max_model_len']:,} tokens", _batching(settings))
    yield f"memory of one {'GPU' if hardware['kind'] == 'gpu' else 'host'} ({_size(memory['total_bytes'])}):"
    for term in memory["terms"]:
        between = _between(term["low_bytes"], term["high_bytes"])
        # On a CPU it is what the processes of the engine take.
        name = "engine" if (hardware["kind"], term["name"]) == ("cpu", "non_torch") else TERMS[term["name"]]
        yield _line(name, _size(term["bytes"]) if term["bytes"] >= 0 else "nothing left", between)
    kept = memory["kv_cache"]
    yield _line("holds", f"{kept['tokens']:,} tokens", f"({kept['low_tokens']:,} to {kept['high_tokens']:,})")
    yield _line("longest requests at a time", f"{kept['concurrency']:,.1f}")
    yield _line("largest context", f"{memory['largest_context']:,} tokens")
    if not plan["fits"]:
        yield _line(f"missing on {'each GPU' if hardware['kind'] == 'gpu' else 'the host'}", _size(plan["missing_bytes"]))
    yield from _speed_lines(plan)
    for warning in plan["warnings"]:
        if warning["text"] in plan["summary"]:
            continue
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
    told = " ".join(f"{short} {size}" for short, size in sizes if size > 1) or "TP 1"
    return f"{told}{', expert parallel' if settings['expert_parallel'] else ''}, servers {settings['replicas']}"


def _batching(settings: Mapping[str, Any]) -> str:
    if settings["engine"] == "llama_cpp":
        return f"KV cache {settings['kv_cache_dtype']}, slots {settings['slots']}"
    kept = settings["dtype"] if settings["kv_cache_dtype"] == "auto" else settings["kv_cache_dtype"]
    return f"KV cache {kept}, batch {settings['max_num_batched_tokens']}, requests {settings['max_num_seqs']}"


def _speed_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    served, speed, work = plan.get("service"), plan.get("speed"), plan.get("workload")
    if speed:
        yield "speed of one server:"
        bounds = (speed["low_factor"], speed["high_factor"])
        for name, key in (("prefill", "prefill_tokens_per_second"), ("one request alone", "single_stream_tokens_per_second")):
            yield _line(name, f"{number(speed[key])} tokens/s", _factors(speed[key], bounds))
    if served and work:
        yield f"workload ({number(work['requests_per_day'])} requests a day, peak factor {number(work['peak_factor'])}):"
        yield _line("running in one server", f"{served['concurrency']:.1f}", "requests")
        goals = {"ttft": "time to first token", "itl": "between tokens", "e2e": "whole answer"}
        for key, name in goals.items():
            goal = work["slo"].get(f"{key}_ms")
            told = [f"95 %: {number(served[f'{key}_p95_ms'])} ms"] if served.get(f"{key}_p95_ms") is not None else []
            told += [f"wanted: {number(goal)} ms, best {number(served[f'best_{key}_ms'])} ms"] if goal else []
            value = "no end" if served.get(f"{key}_ms") is None else f"{number(served[f'{key}_ms'])} ms"
            yield _line(name, value, ", ".join(told))
        yield _line("all servers, a day", f"{number(served['requests_per_day_at_slo'] or 0)}", "requests within the SLO")
        if served.get("replicas_needed") is not None:
            yield _line("servers needed", number(served["replicas_needed"]))
        yield _line("limited by", str(served.get("limited_by")))
    for row in (plan.get("cost") or {}).get("summary", []):
        yield _line(row["name"], f"{number(row['value'])} {row['unit']}", "by example prices" if _examples(plan["cost"]) else "")
    drafted = plan.get("speculative")
    if drafted:
        even = drafted["break_even_acceptance"]
        yield _line("speculative decoding", f"{drafted['speedup']:.2f} times", f"{drafted['method']}, {drafted['tokens']} tokens")
        yield _line("pays from an acceptance of", "never" if even is None else f"{even:.2f}")


def _examples(cost: Mapping[str, Any]) -> bool:
    return bool(cost.get("prices_are_examples"))


def _factors(value: float, bounds: tuple[float, float]) -> str:
    return f"({number(value * bounds[0])} to {number(value * bounds[1])})"


def search_lines(found: Mapping[str, Any] | None) -> Iterator[str]:
    """The front of a search, best first."""
    if not found:
        return
    yield f"search: {found['considered']} deployments considered, {found['do_not_fit']} do not fit; the Pareto front:"
    yield f"  {'deployment':<90} {'tokens/s':>10} {'ITL ms':>8} {'room':>6} {'loss %':>7}"
    for one in found["deployments"]:
        if one["front"]:
            loss = "?" if one["quality_loss"] is None else f"{one['quality_loss']:.1f}"
            rate = number(one["tokens_per_second"]) if one["tokens_per_second"] is not None else "?"
            mark = "*" if one["chosen"] else " "
            interval, room = number(one["itl_ms"] or 0), one["headroom_share"]
            yield f"{mark} {one['label'][:90]:<90} {rate:>10} {interval:>8} {room:>6.0%} {loss:>7}"
    yield f"* {found['chosen']['why']}" if found["chosen"] else f"nothing was chosen: {found.get('reason')}"
