# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A plan beside what a running server reported, and what later plans may learn from the difference.

``read_log``, ``read_metrics`` and ``read_gpu_info`` make a ``Reported`` each; ``merged`` joins them; ``compare`` sets it beside
a plan; ``learnt_from`` adds the comparison to a store of corrections, and ``corrections_for`` reads them back. Sizes are bytes on
one GPU, times are milliseconds where a name says so. The lines are those of vLLM 0.4 to 0.32 (``vllm/worker/worker.py``,
``vllm/v1/worker/gpu_worker.py``, ``vllm/v1/worker/cpu_worker.py``, ``vllm/v1/core/kv_cache_utils.py``,
``vllm/v1/metrics/loggers.py``) and of llama.cpp (``src/llama-model.cpp``, ``src/llama-kv-cache.cpp``, ``src/llama-context.cpp``,
``tools/server``).
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

GIB, MIB = 2**30, 2**20
PLAN_FORM = 1
STORE_FORM = 1

# Terms of a comparison, in reading order, with their units.
UNITS = {
    "weights": "bytes",
    "activation": "bytes",
    "non_torch": "bytes",
    "cuda_graphs": "bytes",
    "kv_memory": "bytes",
    "kv_tokens": "tokens",
    "max_concurrency": "requests",
    "memory_used": "bytes",
    "itl": "ms",
    "ttft": "ms",
    "prefill": "tokens/s",
}
# Of several processes or GPUs, the one that decides: whoever needs most memory, and whoever has room for least.
LEAST_DECIDES = ("kv_memory", "kv_tokens", "kv_blocks", "max_concurrency")
# Terms of a plan that a correction multiplies. KV memory and tokens follow from them.
MEMORY_TERMS = ("weights", "activation", "non_torch", "cuda_graphs")
SPEED_TERMS = {"itl": "step_seconds", "prefill": "prefill_seconds"}
CORRECTED = (*MEMORY_TERMS, *SPEED_TERMS.values())

# Beyond these a factor says that plan and server are not about the same thing.
LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
KEPT_OBSERVATIONS = 9
# A figure whose rounding in the log is a larger share of it teaches nothing.
MOST_ROUNDING = 0.05
# Below these a mean latency says little: tokens, and requests for TTFT and prefill.
LEAST_TOKENS, LEAST_REQUESTS = 100, 10
# Prefill is learnt where prompts are long enough to be bound by it, and where few others run.
LEAST_PROMPT, MOST_BATCH = 512, 2.0


class ComparisonError(Exception):
    """A plan, a report or a store that cannot be used; the text names the place, the value found and the value wanted."""


# --- what was reported -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One figure of a server: that of the process or GPU that decides, and the least and most over all of them."""

    value: float
    low: float
    high: float
    count: int = 1
    rounding: float = 0.0  # half of the last digit that was printed
    note: str = ""


@dataclass
class Reported:
    """What a server said of itself. ``load`` says under which load its latencies were taken."""

    engine: str = ""  # vllm, vllm_cpu, llama_cpp
    engine_version: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Reading] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)
    gpus: list[dict[str, Any]] = field(default_factory=list)  # name, memory_bytes, used_bytes
    notes: list[str] = field(default_factory=list)


def merged(*reports: Reported) -> Reported:
    """Several reports of one server; where two have a figure, the earlier one's is kept.

    Raises ComparisonError when two are of different engines.
    """
    found = Reported()
    for report in reports:
        # Metrics do not say what they run on.
        families = {name.replace("vllm_cpu", "vllm") for name in (found.engine, report.engine) if name}
        if len(families) > 1:
            raise ComparisonError(f"reports: one is of {found.engine}, another of {report.engine}; all are to be of one server.")
        found.engine = report.engine if report.engine == "vllm_cpu" else found.engine or report.engine
        found.engine_version = found.engine_version or report.engine_version
        found.settings = {**report.settings, **found.settings}
        if "names" in report.settings:
            found.settings["names"] = sorted({*found.settings.get("names", []), *report.settings["names"]})
        found.terms = {**report.terms, **found.terms}
        found.load = {**report.load, **found.load}
        found.gpus = found.gpus or report.gpus
        found.notes += [note for note in report.notes if note not in found.notes]
    return found


def decided(term: str, values: Mapping[str, tuple[float, float]], what: str = "processes") -> Reading:
    """One reading of several: process or GPU to value and rounding."""
    numbers = [value for value, _rounding in values.values()]
    low, high = min(numbers), max(numbers)
    value = low if term in LEAST_DECIDES else high
    rounding = max(rounding for _value, rounding in values.values())
    note = ""
    if len(numbers) > 1:
        spread = "all alike" if low == high else f"{shown(low, UNITS.get(term, ''))} to {shown(high, UNITS.get(term, ''))}"
        taken = "" if low == high else f"; the {'least' if term in LEAST_DECIDES else 'most'} is taken"
        note = f"{len(numbers)} {what}, {spread}{taken}"
    return Reading(value, low, high, len(numbers), rounding, note)


# --- logs ------------------------------------------------------------------------------------------------------------

# Stands at the end of a line of which the rest may be missing, so that no figure that is cut is taken for a whole one.
HALF = "\N{HORIZONTAL ELLIPSIS}"
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
ANSI = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
# The process that printed a line: (Worker_TP0 pid=1), (VllmWorker rank=1 pid=2), (EngineCore_DP0 pid=3), (RayWorkerWrapper ...).
PROCESS = re.compile(r"\(((?:Vllm|Ray)?(?:Worker|EngineCore|Engine|APIServer|ApiServer)\w*(?: [^()]*)?)\)")

# Term, its line, bytes of its unit, digits after the point at least (zeros at the end are dropped by newer versions), and
# priority: where several lines give a term, the lowest number wins.
Line = tuple[str, "re.Pattern[str]", float, int, int]


def _line(term: str, pattern: str, unit: float, digits: int = 0, priority: int = 0) -> Line:
    return term, re.compile(pattern.replace("<N>", NUMBER)), unit, digits, priority


VLLM_LINES: tuple[Line, ...] = (
    _line("weights", r"Model loading took <N> (?:GiB|GB)(?: memory)? and ", GIB, 2),
    _line("weights", r"Loading model weights took <N> (?:GiB|GB)\b", GIB, 2),
    _line("weights", r"model weights take <N> ?GiB", GIB, 2, 1),
    _line("weights", r"Actual usage is <N> GiB for weight,", GIB, 2, 2),
    _line("weights", r"weights memory: <N> ?GiB", GIB, 2, 2),
    _line("kv_memory", r"Available KV cache memory: <N> GiB", GIB, 2),
    _line("kv_memory", r"the rest of the memory reserved for KV Cache is <N> ?GiB", GIB, 2),
    _line("kv_memory", r"kv_cache_size=<N>GiB", GIB, 2),
    _line("kv_memory", r"(?:Explicitly|Auto) set \(<N>/-?[\d.]+\) GiB for KV cache", GIB, 2),
    _line("kv_memory", r"reserved <N> GiB memory for KV Cache as specified", GIB, 2),
    _line("kv_memory", r"larger than the available KV cache memory \(<N> GiB\)", GIB, 2, 1),
    _line("kv_memory", r"Current kv cache memory in use is <N> GiB", GIB, 2, 2),
    _line("kv_tokens", r"KV cache size: <N> tokens", 1),
    _line("kv_blocks", r"# (?!CPU)\w+ blocks: <N>(?:,|\s|$)", 1),
    _line("max_concurrency", r"Maximum concurrency for [\d,]+ tokens per request: <N>x", 1, 2),
    _line("activation", r"PyTorch activation peak memory takes <N> ?GiB", GIB, 2),
    _line("activation", r"torch peak memory increase: <N> ?GiB", GIB, 2, 1),
    _line("non_torch", r"non_torch_memory takes <N> ?GiB", GIB, 2),
    _line("non_torch", r"non_torch_memory=<N>GiB", GIB, 2),
    _line("non_torch", r"<N> GiB for non-torch memory", GIB, 2),
    _line("non_torch", r"non-torch forward increase memory: <N> ?GiB", GIB, 2, 1),
    _line("peak_activation", r"<N> GiB for peak activation", GIB, 2),
    _line("peak_torch", r"peak_torch_memory=<N>GiB", GIB, 2),
    _line("consumed", r"Actual usage is <N> GiB for consumed memory", GIB, 2),
    _line("graphs_actual", r"Graph capturing finished in \d+ secs, took <N> GiB", GIB, 2),
    _line("graphs_actual", r"CUDA graph pool memory: <N> GiB \(actual\)", GIB, 2, 1),
    _line("graphs_actual", r"<N> GiB for CUDAGraph memory", GIB, 2, 2),
    _line("graphs_estimated", r"CUDA graph pool memory: -?[\d.]+ GiB \(actual\), <N> GiB \(estimated\)", GIB, 2),
    _line("graphs_estimated", r"Estimated CUDA graph memory: <N> GiB total", GIB, 2),
)
VLLM_CONFIG = re.compile(r"Initializing (?:an|a V\d) LLM engine \(v([^)\s]+)\) with config: (.*)")
VLLM_VERSION = re.compile(r"(?:vLLM (?:API )?server version|█\s+version) v?(\d[\w.+-]*)(?![\w.+-]|" + HALF + ")")
VLLM_MODEL = re.compile(r"█\s+model\s+([^\s" + HALF + r"]+)\s*$")
CONFIG_FIELDS = {
    "model": "model",
    "max_seq_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "data_parallel_size": "data_parallel",
    "dtype": "dtype",
    "kv_cache_dtype": "kv_cache_dtype",
    "quantization": "quantisation",
    "served_model_name": "served_model_name",
    "device_config": "device",
    "enforce_eager": "enforce_eager",
    "enable_prefix_caching": "prefix_caching",
}
ARGUMENTS = {
    "gpu_memory_utilization": "memory_utilization",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "block_size": "block_size",
    "enable_expert_parallel": "expert_parallel",
}
ARGUMENT_LINES = re.compile(r"(?:non-default args: \{|args: Namespace\()(.*)")

# Before the end of 2024 a buffer of weights is only that.
LLAMA_BUFFER = re.compile(
    r"(?:load_tensors: +(?P<old>[\w.]+)|(?P<device>[\w.]+) +(?P<kind>model|KV|RS|compute)) buffer size = +(?P<size>[\d.]+) MiB"
)
LLAMA_BUFFERS = {"model": "weights", "KV": "kv_memory", "RS": "kv_memory", "compute": "activation"}
LLAMA_SETTINGS = re.compile(r"\b(n_ctx_per_seq|n_ctx_seq|n_ctx|n_seq_max|n_ubatch|kv_unified|flash_attn) += +(\w+)\s*$")
LLAMA_CONTEXT = re.compile(r"\bllama_(?:context|init_from_model|new_context_with_model): ")
LLAMA_MODEL = re.compile(r"loaded meta data with .* from (.+?) \(version ")
LLAMA_FILE_TYPE = re.compile(r"print_(?:info|meta): (?:file type|model ftype) += +([^" + HALF + r"]+?)\s*$")
LLAMA_BUILD = re.compile(r"\bbuild(?:: | = |=)(\d+) (?:\([0-9a-f]+\)|commit=)")
LLAMA_KV_TYPES = re.compile(r"K \((\w+)\): +[\d.]+ MiB, V \((\w+)\)")
LLAMA_SELF = re.compile(r"KV self size += +" + NUMBER + r" MiB")
LLAMA_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
# Memory of the host, also where it is pinned for a GPU.
LLAMA_HOST = re.compile(r"^(?:CPU|.*_Host$|BLAS)")

SOUGHT = (
    'of vLLM "Model loading took", "Loading model weights took", "Available KV cache memory", "memory reserved for KV Cache is", '
    '"GiB for KV cache on node", "KV cache size", "# GPU blocks", "Maximum concurrency for"; of llama.cpp "model buffer size", '
    '"KV buffer size", "compute buffer size"'
)


def clean_lines(text: str) -> Iterator[str]:
    """Lines without colours; a progress bar writes several into one. A last line that does not end is marked as half."""
    lines = [line for line in re.split(r"[\r\n]+", ANSI.sub("", text)) if line.strip()]
    if lines and text[-1] not in "\r\n":
        lines[-1] += HALF
    yield from lines


def read_log(text: str) -> Reported:
    """What the log of a model server says, of its last start if there are several.

    Lines of a journal or a container may have anything before them. Raises ComparisonError when no figure is in it.
    """
    if not isinstance(text, str):
        raise ComparisonError(f"log: is {type(text).__name__}; a text is wanted.")
    lines = list(clean_lines(text))
    start, earlier = _last_start(lines)
    lines = lines[start:]
    if any(LLAMA_BUFFER.search(line) or LLAMA_MODEL.search(line) for line in lines):
        found = _read_llama_cpp(lines)
    else:
        found = _read_vllm(lines)
    if not found.terms:
        where = f"of the last start ({len(lines)} lines) " if earlier else f"({len(lines)} lines) "
        raise ComparisonError(f"log: the text {where}has no figure of memory; looked for were, {SOUGHT}.")
    if earlier:
        found.notes.append("the log is of several starts; the last one is read")
    return found


def _last_start(lines: Sequence[str]) -> tuple[int, bool]:
    """Where the last start of a server begins, and whether there was one before that had reported something."""
    start, reported, earlier = 0, False, False
    for number, line in enumerate(lines):
        process = PROCESS.search(line)
        # Each of several API servers of one start may print its version.
        begins = (VLLM_VERSION.search(line) and not (process and process[1].startswith("ApiServer"))) or LLAMA_BUILD.search(line)
        if begins and reported:
            start, reported, earlier = number, False, True
        reported = reported or bool(LLAMA_BUFFER.search(line)) or any(rule[1].search(line) for rule in VLLM_LINES)
    return start, earlier


def _number(text: str, unit: float, digits: int) -> tuple[float, float]:
    """Value and half of its last digit, in the term's unit."""
    printed = len(text.partition(".")[2])
    rounding = 0.5 * 10.0 ** -max(printed, digits) * unit if printed or digits else 0.0
    return float(text.replace(",", "")) * unit, rounding


def _read_vllm(lines: Sequence[str]) -> Reported:
    found = Reported(engine="vllm")
    raw: dict[str, dict[str, tuple[int, float, float]]] = {}
    repeated = set()
    for line in lines:
        process = PROCESS.search(line)
        name = process[1] if process else ""
        for term, pattern, unit, digits, priority in VLLM_LINES:
            hit = pattern.search(line)
            if not hit:
                continue
            value, rounding = _number(hit[1], unit, digits)
            before = raw.setdefault(term, {}).get(name)
            if before is None or priority <= before[0]:
                if before is not None and priority == before[0] and abs(before[1] - value) > rounding:
                    repeated.add(term)
                raw[term][name] = (priority, value, rounding)
        _vllm_settings(line, found)
    best: dict[str, dict[str, tuple[float, float]]] = {}
    for term, values in raw.items():
        # One process may print what another leaves to a line of lower rank; figures of both would be counted twice.
        rank = min(priority for priority, _value, _rounding in values.values())
        best[term] = {name: (value, rounding) for name, (priority, value, rounding) in values.items() if priority == rank}
    _derive(best, found)
    found.terms = {term: decided(term, values) for term, values in best.items() if term in UNITS or term == "kv_blocks"}
    found.notes += [f"{term}: one process printed it more than once; the last is taken" for term in sorted(repeated & set(UNITS))]
    if found.settings.get("device") == "cpu":
        found.engine = "vllm_cpu"
    return found


def _derive(best: dict[str, dict[str, tuple[float, float]]], found: Reported) -> None:
    """Terms that versions print only together with others."""

    def less(term: str, taken: str) -> dict[str, tuple[float, float]]:
        """A term without another, process by process; one figure serves all where only one process printed it."""
        parts = best[taken]
        only = next(iter(parts.values())) if len(parts) == 1 else None
        return {
            name: (value - part[0], rounding + part[1])
            for name, (value, rounding) in best[term].items()
            for part in [parts.get(name, only)]
            if part is not None
        }

    switched_off = found.settings.pop("graphs_not_in_budget", False)
    if "activation" not in best and "peak_activation" in best:
        # Since 0.21 the printed peak holds the estimate of CUDA graphs that was taken out of the budget, and the third term is
        # no longer printed ("consumed memory" instead).
        if "consumed" in best and "graphs_estimated" in best and not switched_off:
            best["activation"] = less("peak_activation", "graphs_estimated")
        else:
            best["activation"] = best["peak_activation"]
    if "activation" not in best and "peak_torch" in best and "weights" in best:
        best["activation"] = less("peak_torch", "weights")
    if "non_torch" not in best and "consumed" in best and "weights" in best:
        best["non_torch"] = less("consumed", "weights")
        found.notes.append("non_torch: consumed memory less weights, as this version does not print it alone")
    in_budget = (
        "graphs_estimated" in best and not switched_off and ("consumed" in best or found.settings.pop("graphs_in_budget", False))
    )
    found.settings.pop("graphs_in_budget", None)
    if in_budget:
        best["cuda_graphs"] = best["graphs_estimated"]
        actual = best.get("graphs_actual")
        used = f"; {shown(decided('cuda_graphs', actual).value, 'bytes')} were used" if actual else ""
        found.notes.append(f"cuda_graphs: the engine's own estimate, which it takes out of the KV cache{used}")
    elif "graphs_actual" in best:
        best["cuda_graphs"] = best["graphs_actual"]
    for term in [term for term, values in best.items() if not values]:
        del best[term]


def _vllm_settings(line: str, found: Reported) -> None:
    settings = found.settings
    if version := VLLM_VERSION.search(line):
        found.engine_version = version[1]
    if model := VLLM_MODEL.search(line):
        settings.setdefault("model", model[1])
    if config := VLLM_CONFIG.search(line):
        found.engine_version = config[1]
        _config(config[2], settings)
    if arguments := ARGUMENT_LINES.search(line):
        for name, setting in ARGUMENTS.items():
            hit = re.search(rf"\b{name}['\"]?[=:] ?('[^']*'|\"[^\"]*\"|[^,\s)}}{HALF}]+)(?=[,\s)}}]|$)", arguments[1])
            if hit and _value(hit[1]) is not None:
                settings[setting] = _value(hit[1])
    if hit := re.search(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)\.", line):
        settings["max_num_batched_tokens"] = int(hit[1])
    if hit := re.search(r"(?:x gpu_memory_utilization|Desired GPU memory utilization is) \(([\d.]+)[,)]", line):
        settings["memory_utilization"] = float(hit[1])
    if hit := re.search(r"gpu_memory_utilization=([\d.]+\d)\s*$", line):
        settings["memory_utilization"] = float(hit[1])
    if hit := re.search(r"Maximum concurrency for ([\d,]+) tokens per request", line):
        settings["max_model_len"] = int(hit[1].replace(",", ""))
    if hit := re.search(r"Auto-fit max_model_len: reduced from \d+ to (\d+)", line):
        settings["max_model_len"] = int(hit[1])
    if re.search(r"CPU KV cache size: |GiB for KV cache on node \d", line):
        settings["device"] = "cpu"
    if "CUDA graph memory profiling is disabled" in line:
        settings["graphs_not_in_budget"] = True
    if "CUDA graph memory profiling is enabled (default since" in line:
        settings["graphs_in_budget"] = True
    if re.search(r"Overriding num_gpu_blocks=\d+ with num_gpu_blocks_override=\d+", line):
        found.notes.append("kv_tokens: num_gpu_blocks_override is set, so the cache is not the size that memory allows")
    if (
        "larger than the available KV cache memory" in line
        or "larger than the maximum number of tokens that can be stored" in line
    ):
        found.notes.append("the engine refused to start: one request of max_model_len does not fit into its KV cache")


def _config(text: str, settings: dict[str, Any]) -> None:
    """Fields of the engine's configuration; those of its parts (a drafter's, the compiler's) are left out."""
    text = re.split(r"\b(?:compilation_config|pooler_config)=", text)[0]
    text = re.sub(r"\bspeculative_config=\w+\([^()]*(?:\([^()]*\)[^()]*)*\)", "", text)
    for name, setting in CONFIG_FIELDS.items():
        hit = re.search(rf"(?:^|[\s,]){name}=('[^']*'|\"[^\"]*\"|[^,\s){HALF}]+)(?=[,\s)]|$)", text)
        if hit:
            value = _value(hit[1])
            settings[setting] = value if value is not None else "none" if setting == "quantisation" else None
    if settings.get("dtype"):
        settings["dtype"] = str(settings["dtype"]).replace("torch.", "")


def _value(text: str) -> Any:
    word = text.strip("'\"")
    if word in ("None", ""):
        return None
    if word in ("True", "False"):
        return word == "True"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _read_llama_cpp(lines: Sequence[str]) -> Reported:
    found = Reported(engine="llama_cpp")
    raw: dict[str, dict[str, tuple[float, float]]] = {}
    total: tuple[float, float] | None = None
    models = []
    for line in lines:
        if hit := LLAMA_BUFFER.search(line):
            value, rounding = _number(hit["size"], MIB, 2)
            term, device = LLAMA_BUFFERS[hit["kind"] or "model"], hit["device"] or hit["old"]
            before = raw.setdefault(term, {}).get(device, (0.0, 0.0))
            # Layers of two kinds have a buffer each; the compute buffer is made anew.
            again = term == "activation"
            raw[term][device] = (max(before[0], value) if again else before[0] + value, max(before[1], rounding))
        elif hit := LLAMA_SELF.search(line):
            total = _number(hit[1], MIB, 2)
        elif hit := LLAMA_MODEL.search(line):
            models.append(hit[1])
        elif hit := LLAMA_FILE_TYPE.search(line):
            found.settings.setdefault("quantisation", hit[1])
        elif (hit := LLAMA_OFFLOADED.search(line)) and int(hit[1]) < int(hit[2]):
            found.notes.append(f"weights: {hit[1]} of {hit[2]} layers are on GPUs, the others on the CPU")
        if hit := LLAMA_KV_TYPES.search(line):
            found.settings["kv_cache_dtype"] = hit[1] if hit[1] == hit[2] else f"{hit[1]}/{hit[2]}"
        if hit := LLAMA_BUILD.search(line):
            found.engine_version = f"b{hit[1]}"
        # A slot prints its own share under the same name.
        for name, value_text in LLAMA_SETTINGS.findall(line) if LLAMA_CONTEXT.search(line) else ():
            found.settings[name] = _value(value_text.capitalize() if value_text in ("true", "false") else value_text)
    if models:
        found.settings["model"] = models[0]
    if len(models) > 1:
        found.notes.append("weights: several models were loaded (a draft model); their buffers are counted together")
    devices = {name for values in raw.values() for name in values}
    on_gpu = {name for name in devices if not LLAMA_HOST.match(name)}
    for term, values in raw.items():
        if on_gpu:
            kept = {name: pair for name, pair in values.items() if name in on_gpu}
        else:
            kept = {"CPU": (sum(value for value, _rounding in values.values()), max(pair[1] for pair in values.values()))}
        if kept:
            found.terms[term] = decided(term, kept, "devices")
            if term == "kv_memory" and len(kept) > 1:
                # Each device holds the cells of its own layers: the one with most decides what fits.
                found.terms[term] = _with_value(found.terms[term], max(value for value, _rounding in kept.values()))
    if "kv_memory" not in found.terms and total:
        found.terms["kv_memory"] = Reading(total[0], total[0], total[0], 1, total[1], "over all devices")
    found.settings["device"] = "gpu" if on_gpu else "cpu"
    settings = found.settings
    slots, cells = settings.get("n_seq_max"), settings.get("n_ctx")
    each = settings.get("n_ctx_seq") or settings.get("n_ctx_per_seq")
    if isinstance(cells, int) and cells:
        found.terms["kv_tokens"] = Reading(cells, cells, cells)
        if not each and isinstance(slots, int) and slots:
            each = cells // slots
    if isinstance(each, int):
        settings["max_model_len"] = each
    if isinstance(slots, int):
        settings["slots"] = slots
    return found


def _with_value(reading: Reading, value: float) -> Reading:
    return Reading(value, reading.low, reading.high, reading.count, reading.rounding, reading.note.replace("least", "most"))


# --- metrics ---------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'^([A-Za-z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$')
LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
ESCAPES = {"n": "\n", "\\": "\\", '"': '"'}


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each sample in Prometheus' text format; what is not one is passed over."""
    for line in text.splitlines():
        hit = SAMPLE.match(line.strip())
        if not hit or line.lstrip().startswith("#"):
            continue
        try:
            value = float(hit[3])
        except ValueError:
            continue
        labels = {
            name: re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), word)
            for name, word in LABEL.findall(hit[2] or "")
        }
        yield hit[1], labels, value


class _Samples:
    def __init__(self, text: str) -> None:
        self.series: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, labels, value in samples(text):
            self.series.setdefault(name, []).append((labels, value))

    def total(self, *names: str) -> float | None:
        """Sum over all series of the first of these names that is there."""
        for name in names:
            values = [value for _labels, value in self.series.get(name, []) if math.isfinite(value)]
            if values:
                return sum(values)
        return None

    def mean(self, *names: str) -> tuple[float, float] | None:
        """Mean and count of the first of these histograms that has observations."""
        for name in names:
            count, total = self.total(f"{name}_count"), self.total(f"{name}_sum")
            if count and total is not None:
                return total / count, count
        return None


def read_metrics(text: str) -> Reported:
    """What /metrics of vLLM or llama.cpp says. Raises ComparisonError when it is of neither."""
    if not isinstance(text, str):
        raise ComparisonError(f"metrics: is {type(text).__name__}; a text is wanted.")
    found = _Samples(text)
    if any(name.startswith("vllm:") for name in found.series):
        return _read_vllm_metrics(found)
    if any(name.startswith("llamacpp:") for name in found.series):
        return _read_llama_cpp_metrics(found)
    raise ComparisonError(
        f"metrics: the text has {len(found.series)} metrics, none of which begins with vllm: or llamacpp:; looked for were "
        "vllm:cache_config_info, vllm:time_to_first_token_seconds, vllm:inter_token_latency_seconds and "
        "llamacpp:tokens_predicted_seconds_total."
    )


def _exact(value: float, note: str = "") -> Reading:
    return Reading(value, value, value, 1, 0.0, note)


def _read_vllm_metrics(found: _Samples) -> Reported:
    report = Reported(engine="vllm")
    labelled = found.series.get("vllm:cache_config_info", [])
    names = {labels["model_name"] for series in found.series.values() for labels, _value in series if "model_name" in labels}
    if names:
        report.settings["names"] = sorted(names)
    tokens: dict[str, tuple[float, float]] = {}
    blocks: dict[str, tuple[float, float]] = {}
    concurrency: dict[str, tuple[float, float]] = {}
    for number, (labels, _value) in enumerate(labelled):
        engine = labels.get("engine", str(number))
        for label, store in (
            ("kv_cache_size_tokens", tokens),
            ("num_gpu_blocks", blocks),
            ("kv_cache_max_concurrency", concurrency),
        ):
            given = _value_of(labels, label)
            if given:
                store[engine] = (given, 0.0)
        block_size = _value_of(labels, "block_size")
        if block_size:
            report.settings["block_size"] = int(block_size)
        for label, setting in (("gpu_memory_utilization", "memory_utilization"), ("cache_dtype", "kv_cache_dtype")):
            if labels.get(label, "None") != "None":
                report.settings[setting] = _value_of(labels, label) if setting == "memory_utilization" else labels[label]
    for term, values in (("kv_tokens", tokens), ("kv_blocks", blocks), ("max_concurrency", concurrency)):
        if values:
            report.terms[term] = decided(term, values, "engines")
    load = report.load
    usage = found.series.get("vllm:kv_cache_usage_perc") or found.series.get("vllm:gpu_cache_usage_perc")
    if usage:
        load["kv_usage"] = max(value for _labels, value in usage)
    for name, metrics in (
        ("requests", ("vllm:request_success_total",)),
        ("running", ("vllm:num_requests_running",)),
        ("waiting", ("vllm:num_requests_waiting",)),
        ("preemptions", ("vllm:num_preemptions_total",)),
    ):
        total = found.total(*metrics)
        if total is not None:
            load[name] = total
    for name, metric in (("prompt_tokens", "vllm:request_prompt_tokens"), ("answer_tokens", "vllm:request_generation_tokens")):
        mean = found.mean(metric)
        if mean:
            load[name] = mean[0]
    _vllm_latencies(found, report)
    return report


def _vllm_latencies(found: _Samples, report: Reported) -> None:
    load = report.load
    itl = found.mean("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
    if itl:
        report.terms["itl"] = _exact(itl[0] * 1000, f"mean of {itl[1]:.0f} tokens")
        load["itl_count"] = itl[1]
    ttft = found.mean("vllm:time_to_first_token_seconds")
    if ttft:
        report.terms["ttft"] = _exact(ttft[0] * 1000, f"mean of {ttft[1]:.0f} requests, with their time in the queue")
        load["ttft_count"] = ttft[1]
    steps, answered = found.total("vllm:iteration_tokens_total_count"), found.total("vllm:generation_tokens_total")
    if steps and answered:
        if found.total("vllm:spec_decode_num_drafts_total"):
            report.notes.append("itl: speculative decoding is on, so that tokens do not tell how many requests ran at once")
        else:
            # A running request gets one token in each step.
            engines = len(found.series["vllm:iteration_tokens_total_count"])
            load["mean_batch"] = max(1.0, answered / steps * engines)
    spent = found.mean("vllm:request_prefill_time_seconds")
    computed = found.total("vllm:request_prefill_kv_computed_tokens_sum")
    prompts = found.total("vllm:request_prompt_tokens_sum")
    hits = found.total("vllm:prefix_cache_hits_total") or 0.0
    if computed is None and prompts is not None:
        computed = max(0.0, prompts - hits)
    if spent and computed and spent[0] > 0:
        seconds = spent[0] * spent[1]
        report.terms["prefill"] = _exact(
            computed / seconds, f"{computed:.0f} tokens computed in {seconds:.1f} s of {spent[1]:.0f} requests"
        )
        load["prefill_count"], load["prefill_mean_tokens"] = spent[1], computed / spent[1]


def _value_of(labels: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(labels.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_llama_cpp_metrics(found: _Samples) -> Reported:
    report = Reported(engine="llama_cpp")
    load = report.load
    busy = found.total("llamacpp:n_busy_slots_per_decode")
    if busy:
        load["mean_batch"] = max(1.0, busy)
    tokens, seconds = found.total("llamacpp:tokens_predicted_total"), found.total("llamacpp:tokens_predicted_seconds_total")
    if tokens and seconds:
        report.terms["itl"] = _exact(seconds / tokens * 1000, f"mean of {tokens:.0f} tokens")
        load["itl_count"] = tokens
    tokens, seconds = found.total("llamacpp:prompt_tokens_total"), found.total("llamacpp:prompt_seconds_total")
    if tokens and seconds:
        report.terms["prefill"] = _exact(tokens / seconds, f"{tokens:.0f} tokens in {seconds:.1f} s")
        # llama.cpp counts no requests: how long the prompts were stays open.
        load["prefill_mean_tokens"] = 0.0
    if not report.terms:
        report.notes.append("metrics: the server has answered nothing yet, so there is no latency")
    return report


# --- GPUs ------------------------------------------------------------------------------------------------------------


def read_gpu_info(given: Mapping[str, Any]) -> Reported:
    """What onprem.llm.gpu_info returned: memory in use on each GPU (that of one server, where it alone uses them).

    GPUs on which nothing computes are left out, unless none has a process. Raises ComparisonError when nothing was read.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("gpus"), (list, tuple)):
        raise ComparisonError("gpu_info: has no list gpus; wanted is what the module onprem.llm.gpu_info returned.")
    gpus = []
    for gpu in given["gpus"]:
        memory = gpu.get("memory") if isinstance(gpu, Mapping) else None
        if isinstance(memory, Mapping) and isinstance(memory.get("used_bytes"), int):
            gpus.append(
                {
                    "index": gpu.get("index"),
                    "name": str(gpu.get("name") or ""),
                    "memory_bytes": memory.get("total_bytes") or 0,
                    "used_bytes": memory["used_bytes"],
                    "processes": len(gpu.get("processes") or []),
                }
            )
    if not gpus:
        raise ComparisonError(
            f"gpu_info: no GPU has memory.used_bytes (state {given.get('state')!r}: {given.get('reason') or 'no reason given'})."
        )
    at_work = [gpu for gpu in gpus if gpu["processes"]] or gpus
    report = Reported(gpus=[{name: gpu[name] for name in ("name", "memory_bytes", "used_bytes")} for gpu in at_work])
    report.terms["memory_used"] = decided("memory_used", {str(gpu["index"]): (gpu["used_bytes"], 0.0) for gpu in at_work}, "GPUs")
    if any(gpu["processes"] > 1 for gpu in at_work):
        report.notes.append("memory_used: several processes compute on one GPU; the memory of all of them is counted")
    return report


# --- the plan's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanKey:
    """To what a correction applies: a model as it is stored, an engine, a GPU, and over how many GPUs it is divided."""

    family: str
    parameters: int
    quantisation: str
    engine: str
    engine_version: str
    gpu: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False

    @property
    def text(self) -> str:
        parallel = (
            f"tp{self.tensor_parallel} pp{self.pipeline_parallel} dp{self.data_parallel}{' ep' if self.expert_parallel else ''}"
        )
        return (
            f"{self.family} {self.parameters} {self.quantisation} | {self.engine} {self.engine_version} | {self.gpu} | {parallel}"
        )

    def same_model_and_engine(self, other: PlanKey) -> bool:
        return (self.family, self.parameters, self.quantisation, self.engine) == (
            other.family,
            other.parameters,
            other.quantisation,
            other.engine,
        )


KEY_TYPES: dict[str, type] = {
    "family": str,
    "parameters": int,
    "quantisation": str,
    "engine": str,
    "engine_version": str,
    "gpu": str,
    "tensor_parallel": int,
    "pipeline_parallel": int,
    "data_parallel": int,
    "expert_parallel": bool,
}


def _at(plan: Mapping[str, Any], path: str, kinds: tuple[type, ...], wanted: str) -> Any:
    value: Any = plan
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ComparisonError(f"plan: {path}: is {value!r}; {wanted} is wanted.")
    return value


def plan_key(plan: Mapping[str, Any]) -> PlanKey:
    """The key of a plan; model, hardware, settings and quantisation are enough of one. Raises ComparisonError."""
    quantisation = (plan.get("quantisation") or {}).get("name") or "none"
    word = "a name"
    return PlanKey(
        family=_at(plan, "model.family", (str,), word),
        parameters=int(_at(plan, "model.parameters", (int,), "a whole number")),
        quantisation=str(quantisation),
        engine=_at(plan, "settings.engine", (str,), word),
        engine_version=_at(plan, "settings.engine_version", (str,), "a version"),
        gpu=str(plan.get("hardware", {}).get("product") or _at(plan, "hardware.name", (str,), word)),
        tensor_parallel=_at(plan, "settings.tensor_parallel", (int,), "a whole number"),
        pipeline_parallel=_at(plan, "settings.pipeline_parallel", (int,), "a whole number"),
        data_parallel=_at(plan, "settings.data_parallel", (int,), "a whole number"),
        expert_parallel=bool(plan["settings"].get("expert_parallel", False)),
    )


def check_plan(plan: Any) -> None:
    """Raises ComparisonError for what is not a plan of a known form."""
    if not isinstance(plan, Mapping):
        raise ComparisonError(f"plan: is {type(plan).__name__}; the dictionary that onprem.llm.model_plan returns is wanted.")
    if plan.get("form") != PLAN_FORM:
        raise ComparisonError(
            f"plan: form: is {plan.get('form')!r}; {PLAN_FORM} is wanted. Make the plan again with this version."
        )
    for name in ("model", "hardware", "settings", "memory"):
        _at(plan, name, (Mapping,), "a dictionary")
    _at(plan, "memory.terms", (list, tuple), "a list")
    for number, term in enumerate(plan["memory"]["terms"]):
        if not isinstance(term, Mapping) or not isinstance(term.get("name"), str) or not _is_number(term.get("bytes")):
            raise ComparisonError(f"plan: memory.terms[{number}]: is {term!r}; a dictionary with name and bytes is wanted.")
    plan_key(plan)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


Planned = tuple[float, "float | None", "float | None", str]


def planned(plan: Mapping[str, Any], reported: Reported) -> dict[str, Planned]:
    """Term to value, low, high and a note, each in the unit of UNITS; only what the plan has."""
    memory = plan["memory"]
    found: dict[str, Planned] = {}
    terms = {term["name"]: term for term in memory["terms"]}
    for name in MEMORY_TERMS:
        if name in terms:
            term = terms[name]
            found[name] = (term["bytes"], term.get("low_bytes"), term.get("high_bytes"), "")
    cache = memory.get("kv_cache") or {}
    if _is_number(cache.get("bytes")):
        found["kv_memory"] = (cache["bytes"], cache.get("low_bytes"), cache.get("high_bytes"), "")
    if _is_number(cache.get("tokens")):
        found["kv_tokens"] = (cache["tokens"], cache.get("low_tokens"), cache.get("high_tokens"), "")
    length = plan["settings"].get("max_model_len")
    on_demand = plan["settings"]["engine"] == "llama_cpp"
    for request in memory.get("requests") or []:
        if on_demand and request.get("length") == length and _is_number(request.get("bytes")):
            # It takes what its context needs, and leaves the rest of the memory alone.
            slots = plan["settings"].get("slots") or 1
            size = request["bytes"] * slots
            terms["kv_cache"] = {"bytes": size}
            found["kv_memory"] = (size, None, None, f"of {slots} slots of {length:,} tokens")
        if request.get("length") == length and _is_number(request.get("concurrency")):
            found["max_concurrency"] = (request["concurrency"], request.get("low"), request.get("high"), "")
    used = [term for name, term in terms.items() if name != "reserve"]
    total = memory.get("total_bytes") or math.inf
    if used:
        found["memory_used"] = (
            sum(term["bytes"] for term in used),
            sum(term.get("low_bytes", term["bytes"]) for term in used),
            min(total, sum(term.get("high_bytes", term["bytes"]) for term in used)),
            "sum of the terms; the driver's own share is not planned",
        )
    found.update(_planned_speed(plan, reported))
    return found


def _planned_speed(plan: Mapping[str, Any], reported: Reported) -> dict[str, Planned]:
    found: dict[str, Planned] = {}
    speed, service = plan.get("speed") or {}, plan.get("service") or {}
    points = sorted(
        (point for point in speed.get("points") or [] if _is_number(point.get("concurrency"))),
        key=lambda point: point["concurrency"],
    )
    batch = reported.load.get("mean_batch")
    for term, name in (("itl", "itl_ms"), ("ttft", "ttft_ms")):
        if batch and points:
            value, within = _between(points, batch, name)
            note = f"at the {batch:.1f} requests that ran at once on average"
            if not within:
                note += f", beyond the plan's points ({points[0]['concurrency']} to {points[-1]['concurrency']})"
            if value is not None:
                found[term] = (value, None, None, note)
        elif _is_number(service.get(name)):
            at = f" ({service['concurrency']} at once)" if _is_number(service.get("concurrency")) else ""
            found[term] = (
                service[name],
                None,
                None,
                f"at the load that was planned{at}; under which the server was is not known",
            )
    if _is_number(speed.get("prefill_tokens_per_second")):
        found["prefill"] = (speed["prefill_tokens_per_second"], None, None, "")
    return found


def _between(points: Sequence[Mapping[str, Any]], at: float, name: str) -> tuple[float | None, bool]:
    """A figure between two points, and whether there is one on both sides (a tenth beyond the last still counts)."""
    known = [(point["concurrency"], point[name]) for point in points if _is_number(point.get(name))]
    if not known:
        return None, False
    for (left, low), (right, high) in zip(known, known[1:]):
        if left <= at <= right:
            return low + (high - low) * ((at - left) / (right - left) if right > left else 0.0), True
    nearest = known[0] if at < known[0][0] else known[-1]
    return nearest[1], known[0][0] / 1.1 <= at <= known[-1][0] * 1.1


# --- comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One term. ``error_percent`` is (planned - reported) / reported; null where there is nothing to relate it to."""

    term: str
    unit: str
    planned: float | None
    low: float | None
    high: float | None
    reported: float | None
    error_percent: float | None
    within_interval: bool | None
    note: str = ""


@dataclass
class Comparison:
    """Rows; mismatches {setting, planned, reported}, which make it void for learning; and what could be learnt."""

    key: PlanKey
    rows: list[Row]
    mismatches: list[dict[str, Any]]
    notes: list[str]
    factors: dict[str, float]  # term of the plan to reported / uncorrected prediction
    refused: list[dict[str, Any]]  # {term, factor, why}
    fingerprint: str  # of what was reported, where nobody names the run

    @property
    def void(self) -> bool:
        return bool(self.mismatches)

    @property
    def worst(self) -> Row | None:
        """The term with the largest error."""
        known = [row for row in self.rows if row.error_percent is not None]
        return max(known, key=lambda row: abs(row.error_percent or 0.0), default=None)

    def as_dict(self) -> dict[str, Any]:
        worst = self.worst
        return {
            "key": self.key.text,
            "rows": [asdict(row) for row in self.rows],
            "mismatches": self.mismatches,
            "notes": self.notes,
            "worst": asdict(worst) if worst else None,
            "factors": self.factors,
            "refused": self.refused,
        }


def compare(plan: Mapping[str, Any], reported: Reported) -> Comparison:
    """A plan beside a report. Raises ComparisonError for a plan of an unknown form."""
    check_plan(plan)
    key = plan_key(plan)
    notes = list(reported.notes)
    readings = dict(reported.terms)
    if "kv_tokens" not in readings and "kv_blocks" in readings:
        readings["kv_tokens"] = _tokens_of_blocks(plan, reported, notes)  # type: ignore[assignment]
    readings = {term: reading for term, reading in readings.items() if reading is not None}
    if plan["hardware"].get("kind") == "cpu" and readings.pop("memory_used", None):
        notes.append("memory_used: the plan is of a CPU, so the memory of GPUs is passed over")
    expected = planned(plan, reported)
    rows = []
    for term, unit in UNITS.items():
        if term in readings:
            rows.append(_row(term, unit, expected.get(term), readings[term]))
    if not rows:
        raise ComparisonError(
            "reported: has no term that can be compared: log, metrics or gpu_info of the running server are wanted."
        )
    mismatches = _mismatches(plan, reported)
    factors, refused = _factors(plan, reported, rows, readings)
    if mismatches:
        factors = {}
    elif not _names(reported):
        refused += [
            {"term": term, "factor": factor, "why": "no report says which model was served"}
            for term, factor in sorted(factors.items())
        ]
        factors = {}
    digest = hashlib.sha256(json.dumps({row.term: row.reported for row in rows}, sort_keys=True).encode()).hexdigest()[:16]
    return Comparison(key, rows, mismatches, notes, factors, refused, digest)


def _tokens_of_blocks(plan: Mapping[str, Any], reported: Reported, notes: list[str]) -> Reading | None:
    blocks = reported.terms["kv_blocks"]
    kinds = [kind for kind, count in (plan["model"].get("layer_kinds") or {}).items() if count and kind != "none"]
    if len(kinds) > 1:
        notes.append(f"kv_tokens: only blocks were reported, and layers of several kinds ({', '.join(sorted(kinds))}) share them")
        return None
    size = reported.settings.get("block_size") or plan["settings"].get("block_size") or 16
    known = "" if reported.settings.get("block_size") else ", the size being supposed"
    note = f"{blocks.value:.0f} blocks of {size} tokens{known}"
    return Reading(blocks.value * size, blocks.low * size, blocks.high * size, blocks.count, 0.0, note)


def _row(term: str, unit: str, expectation: Planned | None, reading: Reading) -> Row:
    if expectation is None:
        return Row(
            term, unit, None, None, None, reading.value, None, None, "; ".join(filter(None, ("not planned", reading.note)))
        )
    value, low, high, note = expectation
    error = round((value - reading.value) / reading.value * 100, 2) if reading.value > 0 else None
    within = None
    if low is not None and high is not None:
        # What was printed is rounded; the interval is not at fault for that.
        within = bool(low <= reading.value + reading.rounding and reading.value - reading.rounding <= high)
    return Row(term, unit, value, low, high, reading.value, error, within, "; ".join(filter(None, (note, reading.note))))


# --- mismatches ------------------------------------------------------------------------------------------------------

# What a plan calls a model that was given as numbers.
UNNAMED = "explicit numbers"
# Names that stand for many models when they end a path.
ANONYMOUS = re.compile(
    r"^(?:v?\d+(?:[._]\d+)*|[0-9a-f]{7,64}|releases?|snapshots?|current|latest|models?|main|checkpoints?)$", re.I
)
# What vLLM calls a method of quantisation, and which of the planner's schemes it may be.
QUANTISATIONS = (
    (r"none", r"none"),
    (r"(?:auto_)?awq", r"awq"),
    (r"(?:auto_)?gptq", r"gptq"),
    (r"fp8|fp8_per_\w+", r"fp8"),
    (r"compressed-tensors", r"(?!none|gguf|gptq|awq|bnb|nf4|hqq|torchao)"),
    (r"modelopt\w*", r"fp8|nvfp4|mxfp8|mixed_precision"),
    (r"bitsandbytes", r"nf4|fp4|bnb|bitsandbytes"),
    (r"(?:gpt_oss_)?mxfp4", r"mxfp4|quark_mxfp4"),
    (r"quark", r"quark"),
    (r"torchao", r"torchao"),
    (r"gguf", r"gguf|i?q\d"),
)


def model_word(path: str) -> str:
    """The part of a path or a repository's name that names the model, in small letters; empty where none does."""
    parts = [part for part in re.split(r"[/\\]|--", str(path).strip()) if part and part.lower() != "config.json"]
    named = [part for part in parts if not ANONYMOUS.match(part)]
    word = re.sub(r"\.(?:gguf|json)$", "", named[-1].lower()) if named else ""
    return re.sub(r"-\d{5}-of-\d{5}$", "", word).replace("_", "-").replace(" ", "-")


def _names(reported: Reported) -> set[str]:
    settings = reported.settings
    given = [settings.get("model"), settings.get("served_model_name"), *settings.get("names", [])]
    return {word for word in (model_word(str(name)) for name in given if name not in (None, "")) if word}


def _mismatches(plan: Mapping[str, Any], reported: Reported) -> list[dict[str, Any]]:
    settings, found = plan["settings"], reported.settings
    listed: list[dict[str, Any]] = []

    def differ(
        setting: str, expected: Any, seen: Any, same: Callable[[Any, Any], bool] = lambda left, right: left == right
    ) -> None:
        if expected is not None and seen is not None and not same(expected, seen):
            listed.append({"setting": setting, "planned": expected, "reported": seen})

    given = [name for name in (plan["model"].get("name"), plan["model"].get("path")) if name and name != UNNAMED]
    names = {model_word(str(name)) for name in given} - {""}
    if names and _names(reported) and not names & _names(reported):
        seen = reported.settings.get("model") or ", ".join(reported.settings.get("names", []))
        listed.append({"setting": "model", "planned": plan["model"].get("name") or plan["model"].get("path"), "reported": seen})
    engine = settings["engine"]
    # Metrics alone do not tell a CPU from a GPU.
    known = reported.engine and (reported.engine != "vllm" or found.get("device") is not None)
    differ("engine", engine if known else engine.replace("vllm_cpu", "vllm"), reported.engine or None)
    if engine != "llama_cpp" and reported.engine_version:
        differ("engine_version", settings["engine_version"], reported.engine_version, _same_version)
    padded = engine == "llama_cpp"
    differ("max_model_len", settings.get("max_model_len"), found.get("max_model_len"), _same_padded if padded else _same)
    if engine == "llama_cpp" and not found.get("kv_unified"):
        differ("slots", settings.get("slots"), found.get("slots"))
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel", "max_num_batched_tokens", "max_num_seqs"):
        differ(name, settings.get(name), found.get(name))
    for name in ("expert_parallel", "prefix_caching"):
        differ(name, settings.get(name), found.get(name), lambda left, right: bool(left) == bool(right))
    if "enforce_eager" in found and engine == "vllm":
        differ("cuda_graphs", settings.get("cuda_graphs"), not found["enforce_eager"])
    if engine == "vllm" and found.get("device") != "cpu":
        differ(
            "memory_utilization",
            settings.get("memory_utilization"),
            found.get("memory_utilization"),
            lambda left, right: abs(float(left) - float(right)) < 0.006,
        )
    dtype = found.get("dtype") or settings.get("dtype")
    differ("dtype", settings.get("dtype"), found.get("dtype") or None)
    differ(
        "kv_cache_dtype",
        settings.get("kv_cache_dtype"),
        found.get("kv_cache_dtype"),
        lambda left, right: _cache_type(left, settings.get("dtype")) == _cache_type(right, dtype),
    )
    differ("quantisation", (plan.get("quantisation") or {}).get("name") or "none", found.get("quantisation"), _same_quantisation)
    _gpu_mismatches(plan, reported, differ)
    return listed


def _same(left: Any, right: Any) -> bool:
    return bool(left == right)


def _same_padded(left: int, right: int) -> bool:
    """llama.cpp rounds a context up to 256 cells (32 in older builds)."""
    return left <= right < left + 256


def _same_version(left: str, right: str) -> bool:
    """The same release, whatever it was built for (0.32.0+cpu)."""
    ends = [re.sub(r"(?:\.0)+$", "", re.sub(r"^v|\+.*$", "", text)) for text in (str(left), str(right))]
    return ends[0] == ends[1]


def _cache_type(name: Any, dtype: Any) -> str:
    word = str(name).replace("torch.", "")
    word = str(dtype) if word == "auto" else word
    names = {"fp8": "fp8_e4m3", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "half": "float16", "float": "float32"}
    return names.get(word, word)


def _same_quantisation(scheme: str, method: Any) -> bool:
    name = str(method).lower()
    name = re.sub(r"_(?:marlin|bitblas)(?:_24)?$", "", name)
    scheme = scheme.lower()
    for pattern, schemes in QUANTISATIONS:
        if re.fullmatch(pattern, name):
            return bool(re.match(schemes, scheme))

    # llama.cpp prints a file's type in words: "Q4_K - Medium".
    def plain(text: str) -> str:
        text = re.sub(r"^gguf[_ -]*", "", re.sub(r"\s*-\s*(small|medium|large)", lambda hit: "_" + hit[1][0], text))
        return re.sub(r"[^a-z0-9]", "", re.sub(r"\(guessed\)|all ", "", text))

    unquantised = {"f16", "bf16", "f32"}
    return plain(name) == plain(scheme) or (scheme == "none" and plain(name) in unquantised)


def _gpu_mismatches(plan: Mapping[str, Any], reported: Reported, differ: Callable[..., None]) -> None:
    hardware = plan["hardware"]
    if not reported.gpus or hardware.get("kind") == "cpu":
        return

    def model(name: str) -> str:
        words = re.findall(r"[a-z0-9]+", name.lower().replace("nvidia", ""))
        return next((word for word in words if re.search(r"\d", word)), "")

    for gpu in reported.gpus:
        wanted = model(str(hardware.get("name") or hardware.get("product") or ""))
        if wanted and model(gpu["name"]) and wanted != model(gpu["name"]):
            differ("gpu", hardware.get("name"), gpu["name"])
            return
        size, seen = hardware.get("memory_bytes"), gpu["memory_bytes"]
        # An engine sees less than the card has, by what the driver and ECC keep.
        if _is_number(size) and seen and not 0.9 <= size / seen <= 1.1:
            differ("gpu memory_bytes", size, seen)
            return


# --- what can be learnt ----------------------------------------------------------------------------------------------


def applied_factor(plan: Mapping[str, Any], term: str) -> float:
    """The correction that a plan has already taken up for a term; 1 where none."""
    for correction in plan.get("corrections") or []:
        if isinstance(correction, Mapping) and correction.get("term") == term:
            factor = correction.get("factor")
            if not _is_number(factor) or factor <= 0:  # type: ignore[operator]
                raise ComparisonError(f"plan: corrections: {term}: factor is {factor!r}; a number above 0 is wanted.")
            return float(factor)  # type: ignore[arg-type]
    return 1.0


def _factors(
    plan: Mapping[str, Any], reported: Reported, rows: Sequence[Row], readings: Mapping[str, Reading]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Reported over uncorrected prediction by the plan's term, and what cannot be learnt, with the reason."""
    factors: dict[str, float] = {}
    refused: list[dict[str, Any]] = []
    uncorrected = plan.get("uncorrected") or {}
    for row in rows:
        term = SPEED_TERMS.get(row.term, row.term)
        if term not in CORRECTED or row.planned is None or row.reported is None:
            continue
        before = applied_factor(plan, term)
        if row.term in SPEED_TERMS:
            why = _unfit_speed(row, reported)
            if row.planned <= 0 or row.reported <= 0:
                continue
            # A rate is the inverse of a time.
            ratio = row.planned / row.reported if row.term == "prefill" else row.reported / row.planned
            factor = before * ratio
        else:
            base = uncorrected.get(term, row.planned / before)
            if not _is_number(base):
                raise ComparisonError(f"plan: uncorrected: {term}: is {base!r}; a number of bytes is wanted.")
            if base <= 0:
                continue
            factor = row.reported / base
            rounding = readings[row.term].rounding
            why = ""
            if row.reported <= 0 or rounding > MOST_ROUNDING * row.reported:
                why = f"{shown(row.reported, row.unit)} in the log is too coarse to learn from"
        if not why and not LEAST_FACTOR <= factor <= MOST_FACTOR:
            why = (
                f"a factor of {factor:.3g} is beyond {LEAST_FACTOR:g} to {MOST_FACTOR:g}: something else must be wrong (another "
                "model, other settings, other programs on the GPU)"
            )
        if why:
            refused.append({"term": term, "factor": float(f"{factor:.6g}"), "why": why})
        else:
            factors[term] = float(f"{factor:.9g}")
    # Weights are counted, not estimated: when they are far off, the plan is of another model.
    if any(item["term"] == "weights" and "beyond" in item["why"] for item in refused):
        why = "the weights are not those that were planned, so nothing else of it is learnt"
        refused += [{"term": term, "factor": factor, "why": why} for term, factor in sorted(factors.items())]
        factors = {}
    return factors, refused


def _unfit_speed(row: Row, reported: Reported) -> str:
    """Why a latency teaches nothing; empty when it does."""
    load = reported.load
    if load.get("mean_batch") is None:
        return "under which load the server was is not known"
    if row.term == "itl":
        if load.get("itl_count", 0) < LEAST_TOKENS:
            return f"{load.get('itl_count', 0):.0f} tokens are too few; {LEAST_TOKENS} are wanted"
        if "beyond the plan's points" in row.note:
            return "the plan has no point for the load that the server was under"
        return ""
    if load.get("prefill_count", LEAST_REQUESTS) < LEAST_REQUESTS:
        return f"{load['prefill_count']:.0f} requests are too few; {LEAST_REQUESTS} are wanted"
    if load.get("prefill_mean_tokens", 0) < LEAST_PROMPT:
        return f"prompts of {load.get('prefill_mean_tokens', 0):.0f} tokens on average are too short; {LEAST_PROMPT} are wanted"
    if load["mean_batch"] > MOST_BATCH:
        return f"{load['mean_batch']:.1f} requests ran at once on average, and each one's time holds the others' work"
    return ""


# --- the store of corrections ----------------------------------------------------------------------------------------


def new_store() -> dict[str, Any]:
    return {"form": STORE_FORM, "entries": {}}


def load_store(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The corrections in a file; none where there is no file. Raises ComparisonError for a file of another kind."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return new_store()
    except UnicodeDecodeError as error:
        raise ComparisonError(f"{path}: is not UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise ComparisonError(f"{path}: cannot be read: {error.strerror}.") from None
    try:
        store = json.loads(text)
    except ValueError as error:
        raise ComparisonError(f"{path}: is not JSON: {error}.") from None
    check_store(store, str(path))
    return store


def check_store(store: Any, where: str) -> None:
    """Raises ComparisonError that names the field."""

    def wrong(field_name: str, value: Any, wanted: str) -> ComparisonError:
        return ComparisonError(f"{where}: {field_name}: is {value!r}; {wanted} is wanted.")

    if not isinstance(store, dict):
        raise ComparisonError(f"{where}: is a {type(store).__name__}; a dictionary with form and entries is wanted.")
    if isinstance(store.get("form"), bool) or store.get("form") != STORE_FORM:
        raise wrong("form", store.get("form"), f"{STORE_FORM} (the form of corrections that this version reads)")
    entries = store.get("entries")
    if not isinstance(entries, dict):
        raise wrong("entries", entries, "a dictionary")
    for name, entry in entries.items():
        place = f"entries[{name}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict) or not isinstance(entry.get("terms"), dict):
            raise wrong(place, entry, "a dictionary with key and terms")
        given = entry["key"]
        for part, kind in KEY_TYPES.items():
            if not isinstance(given.get(part), kind) or (kind is int and isinstance(given[part], bool)):
                raise wrong(f"{place}.key.{part}", given.get(part), f"a {kind.__name__}")
        if set(given) != set(KEY_TYPES) or PlanKey(**given).text != name:
            raise wrong(f"{place}.key", given, "the key that the entry is named after")
        for term, correction in entry["terms"].items():
            _check_correction(term, correction, f"{place}.terms.{term}", wrong)


def _check_correction(term: str, correction: Any, place: str, wrong: Callable[[str, Any, str], ComparisonError]) -> None:
    if term not in CORRECTED:
        raise wrong(place, term, f"one of {', '.join(CORRECTED)}")
    if not isinstance(correction, dict):
        raise wrong(place, correction, "a dictionary")
    recent = correction.get("recent")
    if not isinstance(recent, list) or not 1 <= len(recent) <= KEPT_OBSERVATIONS:
        raise wrong(f"{place}.recent", recent, f"a list of 1 to {KEPT_OBSERVATIONS} observations")
    for number, item in enumerate(recent):
        known = isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("run", "time"))
        if not known or not _is_number(item.get("factor")) or not LEAST_FACTOR <= item["factor"] <= MOST_FACTOR:
            raise wrong(
                f"{place}.recent[{number}]",
                item,
                f"a dictionary with run, time and a factor from {LEAST_FACTOR:g} to {MOST_FACTOR:g}",
            )
    observations = correction.get("observations")
    if isinstance(observations, bool) or not isinstance(observations, int) or observations < len(recent):
        raise wrong(f"{place}.observations", observations, f"a whole number from {len(recent)}")
    factor = correction.get("factor")
    if not _is_number(factor) or not math.isclose(factor, _median(recent), rel_tol=1e-6):  # type: ignore[arg-type]
        raise wrong(f"{place}.factor", factor, f"{_median(recent):.9g}, the median of recent,")


def _median(recent: Sequence[Mapping[str, Any]]) -> float:
    return float(f"{statistics.median(item['factor'] for item in recent):.9g}")


def key_of(plan_or_key: PlanKey | Mapping[str, Any]) -> PlanKey:
    return plan_or_key if isinstance(plan_or_key, PlanKey) else plan_key(plan_or_key)


def corrections_for(store: Mapping[str, Any], plan_or_key: PlanKey | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What to multiply terms of a plan by: term to {factor, observations, from}; empty when nothing was learnt for its key."""
    key = key_of(plan_or_key)
    entry = store["entries"].get(key.text)
    return {
        term: {
            "factor": correction["factor"],
            "observations": correction["observations"],
            "from": f"{key.text}, last seen {max(item['time'] for item in correction['recent'])}",
        }
        for term, correction in sorted((entry or {"terms": {}})["terms"].items())
    }


def hints_for(store: Mapping[str, Any], plan_or_key: PlanKey | Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was learnt of the same model and engine elsewhere (another GPU, version or division): named, never applied."""
    key = key_of(plan_or_key)
    hints = []
    for name, entry in sorted(store["entries"].items()):
        other = PlanKey(**entry["key"])
        if name == key.text or not key.same_model_and_engine(other):
            continue
        parts = ("gpu", "engine_version", *(name for name in KEY_TYPES if name.endswith("_parallel")))
        differs = [part for part in parts if getattr(key, part) != getattr(other, part)]
        terms = {term: correction["factor"] for term, correction in sorted(entry["terms"].items())}
        listed = ", ".join(f"{term} x {factor:.3f}" for term, factor in terms.items())
        what = ", ".join(f"{part} {getattr(other, part)}" for part in differs)
        hints.append(
            {"from": name, "differs": differs, "terms": terms, "text": f"learnt with {what}, and not applied here: {listed}"}
        )
    return hints


def learnt_from(
    store: Mapping[str, Any], comparison: Comparison, run: str = "", time: str = ""
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The store with a comparison's factors added, and what was learnt: {term, factor, observed, observations, before}.

    ``run`` names the run of the server (systemd's invocation); a later look at the same run takes the earlier one's place, so
    that looking twice teaches once. A void comparison teaches nothing.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(store))
    learnt: list[dict[str, Any]] = []
    if comparison.void or not comparison.factors:
        return changed, learnt
    name = comparison.key.text
    run = run or f"report {comparison.fingerprint}"
    time = time or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = changed["entries"].setdefault(name, {"key": asdict(comparison.key), "terms": {}})
    for term, factor in sorted(comparison.factors.items()):
        before = entry["terms"].get(term, {"recent": [], "observations": 0})
        recent = [dict(item) for item in before["recent"]]
        same = next((item for item in recent if item["run"] == run), None)
        observations = before["observations"]
        if same is None:
            recent = [*recent, {"run": run, "time": time, "factor": factor}][-KEPT_OBSERVATIONS:]
            observations += 1
        elif not math.isclose(same["factor"], factor, rel_tol=1e-6):
            same.update(time=time, factor=factor)
        else:
            continue
        entry["terms"][term] = {"factor": _median(recent), "observations": observations, "recent": recent}
        learnt.append(
            {
                "term": term,
                "factor": entry["terms"][term]["factor"],
                "observed": factor,
                "observations": observations,
                "before": before.get("factor"),
            }
        )
    if not entry["terms"]:
        del changed["entries"][name]
    return changed, learnt


def store_text(store: Mapping[str, Any]) -> str:
    """A store as its file has it: one text for one content."""
    return json.dumps(store, indent=2, sort_keys=True) + "\n"


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps others that learn into the same file waiting. The directory is locked, so that no file of its own is left over."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ComparisonError(f"{path}: cannot be written: {directory}: {error.strerror}.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_store(path: str | os.PathLike[str], store: Mapping[str, Any]) -> None:
    """All of the file or nothing, mode 0644. Raises ComparisonError when it cannot be written."""
    check_store(store, str(path))
    target = os.path.abspath(path)
    try:
        handle, name = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)[:60]}.")
    except OSError as error:
        raise ComparisonError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(store_text(store))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException as error:
        if os.path.exists(name):
            os.unlink(name)
        if isinstance(error, OSError):
            raise ComparisonError(f"{path}: cannot be written: {error.strerror}.") from None
        raise


# --- for readers -----------------------------------------------------------------------------------------------------


def shown(value: float | None, unit: str) -> str:
    """A figure for people: bytes as GiB or MiB."""
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / GIB:.2f} GiB" if abs(value) >= GIB / 10 or value == 0 else f"{value / MIB:.2f} MiB"
    if unit in ("tokens", "tokens/s"):
        return f"{value:,.0f}"
    return f"{value:,.2f}"


def table(comparison: Comparison) -> list[str]:
    """Lines of a table: a row for each term, then mismatches and notes."""
    header = ("term", "planned", "interval", "reported", "error", "within")
    body = []
    for row in comparison.rows:
        interval = "-" if row.low is None or row.high is None else f"{shown(row.low, row.unit)} to {shown(row.high, row.unit)}"
        unit = "" if row.unit == "bytes" else f" ({row.unit})"
        error = "-" if row.error_percent is None else f"{row.error_percent:+.1f} %"
        within = {True: "yes", False: "no", None: "-"}[row.within_interval]
        body.append((f"{row.term}{unit}", shown(row.planned, row.unit), interval, shown(row.reported, row.unit), error, within))
    widths = [max(len(line[column]) for line in (header, *body)) for column in range(len(header))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in (header, *body)]
    lines += [f"{row.term}: {row.note}" for row in comparison.rows if row.note]
    lines += [
        f"mismatch: {item['setting']}: planned {item['planned']}, reported {item['reported']}" for item in comparison.mismatches
    ]
    lines += [f"note: {note}" for note in comparison.notes]
    lines += [f"not learnt: {item['term']}: {item['why']}" for item in comparison.refused]
    return lines
