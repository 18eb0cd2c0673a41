#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Set many kernel parameters in one call
version_added: 0.1.0
description:
  - Writes the running kernel's parameters below C(/proc/sys) and C(/sys). Files that set them at boot are the role's.
  - A parameter that this host does not have or cannot change (in a container, for instance) is not an error and not
    passed over in silence; it is returned in RV(not_applied) with the reason.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: The same commands are returned, nothing is written.
  diff_mode:
    support: full
    description: Shows each parameter's value before and after.
options:
  sysctls:
    description: Parameters by name and value.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name with dots, for instance C(net.core.somaxconn).
        type: str
        required: true
      value:
        description: The value; white space between several numbers does not matter.
        type: str
        required: true
  settings:
    description: Files by path and value.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path below C(/proc) or C(/sys).
        type: path
        required: true
      value:
        description: The value, or the chosen word of a file such as C(always [madvise] never).
        type: str
        required: true
"""

EXAMPLES = r"""
- name: Let many clients wait for a connection
  onprem.llm.kernel_settings:
    sysctls:
      - name: net.core.somaxconn
        value: 4096
    settings:
      - path: /sys/kernel/mm/transparent_hugepage/enabled
        value: madvise
"""

RETURN = r"""
commands:
  description: What was or would be written, as shell commands.
  returned: always
  type: list
  elements: str
  sample: ["echo 4096 > /proc/sys/net/core/somaxconn"]
not_applied:
  description: Parameters that this host cannot take, each with the reason.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._host_state import Host, HostStateError, Settings, Sysctls


class KernelSettings:
    """Probe all parameters, plan the writes, then write."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        host = Host()
        self.wanted: list[tuple[Settings, dict[str, Any]]] = [
            *((Sysctls(host), spec) for spec in module.params["sysctls"]),
            *((Settings(host), spec) for spec in module.params["settings"]),
        ]

    def run(self) -> dict[str, Any]:
        commands, not_applied, before, after = [], [], "", ""
        for kind, spec in self.wanted:
            live = kind.look(spec)
            name = kind.identity(spec)
            if "not_applied" in live:
                not_applied.append(f"{name}: {live['not_applied']}")
            elif kind.differences(spec, live):
                before += f"{name} = {live['value']}\n"
                after += f"{name} = {kind.wanted(spec)['value']}\n"
                commands += kind.make(spec, live, apply=not self.module.check_mode)
        return {
            "changed": bool(commands),
            "commands": commands,
            "not_applied": not_applied,
            "diff": {"before": before, "after": after},
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sysctls": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "value": {"type": "str", "required": True}},
            },
            "settings": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "value": {"type": "str", "required": True}},
            },
        },
        supports_check_mode=True,
    )
    try:
        result = KernelSettings(module).run()
    except HostStateError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
