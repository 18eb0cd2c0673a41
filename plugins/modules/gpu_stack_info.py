#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_stack_info
short_description: What a host has of the GPU stack, as one fact
version_added: 0.2.0
description:
  - Reads devices, kernel and installed versions without any NVIDIA software, in one call, and returns them as the fact
    C(onprem_gpu_stack).
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
options: {}
"""

EXAMPLES = r"""
- name: Read what the host has of the GPU stack
  onprem.llm.gpu_stack_info:

- name: Show the installed versions
  ansible.builtin.debug:
    var: ansible_facts.onprem_gpu_stack.versions
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    onprem_gpu_stack:
      description: The host's GPU stack.
      type: dict
      contains:
        platform:
          description: Distribution and release as NVIDIA's repository names its folders.
          type: str
          sample: debian13
        system:
          description: The distribution's own name.
          type: str
        codename:
          description: The release's code name; null where it has none.
          type: str
        architecture:
          description: The machine's architecture.
          type: str
          sample: x86_64
        machine:
          description: vendor, product, serial and bios_version of the machine; null is what cannot be read.
          type: dict
        gpus:
          description: >-
            PCI display devices of NVIDIA, each with address, device_id, class, numa_node, driver, link_speed, link_speed_max,
            link_width, link_width_max and relaxed_ordering; null is what cannot be read.
          type: list
          elements: dict
        nvswitches:
          description: PCI bridges of NVIDIA, with the same fields.
          type: list
          elements: dict
        kernel:
          description: >-
            The running kernel's release, command_line, headers (whether they are installed), secure_boot, module_signing_key,
            iommu, iommu_group_types, acs_redirecting_bridges, nouveau_loaded and peermem_loaded.
          type: dict
        module:
          description: The NVIDIA kernel module, loaded, version, kind (open or proprietary) and on_disk (its version there).
          type: dict
        versions:
          description: >-
            Installed versions of driver, kernel_module, fabric_manager, cuda (a list), cudnn, nccl, openmpi, ucx,
            container_toolkit and persistence_daemon; null for what is not installed.
          type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._gpu_host import GpuHost


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, ansible_facts={"onprem_gpu_stack": GpuHost().facts()})


if __name__ == "__main__":
    main()
