# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: gpu_stack
short_description: A compatibility set of the GPU stack on one platform
version_added: 0.2.0
author: The onprem.llm authors (@onprem)
description:
  - Gives the figures of a set (CUDA release, driver branch and minimum, compute capabilities), and for each component
    the version pattern that a source of packages has for a platform.
  - The sets and the source of each figure are in C(plugins/plugin_utils/gpu_stacks.yml) and docs/gpu-stack.md.
options:
  _terms:
    description: Name of the set.
    type: list
    elements: str
    required: true
  source:
    description: Where packages come from.
    type: str
    choices: [nvidia, distribution, nvidia_mirror, distribution_mirror]
    default: nvidia
  platform:
    description: The host's distribution and release, for instance V(debian13).
    type: str
    required: true
  component:
    description: Fail when the source has no such component.
    type: str
  stacks:
    description: The site's own sets, by name.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show which NCCL belongs to a set
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.gpu_stack', 'cuda-12.4', source='distribution', platform='debian13').versions.nccl }}"
"""

RETURN = r"""
_raw:
  description: The set.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import GpuStackError, stack


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        options = {name: self.get_option(name) for name in ("source", "platform", "component")}
        try:
            return [stack(term, own=self.get_option("stacks"), **options) for term in terms]
        except GpuStackError as error:
            raise AnsibleLookupError(str(error)) from error
