#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Compare, record or remove what roles declare on a host
version_added: 0.1.0
description:
  - Each role of this collection declares once what it manages, in C(__<role>_state) of its C(vars/main.yml).
  - This module compares the declarations of any number of roles with the live host in one call, so that a run which has
    nothing to do costs one round trip; the same declarations serve the drift report, the check after a role ran, and
    its removal.
  - An action plugin of the same name evaluates the declarations on the controller, checks the roles' arguments, and
    sends digests instead of file contents.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is written or removed; the same commands are returned.
  diff_mode:
    support: full
    description: Shows the content of files that differ, except of files declared as secret.
options:
  role:
    description: The role to begin, record or remove.
    type: str
  roles:
    description: The roles to compare.
    type: list
    elements: str
  state:
    description:
      - V(compared) looks and changes nothing.
      - V(begun) notes what the host had before the role first ran, so that removal leaves that alone.
      - V(applied) brings groups, users, directories, links, alternatives, files, kernel settings and units to what is
        declared, in one call; packages, environments and releases have modules of their own.
      - V(pruned) takes away units that the role no longer declares, for a role whose new units need their place.
      - V(recorded) fails when the host is not as declared, takes away units, files, links and environments that the
        role no longer declares, and records the state for the next comparison.
      - V(absent) removes what the role declared and nothing else.
    type: str
    choices: [compared, begun, applied, pruned, recorded, absent]
    default: compared
  kinds:
    description: With O(state=applied), the kinds to bring to what is declared; all of them when empty.
    type: list
    elements: str
    default: []
    choices: [groups, users, directories, links, alternatives, files, settings, sysctls, units]
  verify:
    description:
      - With V(full) every compared role is reported as pending, also one that is in sync.
    type: str
    choices: [fast, full]
    default: fast
  report:
    description: With O(state=compared), report a role that differs as a change and show diffs. For drift reports.
    type: bool
    default: false
  safe_mode:
    description: With O(state=absent), refuse to delete directories that hold data.
    type: bool
    default: true
  declarations:
    description:
      - Role name to declaration and digest of its inputs. Set by the action plugin.
    type: dict
    default: {}
  contents:
    description:
      - With O(state=applied), path to content of the files that differ. Set by the action plugin.
    type: dict
    default: {}
  secrets:
    description:
      - As O(contents), for files that are declared as secret. Set by the action plugin.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Compare the declared state of two roles with the live host
  onprem.llm.host_state:
    roles: [host, gateway]
  register: __site_state

- name: Record what the role gateway left on the host
  onprem.llm.host_state:
    role: gateway
    state: recorded
"""

RETURN = r"""
pending:
  description: Roles that have to run, in the order given.
  returned: when O(state=compared)
  type: list
  elements: str
  sample: [gateway]
roles:
  description: What was found, by role.
  returned: when O(state=compared)
  type: dict
  contains:
    in_sync:
      description: Whether inputs, code and live state are as after the role's last successful run.
      type: bool
    reasons:
      description: Why the role has to run, in words.
      type: list
      elements: str
    violations:
      description: The reasons among RV(roles.reasons) in which the live host differs from the declaration itself.
      type: list
      elements: str
    differences:
      description: Each difference as resource, field, declared (or recorded) and found.
      type: list
      elements: dict
    not_applied:
      description: Settings that this host cannot take, with the reason.
      type: list
      elements: str
unfinished:
  description: Whether an earlier run of the role did not come to its end, so that services may not have read what it wrote.
  returned: when O(state=begun)
  type: bool
finished_before:
  description: Whether the role has ever come to its end on this host.
  returned: when O(state=begun)
  type: bool
commands:
  description: What was or would be made or removed, as shell commands.
  returned: when O(state=applied), O(state=pruned), O(state=recorded) or O(state=absent)
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.onprem.llm.plugins.module_utils._host_state import Host, HostStateError, Role

APPLIED = ["groups", "users", "directories", "links", "alternatives", "files", "settings", "sysctls", "units"]


class HostStateModule:
    """Turn the module's arguments into one operation on the roles of this host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.state: str = module.params["state"]
        self.apply = not module.check_mode
        host = Host()
        self.roles = {
            name: Role(name, host, given["declaration"], given["digest"]) for name, given in module.params["declarations"].items()
        }
        host.read_units([unit for role in self.roles.values() for unit in role.unit_names()])

    def run(self) -> dict[str, Any]:
        return getattr(self, self.state)()

    def compared(self) -> dict[str, Any]:
        found = {name: role.compare(diff=self.module.params["report"]) for name, role in self.roles.items()}
        full = self.module.params["verify"] == "full"
        pending = [name for name, result in found.items() if full or not result["in_sync"]]
        return {"changed": False, "pending": pending, "roles": found}

    def _one(self) -> Role:
        return next(iter(self.roles.values()))

    def begun(self) -> dict[str, Any]:
        role = self._one()
        found = {"unfinished": role.unfinished, "finished_before": "declaration" in role.record}
        role.begin(self.apply)
        return {"changed": False, **found}

    def applied(self) -> dict[str, Any]:
        contents = {**self.module.params["contents"], **self.module.params["secrets"]}
        commands, diffs = self._one().make(self.module.params["kinds"] or APPLIED, contents, self.apply)
        return {"changed": bool(commands), "commands": commands, "diff": diffs}

    def pruned(self) -> dict[str, Any]:
        commands = self._one().prune(self.apply, only=("units",))
        return {"changed": bool(commands), "commands": commands}

    def recorded(self) -> dict[str, Any]:
        role = self._one()
        if self.module.check_mode:
            commands = role.prune(apply=False)
            return {"changed": bool(commands), "commands": commands}
        found = role.compare()
        if found["violations"]:
            raise HostStateError(f"role {role.name} ran, but the host is not as it declares: " + "; ".join(found["violations"]))
        commands = role.finish(self.apply)
        return {"changed": bool(commands), "commands": commands, "not_applied": found["not_applied"]}

    def absent(self) -> dict[str, Any]:
        commands = self._one().remove(self.apply, self.module.params["safe_mode"])
        return {"changed": bool(commands), "commands": commands}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str"},
            "roles": {"type": "list", "elements": "str"},
            "state": {
                "type": "str",
                "choices": ["compared", "begun", "applied", "pruned", "recorded", "absent"],
                "default": "compared",
            },
            "kinds": {"type": "list", "elements": "str", "choices": APPLIED, "default": []},
            "verify": {"type": "str", "choices": ["fast", "full"], "default": "fast"},
            "report": {"type": "bool", "default": False},
            "safe_mode": {"type": "bool", "default": True},
            "declarations": {"type": "dict", "default": {}},
            "contents": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        result = HostStateModule(module).run()
    except HostStateError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
