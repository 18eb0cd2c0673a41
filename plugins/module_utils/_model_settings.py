# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An operator's engine settings: what was given, checked, and the engine's own defaults for what was not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ._model_architecture import Architecture, ModelError
from ._model_inputs import known_keys, near, quantity, switch
from ._model_memory import Device, Settings, of_version
from ._model_quantisation import DTYPE_BYTES

ENGINES = ("vllm", "vllm_cpu", "llama_cpp")
# Kind of value, and the least and the most that it may be.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "tensor_parallel": (int, 1, 1024),
    "pipeline_parallel": (int, 1, 1024),
    "data_parallel": (int, 1, 1024),
    "replicas": (int, 1, 10000),
    "max_model_len": (int, 1, 2**31),
    "memory_utilization": (float, 0.01, 1.0),
    "max_num_batched_tokens": (int, 1, 2**31),
    "max_num_seqs": (int, 1, 2**20),
    "block_size": (int, 1, 65536),
    "cache_bytes": (int, 1, 2**60),
    "draft_tokens": (int, 0, 64),
    "slots": (int, 1, 4096),
}
SWITCHES = ("expert_parallel", "cuda_graphs", "prefix_caching", "vision", "draft_layers")
VLLM_TYPES = ("bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
LLAMA_CPP_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# Families that vLLM serves in no 16-bit type but bfloat16 (_FLOAT16_NOT_SUPPORTED_MODELS, vllm/config/model.py).
NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
WORDS = ("engine", "engine_version", "dtype", "kv_cache_dtype")
KNOWN = (*WORDS, *NUMBERS, *SWITCHES)


def version(where: str, value: Any) -> tuple[int, ...]:
    found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[.+a-z-].*)?", str(value))
    if not found:
        raise ModelError(f"{where}: {value!r} is no version, such as 0.32.0.")
    return tuple(int(part or 0) for part in found.groups())


def settings_of(
    given: Mapping[str, Any], architecture: Architecture, device: Device, engines: Mapping[str, Any]
) -> tuple[Settings, int, list[str]]:
    """The settings, how many replicas of them there are (0: as many as fit), and which of them nobody gave.

    Raises ModelError that names the setting, the value found and what is wanted.
    """
    known_keys("settings", given, KNOWN, "setting")
    chosen = {name: value for name, value in given.items() if value not in (None, "", "auto")}
    engine_name = str(chosen.get("engine", "vllm_cpu" if device.kind == "cpu" else "vllm"))
    if engine_name not in ENGINES:
        raise ModelError(
            f"settings.engine: {engine_name!r} is not planned for{near(engine_name, ENGINES)}: {', '.join(ENGINES)}."
        )
    if (engine_name == "vllm_cpu") != (device.kind == "cpu") and engine_name != "llama_cpp":
        raise ModelError(f"settings.engine: {engine_name} does not run on {device.name}, which is a {device.kind.upper()}.")
    engine = engines[engine_name]
    found: dict[str, Any] = {"engine": engine_name, "engine_version": version("settings.engine_version", engine["version"])}
    if "engine_version" in chosen:
        found["engine_version"] = version("settings.engine_version", chosen["engine_version"])
    if engine_name == "vllm" and found["engine_version"] < (0, 4):
        raise ModelError(
            f"settings.engine_version: {chosen['engine_version']} is older than 0.4, from which on vLLM is planned for."
        )
    for name, (kind, least, most) in NUMBERS.items():
        if name in chosen:
            found[name] = quantity(f"settings.{name}", chosen[name], least, most, whole=kind is int)
    for name in SWITCHES:
        if name in chosen:
            found[name] = switch(f"settings.{name}", chosen[name])
    replicas = found.pop("replicas", 0)
    dtype = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(
        chosen.get("dtype", ""), chosen.get("dtype")
    )
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise ModelError(f"settings.dtype: {dtype!r} is not one of {', '.join(DTYPE_BYTES)}.")
    found["dtype"] = dtype or _usual_dtype(architecture, device, engine_name)
    if "kv_cache_dtype" in chosen:
        types = LLAMA_CPP_TYPES if engine_name == "llama_cpp" else VLLM_TYPES
        if chosen["kv_cache_dtype"] not in types:
            raise ModelError(
                f"settings.kv_cache_dtype: {chosen['kv_cache_dtype']!r} is not one of those that {engine_name} has: auto, "
                f"{', '.join(types)}."
            )
        found["kv_cache_dtype"] = chosen["kv_cache_dtype"]
    elif engine_name == "llama_cpp":
        found["kv_cache_dtype"] = "f16"
    defaults = of_version(engine["defaults"], found["engine_version"])
    batch = next(
        entry for entry in defaults["batches"] if device.memory >= entry["memory_bytes"] and not _excepted(entry, device)
    )
    # On a CPU the engine's defaults are for each of its processes.
    times = found.get("tensor_parallel", 1) * found.get("pipeline_parallel", 1) if engine_name == "vllm_cpu" else 1
    own = {
        "max_model_len": architecture.max_context,
        "memory_utilization": defaults["memory_utilization"],
        "max_num_batched_tokens": batch["max_num_batched_tokens"] * times,
        "max_num_seqs": batch["max_num_seqs"] * times,
        "block_size": _block_size(engine_name, architecture, defaults),
        "cuda_graphs": device.kind == "gpu" and engine_name == "vllm",
    }
    defaulted = sorted(name for name in own if name not in found)
    found = {**own, **found}
    if not found["max_model_len"]:
        raise ModelError("settings.max_model_len: the model does not say how long its context is; give one, in tokens.")
    if "max_num_batched_tokens" in defaulted and engine_name != "llama_cpp":
        found["max_num_batched_tokens"] = min(found["max_num_batched_tokens"], found["max_num_seqs"] * found["max_model_len"])
    if found["max_num_seqs"] > found["max_num_batched_tokens"]:
        if "max_num_seqs" not in defaulted:
            raise ModelError(
                f"settings.max_num_seqs: {found['max_num_seqs']} is more than max_num_batched_tokens "
                f"{found['max_num_batched_tokens']}, with which the engine does not start."
            )
        found["max_num_seqs"] = found["max_num_batched_tokens"]
    if engine_name == "llama_cpp" and max(found.get("tensor_parallel", 1), found.get("data_parallel", 1)) > 1:
        raise ModelError(
            "settings: llama.cpp gives each GPU some of the layers; give pipeline_parallel, not tensor_parallel or data_parallel."
        )
    settings = Settings(**found)
    if settings.expert_parallel and not architecture.experts:
        raise ModelError(f"settings.expert_parallel: {architecture.name} has no experts to divide.")
    return settings, replicas, defaulted


def _usual_dtype(architecture: Architecture, device: Device, engine: str) -> str:
    """The type of weights that an engine takes where nobody says (vllm/config/model.py, _get_and_verify_dtype)."""
    if engine == "llama_cpp":
        return architecture.dtype
    narrow = device.kind == "gpu" and device.compute_capability < (8, 0)
    if architecture.dtype == "float32" or (architecture.dtype == "bfloat16" and narrow):
        return ("float16" if architecture.family not in NO_FLOAT16 else "float32") if narrow else "bfloat16"
    return architecture.dtype


def _excepted(entry: Mapping[str, Any], device: Device) -> bool:
    return any(word in device.name.lower() for word in entry.get("not_named", []))


def _block_size(engine: str, architecture: Architecture, defaults: Mapping[str, Any]) -> int:
    latent = any(layer.memory.kind == "mla" for layer in architecture.layers)
    return int(defaults["block_size_mla" if latent else "block_size"]) if engine != "llama_cpp" else 1
