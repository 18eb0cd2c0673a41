#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: What NVML tells about a host's GPUs
version_added: 0.3.0
description:
  - Reads identity, versions, memory, error counters, links, clocks, power and temperature of each NVIDIA GPU through
    nvidia-ml-py, as one structure with units in the names.
  - A value that a device or driver does not have is null, with the reason in C(unsupported); a value whose reading failed is
    null, with the reason in C(errors). Zero means that NVML said zero.
  - A call that does not return is given up after O(call_seconds), named, and passed over.
  - A host without NVML or without a GPU is no error of this module; RV(state) says what was found. Whether it may serve, says
    M(onprem.llm.gpu_validate).
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
"""

EXAMPLES = r"""
- name: Read what NVML tells
  onprem.llm.gpu_info:
  register: gpu

- name: Show each GPU's temperature in degrees Celsius
  ansible.builtin.debug:
    msg: "{{ gpu.gpus | map(attribute='temperature.gpu_celsius') }}"
"""

RETURN = r"""
state:
  description: >-
    V(read), or why there is nothing to read: V(no_bindings) (nvidia-ml-py), V(no_library) (libnvidia-ml), V(driver_not_loaded),
    V(driver_mismatch) (library and kernel module), V(hung), V(error).
  returned: always
  type: str
reason:
  description: What NVML said; null when all was read.
  returned: always
  type: str
seconds:
  description: How long it took, in seconds.
  returned: always
  type: float
count:
  description: How many GPUs NVML lists; null when it was not asked.
  returned: always
  type: int
driver:
  description: Versions of driver, NVML, and the newest CUDA that the driver supports.
  returned: always
  type: dict
gpus:
  description: One entry for each GPU.
  returned: always
  type: list
  elements: dict
  contains:
    index: {description: NVML's number., type: int}
    name: {description: Product name., type: str}
    uuid: {description: The GPU's identifier., type: str}
    serial: {description: Serial number of the board., type: str}
    minor_number: {description: Number of its device file., type: int}
    architecture: {description: Name of the architecture., type: str}
    compute_capability: {description: Compute capability., type: str, sample: "9.0"}
    pci: {description: "bus_id, and the hexadecimal vendor_id, device_id, subsystem_id.", type: dict}
    board: {description: "id and part_number.", type: dict}
    firmware: {description: "Versions vbios, inforom_image and gsp.", type: dict}
    memory: {description: "total_bytes, used_bytes, free_bytes, bar1_total_bytes.", type: dict}
    ecc:
      description: >-
        enabled, pending_enabled, and errors counted since the driver was loaded (corrected_volatile, uncorrected_volatile) and
        over the card's life (corrected_aggregate, uncorrected_aggregate).
      type: dict
    remapped_rows:
      description: >-
        Rows remapped for correctable and uncorrectable errors, whether one is pending or failure_occurred, and banks by how
        many spare rows are left (max, high, partial, low, none).
      type: dict
    retired_pages: {description: "single_bit, double_bit and pending (before Ampere).", type: dict}
    pcie:
      description: >-
        generation and width now, generation_max (of card and slot together), generation_gpu_max (of the card alone), width_max,
        and replays since the driver was loaded.
      type: dict
    nvlink:
      description: >-
        For each link whether it is active, its version (NVML's code), bandwidth_gbytes_per_second (both directions together, by
        the line rate that NVML gives or else the architecture's), remote_type (gpu or nvswitch), remote_bus_id, and errors
        (replay, recovery, crc_flit, crc_data).
      type: list
      elements: dict
    fabric:
      description: state (completed when NVSwitches may be used), status, clique_id, cluster_uuid, health_mask.
      type: dict
    clocks: {description: "graphics, sm and memory now (_mhz) and at most (_max_mhz).", type: dict}
    clock_event_reasons: {description: Why the clocks are where they are., type: list, elements: str}
    power: {description: "usage_watts, limit_watts, enforced_limit_watts, default_limit_watts, limit_range_watts.", type: dict}
    temperature: {description: "gpu_celsius, memory_celsius, and the limits shutdown, slowdown, memory_max, gpu_max.", type: dict}
    performance_state: {description: "0 (fastest) to 15.", type: int}
    utilization: {description: "gpu_percent and memory_percent.", type: dict}
    persistence_mode: {description: Whether the driver stays loaded without a client., type: bool}
    mig: {description: "enabled, pending_enabled, and the devices' UUIDs.", type: dict}
    compute_mode: {description: Who may compute., type: str}
    recovery_action: {description: What the driver wants done (none where all is well)., type: str}
    numa_node: {description: NUMA node; null where the host does not tell., type: int}
    processes: {description: "What computes on it: pid, name, used_bytes.", type: list, elements: dict}
    lost: {description: Whether a call answered that the GPU is lost., type: bool}
    unsupported: {description: Reasons by field that the device or driver does not have., type: dict}
    errors: {description: Reasons by field whose reading failed., type: dict}
topology:
  description: For each pair of GPUs how PCIe connects them, and whether they reach each other through NVLink.
  returned: always
  type: list
  elements: dict
hung_calls:
  description: Calls that did not return, with the reason.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._gpu_reading import ARGUMENTS, read_gpus


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.exit_json(changed=False, **read_gpus(module.params))


if __name__ == "__main__":
    main()
