#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Hold the planner against what engines logged, and write the tables of docs/planning.md.

    make accuracy                              the tables, from tests/bench/accuracy/
    tests/bench/accuracy.py --each             every case, with its terms
    tests/bench/accuracy.py --fit              the constants of planning_engines.yml, from the half of the cases that is for it
    tests/bench/accuracy.py --estimators       ask accelerate again (needs accelerate, transformers and torch; no network)

A case is one run of an engine that somebody published. Half of them, by a hash of their names, are what the constants were
fitted on; the other half only tells how far off a plan is. What a case is not used for, and why, stands in it (`left_out`).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))

import yaml
from ansible_collections.onprem.llm.plugins.module_utils._model_deployment import (
    Deployment,
    Memory,
    Model,
    deployment_of,
    memory_of,
)
from ansible_collections.onprem.llm.plugins.module_utils._model_families import architecture as architecture_of
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import forward_elements, of_version
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import scheme_named, scheme_of
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import hardware, planning_data

CASES = ROOT / "tests/bench/accuracy/cases.yml"
ESTIMATES = ROOT / "tests/bench/accuracy/estimate_memory.json"
CONFIGS = ROOT / "tests/fixtures/configs"
DOCUMENT = ROOT / "docs/planning.md"
GIB = 2**30
NAMES = {
    "gpu_memory_utilization": "memory_utilization",
    **{
        name: name
        for name in ("tensor_parallel", "pipeline_parallel", "max_num_batched_tokens", "max_num_seqs", "kv_cache_dtype")
    },
}
# Bits of a weight where `accelerate estimate-memory` has a column for it.
ESTIMATED_BITS = {"fp8": 8, "int8": 8, "awq": 4, "gptq": 4, "w4a16": 4, "nf4": 4, "mxfp4": 4}


def cases() -> list[dict[str, Any]]:
    return list(yaml.safe_load(CASES.read_text(encoding="utf-8")))


def deployment(case: Mapping[str, Any]) -> Deployment:
    """The case as an operator would have asked for it."""
    config = json.loads((CONFIGS / f"{case['config']}.json").read_text(encoding="utf-8"))
    asked = case["quantisation"].removesuffix("_dynamic")
    stored = case.get("quantization_config") or config.get("quantization_config")
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    architecture = architecture_of(config, case["config"])
    dtype = {"half": "float16"}.get(case.get("dtype", ""), case.get("dtype")) or architecture.dtype
    same = stored and (case.get("quantization_config") or asked in str(stored.get("quant_method")))
    scheme = scheme_of(stored, dtype) if same else scheme_named(asked, dtype, architecture)
    device, _count = hardware(case["gpu"] or "a100_sxm4_80gb")
    # The first engine of vLLM went on beside the second until 0.9; it is planned for as the versions that had it alone.
    version = (re.match(r"\d+\.\d+(\.\d+)?", case.get("engine_version") or "") or ["0.12.0"])[0]
    first = case["generation"] == "v0"
    length = case.get("max_model_len") or architecture.max_context
    settings: dict[str, Any] = {
        "engine": "vllm",
        "dtype": dtype,
        "max_model_len": length,
        "engine_version": "0.7.0" if first else version,
    }
    settings.update({ours: case[theirs] for theirs, ours in NAMES.items() if case.get(theirs)})
    if first and "max_num_batched_tokens" not in settings:
        settings["max_num_batched_tokens"] = max(length, 2048) if length <= 32768 else 2048
    settings.update({"cuda_graphs": False} if case.get("enforce_eager") else {})
    settings.update({"prefix_caching": False} if "--no-enable-prefix-caching" in str(case.get("arguments")) else {})
    settings["block_size"] = int((re.search(r"--block-size[ =](\d+)", str(case.get("arguments"))) or [0, 0])[1]) or None
    model = Model(case["model"], case["config"], architecture, scheme.fitted(architecture))
    return deployment_of(model, device, 1024, settings, planning_data()["engines"]["engines"])


def looked_at(case: Mapping[str, Any]) -> dict[str, Any]:
    """What was planned, what was measured, and what the two usual rules of thumb say."""
    planned = deployment(case)
    memory = memory_of(planned, planning_data()["engines"]["engines"])
    longest = planned.settings.max_model_len
    measured = case["measured"]
    sizes = {
        name: max(0, size)
        for name, size in (("value", memory.cache.bytes), ("low", memory.cache.low), ("high", memory.cache.high))
    }
    tokens = {name: memory.held.tokens(size, longest) for name, size in sizes.items()}
    gpus = planned.settings.tensor_parallel * planned.settings.pipeline_parallel
    rules = {"times 1.2": planned.model.architecture.parameters() * _bits(case, planned) / 8 * 1.2 / gpus}
    estimated = json.loads(ESTIMATES.read_text(encoding="utf-8"))["models"].get(case["config"]) if ESTIMATES.exists() else None
    if estimated:
        rules["accelerate"] = (
            estimated["float32_bytes"] * ESTIMATED_BITS.get(case["quantisation"].removesuffix("_dynamic"), 16) / 32 / gpus
        )
    return {
        "case": case,
        "planned": planned,
        "memory": memory,
        "weights": (memory.terms["weights"].bytes / GIB, measured.get("weights_gib")),
        "tokens": (tokens, measured.get("kv_tokens")),
        "rules": {name: {"weights": size / GIB, "tokens": _plain_tokens(planned, memory, size)} for name, size in rules.items()},
    }


def _bits(case: Mapping[str, Any], planned: Deployment) -> float:
    return ESTIMATED_BITS.get(case["quantisation"].removesuffix("_dynamic"), 32 if planned.settings.dtype == "float32" else 16)


def _plain_tokens(planned: Deployment, memory: Memory, taken: float) -> float:
    """KV tokens by a rule of thumb: what is left, over 2 x layers x KV heads x head dimension; it knows no window, no MLA."""
    architecture, settings = planned.model.architecture, planned.settings
    each = 2 * len(architecture.layers) * architecture.kv_heads * architecture.head_dim * settings.element
    gpus = settings.tensor_parallel * settings.pipeline_parallel
    return max(0.0, (memory.total.bytes * settings.memory_utilization - taken) * gpus / each) if each else 0.0


def error(planned: float, measured: float) -> float:
    return planned / measured - 1


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(found: list[dict[str, Any]]) -> str:
    """The tables of the document, in Markdown."""
    lines = ["| | cases | median | nine in ten within | worst |", "|---|---|---|---|---|"]
    groups = (("all cases", found), ("held out", [one for one in found if one["case"]["half"] == "held out"]))
    for title, chosen in groups:
        for what, use in (("weights", "weights"), ("KV tokens", "kv")):
            used = [one for one in chosen if use in one["case"]["uses"]]
            kinds: dict[str, list[float]] = {"this planner": []}
            for one in used:
                if use == "weights":
                    kinds["this planner"].append(abs(error(*one["weights"])))
                else:
                    kinds["this planner"].append(abs(error(one["tokens"][0]["value"], one["tokens"][1])))
                for name, rule in one["rules"].items():
                    wanted = one["weights"][1] if use == "weights" else one["tokens"][1]
                    kinds.setdefault(name, []).append(abs(error(rule["weights" if use == "weights" else "tokens"], wanted)))
            names = {"accelerate": "`accelerate estimate-memory`", "times 1.2": "weights x 1.2"}
            for name, errors in kinds.items():
                if errors:
                    lines.append(
                        f"| {what}, {title}: {names.get(name, name)} | {len(errors)} | {statistics.median(errors):.1%} | "
                        f"{quantile(errors, 0.9):.1%} | {max(errors):.1%} |".replace("%", " %")
                    )
    inside = [one for one in found if "kv" in one["case"]["uses"]]
    hit = [one for one in inside if one["tokens"][0]["low"] <= one["tokens"][1] <= one["tokens"][0]["high"]]
    held = [one for one in inside if one["case"]["half"] == "held out"]
    lines += [
        "",
        f"The interval of the KV tokens holds the truth in {len(hit)} of {len(inside)} cases, and in "
        f"{sum(one in hit for one in held)} of the {len(held)} held-out ones. "
        f"GPUs: {len({one['case']['gpu'] for one in inside})} kinds; models: {len({one['case']['config'] for one in found})}.",
        "",
        "| case | vLLM | GPUs | weights, GiB: planned, logged | error | KV tokens: planned (interval), logged | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        case, (weights, logged), (tokens, counted) = one["case"], one["weights"], one["tokens"]
        if not case["uses"]:
            continue
        gpus = f"{case.get('tensor_parallel', 1) * case.get('pipeline_parallel', 1)} x {case['gpu'] or 'not told'}"
        first = f"{weights:.2f}, {logged:.2f} | {error(weights, logged):+.1%}" if "weights" in case["uses"] else "- | -"
        second = (
            f"{tokens['value']:,} ({tokens['low']:,} to {tokens['high']:,}), {counted:,} | {error(tokens['value'], counted):+.1%}"
            if "kv" in case["uses"]
            else "- | -"
        )
        lines.append(f"| {case['id']} | {case.get('engine_version') or '-'} | {gpus} | {first} | {second} |".replace("%", " %"))
    return "\n".join(lines)


def each(found: list[dict[str, Any]]) -> None:
    for one in found:
        case, memory = one["case"], one["memory"]
        print(f"{case['id']} ({case['half']}) {case.get('left_out', '')}")
        for name, key in (
            ("weights", "weights_gib"),
            ("activation", "activation_gib"),
            ("non_torch", "non_torch_gib"),
            ("cuda_graphs", "cuda_graph_gib"),
        ):
            amount, measured = memory.terms.get(name), case["measured"].get(key)
            if amount and measured is not None:
                inside = "" if amount.low / GIB <= measured <= amount.high / GIB else "  outside"
                print(
                    f"    {name:12} {amount.bytes / GIB:8.2f} ({amount.low / GIB:.2f} to {amount.high / GIB:.2f}) GiB, "
                    f"logged {measured:8.2f}{inside}"
                )
        if case["measured"].get("kv_tokens"):
            tokens, counted = one["tokens"]
            inside = "" if tokens["low"] <= counted <= tokens["high"] else "  outside"
            print(
                f"    KV tokens    {tokens['value']:,} ({tokens['low']:,} to {tokens['high']:,}), logged {counted:,}: "
                f"{error(tokens['value'], counted):+.1%}{inside}"
            )


def fit(found: list[dict[str, Any]]) -> None:
    """The constants, as medians over the half of the cases that is for it; nothing is set by one case."""
    half = [one for one in found if one["case"]["half"] == "fit" and "kv" not in one["case"].get("left_out", "")]
    engine = planning_data()["engines"]["engines"]["vllm"]
    for since, upto in (((0, 0), (0, 17)), ((0, 17), (0, 26))):
        print(f"vLLM {'.'.join(map(str, since))} to {'.'.join(map(str, upto))}:")
        chosen = [one for one in half if since <= one["planned"].settings.engine_version[:2] < upto]
        bytes_, ratios, graphs = [], [], []
        libraries: dict[str, list[float]] = {"one": [], "several": []}
        for one in chosen:
            settings, architecture, measured = one["planned"].settings, one["planned"].model.architecture, one["case"]["measured"]
            figures = of_version(engine["activation"], settings.engine_version)
            peak = measured.get("activation_gib", 0) * GIB
            if peak:
                ratios.append(peak / one["memory"].terms["activation"].bytes)
            logits = min(settings.max_num_seqs, settings.max_num_batched_tokens) * architecture.vocabulary
            size = 4 if settings.dtype == "float32" else 2
            batch = size * settings.max_num_batched_tokens
            plain = not (architecture.experts or architecture.vision)
            if (
                peak
                and plain
                and logits * figures["logit_bytes"] > batch * forward_elements(architecture, settings, figures["hidden_vectors"])
            ):
                bytes_.append((peak - batch * architecture.hidden_size * figures["hidden_kept"]) / logits)
            if measured.get("non_torch_gib") is not None:
                libraries["several" if settings.tensor_parallel > 1 else "one"].append(measured["non_torch_gib"])
            if measured.get("cuda_graph_gib", 0) > 0 and settings.cuda_graphs:
                graphs.append(measured["cuda_graph_gib"] * GIB / one["memory"].terms["cuda_graphs"].bytes)
        for name, values in (
            ("activation, bytes of a logit", bytes_),
            ("activation, logged over planned", ratios),
            ("CUDA graphs, logged over planned", graphs),
            *((f"beside PyTorch, {name}, GiB", values) for name, values in libraries.items()),
        ):
            if values:
                ends = f"{min(values):.2f} to {max(values):.2f}"
                print(f"    {name}: median {statistics.median(values):.2f}, {ends}, {len(values)} cases")


def estimators() -> None:
    """What `accelerate estimate-memory` says of each config: total size of AutoModel in float32, without the hub."""
    import accelerate
    import torch
    import transformers
    from accelerate import init_empty_weights
    from accelerate.utils import calculate_maximum_sizes

    found: dict[str, Any] = {}
    for name in sorted({case["config"] for case in cases()}):
        config = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        try:
            known = transformers.AutoConfig.for_model(**config)
            with init_empty_weights(), torch.device("meta"):
                model = transformers.AutoModel.from_config(known, dtype="float32")
            found[name] = {"float32_bytes": calculate_maximum_sizes(model)[0]}
        except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as reason:
            print(f"{name}: {str(reason)[:100]}")
    versions = {"accelerate": accelerate.__version__, "transformers": transformers.__version__}
    ESTIMATES.write_text(json.dumps({"versions": versions, "models": found}, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold the planner against published logs.")
    for name in ("each", "fit", "estimators"):
        parser.add_argument(f"--{name}", action="store_true")
    asked = parser.parse_args()
    if asked.estimators:
        estimators()
        return 0
    found = [looked_at(case) for case in cases() if case.get("quantisation")]
    if asked.each or asked.fit:
        (each if asked.each else fit)(found)
        return 0
    text = table(found)
    print(text)
    if DOCUMENT.exists():
        document = DOCUMENT.read_text(encoding="utf-8")
        begin, end = "<!-- accuracy -->\n", "\n<!-- end of accuracy -->"
        head, _begin, rest = document.partition(begin)
        DOCUMENT.write_text(head + begin + text + end + rest.partition(end)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
