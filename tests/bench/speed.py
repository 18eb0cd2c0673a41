#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Hold planned speeds against published ones, and write the table of docs/planning.md.

    tests/bench/speed.py                       the table, from tests/bench/accuracy/speeds.yml
    tests/bench/speed.py --each                every row

A row is one speed that somebody published. On the rows of one half constants of planning_speed.yml may be fitted; the other half
only tells how far off a plan is. What a source does not tell and is assumed stands in the row (`note`) or its document
(`assumed`). Errors are of the logarithm, so that half and double count alike.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))

import yaml
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import Architecture
from ansible_collections.onprem.llm.plugins.module_utils._model_families import architecture as architecture_of
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import Device, Settings, weights
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import cache as cache_of
from ansible_collections.onprem.llm.plugins.module_utils._model_quantisation import Scheme, scheme_named, scheme_of
from ansible_collections.onprem.llm.plugins.module_utils._model_speed import DAY, Workload, points, profile, service
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import hardware, planning_data

SPEEDS = ROOT / "tests/bench/accuracy/speeds.yml"
CONFIGS = ROOT / "tests/fixtures/configs"
DOCUMENT = ROOT / "docs/planning.md"
HALVES = ("fit", "held out")
# Engines that a plan has no constants of its own for.
PLANNED_AS = {"tensorrt_llm": "vllm", "sglang": "vllm", "gpt_fast": "vllm"}
# The longest request of any row.
LONGEST = 32768
# Where every request is there at once: what an engine keeps beside weights and KV cache, and the KV cache's share of the rest.
BESIDE_BYTES, CACHE_SHARE = 3_000_000_000, 0.9
CPU_MEMORY = 2**38


@cache
def published() -> dict[str, Any]:
    """The data file: documents, groups, models and runs."""
    return dict(yaml.safe_load(SPEEDS.read_text(encoding="utf-8")))


def label(point: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """What tells a point from the others of its run: its concurrency, or its lengths."""
    if len(among) == 1:
        return ""
    if len({other.get("concurrency") for other in among}) > 1:
        return f"c{point['concurrency']}"
    return "/".join(str(point[key]) for key in ("prompt", "answer", "context") if key in point)


def rows() -> list[dict[str, Any]]:
    """Every published speed, with all that its run says."""
    found = []
    for run in published()["runs"]:
        shared = {key: value for key, value in run.items() if key != "points"}
        for point in run["points"]:
            found.append({**shared, **point, "id": " ".join(filter(None, (run["id"], label(point, run["points"]))))})
    return found


@cache
def model(name: str) -> tuple[Architecture, Mapping[str, Any] | None]:
    """A model's architecture, and how its config says that it is quantised."""
    own = published()["models"].get(name)
    config = dict(own["numbers"]) if own else json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    stored = config.pop("quantization_config", None)
    return architecture_of(config, name), stored


def device(given: Any) -> Device:
    """What a row ran on. How much memory the host of a CPU has does not matter to its speed, and must be given."""
    product = given["product"] if isinstance(given, Mapping) else given
    if product in planning_data()["gpus"]["cpus"]:
        asked = given if isinstance(given, Mapping) else {"product": product}
        return hardware({"memory_bytes": CPU_MEMORY, **asked})[0]
    return hardware(given)[0]


def planned(row: Mapping[str, Any]) -> tuple[Architecture, Scheme, Device, Settings]:
    """The deployment of a row."""
    architecture, stored = model(row["model"])
    asked = row["quantisation"]
    scheme = scheme_of(stored, architecture.dtype) if asked == "stored" else scheme_named(asked, architecture.dtype, architecture)
    engine = PLANNED_AS.get(row["engine"], row["engine"])
    settings = Settings(engine=engine, dtype=architecture.dtype, max_model_len=LONGEST, **row.get("settings", {}))
    if settings.gpus != row["count"]:
        raise ValueError(f"{row['id']}: count: found {row['count']}; its settings take {settings.gpus} GPUs")
    return architecture, scheme.fitted(architecture), device(row["gpu"]), settings


def decode(row: Mapping[str, Any]) -> float:
    """Tokens/s of the requests that run."""
    counted = profile(*planned(row), planning_data()["speed"])
    context = row["context"] if "context" in row else row["prompt"] + row["answer"] / 2
    return float(row["concurrency"] / counted.interval(row["concurrency"], context))


def prompt(row: Mapping[str, Any]) -> float:
    """Tokens/s of a prompt on an engine that does nothing else."""
    return float(row["prompt"] / profile(*planned(row), planning_data()["speed"]).prefill(row["prompt"]))


def uniform(row: Mapping[str, Any], daily: float = 1.0) -> Workload:
    """Requests that are all of one size."""
    return Workload(daily, 1, row["prompt"], row["prompt"], row["answer"], row["answer"])


def clients(row: Mapping[str, Any]) -> float:
    """Tokens/s of so many clients, each of which sends a request when its last one is answered."""
    number = row["concurrency"]
    curve = points(profile(*planned(row), planning_data()["speed"]), uniform(row), lambda _length: number)
    found = next(point for point in curve if point["concurrency"] == number)
    return float(number * row["answer"] / found["e2e_ms"] * 1000)


def most(row: Mapping[str, Any]) -> float:
    """Tokens/s with every request there at once: as many run as memory and the engine take."""
    architecture, scheme, gpu, settings = deployment = planned(row)
    room = (gpu.memory - sum(weights(architecture, scheme, settings).values()) - BESIDE_BYTES) * CACHE_SHARE
    # A request that runs has half of its answer, on average.
    held = cache_of(architecture, settings).concurrency(int(room), row["prompt"] + row["answer"] // 2)
    limit = min(held, row["requests"] / settings.data_parallel)
    # More come than anything serves, so that what is served is the capacity.
    endless = uniform(row, 1e6 * DAY)
    served = service(*deployment, endless, lambda _length: limit, planning_data()["speed"], curve=False)
    return float(served["tokens_per_second"])


MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {"decode": decode, "prompt": prompt, "clients": clients, "most": most}


def tokens_per_second(row: Mapping[str, Any]) -> float:
    """What was published, of all requests together."""
    value = float(row["value"])
    return value if row["unit"] == "tokens/s" else row["concurrency"] / value * 1000


def looked_at(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its planned and its published speed, and whether the interval that a plan states for its times holds it."""
    wanted, found = tokens_per_second(row), MEASURES[row["measure"]](row)
    engine = planning_data()["speed"]["engines"][PLANNED_AS.get(row["engine"], row["engine"])]
    bounds = engine["prefill_error" if row["measure"] == "prompt" else "error"]
    # Bounds are factors of a time: a published time over a planned one is a planned speed over a published one.
    ratio = found / wanted
    return {"row": row, "planned": found, "published": wanted, "ratio": ratio, "inside": bounds["low"] <= ratio <= bounds["high"]}


def compared() -> list[dict[str, Any]]:
    """Every row that is not left out."""
    return [looked_at(row) for row in rows() if not row.get("left_out")]


def on_gpu_engines(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of engines that serve many requests on GPUs, which vLLM's interval is for: all but llama.cpp."""
    return [one for one in found if one["row"]["engine"] != "llama_cpp"]


def error(ratios: Sequence[float]) -> float:
    """The median error, by the logarithm: 0.25 where half of the rows are off by more than a factor of 1.25."""
    return math.exp(statistics.median(abs(math.log(ratio)) for ratio in ratios)) - 1


def ninety(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which nine in ten of the ratios are, one in twenty beyond each end."""
    ordered = sorted(ratios)
    out = int(0.05 * len(ordered))
    return ordered[out], ordered[-1 - out]


def spread(ratios: Sequence[float]) -> str:
    """Median, lowest and highest ratio, and the median error."""
    text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {error(ratios):.0%} off"
    return text.replace("%", " %")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of the document, in Markdown."""
    lines = ["| published for | rows: fit | planned over published | rows: held out | planned over published |"]
    lines.append("|---|---|---|---|---|")
    for group, title in published()["groups"].items():
        cells = []
        for half in HALVES:
            ratios = [one["ratio"] for one in found if (one["row"]["group"], one["row"]["half"]) == (group, half)]
            cells += [str(len(ratios)), spread(ratios)] if ratios else ["-", "-"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    chosen = on_gpu_engines(found)
    held = [one for one in chosen if one["row"]["half"] == "held out"]
    bounds = planning_data()["speed"]["engines"]["vllm"]["error"]
    (low, high), (held_low, held_high) = (ninety([one["ratio"] for one in some]) for some in (chosen, held))
    close = sum(0.8 <= one["ratio"] <= 1.25 for one in held)
    said = (
        f"The interval of a time of vLLM, {bounds['low']:g} to {bounds['high']:g} times what is planned, holds "
        f"{sum(one['inside'] for one in chosen)} of the {len(chosen)} rows of GPU engines other than llama.cpp, and "
        f"{sum(one['inside'] for one in held)} of the {len(held)} that are held out. Nine in ten of all are between {low:.2f} "
        f"and {high:.2f}, and of those held out between {held_low:.2f} and {held_high:.2f}; {close} of these are within a factor "
        "of 1.25."
    )
    lines += ["", *textwrap.wrap(said, 130)]
    return "\n".join(lines)


def each(found: Sequence[Mapping[str, Any]]) -> None:
    for one in found:
        row = one["row"]
        outside = "" if one["inside"] else "  outside"
        print(
            f"{row['id']:60} {row['half']:8} published {one['published']:9,.1f}, planned {one['planned']:9,.1f} tokens/s: "
            f"{one['ratio']:.2f}{outside}"
        )
    for row in rows():
        if row.get("left_out"):
            print(f"{row['id']:60} {row['half']:8} left out: {row['left_out']}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold planned speeds against published ones.")
    parser.add_argument("--each", action="store_true")
    asked = parser.parse_args()
    found = compared()
    if asked.each:
        each(found)
        return 0
    text = table(found)
    print(text)
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    begin, end = "<!-- speed -->\n", "\n<!-- end of speed -->"
    head, begun, rest = document.partition(begin)
    _old, ended, tail = rest.partition(end)
    if begun and ended:
        DOCUMENT.write_text(head + begin + text + end + tail, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
