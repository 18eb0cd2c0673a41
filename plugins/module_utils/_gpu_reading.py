# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVML's answers and the PCI bus' view of the same devices, together; the arguments that modules share for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils._gpu_host import GpuHost
from ansible_collections.onprem.llm.plugins.module_utils._nvml import read_nvml, site_packages
from ansible_collections.onprem.llm.plugins.module_utils._xid import bus_id

ARGUMENTS: dict[str, dict[str, Any]] = {
    "environment": {"type": "path", "default": "/opt/onprem/gpu-probe"},
    "deadline_seconds": {"type": "float", "default": 120},
    "call_seconds": {"type": "float", "default": 10},
    "init_seconds": {"type": "float", "default": 60},
}


def read_gpus(params: Mapping[str, Any]) -> dict[str, Any]:
    """What NVML tells, with the NUMA node that the PCI bus gives where NVML has none."""
    found = read_nvml(
        deadline_seconds=params["deadline_seconds"],
        call_seconds=params["call_seconds"],
        init_seconds=params["init_seconds"],
        places=site_packages(params["environment"]),
    )
    nodes = {bus_id(device["address"]): device["numa_node"] for device in GpuHost().devices()}
    for gpu in found["gpus"]:
        if gpu.get("numa_node") is None and gpu.get("pci") and nodes.get(bus_id(gpu["pci"]["bus_id"])) is not None:
            gpu["numa_node"] = nodes[bus_id(gpu["pci"]["bus_id"])]
            gpu["unsupported"].pop("numa_node", None)
    return found
