# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What GPUs must be able to do, and what their errors call for: two data files, and a look at whether they can be true.

The figures are in ``gpu_thresholds.yml`` and ``xid_policy.yml`` beside this file; a site's own are merged over them and looked
at as closely. Nothing is handed out that has a problem.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import merged
from ansible_collections.onprem.llm.plugins.plugin_utils._yaml_file import read_yaml

THRESHOLDS = Path(__file__).with_name("gpu_thresholds.yml")
XID_POLICY = Path(__file__).with_name("xid_policy.yml")
OWN_THRESHOLDS = "onprem_llm_gpu_thresholds"
OWN_XID_POLICY = "onprem_llm_xid_policy"
FORM = 1

MATMUL = ("matmul_fp64", "matmul_tf32", "matmul_bf16", "matmul_fp16", "matmul_fp8")
UNITS = {
    "memory_size": "bytes",
    "memory_bandwidth": "GB/s",
    "host_to_device_bandwidth": "GB/s",
    "device_to_host_bandwidth": "GB/s",
    "peer_to_peer_bandwidth": "GB/s",
    **dict.fromkeys(MATMUL, "TFLOP/s"),
    "all_reduce_bus_bandwidth": "GB/s",
    "pcie_generation": "generation",
    "pcie_width": "lanes",
    "nvlink_links": "links",
    "nvlink_bandwidth": "GB/s",
    "temperature": "C",
    "power_limit": "W",
}
# These are counted, not measured: one less than there could be is a link that was trained down, or that is missing.
EXACT = ("pcie_generation", "pcie_width", "nvlink_links")
LOWEST_SHARE = 0.5
TEMPERATURES = (40, 110)
FORM_FACTORS = ("SXM2", "SXM3", "SXM4", "SXM5", "SXM6", "PCIe")
NVLINK = ("full_mesh", "none")
ACTIONS = ("ignore", "watch", "restart_application", "reset_gpu", "reboot_host", "replace")
SEVERITIES = ("non_fatal", "fatal", "always_fatal")
RECOVERY_TEXTS = ("None", "GPU Reset Required", "Node Reboot Required", "Drain P2P", "Drain and Reset")

# The sources that a file of this project and a site's own variable may name without listing them.
PROJECT, SITE = "project", "site"

# The fields of gpu_validate's expectation that a profile and its figures fill.
FIELDS_OF_PROFILE = {
    **{"gpus": "gpus", "product": "product_name", "pci_device_ids": "pci_device_ids", "minimum_driver": "minimum_driver"},
    **{"ecc": "ecc", "nvlink": "nvlink", "nvswitches": "nvswitches", "fabric": "fabric_manager", "numa_nodes": "numa_nodes"},
}
FIELDS_OF_FIGURES = {
    "memory_bytes": ("memory_size", "floor"),
    "pcie_generation": ("pcie_generation", "floor"),
    "pcie_width": ("pcie_width", "floor"),
    "nvlink_links": ("nvlink_links", "floor"),
    "nvlink_gbytes_per_second": ("nvlink_bandwidth", "floor"),
    "power_limit_watts": ("power_limit", "floor"),
    "temperature_celsius": ("temperature", "ceiling"),
}

FIGURE_KEYS = ("unit", "peak", "floor", "ceiling", "share", "peak_source", "floor_source", "ceiling_source", "date", "note")
PRODUCT_KEYS = ("name", "form_factor", "pci_device_ids", "architecture", "compute_capability", "figures")
PROFILE_KEYS = (
    *("title", "product", "gpus", "nvlink", "nvswitches", "fabric_manager", "ecc", "numa_nodes"),
    *("minimum_driver", "minimum_driver_source"),
)
CODE_KEYS = ("name", "nvidia_action", "nvidia_investigation", "severity", "action", "source", "note")


class GpuDataError(Exception):
    """A data file, or a site's own data, that cannot be used; the message names file and field."""


# What is asked for.


def thresholds(own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Products and profiles, the site's own merged over them."""
    shipped = deepcopy(_shipped(THRESHOLDS, problems))
    if not own:
        return shipped
    whole = _with_own_thresholds(shipped, own)
    _refuse(problems(whole, OWN_THRESHOLDS))
    return whole


def profile(name: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One profile with what is to be known of its product; a figure of its own stands in place of the product's.

    ``documents`` holds the documents that the figures name as their sources.
    """
    data = thresholds(own)
    if name not in data["profiles"]:
        raise GpuDataError(
            f"There is no GPU profile {name!r}{_meant(name, data['profiles'])}; known are {', '.join(data['profiles'])}. "
            f"A site's own go into {OWN_THRESHOLDS}.profiles."
        )
    found = data["profiles"][name]
    product = data["products"][found["product"]]
    figures = {**product["figures"], **found.get("figures", {})}
    sources = {value for figure in figures.values() for key, value in figure.items() if key.endswith("_source")}
    return {
        **found,
        "profile": name,
        "product_name": product["name"],
        **{key: product[key] for key in ("form_factor", "pci_device_ids", "architecture", "compute_capability")},
        "figures": figures,
        "documents": {key: data["documents"][key] for key in sorted({*sources, found["minimum_driver_source"]})},
    }


def source_of(found: Mapping[str, Any], figure: str, bound: str = "floor") -> str:
    """Where a bound of a profile's figure is from, in words."""
    values = found["figures"][figure]
    if values[f"{bound}_source"] == PROJECT and "share" in values:
        return f"This project's own floor, {values['share']:.0%} of the peak".replace("%", " %")
    return str(found["documents"][values[f"{bound}_source"]]["title"])


def expectation(name: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A profile as ``onprem.llm.gpu_validate`` takes it: one value for each field, and in ``sources`` where it is from."""
    found = profile(name, own)
    figures = found["figures"]
    by_profile = {field: found[key] for field, key in FIELDS_OF_PROFILE.items()}
    sources = {field: f"profile {name}" for field in by_profile}
    sources["minimum_driver"] = found["documents"][found["minimum_driver_source"]]["title"]
    # Drivers tell the fabric's state of GPUs from Hopper on; before it, the mesh alone shows what fabric manager did.
    if float(found["compute_capability"]) < 9:
        by_profile["fabric"] = None
    by_figure = {}
    for field, (figure, bound) in FIELDS_OF_FIGURES.items():
        if bound in figures.get(figure, {}) and (found["nvlink"] == "full_mesh" or not figure.startswith("nvlink_")):
            by_figure[field] = figures[figure][bound]
            sources[field] = source_of(found, figure, bound)
    if found.get("minimum_memory_bytes"):
        by_figure["memory_bytes"] = found["minimum_memory_bytes"]
        sources["memory_bytes"] = f"profile {name}"
    return {**by_profile, **by_figure, "sources": sources}


def product_of(device_id: str, form_factor: str | None = None, own: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The product with a PCI device id (and form factor, where one id has several), with its key as ``product``."""
    for key, known in thresholds(own)["products"].items():
        if device_id.lower() in known["pci_device_ids"] and form_factor in (None, known["form_factor"]):
            return {"product": key, **known}
    return None


def xid_policy(own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to do about which code, the site's own decisions merged over the shipped table; codes are numbers."""
    shipped = deepcopy(_shipped(XID_POLICY, xid_problems))
    if not own:
        return shipped
    whole = _with_own_policy(shipped, own)
    _refuse(xid_problems(whole, OWN_XID_POLICY))
    return whole


def entry_of(policy: Mapping[str, Any], code: Any) -> dict[str, Any]:
    """What a policy says of an Xid code; one that is not in it is as the policy has unknown ones."""
    try:
        number = int(code)
    except (TypeError, ValueError) as error:
        raise GpuDataError(f"{code!r} is no Xid code, which is a number.") from error
    found = policy["codes"].get(number) or {"name": "not in the table", "source": None, **policy["unknown"]}
    return {"code": number, **found}


def problems(data: Any, where: str = THRESHOLDS.name) -> list[str]:
    """Why the thresholds cannot be true, each with where it is from and which field it is."""
    return [f"{where}: {text}" for text in _threshold_problems(data)]


def xid_problems(data: Any, where: str = XID_POLICY.name) -> list[str]:
    """The same for the policy."""
    return [f"{where}: {text}" for text in _policy_problems(data)]


# Reading and merging.


@cache
def _shipped(path: Path, look: Callable[[Any, str], list[str]]) -> dict[str, Any]:
    try:
        data = read_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise GpuDataError(f"{path.name}: {error}") from error
    _refuse(look(data, path.name))
    return dict(data)


def _refuse(found: list[str]) -> None:
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise GpuDataError("; ".join(found[:5]) + more)


def _with_own_thresholds(shipped: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    _refuse([f"{OWN_THRESHOLDS}: {text}" for text in _own_shape(own, ("documents", "products", "profiles"))])
    whole = merged(shipped, {"documents": own.get("documents") or {}})
    whole["documents"].setdefault(SITE, {"title": f"The site's own {OWN_THRESHOLDS}", "url": None, "date": shipped["date"]})
    for kind in ("products", "profiles"):
        for name, given in (own.get(kind) or {}).items():
            base = _base(whole[kind], kind, name, given)
            changes = {key: value for key, value in given.items() if key != "like"}
            below = base.get("figures", {})
            if kind == "profiles":
                product = changes.get("product", base.get("product"))
                below = {**whole["products"].get(product, {}).get("figures", {}), **below}
                if "minimum_driver" in changes:
                    changes.setdefault("minimum_driver_source", SITE)
            figures = {
                figure: _own_figure(below.get(figure, {}), values, shipped["date"])
                for figure, values in (changes.pop("figures", None) or {}).items()
            }
            whole[kind][name] = merged(base, changes)
            if figures or kind == "products":
                whole[kind][name]["figures"] = {**base.get("figures", {}), **figures}
    return whole


def _base(known: Mapping[str, Any], kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    like = given.get("like")
    if like is not None and like not in known:
        raise GpuDataError(
            f"{OWN_THRESHOLDS}: {kind}.{name}.like: {like!r} is not known{_meant(like, known)}; there are {', '.join(known)}"
        )
    return dict(known.get(like if like is not None else name, {}))


def _own_figure(base: Mapping[str, Any], given: Any, date: str) -> Any:
    """A figure as the site changes it: whose it is now, and null for what the site takes away."""
    if not isinstance(given, Mapping):
        return given
    changes = dict(given)
    for bound in ("peak", "floor", "ceiling"):
        if bound in changes:
            taken = changes[bound] is None
            changes.setdefault(f"{bound}_source", None if taken else SITE)
    if "floor" in changes:
        changes.setdefault("share", None)
    elif _is_number(changes.get("peak")) and "share" in base:
        changes["floor"] = round(base["share"] * changes["peak"], 1)
    changes.setdefault("date", base.get("date", date))
    return {key: value for key, value in merged(base, changes).items() if value is not None}


def _with_own_policy(shipped: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    _refuse([f"{OWN_XID_POLICY}: {text}" for text in _own_shape(own, ("documents", "codes", "sxid", "unknown"))])
    whole = merged(shipped, {"documents": own.get("documents") or {}, "unknown": own.get("unknown") or {}})
    whole["documents"].setdefault(SITE, {"title": f"The site's own {OWN_XID_POLICY}", "url": None, "date": shipped["version"]})
    for table in ("codes", "sxid"):
        for code, given in (own.get(table) or {}).items():
            # Extra variables and JSON have no numbers as keys.
            number = int(code) if isinstance(code, str) and code.isdecimal() else code
            whole[table][number] = merged(whole[table].get(number, {}), {"source": SITE, **given})
            if table == "codes" and number in whole["unused"]["codes"]:
                whole["unused"]["codes"].remove(number)
    return whole


def _own_shape(own: Any, parts: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(own, Mapping):
        yield f"is {_said(own)}, not a mapping with {', '.join(parts)}"
        return
    for key, part in own.items():
        if key not in parts:
            yield f"{key}: is not known{_meant(key, parts)}; there are {', '.join(parts)}"
        elif part is not None and not isinstance(part, Mapping):
            yield f"{key}: is {_said(part)}, not a mapping"
        else:
            for name, value in (part or {}).items():
                if key != "unknown" and not isinstance(value, Mapping):
                    yield f"{key}.{name}: is {_said(value)}, not a mapping"
                elif key in ("products", "profiles") and not isinstance(value.get("figures") or {}, Mapping):
                    yield f"{key}.{name}.figures: is {_said(value['figures'])}, not a mapping"


# Whether thresholds can be true.


def _threshold_problems(data: Any) -> Iterator[str]:
    keys = ("form", "date", "documents", "products", "profiles")
    yield from _keys("", data, keys)
    if not isinstance(data, Mapping):
        return
    yield from _mappings(data, keys[2:])
    if not all(isinstance(data.get(key), Mapping) for key in keys[2:]):
        return
    yield from _form_and_documents(data, "date")
    for name, product in data["products"].items():
        yield from _product_problems(f"products.{name}", product, data["documents"])
    yield from _twice(data["products"])
    for name, found in data["profiles"].items():
        yield from _profile_problems(f"profiles.{name}", found, data)


def _form_and_documents(data: Mapping[str, Any], day: str) -> Iterator[str]:
    if data.get("form") != FORM:
        yield f"form: is {_said(data.get('form'))}, and this version reads {FORM}"
    if not _is_date(data.get(day)):
        yield f"{day}: {_said(data.get(day))} is no date (YYYY-MM-DD)"
    for key, document in data["documents"].items():
        yield from _keys(f"documents.{key}", document, ("title", "url", "date"))
        if isinstance(document, Mapping) and "date" in document and not _is_date(document["date"]):
            yield f"documents.{key}.date: {_said(document['date'])} is no date (YYYY-MM-DD)"


def _product_problems(path: str, product: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    yield from _keys(path, product, PRODUCT_KEYS)
    if not isinstance(product, Mapping):
        return
    if product.get("form_factor") not in FORM_FACTORS:
        yield f"{path}.form_factor: is {_said(product.get('form_factor'))}; there are {', '.join(FORM_FACTORS)}"
    ids = product.get("pci_device_ids")
    if not isinstance(ids, list) or not ids:
        yield f"{path}.pci_device_ids: is {_said(ids)}, not a list of device ids"
    for device_id in ids if isinstance(ids, list) else []:
        if not isinstance(device_id, str) or not re.fullmatch(r"[0-9a-f]{4}", device_id):
            yield f"{path}.pci_device_ids: {_said(device_id)} is no device id (four lower-case hexadecimal digits, in quotes)"
    capability = product.get("compute_capability")
    if not isinstance(capability, str) or not re.fullmatch(r"\d+\.\d+", capability):
        yield f'{path}.compute_capability: {_said(capability)} is none (as "9.0", in quotes)'
    figures = product.get("figures")
    if isinstance(figures, Mapping):
        yield from _figures_problems(f"{path}.figures", figures, figures, documents)
    elif "figures" in product:
        yield f"{path}.figures: is {_said(figures)}, not a mapping"


def _twice(products: Mapping[str, Any]) -> Iterator[str]:
    seen: dict[tuple[str, str], str] = {}
    for name, product in products.items():
        ids = product.get("pci_device_ids") if isinstance(product, Mapping) else None
        for device_id in ids if isinstance(ids, list) else []:
            first = seen.setdefault((str(product.get("form_factor")), str(device_id)), name)
            if first != name:
                yield f"products.{name}.pci_device_ids: {device_id} is {first}'s already, with the same form factor"


def _profile_problems(path: str, found: Any, data: Mapping[str, Any]) -> Iterator[str]:
    yield from _keys(path, found, PROFILE_KEYS, ("figures", "minimum_memory_bytes"))
    if not isinstance(found, Mapping):
        return
    product = data["products"].get(found.get("product"))
    if product is None:
        known = data["products"]
        yield f"{path}.product: {_said(found.get('product'))} is not known{_meant(found.get('product'), known)}; there are " + (
            ", ".join(known)
        )
    for key, least in (("gpus", 1), ("nvswitches", 0)):
        value = found.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"{path}.{key}: is {_said(value)}, not a number from {least}"
    nodes = found.get("numa_nodes")
    if nodes is not None and (not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1):
        yield f"{path}.numa_nodes: is {_said(nodes)}, not a number from 1 or null"
    if found.get("nvlink") not in NVLINK:
        yield f"{path}.nvlink: is {_said(found.get('nvlink'))}; there are {', '.join(NVLINK)}"
    if not isinstance(found.get("fabric_manager"), bool):
        yield f"{path}.fabric_manager: is {_said(found.get('fabric_manager'))}, not true or false"
    if found.get("ecc") not in (True, False, None):
        yield f"{path}.ecc: is {_said(found.get('ecc'))}, not true, false or null"
    driver = found.get("minimum_driver")
    if not isinstance(driver, str) or not re.fullmatch(r"\d+(\.\d+)+", driver):
        yield f'{path}.minimum_driver: {_said(driver)} is no driver version (as "535.104.05", in quotes)'
    yield from _source(f"{path}.minimum_driver_source", found.get("minimum_driver_source"), data["documents"])
    given = found.get("figures", {})
    if not isinstance(given, Mapping):
        yield f"{path}.figures: is {_said(given)}, not a mapping"
    elif isinstance(product, Mapping) and isinstance(product.get("figures"), Mapping):
        whole = {**product["figures"], **given}
        yield from _figures_problems(f"{path}.figures", whole, given, data["documents"])
        if found.get("nvlink") == "full_mesh" and "nvlink_links" not in whole:
            yield f"{path}.nvlink: is full_mesh, and {found['product']} has no figure nvlink_links"
        yield from _minimum_memory(f"{path}.minimum_memory_bytes", found.get("minimum_memory_bytes"), whole.get("memory_size"))


def _minimum_memory(path: str, value: Any, size: Any) -> Iterator[str]:
    peak = size.get("peak") if isinstance(size, Mapping) else None
    if value is None or not isinstance(peak, int):
        return
    if not _is_number(value):
        yield f"{path}: is {_said(value)}, not a number of bytes"
    elif not LOWEST_SHARE * peak <= value <= peak:
        yield f"{path}: {value} is not between half and all of the product's {peak} bytes"


def _figures_problems(path: str, figures: Mapping[str, Any], named: Iterable[str], documents: Mapping[str, Any]) -> Iterator[str]:
    """Of `figures`, those that are `named`, alone and against each other."""
    sound = True
    for name in named:
        for text in _figure_problems(f"{path}.{name}", name, figures[name], documents):
            sound = False
            yield text
    if sound and named:
        yield from _against_each_other(path, figures)


def _figure_problems(path: str, name: str, figure: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    if name not in UNITS:
        yield f"{path}: is not known{_meant(name, UNITS)}; there are {', '.join(UNITS)}"
        return
    yield from _keys(path, figure, ("unit", "date"), FIGURE_KEYS)
    if not isinstance(figure, Mapping):
        return
    if "unit" in figure and figure["unit"] != UNITS[name]:
        yield f"{path}.unit: is {_said(figure['unit'])}; {name} is in {UNITS[name]}"
        # What is in another unit cannot be compared.
        return
    if "date" in figure and not _is_date(figure["date"]):
        yield f"{path}.date: {_said(figure['date'])} is no date (YYYY-MM-DD)"
    bounds = [bound for bound in ("peak", "floor", "ceiling") if bound in figure]
    for bound in bounds:
        if not _is_number(figure[bound]):
            yield f"{path}.{bound}: {_said(figure[bound])} is no number above zero"
        yield from _source(f"{path}.{bound}_source", figure.get(f"{bound}_source"), documents)
    if "peak" not in bounds and "ceiling" not in bounds:
        yield f"{path}: lacks peak (what is physically possible) or ceiling"
    if "floor" in bounds and ("peak" not in bounds or "ceiling" in bounds):
        yield f"{path}.floor: needs a peak to be held against, and goes with no ceiling"
    if all(_is_number(figure[bound]) for bound in bounds):
        yield from _bounds(path, name, figure)


def _bounds(path: str, name: str, figure: Mapping[str, Any]) -> Iterator[str]:
    unit, peak, floor, ceiling = UNITS[name], figure.get("peak"), figure.get("floor"), figure.get("ceiling")
    if peak is not None and floor is not None:
        if floor > peak:
            yield f"{path}.floor: {floor} {unit} is above the peak {peak} {unit}"
        elif name in EXACT and floor != peak:
            yield f"{path}.floor: {floor} {unit} lets one pass that was trained down from {peak} {unit}; it must be the peak"
        elif floor < LOWEST_SHARE * peak:
            yield f"{path}.floor: {floor} {unit} is under {LOWEST_SHARE:.0%} of the peak {peak} {unit}".replace("%", " %")
        yield from _share(path, peak, floor, figure)
    if ceiling is not None and name == "temperature" and not TEMPERATURES[0] <= ceiling <= TEMPERATURES[1]:
        yield f"{path}.ceiling: {ceiling} C is not between {TEMPERATURES[0]} and {TEMPERATURES[1]} C"
    if ceiling is not None and peak is not None and ceiling > peak:
        yield f"{path}.ceiling: {ceiling} {unit} is above the peak {peak} {unit}"


def _share(path: str, peak: float, floor: float, figure: Mapping[str, Any]) -> Iterator[str]:
    share = figure.get("share")
    if figure.get("floor_source") == PROJECT and share is None:
        yield f"{path}.share: is missing; a floor of this project's own says which part of the peak it is"
    elif share is not None and (not _is_number(share) or abs(floor - share * peak) > 0.01 * peak):
        yield f"{path}.share: {_said(share)} of {peak} is not the floor {floor}"


def _against_each_other(path: str, figures: Mapping[str, Any]) -> Iterator[str]:
    def peak(name: str) -> float | None:
        value = figures.get(name, {}).get("peak")
        return value if _is_number(value) else None

    generation, width = peak("pcie_generation"), peak("pcie_width")
    if generation in (3, 4, 5) and width:
        # 8 GT/s a lane in the third generation, then doubled; 128 of 130 bits are data.
        link = 2 ** (generation - 3) * 128 / 130 * width
        for name in ("host_to_device_bandwidth", "device_to_host_bandwidth"):
            value = peak(name)
            if value is not None and abs(value - link) > 0.02 * link:
                yield (
                    f"{path}.{name}.peak: {value} GB/s is not what PCIe generation {generation} with {width} lanes moves "
                    f"({link:.1f} GB/s)"
                )
    total = peak("nvlink_bandwidth")
    for name, most in (("peer_to_peer_bandwidth", 0.5), ("all_reduce_bus_bandwidth", 1.0)):
        value = peak(name)
        if value is not None and total is not None and value > most * total:
            yield (
                f"{path}.{name}.peak: {value} GB/s is more than "
                f"{'one direction' if most < 1 else 'both directions'} of the NVLinks ({most * total:g} GB/s)"
            )


# Whether a policy can be followed.


def _policy_problems(data: Any) -> Iterator[str]:
    keys = ("form", "version", "documents", "actions", "codes", "unused", "unknown", "sxid", "recovery_actions")
    yield from _keys("", data, keys)
    if not isinstance(data, Mapping):
        return
    tables = ("documents", "codes", "sxid")
    yield from _mappings(data, tables)
    if not all(isinstance(data.get(key), Mapping) for key in tables):
        return
    yield from _form_and_documents(data, "version")
    if data.get("actions") != list(ACTIONS):
        yield f"actions: are {_said(data.get('actions'))}; this version knows {', '.join(ACTIONS)}, from harmless to severe"
    for table in ("codes", "sxid"):
        for code, entry in data[table].items():
            yield from _code_problems(table, code, entry, data["documents"])
    unknown = data.get("unknown")
    yield from _keys("unknown", unknown, ("action",), ("nvidia_action", "source", "note"))
    if isinstance(unknown, Mapping):
        yield from _action("unknown.action", unknown.get("action"))
    yield from _unused(data)
    yield from _recovery_problems(data.get("recovery_actions"), data["documents"])


def _code_problems(table: str, code: Any, entry: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    path = f"{table}.{code}"
    if not isinstance(code, int) or isinstance(code, bool) or code < 1:
        yield f"{path}: is no code (a number)"
    required = ("name", "action", "source") if table == "sxid" else ("name", "nvidia_action", "action", "source")
    yield from _keys(path, entry, required, CODE_KEYS)
    if not isinstance(entry, Mapping):
        return
    yield from _action(f"{path}.action", entry.get("action"))
    yield from _source(f"{path}.source", entry.get("source"), documents)
    for key in ("name", "nvidia_action", "nvidia_investigation", "note"):
        value = entry.get(key)
        if key in entry and not isinstance(value, str) and not (value is None and key != "name"):
            yield f"{path}.{key}: is {_said(value)}, not a text"
    if "severity" in entry and entry["severity"] not in SEVERITIES:
        yield f"{path}.severity: is {_said(entry['severity'])}; there are {', '.join(SEVERITIES)}"


def _unused(data: Mapping[str, Any]) -> Iterator[str]:
    unused = data.get("unused")
    yield from _keys("unused", unused, ("codes", "source"))
    if not isinstance(unused, Mapping) or not isinstance(unused.get("codes"), list):
        return
    yield from _source("unused.source", unused.get("source"), data["documents"])
    for code in unused["codes"]:
        if code in data["codes"]:
            yield f"unused.codes: {code} is in codes as well"


def _recovery_problems(entries: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entries, list):
        yield f"recovery_actions: are {_said(entries)}, not a list"
        return
    seen: list[Any] = []
    for number, entry in enumerate(entries):
        path = f"recovery_actions[{number}]"
        yield from _keys(path, entry, ("text", "action", "source"), ("value",))
        if not isinstance(entry, Mapping):
            continue
        yield from _action(f"{path}.action", entry.get("action"))
        yield from _source(f"{path}.source", entry.get("source"), documents)
        if entry.get("text") in seen:
            yield f"{path}.text: {_said(entry.get('text'))} is there already"
        seen.append(entry.get("text"))
    for text in RECOVERY_TEXTS:
        if text not in seen:
            yield f"recovery_actions: lack {text!r}, which Xid 154 can say"


def _action(path: str, value: Any) -> Iterator[str]:
    if value not in ACTIONS:
        yield f"{path}: {_said(value)} is no action{_meant(value, ACTIONS)}; there are {', '.join(ACTIONS)}"


# What both have in common.


def _keys(path: str, found: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Iterator[str]:
    if not isinstance(found, Mapping):
        yield f"{path or 'the file'}: is {_said(found)}, not a mapping"
        return
    at = f"{path}." if path else ""
    for key in required:
        if key not in found:
            yield f"{at}{key}: is missing"
    known = (*required, *optional)
    for key in found:
        if key not in known:
            yield f"{at}{key}: is not known{_meant(key, known)}; there are {', '.join(dict.fromkeys(known))}"


def _mappings(data: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if key in data and not isinstance(data[key], Mapping):
            yield f"{key}: is {_said(data[key])}, not a mapping"


def _source(path: str, value: Any, documents: Mapping[str, Any]) -> Iterator[str]:
    if value is None:
        yield f"{path}: is missing; every figure says where it is from"
    elif value not in documents:
        yield f"{path}: {_said(value)} is none of the documents{_meant(value, documents)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_date(value: Any) -> bool:
    if isinstance(value, datetime.date):
        return True
    try:
        datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _meant(value: Any, known: Iterable[Any]) -> str:
    close = get_close_matches(str(value), [str(key) for key in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _said(value: Any) -> str:
    return "missing" if value is None else repr(value)
