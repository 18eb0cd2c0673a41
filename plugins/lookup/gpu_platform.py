# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: gpu_platform
short_description: What the GPU stack's package sources are called on one platform
version_added: 0.2.0
author: The onprem.llm authors (@onprem)
description:
  - Gives the form of packages, the folder of NVIDIA's repository, and the key that signs it with its fingerprint.
options:
  _terms:
    description: Distribution and release, for instance V(debian13).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the fingerprint of the key that signs NVIDIA's packages for Debian 13
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.gpu_platform', 'debian13').fingerprint }}"
"""

RETURN = r"""
_raw:
  description: The platform's data.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import GpuStackError, platform_of


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        try:
            return [platform_of(term) for term in terms]
        except GpuStackError as error:
            raise AnsibleLookupError(str(error)) from error
