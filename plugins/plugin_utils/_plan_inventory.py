# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as inventory variables that ``site.yml`` takes as they are: the model, an instance for each replica, the gateway.

What a plan cannot know (where the files come from, where llama.cpp's program is) is left out and said, never guessed.
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..module_utils._model_architecture import ModelError
from ._planning_data import planning_data

GIB = 2**30
PORT = 8000
# What the roles do where nobody says: roles/gateway/defaults/main.yml.
GATEWAY_BACKEND_CONNECTIONS = 256
GATEWAY_CONNECTIONS = 2000
# Keys of a model in model_store_models, beside name, release and source.
MODEL_KEYS = ("manifest", "manifest_sha256", "keep", "allow_pickle")
SOURCES = {"directory": ("path",), "http": ("url",), "huggingface": ("repo", "revision")}
INPUTS = ("model_source", "model_release", "model_name", "program", "port")
VERSION = re.compile(r"v?\d[0-9a-z._-]*", re.IGNORECASE)
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FIRST_RELEASE = "1"
INDENT = "#   "


def inventory_of(plan: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``variables`` of a plan, ``notes`` about them by variable, and what is ``needed`` besides, in sentences.

    ``inputs``: model_source (as ``source`` in model_store_models; manifest_sha256 and the like may be in it), model_release,
    model_name, program (of llama.cpp), port (of the first replica). Raises ModelError for a plan that fails, and for inputs that
    cannot be.
    """
    given = {name: value for name, value in (inputs or {}).items() if value not in (None, "", {})}
    unknown = [name for name in given if name not in INPUTS]
    if unknown:
        raise ModelError(f"inputs.{unknown[0]}: there is no such input; known are {', '.join(INPUTS)}.")
    if plan.get("verdict") == "FAIL" or not plan.get("fits"):
        raise ModelError(f"inventory: a plan that fails makes no servers: {plan.get('summary') or 'it does not fit'}")
    name, release = naming(plan["model"], given)
    needed: list[str] = []
    notes: dict[str, list[str]] = {}
    variables: dict[str, Any] = {}
    files = list(_files_needed(plan))
    needed += files
    settings = plan["settings"]
    installed = planning_data()["engines"]["engines"][settings["engine"]]["version"]
    if settings["engine"] != "llama_cpp" and settings["engine_version"] != installed:
        needed.append(
            f"The plan is for {settings['engine']} {settings['engine_version']}, and the role model_server installs {installed}: "
            "give an engine of your own in model_server_engines, or plan for that version."
        )
    model = _model(plan, name, release, given, bool(files), notes)
    if model is None:
        needed.append(f"model_store_models of the site must have the model {name}, with its release and source.")
    else:
        variables["model_store_models"] = [model]
    instances = list(_instances(plan, name, given, notes, needed))
    _unique(instances, plan)
    variables["model_server_instances"] = instances
    variables.update(_gateway(plan, notes))
    return {"variables": variables, "notes": notes, "needed": needed}


def as_yaml(plan: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, date: str = "") -> str:
    """The same as a file of variables with its reasons; the same text for the same plan."""
    found = inventory_of(plan, inputs)
    lines = list(_heading(plan, date))
    if found["needed"]:
        lines += ["#", "# Still needed:", *(line for sentence in found["needed"] for line in _comment(sentence, "# - "))]
    lines += ["---"]
    for name, value in found["variables"].items():
        lines += [line for sentence in found["notes"].get(name, []) for line in _comment(sentence)]
        # Lists and mappings of plain values are on one line, where they are within something.
        flow = None if isinstance(value, (list, dict)) else False
        text = yaml.dump({name: value}, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=120)
        lines += [*text.rstrip("\n").split("\n"), ""]
    if "model_store_models" not in found["variables"]:
        lines += [line for sentence in found["notes"].get("model_store_models", []) for line in _comment(sentence)]
    return "\n".join(lines).rstrip("\n") + "\n"


class _Dumper(yaml.SafeDumper):
    """Lists are indented, and what is there twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def naming(model: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str]:
    """Name and release. A folder whose name is a version is a release of the model that the folder above is named after."""
    path = Path(os.path.abspath(str(model["path"]))) if model.get("path") else Path()
    folder = path.parent if path.name == "config.json" else path
    spelled = str(given.get("model_name") or model.get("name") or "")
    release = str(given.get("model_release") or "")
    above = folder.parent.name
    if not given.get("model_name") and above and VERSION.fullmatch(folder.name) and spelled in (folder.name, above):
        spelled = folder.parent.name
        release = release or folder.name
    name = re.sub(r"[^a-z0-9_-]+", "-", re.sub(r"\.(gguf|json)$", "", spelled.lower().rpartition("/")[2])).strip("-_")
    if not NAME.fullmatch(name):
        raise ModelError(f"inputs.model_name: found {spelled!r}; wanted a name with letters or digits, of a-z, 0-9, - and _.")
    if release and not RELEASE.fullmatch(release):
        raise ModelError(f"inputs.model_release: {release!r} is not made of letters, digits, dots, - and _; give such a name.")
    return name, release


# --- the model -------------------------------------------------------------------------------------------------------


def _model(
    plan: Mapping[str, Any], name: str, release: str, given: Mapping[str, Any], others: bool, notes: dict[str, list[str]]
) -> dict[str, Any] | None:
    """The entry of model_store_models; None where nobody said where the files come from."""
    said = notes.setdefault("model_store_models", [])
    source = given.get("model_source")
    extra: dict[str, Any] = {}
    if source is not None:
        source, extra = _source(source)
    else:
        folder = _folder(plan["model"])
        if folder is None or others:
            said.append(
                f"model_store_models: where the files of {name} come from is not known here"
                + (" (not from where the plan read it, see above)" if others and folder is not None else "")
                + ", and so the site's own must have that name."
            )
            return None
        source = {"type": "directory", "path": str(folder)}
        said.append(
            "The plan read this directory on the control node; the model servers must see it at the same path, for instance on "
            "an NFS mount, with SHA256SUMS in it."
        )
    if not release and source["type"] == "huggingface":
        release = str(source["revision"])[:12]
    if not release:
        release = FIRST_RELEASE
        said.append(
            f"No model_release was given to the plan: {FIRST_RELEASE} stands for the first. A release's files never change."
        )
    return {"name": name, "release": release, "source": source, **extra}


def _source(given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(given, Mapping):
        raise ModelError(f"inputs.model_source: {given!r} is no mapping; wanted type and path, url, or repo and revision.")
    kind = given.get("type")
    if kind not in SOURCES:
        raise ModelError(f"inputs.model_source.type: {kind!r} is not one of {', '.join(SOURCES)}.")
    known = {"type", *(key for keys in SOURCES.values() for key in keys)}
    for key in given:
        if key not in known and key not in MODEL_KEYS:
            names = ", ".join((*sorted(known), *MODEL_KEYS))
            raise ModelError(f"inputs.model_source.{key}: there is no such key; known are {names}.")
    for key in SOURCES[kind]:
        if not given.get(key):
            raise ModelError(f"inputs.model_source.{key}: is needed for a source of type {kind}.")
    return (
        {key: value for key, value in given.items() if key in known},
        {key: value for key, value in given.items() if key in MODEL_KEYS},
    )


def _folder(model: Mapping[str, Any]) -> Path | None:
    """The directory of the release where the plan read one; a config.json alone, or numbers, are no release."""
    if not model.get("path"):
        return None
    path = Path(os.path.abspath(str(model["path"])))
    if path.suffix == ".gguf" or path.name == "config.json":
        path = path.parent
    elif path.suffix == ".json":
        return None
    _safe("model.path", str(path))
    return path


def _files_needed(plan: Mapping[str, Any]) -> Iterator[str]:
    """Files that are not those which the plan read: quantised ones where the engine does not quantise by itself."""
    settings, scheme, path = plan["settings"], plan["quantisation"], str(plan["model"].get("path") or "")
    if settings["engine"] == "llama_cpp":
        if not path.endswith(".gguf"):
            yield f"llama.cpp serves GGUF: the release must hold the model as one GGUF file in {scheme['name']}, named by `file`."
        return
    if scheme["name"] == "none" or scheme.get("online") or _stored_method(path) is not None:
        return
    kind = {"compressed-tensors": "compressed-tensors, for instance made by llm-compressor"}.get(
        scheme["method"], scheme["method"]
    )
    yield (
        f"The release must be quantised as {scheme['name']} already ({kind}): the engine does not make it of 16-bit files, which "
        "is what the plan was made from."
    )


def _stored_method(path: str) -> str | None:
    """How the checkpoint that was planned for is quantised; None where it is not, or where no file says."""
    config = Path(path) / "config.json" if path and not path.endswith(".json") else Path(path)
    try:
        found = json.loads(config.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return None
    if not isinstance(found, Mapping):
        return None
    inner = found.get("text_config") if isinstance(found.get("text_config"), Mapping) else {}
    stored = found.get("quantization_config") or (inner or {}).get("quantization_config")
    if not stored and (config.parent / "hf_quant_config.json").is_file():
        return "modelopt"
    return str(stored.get("quant_method") or stored.get("quant_algo")) if isinstance(stored, Mapping) and stored else None


# --- the servers -----------------------------------------------------------------------------------------------------


def _instances(
    plan: Mapping[str, Any], name: str, given: Mapping[str, Any], notes: dict[str, list[str]], needed: list[str]
) -> Iterator[dict[str, Any]]:
    settings, hardware = plan["settings"], plan["hardware"]
    replicas, gpus = int(settings["replicas"]), int(settings["gpus"])
    port = int(given.get("port", PORT))
    if not 1 <= port <= 65536 - replicas:
        raise ModelError(f"inputs.port: found {port}; wanted 1 to {65536 - replicas}, with {replicas} ports from there.")
    on_gpus = hardware["kind"] == "gpu"
    said = notes.setdefault("model_server_instances", [])
    said.append(_told(plan))
    common = {"vllm": _vllm, "vllm_cpu": _vllm_cpu, "llama_cpp": _llama_cpp}[settings["engine"]](plan, given, said, needed)
    if not on_gpus and replicas > 1:
        needed.append("Servers that share a host without GPUs each want CPUs of their own: set cpu_set of each.")
    for number in range(replicas):
        environment = dict(common.get("environment", {}))
        if on_gpus:
            # Numbered as nvidia-smi does, and not by speed.
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(number * gpus, (number + 1) * gpus)))
        yield {
            "name": name if replicas == 1 else f"{name}-{number}",
            "engine": settings["engine"],
            "model": name,
            "port": port + number,
            **{key: value for key, value in common.items() if key != "environment"},
            **({"environment": environment} if environment else {}),
        }


def _told(plan: Mapping[str, Any]) -> str:
    settings, served, work = plan["settings"], plan.get("service") or {}, plan.get("workload")
    replicas, gpus = settings["replicas"], settings["gpus"]
    unit = "GPU" if plan["hardware"]["kind"] == "gpu" else "socket"
    text = f"{_count(replicas, 'server')} on each host, {_count(gpus, unit)} each, of the {plan['hardware']['count']} there."
    if work and served.get("replicas_needed"):
        text += f" The workload needs {served['replicas_needed']} of them."
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parallel(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for option, key in (
        ("--tensor-parallel-size", "tensor_parallel"),
        ("--pipeline-parallel-size", "pipeline_parallel"),
        ("--data-parallel-size", "data_parallel"),
    ):
        if settings[key] > 1:
            words += [option, str(settings[key])]
    return words + (["--enable-expert-parallel"] if settings.get("expert_parallel") else [])


def _batching(settings: Mapping[str, Any]) -> list[str]:
    return [
        *("--max-num-seqs", str(settings["max_num_seqs"])),
        *("--max-num-batched-tokens", str(settings["max_num_batched_tokens"])),
        *([] if settings["kv_cache_dtype"] == "auto" else ["--kv-cache-dtype", str(settings["kv_cache_dtype"])]),
        *([] if settings["prefix_caching"] else ["--no-enable-prefix-caching"]),
    ]


def _vllm_words(plan: Mapping[str, Any]) -> list[str]:
    """What is the same with and without GPUs. The defaults of vLLM depend on version and GPU, and so what was planned is said."""
    settings, model, scheme = plan["settings"], plan["model"], plan["quantisation"]
    words = [*_parallel(settings), *_batching(settings)]
    if settings["dtype"] != model["dtype"]:
        words += ["--dtype", str(settings["dtype"])]
    if scheme.get("online"):
        words += ["--quantization", str(scheme["name"])]
    if model.get("vision") and settings.get("vision") is False:
        words += ["--limit-mm-per-prompt", '{"image": 0, "video": 0}']
    return words


def _vllm(plan: Mapping[str, Any], given: Mapping[str, Any], said: list[str], needed: list[str]) -> dict[str, Any]:
    settings = plan["settings"]
    words = [*_vllm_words(plan), "--gpu-memory-utilization", f"{settings['memory_utilization']:g}"]
    if settings.get("cache_bytes"):
        words += ["--kv-cache-memory-bytes", str(settings["cache_bytes"])]
    if not settings["cuda_graphs"]:
        words += ["--enforce-eager"]
    return {"max_model_len": settings["max_model_len"], "arguments": words}


def _vllm_cpu(plan: Mapping[str, Any], given: Mapping[str, Any], said: list[str], needed: list[str]) -> dict[str, Any]:
    """On a CPU vLLM takes the size of its cache in whole GiB, and to compile wants what hosts do not have (docs/engines.md)."""
    settings, memory = plan["settings"], plan["memory"]
    asked = int(settings.get("cache_bytes") or 0)
    size = asked or int(memory["kv_cache"]["low_bytes"]) // max(1, settings["replicas"])
    whole = size // GIB
    if whole < 1:
        raise ModelError(
            f"settings.cache_bytes: vLLM takes whole GiB on a CPU, and {size} bytes are less than one; give at least {GIB}."
        )
    if size % GIB:
        said.append(f"VLLM_CPU_KVCACHE_SPACE is in whole GiB: {whole} of the {size / GIB:.2f} that were planned.")
    found: dict[str, Any] = {
        "max_model_len": settings["max_model_len"],
        "arguments": [*_vllm_words(plan), "--enforce-eager"],
        "environment": {"VLLM_CPU_KVCACHE_SPACE": str(whole)},
    }
    # A tenth above the upper end of what was planned, so that only a leak meets it.
    most = sum(term["high_bytes"] for term in memory["terms"] if term["name"] not in ("kv_cache", "reserve")) + whole * GIB
    limit = math.ceil(most * 1.1 / GIB) * GIB
    if settings["replicas"] * limit <= memory["total_bytes"]:
        found["memory_max_bytes"] = limit
    return found


def _llama_cpp(plan: Mapping[str, Any], given: Mapping[str, Any], said: list[str], needed: list[str]) -> dict[str, Any]:
    settings, path = plan["settings"], str(plan["model"].get("path") or "")
    slots = int(settings["slots"])
    words = ["--parallel", str(slots), "--n-gpu-layers", "999" if plan["hardware"]["kind"] == "gpu" else "0"]
    if settings["gpus"] > 1:
        words += ["--split-mode", "layer"]
    if settings["kv_cache_dtype"] not in ("auto", "f16"):
        words += ["--cache-type-k", str(settings["kv_cache_dtype"]), "--cache-type-v", str(settings["kv_cache_dtype"])]
    found: dict[str, Any] = {"max_model_len": settings["max_model_len"] * slots, "arguments": words}
    if slots > 1:
        said.append(f"llama.cpp divides its context among {slots} slots: {settings['max_model_len']} tokens for each request.")
    if given.get("program"):
        found["program"] = str(given["program"])
    else:
        said.append("program, the path of llama-server on the hosts, is the site's to add to each.")
        needed.append("program: the path of llama-server on the hosts, in each instance.")
    if path.endswith(".gguf"):
        found["file"] = _safe("model.path", Path(path).name)
    return found


def _unique(instances: list[dict[str, Any]], plan: Mapping[str, Any]) -> None:
    """Two servers on one GPU would each take its memory."""
    if plan["hardware"]["kind"] != "gpu":
        return
    taken = [gpu for instance in instances for gpu in instance["environment"]["CUDA_VISIBLE_DEVICES"].split(",")]
    count = plan["hardware"]["count"]
    if len(taken) != len(set(taken)) or len(taken) > count:
        raise ModelError(
            f"settings.replicas: {_count(len(instances), 'server')} want {len(taken)} GPUs, and the host has {count}."
        )


# --- the gateway -----------------------------------------------------------------------------------------------------


def _gateway(plan: Mapping[str, Any], notes: dict[str, list[str]]) -> dict[str, Any]:
    """The gateway finds every instance of every host by itself (gateway_backends); only its limits may be too low."""
    settings, served = plan["settings"], plan.get("service") or {}
    found: dict[str, Any] = {}
    slots = settings["slots"] if settings["engine"] == "llama_cpp" else settings["max_num_seqs"] * settings["data_parallel"]
    if slots > GATEWAY_BACKEND_CONNECTIONS:
        found["gateway_backend_max_connections"] = slots
        notes["gateway_backend_max_connections"] = [
            f"One server runs up to {slots} requests at a time; the gateway's own limit is {GATEWAY_BACKEND_CONNECTIONS}."
        ]
    # Twice what runs at the peak, for those that wait.
    wanted = math.ceil(2 * (served.get("concurrency") or 0) * settings["replicas"]) if plan.get("workload") else 0
    if wanted > GATEWAY_CONNECTIONS:
        found["gateway_max_connections"] = min(100000, wanted)
        notes["gateway_max_connections"] = ["Twice the requests that run at the workload's peak, on one host."]
    return found


# --- text ------------------------------------------------------------------------------------------------------------


def _heading(plan: Mapping[str, Any], date: str) -> Iterator[str]:
    """What the file is of."""
    model, hardware, settings, work = plan["model"], plan["hardware"], plan["settings"], plan.get("workload")
    made = f" on {date}" if date else ""
    yield from _comment(f"Made by playbooks/plan.yml{made}. Put it into group_vars, or give it to site.yml with -e @FILE.")
    yield from _comment(f"{plan['verdict']}: {plan['summary']}")
    yield "#"
    scheme = plan["quantisation"]["name"]
    yield from _comment(f"Planned for: {model['name']}, weights in {settings['dtype'] if scheme == 'none' else scheme}")
    yield from _comment(f"on {hardware['count']} x {hardware['name']}, {settings['engine']} {settings['engine_version']}", INDENT)
    if work:
        prompt, answer, slo = work["prompt_tokens"], work["answer_tokens"], work.get("slo") or {}
        goals = ", ".join(f"{name} {slo[key]:g} ms" for name, key in _GOALS if slo.get(key))
        yield from _comment(f"{work['requests_per_day']:,.0f} requests a day, peak factor {work['peak_factor']:g}", INDENT)
        lengths = f"prompts of {prompt['mean']:g} and answers of {answer['mean']:g} tokens (mean)"
        yield from _comment(lengths + (f"; {goals}" if goals else ""), INDENT)
    else:
        yield from _comment("no workload", INDENT)
    defaulted = settings.get("defaulted") or []
    if defaulted:
        yield from _comment(f"not given, and so what the engine does by itself: {', '.join(map(str, defaulted))}", INDENT)


_GOALS = (("time to first token", "ttft_ms"), ("between tokens", "itl_ms"), ("whole answer", "e2e_ms"))


def _comment(text: str, mark: str = "# ") -> list[str]:
    """Lines of a comment, whatever a model's name holds."""
    words = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return textwrap.wrap(words, 120, initial_indent=mark, subsequent_indent="#" + " " * (len(mark) - 1))


def _safe(where: str, text: str) -> str:
    """A value that was read and not given must not be a template for Ansible."""
    if "{{" in text or "{%" in text or "{#" in text or any(not char.isprintable() for char in text):
        raise ModelError(f"{where}: {text!r} holds a control character or what Ansible takes for a template; give model_source.")
    return text
