# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.acceptance_record``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._verdict import NOT_RUN, PASS, SKIPPED, Check

DOCUMENTATION = r"""
name: acceptance_record
short_description: What was found on a host, as M(onprem.llm.acceptance_report) keeps it
version_added: 0.3.0
author: The onprem.llm authors (@onprem)
description:
  - Puts what the validating modules returned for one host into one record. A part that was expected and of which there is
    nothing is V(NOT_RUN), so that the host fails; one that was not expected is V(SKIPPED).
positional: _input
options:
  _input:
    description: The host's name.
    type: str
    required: true
  gpu:
    description: What M(onprem.llm.gpu_validate) returned.
    type: dict
    default: {}
  benchmark:
    description: What M(onprem.llm.gpu_benchmark) returned.
    type: dict
    default: {}
  collectives:
    description: What M(onprem.llm.gpu_benchmark) returned for the GPUs of all hosts together.
    type: dict
    default: {}
  network:
    description: What M(onprem.llm.network_validate) returned for RV(onprem.llm.network_validate#module:pairs).
    type: dict
    default: {}
  network_others:
    description: >-
      What M(onprem.llm.network_validate) returned on the other hosts; what they found wrong on the way to this one counts.
    type: list
    elements: dict
    default: []
  stack:
    description: The fact C(onprem_gpu_stack) of M(onprem.llm.gpu_stack_info).
    type: dict
    default: {}
  figures:
    description: The figures of the host's profile, for peaks.
    type: dict
    default: {}
  expected:
    description: The parts that were to be run.
    type: list
    elements: str
    choices: [gpu, benchmark, collectives, network]
    default: [gpu, benchmark, collectives, network]
"""

EXAMPLES = r"""
- name: Make a host's record
  ansible.builtin.set_fact:
    acceptance_record: "{{ inventory_hostname | onprem.llm.acceptance_record(gpu=__gpu, network=__network) }}"
"""

RETURN = r"""
_value:
  description: The record.
  type: dict
"""

# A part's name as a check, and in words.
PARTS = {
    "gpu": ("gpu_validate", "the checks of the GPUs"),
    "benchmark": ("active_tests", "the active tests"),
    "collectives": ("collectives", "NCCL's collectives over the hosts"),
    "network": ("network", "the measurements of the network"),
}
# Of each pair of hosts: what the report plots, the check that bounds it and that check's unit, the report's unit and the factor
# to it, what is better, and whether it is the way back.
PAIR_FIGURES = (
    ("latency_median_us", "network_latency_median", "us", "us", 1.0, "lower", False),
    ("send_gbytes_per_second", "network_bandwidth", "GB/s", "Gbit/s", 8.0, "higher", False),
    ("receive_gbytes_per_second", "network_bandwidth", "GB/s", "Gbit/s", 8.0, "higher", True),
)


def acceptance_record(
    host: str,
    gpu: Mapping[str, Any] | None = None,
    benchmark: Mapping[str, Any] | None = None,
    collectives: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    network_others: Iterable[Mapping[str, Any]] = (),
    stack: Mapping[str, Any] | None = None,
    figures: Mapping[str, Mapping[str, Any]] | None = None,
    expected: Iterable[str] = tuple(PARTS),
) -> dict[str, Any]:
    gpu, network, stack = gpu or {}, network or {}, stack or {}
    measured = {"benchmark": benchmark or {}, "collectives": collectives or {}}
    parts = {"gpu": gpu, **measured, "network": network}
    reading = gpu.get("reading") or {}
    driver = reading.get("driver") or {}
    return {
        "host": host,
        "profile": gpu.get("profile") or "",
        "checks": [
            *(check for name, part in parts.items() for check in checks_of(name, part, name in set(expected))),
            *of_others(host, network_others),
        ],
        "hardware": {
            "system": dict(stack.get("machine") or {}),
            "kernel": (stack.get("kernel") or {}).get("release"),
            "driver_version": driver.get("version"),
            "cuda_version": driver.get("cuda_version"),
            "gpus": [dict(found) for found in reading.get("gpus") or []],
        },
        "measurements": [
            *(
                measurement(found, part.get("checks") or [], figures or {})
                for part in measured.values()
                for found in part.get("measurements") or []
                if is_number(found.get("value"))
            ),
            *(found for pair in network.get("pairs") or [] for found in of_pair(pair, network.get("checks") or [])),
        ],
    }


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def checks_of(name: str, part: Mapping[str, Any], expected: bool) -> list[dict[str, Any]]:
    """A part's checks, or one that says that there are none, and whether that matters."""
    found = [dict(check) for check in part.get("checks") or []]
    if found:
        return found
    verdict, said = (NOT_RUN, "returned nothing") if expected else (SKIPPED, "were left out by the site")
    action = "Read the task's error in the log of the run, and run it again." if expected else ""
    return [Check(PARTS[name][0], verdict, message=f"{PARTS[name][1]} {said}", action=action).as_dict()]


def bound_of(name: str, subject: str, unit: str, checks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The floor that a check compared a figure with, and where it comes from."""
    for check in checks:
        if (check["name"], check["subject"], check.get("unit")) == (name, subject, unit) and is_number(check.get("expected")):
            return {"floor": check["expected"], "source": check.get("source", "")}
    return {}


def measurement(
    found: Mapping[str, Any], checks: Iterable[Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    figure = figures.get(found["name"], {})
    peak = {"peak": figure["peak"]} if figure.get("unit") == found["unit"] and is_number(figure.get("peak")) else {}
    bound = bound_of(found["name"], found["subject"], found["unit"], checks)
    return {**{name: found[name] for name in ("name", "subject", "value", "unit")}, **peak, **bound}


def of_pair(pair: Mapping[str, Any], checks: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    there, back = f"{pair.get('from')} -> {pair.get('to')}", f"{pair.get('to')} -> {pair.get('from')}"
    found = []
    for key, name, checked, unit, factor, better, is_back in PAIR_FIGURES:
        if not is_number(pair.get(key)):
            continue
        entry = {"name": name, "subject": back if is_back else there, "unit": unit, "better": better}
        bound = bound_of(name, there, checked, checks)
        if bound:
            bound["floor"] = round(bound["floor"] * factor, 3)
        found.append({**entry, "value": round(pair[key] * factor, 3), **bound})
    return found


def of_others(host: str, others: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What other hosts found wrong on the way to this one; a pair is measured by one of its two hosts."""
    return [
        dict(check)
        for other in others
        for check in other.get("checks") or []
        if check["verdict"] not in (PASS, SKIPPED) and check["subject"].partition(" -> ")[2].split(" ")[0] == host
    ]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"acceptance_record": acceptance_record}
