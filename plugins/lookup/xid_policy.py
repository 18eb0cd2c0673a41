# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: xid_policy
short_description: What is to be done about an Xid or SXid error
version_added: 0.3.0
author: The onprem.llm authors (@onprem)
description:
  - Gives the table of the error codes that NVIDIA's driver writes to the kernel's log, with NVIDIA's action and this
    project's, or the entries of some codes.
  - The table is C(plugins/plugin_utils/xid_policy.yml), and docs/gpu-thresholds.md says what it holds.
options:
  _terms:
    description: Codes of Xid errors; without any, the whole policy is given, with SXid errors and recovery actions.
    type: list
    elements: int
    default: []
  policy:
    description: The site's own C(codes), C(sxid), C(unknown) and C(documents), merged over the shipped ones.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show what a GPU that has fallen off the bus calls for
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.xid_policy', 79).action }}"

- name: Show what the site watches rather than restarting applications for it
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.xid_policy', 13, policy={'codes': {13: {'action': 'watch'}}}).action }}"
"""

RETURN = r"""
_raw:
  description: The entries of the codes, or the whole policy.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import GpuDataError, entry_of, xid_policy


class LookupModule(LookupBase):
    def run(self, terms: list[Any], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        try:
            policy = xid_policy(self.get_option("policy"))
            return [entry_of(policy, term) for term in terms] or [policy]
        except GpuDataError as error:
            raise AnsibleLookupError(str(error)) from error
