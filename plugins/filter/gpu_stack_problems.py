# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.gpu_stack_problems``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import problems

DOCUMENTATION = r"""
name: gpu_stack_problems
short_description: Why a host cannot run a set of the GPU stack
version_added: 0.2.0
author: The onprem.llm authors (@onprem)
description:
  - Compares what a host has with a set, and gives one sentence for each thing that cannot work, with what to change.
  - Looks at the driver against the toolkit, the GPUs' compute capability against the toolkit, the fabric manager against
    the driver, and, where a module is to be built, at headers, Secure Boot and the kind of modules.
positional: _input, chosen
options:
  _input:
    description: The fact C(onprem_gpu_stack) of M(onprem.llm.gpu_stack_info).
    type: dict
    required: true
  chosen:
    description: The set, as P(onprem.llm.gpu_stack#lookup) gives it.
    type: dict
    required: true
  driver_version:
    description: The driver that is about to be installed; the loaded one is looked at when empty.
    type: str
  loaded_driver:
    description: Whether to look at the driver that is there; not before a run that may replace it.
    type: bool
    default: true
  fabric_manager:
    description: Whether the fabric manager will be there.
    type: bool
  modules:
    description: V(open) or V(proprietary), when kernel modules are about to be installed.
    type: str
  headers_on_offer:
    description: Whether the running kernel's headers can be installed.
    type: bool
  signed_modules:
    description: Whether the modules come signed with a key that the firmware trusts.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Refuse what cannot work
  ansible.builtin.assert:
    that: ansible_facts.onprem_gpu_stack | onprem.llm.gpu_stack_problems(stack) | length == 0
"""

RETURN = r"""
_value:
  description: The problems, one sentence each.
  type: list
  elements: str
"""


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gpu_stack_problems": problems}
