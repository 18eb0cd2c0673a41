# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The planner's data files, and devices made of them: importable without Ansible, as the planner itself is.

A device is a product of ``gpu_thresholds.yml`` (what hosts are accepted by) or of ``planning_gpus.yml``, a real host by what
``onprem.llm.gpu_info`` read there, or what an operator says of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..module_utils._model_architecture import ModelError
from ..module_utils._model_inputs import known_keys, near, quantity
from ..module_utils._model_memory import Device
from ._gpu_data import GpuDataError, product_of, thresholds
from ._yaml_file import read_yaml

HERE = Path(__file__).parent
FILES = ("engines", "gpus", "quality", "speed")
SPELLED = re.compile(r"^\s*(?:(\d+)\s*[x*]\s*)?(.+?)\s*$", re.IGNORECASE)
MOST = 1024
OWN = (
    "product",
    "name",
    "count",
    "memory_bytes",
    "bandwidth_gbps",
    "tflops",
    "compute_capability",
    "nvlink_gbps",
    "pcie_gbps",
    "power_watts",
)


@cache
def planning_data() -> dict[str, dict[str, Any]]:
    """Every planning file, by its name, looked at once."""
    found = {name: read_yaml(HERE / f"planning_{name}.yml") for name in FILES}
    wrong = [problem for name, data in found.items() for problem in problems(f"planning_{name}.yml", data)]
    if wrong:
        raise ModelError("; ".join(wrong))
    return found


def problems(where: str, data: Any) -> Iterator[str]:
    """Sources that no document has, documents without a date, and figures whose bounds do not hold them."""
    documents = data.get("documents", {})
    for name, document in documents.items():
        for key in ("title", "url", "date"):
            if not document.get(key):
                yield f"{where}: documents.{name}: has no {key}"
    yield from _looked_at(where, "", data, documents)


def _looked_at(where: str, path: str, value: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(value, Mapping):
        if path != ".documents":
            named = value.get("sources", [value["source"]] if "source" in value else [])
            for source in named if isinstance(named, list) else []:
                if source not in documents:
                    yield f"{where}: {path.lstrip('.')}: its source {source!r} is not in documents"
            bounds = [value[key] for key in ("low", "value", "high") if isinstance(value.get(key), (int, float))]
            if len(bounds) == 3 and not bounds[0] <= bounds[1] <= bounds[2]:
                yield f"{where}: {path.lstrip('.')}: {bounds[1]} is not between {bounds[0]} and {bounds[2]}"
        for key, inner in value.items():
            yield from _looked_at(where, f"{path}.{key}", inner, documents)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _looked_at(where, f"{path}[{index}]", inner, documents)


# --- devices ---------------------------------------------------------------------------------------------------------


@cache
def _shipped() -> dict[str, Device]:
    return _made(None)


def _products_of(own: Mapping[str, Any] | None) -> dict[str, Device]:
    """Every product that can be planned for, with the site's own."""
    return _made(own) if own else _shipped()


def _made(own: Mapping[str, Any] | None) -> dict[str, Device]:
    gpus = planning_data()["gpus"]
    found = {}
    known = thresholds(own)
    for key, product in known["products"].items():
        figures = product["figures"]
        size = figures["memory_size"]
        # Of a product of the site's own, what acceptance asks for is what is sure to be there.
        least = int(size.get("floor") or size["peak"] * 0.97)
        visible = gpus["visible"].get(key) or {"value": least, "low": least, "high": int(size["peak"]), "source": "logs"}
        rates = {name[len("matmul_") :]: figure["peak"] * 1e12 for name, figure in figures.items() if name.startswith("matmul_")}
        rates.update({name: float(rate) for name, rate in gpus["rates"].get(key, {}).items() if name != "source"})
        if "fp8" in rates:
            rates.setdefault("int8", rates["fp8"])
        nvlink = figures.get("nvlink_bandwidth", {}).get("peak", 0) * 1e9 / 2
        documents = known["documents"]
        title = {name: documents[figure["peak_source"]]["title"] for name, figure in figures.items() if "peak_source" in figure}
        found[key] = Device(
            product=key,
            name=product["name"],
            kind="gpu",
            memory=visible["value"],
            memory_low=visible["low"],
            memory_high=visible["high"],
            bandwidth=figures["memory_bandwidth"]["peak"] * 1e9,
            rates=rates,
            compute_capability=_capability(product["compute_capability"]),
            link_bandwidth=nvlink or figures["host_to_device_bandwidth"]["peak"] * 1e9,
            pcie_bandwidth=figures["host_to_device_bandwidth"]["peak"] * 1e9,
            link="nvlink" if nvlink else "pcie",
            power_watts=figures["power_limit"]["peak"],
            sources={"memory": gpus["documents"][visible["source"]]["title"], **_sources(title)},
        )
    for key, product in gpus["products"].items():
        title_of = gpus["documents"][product["source"]]["title"]
        found[key] = Device(
            product=key,
            name=product["name"],
            kind="gpu",
            memory=product["visible"]["value"],
            memory_low=product["visible"]["low"],
            memory_high=product["visible"]["high"],
            bandwidth=float(product["memory_bandwidth"]),
            rates={name: float(rate) for name, rate in product["rates"].items()},
            compute_capability=_capability(product["compute_capability"]),
            link_bandwidth=float(product.get("nvlink") or product["pcie"]),
            link="nvlink" if product.get("nvlink") else "pcie",
            pcie_bandwidth=float(product["pcie"]),
            power_watts=product["power"],
            sources=dict.fromkeys(("memory", "bandwidth", "rates", "link", "power"), title_of),
        )
    for key, product in gpus["cpus"].items():
        found[key] = Device(
            product=key,
            name=product["name"],
            kind="cpu",
            memory=0,
            bandwidth=float(product["memory_bandwidth"]),
            rates={name: float(rate) for name, rate in product["rates"].items()},
            power_watts=product["power"],
            sources=dict.fromkeys(("bandwidth", "rates", "power"), gpus["documents"][product["source"]]["title"]),
        )
    return found


def _sources(title: Mapping[str, str]) -> dict[str, str]:
    names = {"bandwidth": "memory_bandwidth", "rates": "matmul_bf16", "link": "nvlink_bandwidth", "power": "power_limit"}
    return {ours: title[theirs] for ours, theirs in names.items() if theirs in title}


def _capability(text: Any) -> tuple[int, int]:
    major, _dot, minor = str(text).partition(".")
    return int(major), int(minor or 0)


def hardware(given: Any, own: Mapping[str, Any] | None = None) -> tuple[Device, int]:
    """A device and how many of it one host has, from what an operator gives.

    ``given`` is text (``8xA100-SXM4-80GB``, ``hgx_h100``, ``4xl40s``, ``cpu``), what ``gpu_info`` returned, or a mapping with a
    product and figures that stand in place of the product's. Raises ModelError that names near products.
    """
    device, count = _asked_for(given, own)
    if not device.memory:
        raise ModelError(
            f"gpus: how much memory the host of {device.name} has is not known; give it in bytes, for instance gpus: "
            f"{{product: {device.product}, memory_bytes: {64 * 2**30}}}."
        )
    return device, count


def _asked_for(given: Any, own: Mapping[str, Any] | None) -> tuple[Device, int]:
    if isinstance(given, Mapping) and "gpus" in given:
        return _from_gpu_info(given, own)
    if isinstance(given, Mapping):
        return _from_numbers(given, own)
    if not isinstance(given, str):
        raise ModelError(f"gpus: {given!r} is neither text, such as 8xA100-SXM4-80GB, nor a mapping.")
    found = SPELLED.match(str(given or ""))
    if not found:
        raise ModelError(f"gpus: {given!r} names no GPU; say for instance 8xA100-SXM4-80GB.")
    count, word = found.groups()
    profiles = thresholds(own)["profiles"]
    if count is None and word in profiles:
        return _products_of(own)[profiles[word]["product"]], int(profiles[word]["gpus"])
    if count is not None and not 1 <= int(count) <= MOST:
        raise ModelError(f"gpus: {given!r}: found {count} GPUs; 1 to {MOST} in one host are wanted.")
    return _named(word, own), int(count or 1)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower())) - {"nvidia", "geforce", "tesla", "gpu", "gpus"}


def _named(word: str, own: Mapping[str, Any] | None = None) -> Device:
    """The product of which name or key have all words of what was asked: a100-80gb is a100_sxm4_80gb or a100_pcie_80gb."""
    if word.lower() == "cpu":
        return Device(product="cpu", name="CPU", kind="cpu", memory=0)
    products = _products_of(own)
    asked = _words(word)
    names = {key: (_words(key), _words(product.name)) for key, product in products.items()}
    found = [key for key, both in names.items() if asked in both]
    found = found or [key for key, both in names.items() if asked and asked <= both[0] | both[1]]
    # A driver's name may say more than the product's (an edition): the product of which it has most words. Laptops are slower.
    longer = {key: len(part) for key, both in names.items() for part in both if part <= asked and "laptop" not in asked}
    found = found or [key for key, size in longer.items() if size == max(longer.values())]
    if len(found) == 1:
        return products[found[0]]
    if found:
        raise ModelError(f"gpus: {word!r} may be {' or '.join(sorted(found))}; say which.")
    raise ModelError(
        f"gpus: there is no product {word!r}{near(word.lower(), products)}; known are {', '.join(sorted(products))}. Another one "
        "can be described: gpus: {name: ..., count: 8, memory_bytes: ..., bandwidth_gbps: ..., tflops: {bf16: ...}, "
        "compute_capability: '9.0'}."
    )


def _from_gpu_info(read: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[Device, int]:
    gpus = read["gpus"]
    if read.get("state", "read") != "read" or not gpus:
        raise ModelError(f"gpus: gpu_info read no GPU on that host: {read.get('reason') or read.get('state')}.")
    if not isinstance(gpus, Sequence) or not all(isinstance(gpu, Mapping) and gpu.get("name") for gpu in gpus):
        raise ModelError("gpus: gpus is no list of what gpu_info returns for each GPU, with its name.")
    names = sorted({str(gpu["name"]) for gpu in gpus})
    if len(names) > 1:
        raise ModelError(f"gpus: the host has GPUs of several products ({', '.join(names)}); plan for one of them at a time.")
    if any((gpu.get("mig") or {}).get("enabled") for gpu in gpus):
        raise ModelError("gpus: the host's GPUs are divided (MIG), which is not planned for; describe one instance with numbers.")
    first = gpus[0]
    try:
        known = product_of(str((first.get("pci") or {}).get("device_id") or ""), own=own)
    except GpuDataError as error:
        raise ModelError(str(error)) from error
    device = _products_of(own)[known["product"]] if known else _named(names[0], own)
    changes: dict[str, Any] = {}
    sources = dict(device.sources)
    total = min(int((gpu.get("memory") or {}).get("total_bytes") or 0) for gpu in gpus)
    # NVML's total holds what the driver keeps, which a program does not get: what programs were given on such a GPU is better.
    if total and abs(total / device.memory - 1) > 0.08:
        changes.update(memory=total, memory_low=round(total * 0.97), memory_high=total)
        sources["memory"] = "gpu_info of the host, with what the driver keeps for itself"
    links = [link for link in first.get("nvlink") or [] if link.get("active")]
    speed = sum(float(link.get("bandwidth_gbytes_per_second") or 0) for link in links) * 1e9 / 2
    if device.link == "nvlink" and not links and len(gpus) > 1:
        changes.update(link="pcie", link_bandwidth=device.pcie_bandwidth)
        sources["link"] = "gpu_info of the host: no NVLink is active"
    elif speed:
        changes.update(link="nvlink", link_bandwidth=speed)
        sources["link"] = "gpu_info of the host"
    limits = [float((gpu.get("power") or {}).get("enforced_limit_watts") or 0) for gpu in gpus]
    if all(limits):
        changes["power_watts"] = min(limits)
        sources["power"] = "gpu_info of the host"
    return _changed(device, changes, sources), len(gpus)


def _from_numbers(given: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[Device, int]:
    known_keys("gpus", given, OWN)
    count = quantity("gpus.count", given.get("count", 1), 1, whole=True)
    if given.get("product"):
        device, spelled = _asked_for(str(given["product"]), own)
        count = quantity("gpus.count", given["count"], 1, whole=True) if "count" in given else spelled
    else:
        missing = [key for key in ("memory_bytes", "bandwidth_gbps", "compute_capability") if key not in given]
        if missing:
            raise ModelError(f"gpus: without a product, {', '.join(missing)} must be given too.")
        device = Device(
            product="own", name=str(given.get("name", "GPU")), kind="gpu", memory=0, link="pcie", link_bandwidth=31.5e9
        )
    changes: dict[str, Any] = {}
    if "memory_bytes" in given:
        size = quantity("gpus.memory_bytes", given["memory_bytes"], 1, whole=True)
        changes.update(memory=size, memory_low=size, memory_high=size)
    for key, field, factor in (
        ("bandwidth_gbps", "bandwidth", 1e9),
        ("power_watts", "power_watts", 1),
    ):
        if key in given:
            changes[field] = quantity(f"gpus.{key}", given[key], 0.001) * factor
    for key, link in (("pcie_gbps", "pcie"), ("nvlink_gbps", "nvlink")):
        if key in given:
            changes.update(link=link, link_bandwidth=quantity(f"gpus.{key}", given[key], 0.001) * 1e9)
    if "tflops" in given:
        if not isinstance(given["tflops"], Mapping):
            raise ModelError(f"gpus.tflops: {given['tflops']!r} is no mapping of types to TFLOP/s, such as {{bf16: 312}}.")
        changes["rates"] = {kind: quantity(f"gpus.tflops.{kind}", rate, 0.001) * 1e12 for kind, rate in given["tflops"].items()}
    if "compute_capability" in given:
        if not re.fullmatch(r"\d+(\.\d)?", str(given["compute_capability"])):
            raise ModelError(f"gpus.compute_capability: {given['compute_capability']!r} is not such as 9.0.")
        changes["compute_capability"] = _capability(given["compute_capability"])
    if "name" in given:
        changes["name"] = str(given["name"])
    return _changed(device, changes, {**device.sources, **dict.fromkeys(_touched(changes), "given by the operator")}), count


def _touched(changes: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix("_watts").removesuffix("_bandwidth") for name in changes]


def _changed(device: Device, changes: Mapping[str, Any], sources: Mapping[str, str]) -> Device:
    return replace(device, **changes, sources=sources)
