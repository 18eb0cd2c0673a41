#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_validate
short_description: Whether a host's GPUs are what they should be
version_added: 0.3.0
description:
  - Reads the GPUs through NVML, the PCI bus and the kernel's log, compares them with a profile or with given values, and returns
    one verdict with every check behind it. It changes nothing, and one call makes all checks.
  - It fails closed. A host on which nothing could be read, which has no GPU, or on which a check that applies could not be made
    has the verdict FAIL.
  - "Verdicts of a check: V(PASS); V(WARN), worth a look; V(FAIL); V(SKIPPED), does not apply here; V(NOT_RUN), applies and could
    not be looked at, which fails the host."
  - What each profile expects, and the source of each figure, is in C(plugins/plugin_utils/gpu_thresholds.yml).
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
extends_documentation_fragment:
  - onprem.llm.nvml
options:
  profile:
    description: Name of a profile, for instance V(hgx_h100). The other options replace its values.
    type: str
  thresholds:
    description: The site's own products and profiles, in the form of the collection's file, merged over it.
    type: dict
    default: {}
  xid_policy:
    description: The site's own entries of the Xid table, merged over the collection's.
    type: dict
    default: {}
  expectations:
    description: Any of the options from O(gpus) to O(idle), as one mapping, in place of those given one by one.
    type: dict
    default: {}
  gpus:
    description: How many GPUs the host has. Needed where no profile is given.
    type: int
  product:
    description: Product name, as NVML gives it.
    type: str
  pci_device_ids:
    description: PCI device identifiers of the product, hexadecimal, which are compared instead of its name where they are given.
    type: list
    elements: str
  memory_bytes:
    description: Least memory of each GPU, in bytes.
    type: int
  minimum_driver:
    description: Oldest driver.
    type: str
  ecc:
    description: Whether ECC is on.
    type: bool
  mig:
    description: Whether MIG is on.
    type: bool
  persistence_mode:
    description: Whether the driver stays loaded.
    type: bool
  pcie_generation:
    description: Lowest PCIe generation.
    type: int
  pcie_width:
    description: Fewest PCIe lanes.
    type: int
  nvlink:
    description: Whether every pair of GPUs reaches each other through NVLink.
    type: str
    choices: [full_mesh, none]
  nvlink_links:
    description: Fewest active links of each GPU.
    type: int
  nvlink_gbytes_per_second:
    description: Least bandwidth over all links of a GPU, both directions together, in GB/s.
    type: float
  nvswitches:
    description: How many NVSwitches the host has.
    type: int
  fabric:
    description: Whether fabric manager has to have made the fabric ready.
    type: bool
  power_limit_watts:
    description: Lowest power limit, in watts; the card's default where neither this nor the profile names one.
    type: float
  temperature_celsius:
    description: Temperature that a GPU must stay under, in degrees Celsius; the card's own limit where nothing is given.
    type: float
  numa_nodes:
    description: Over how many NUMA nodes the GPUs are spread.
    type: int
  idle:
    description: Whether nothing may compute on the GPUs, as before they are measured.
    type: bool
  kernel_log:
    description: >-
      A copy of the kernel's log since boot, for hosts that keep it in a file of their own. By default the journal is read, or
      the kernel's ring buffer.
    type: path
  fail:
    description: Whether the task fails when the verdict is FAIL.
    type: bool
    default: false
  expectation:
    description: Filled by the collection on the control node.
    type: dict
  policy:
    description: Filled by the collection on the control node.
    type: dict
"""

EXAMPLES = r"""
- name: Compare the host with eight H100
  onprem.llm.gpu_validate:
    profile: hgx_h100
  register: gpu

- name: Refuse a host that is not as it should be
  onprem.llm.gpu_validate:
    profile: hgx_h100
    minimum_driver: 570.124.06
    fail: true

- name: Compare the host with explicit values
  onprem.llm.gpu_validate:
    gpus: 1
    product: NVIDIA L4
    memory_bytes: 23000000000
    ecc: true
"""

RETURN = r"""
verdict:
  description: PASS, WARN or FAIL.
  returned: always
  type: str
summary:
  description: How many checks ended how, and what failed.
  returned: always
  type: str
checks:
  description: Every check.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: What was asked., type: str}
    subject: {description: Of what., type: str, sample: GPU 3}
    verdict: {description: "PASS, WARN, FAIL, SKIPPED or NOT_RUN.", type: str}
    measured: {description: What was found., type: raw}
    expected: {description: What was wanted., type: raw}
    unit: {description: Unit of both., type: str}
    source: {description: Where the expectation comes from., type: str}
    action: {description: What to do about it., type: str}
    message: {description: The finding in words., type: str}
reading:
  description: What M(onprem.llm.gpu_info) returns.
  returned: always
  type: dict
profile:
  description: The profile that was asked for.
  returned: always
  type: str
"""

import dataclasses
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._gpu_checks import Expectation, GpuChecks
from ansible_collections.onprem.llm.plugins.module_utils._gpu_host import GpuHost
from ansible_collections.onprem.llm.plugins.module_utils._gpu_reading import ARGUMENTS, read_gpus
from ansible_collections.onprem.llm.plugins.module_utils._verdict import FAIL, overall, summary
from ansible_collections.onprem.llm.plugins.module_utils._xid import KernelLogError, events, kernel_log

EXPECTED: dict[str, dict[str, Any]] = {
    "gpus": {"type": "int"},
    "product": {"type": "str"},
    "pci_device_ids": {"type": "list", "elements": "str"},
    "memory_bytes": {"type": "int"},
    "minimum_driver": {"type": "str"},
    "ecc": {"type": "bool"},
    "mig": {"type": "bool"},
    "persistence_mode": {"type": "bool"},
    "pcie_generation": {"type": "int"},
    "pcie_width": {"type": "int"},
    "nvlink": {"type": "str", "choices": ["full_mesh", "none"]},
    "nvlink_links": {"type": "int"},
    "nvlink_gbytes_per_second": {"type": "float"},
    "nvswitches": {"type": "int"},
    "fabric": {"type": "bool"},
    "power_limit_watts": {"type": "float"},
    "temperature_celsius": {"type": "float"},
    "numa_nodes": {"type": "int"},
    "idle": {"type": "bool"},
}


def expectation(params: dict[str, Any]) -> Expectation:
    """The profile's values with what was given in their place."""
    wanted = dict(params["expectation"] or {})
    sources = dict(wanted.pop("sources", {}))
    for name in EXPECTED:
        if params[name] is not None:
            wanted[name] = params[name]
            sources.pop(name, None)
    for name in ("mig", "persistence_mode"):
        if params[name] is None:
            sources[name] = "this collection's default"
    known = {field.name for field in dataclasses.fields(Expectation)}
    return Expectation(**{name: value for name, value in wanted.items() if name in known and value is not None}, sources=sources)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **EXPECTED,
            "profile": {"type": "str"},
            "thresholds": {"type": "dict", "default": {}},
            "xid_policy": {"type": "dict", "default": {}},
            "expectations": {"type": "dict", "default": {}},
            "kernel_log": {"type": "path"},
            "fail": {"type": "bool", "default": False},
            "expectation": {"type": "dict"},
            "policy": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not params["policy"] or not (params["gpus"] or (params["expectation"] or {}).get("gpus")):
        module.fail_json(msg="gpu_validate needs a profile, or at least `gpus` above zero: no GPU is never healthy.")
    lost = None
    try:
        lines, log, lost = kernel_log(params["kernel_log"])
        found: list[dict[str, Any]] | None = events(lines)
    except KernelLogError as error:
        found, log = None, str(error)
    host = GpuHost()
    devices = host.devices()
    reading = read_gpus(params)
    checks = GpuChecks(
        reading,
        expectation(params),
        params["policy"],
        found,
        log,
        lost,
        [device for device in devices if host.is_gpu(device)],
        [device for device in devices if host.is_nvswitch(device)],
    ).run()
    verdict = overall(checks)
    result = {
        "changed": False,
        "verdict": verdict,
        "summary": summary(checks),
        "profile": params["profile"],
        "checks": [check.as_dict() for check in checks],
        "reading": reading,
    }
    if params["fail"] and verdict == FAIL:
        module.fail_json(msg=f"This host may not serve: {result['summary']}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
