# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: gpu_profile
short_description: What a GPU machine should be and be able to do
version_added: 0.3.0
author: The onprem.llm authors (@onprem)
description:
  - Gives a named profile of a machine (count, product, NVLink, driver) with the figures of its product, each with unit,
    peak, floor and their sources.
  - The figures are in C(plugins/plugin_utils/gpu_thresholds.yml), and docs/gpu-thresholds.md says what they hold.
  - Fails when a figure cannot be true, also one of the site's own, and names file and field.
options:
  _terms:
    description: Names of profiles.
    type: list
    elements: str
    required: true
  thresholds:
    description: The site's own C(products), C(profiles) and C(documents), merged over the shipped ones.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the least memory bandwidth of an HGX H100's GPU
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.gpu_profile', 'hgx_h100').figures.memory_bandwidth.floor }} GB/s"

- name: Show what the site expects of its machines with four L40S
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.gpu_profile', 'four_l40s', thresholds=onprem_llm_gpu_thresholds) }}"
  vars:
    onprem_llm_gpu_thresholds:
      profiles:
        four_l40s: {like: pcie_l40s, title: Four L40S cards, gpus: 4}
"""

RETURN = r"""
_raw:
  description: The profiles.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import GpuDataError, profile


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        try:
            return [profile(term, self.get_option("thresholds")) for term in terms]
        except GpuDataError as error:
            raise AnsibleLookupError(str(error)) from error
