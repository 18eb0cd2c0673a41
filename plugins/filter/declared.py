# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.declared``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: declared
short_description: The resources of a declaration that apply
version_added: 0.1.0
author: The onprem.llm authors (@onprem)
description:
  - Drops resources whose C(when) is false and takes the key C(when) off the others, so that the role's tasks and
    M(onprem.llm.host_state) see the same list. A plain string stands for a resource that has only a name.
positional: _input
options:
  _input:
    description: One list of a declaration, for instance C(__host_state.files).
    type: list
    elements: raw
    required: true
"""

EXAMPLES = r"""
- name: Write the host's files
  ansible.builtin.copy:
    dest: "{{ item.path }}"
    content: "{{ item.content }}"
    mode: "{{ item.mode }}"
  loop: "{{ __host_state.files | onprem.llm.declared }}"
"""

RETURN = r"""
_value:
  description: The resources that apply.
  type: list
  elements: dict
"""


def declared(resources: Iterable[Mapping[str, Any] | str] | None) -> list[dict[str, Any]]:
    kept = []
    for resource in resources or []:
        if isinstance(resource, str):
            resource = {"name": resource}
        if str(resource.get("when", True)).lower() in ("true", "1", "yes"):
            kept.append({key: value for key, value in resource.items() if key != "when"})
    return kept


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"declared": declared}
