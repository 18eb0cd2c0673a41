# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.framework_environments``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.onprem.llm.plugins.plugin_utils._python_environments import locked_environment

DOCUMENTATION = r"""
name: framework_environments
short_description: Framework environments with their locks filled in
version_added: 0.1.0
author: The onprem.llm authors (@onprem)
description:
  - Joins each environment with its framework and device from the table in the role C(framework), and gives what the role
    declares for it. The Python environment, the lock's copy on the host, and the stable link that leads there.
positional: _input, frameworks, defaults
options:
  _input:
    description: Environments as in C(framework_environments).
    type: list
    elements: dict
    required: true
  frameworks:
    description: The framework table.
    type: dict
    required: true
  defaults:
    description: The role's path and the directory of the environments.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show where the environments are used
  ansible.builtin.debug:
    msg: "{{ framework_environments | onprem.llm.framework_environments(frameworks, defaults) | map(attribute='link.path') }}"
"""

RETURN = r"""
_value:
  description: The environments, filled in.
  type: list
  elements: dict
"""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# Such a name would be that of an environment's own directory.
DIRECTORY = re.compile(r".*-[0-9a-f]{12}")


def framework_environments(
    environments: Iterable[Mapping[str, Any]],
    frameworks: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
) -> list[dict[str, Any]]:
    root = str(defaults["environment_root"]).rstrip("/")
    filled: list[dict[str, Any]] = []
    for given in environments:
        environment = {"device": "cpu", **{key: value for key, value in given.items() if value not in (None, "")}}
        problem = check(environment, frameworks) or taken(environment["name"], filled)
        if problem:
            raise AnsibleFilterError(f"framework_environments: {problem}")
        name, lock = environment["name"], environment.get("lock")
        framework = frameworks[environment["framework"]]
        variant = framework["devices"][environment["device"]]
        made = locked_environment([Path(lock or f"{defaults['role_path']}/files/{variant['lock']}")], root, name=name)
        filled.append(
            {
                "name": name,
                "framework": environment["framework"],
                "device": environment["device"],
                **made,
                "environment": {"path": made["path"], "lock_sha256": made["lock_sha256"]},
                "imports": framework["imports"],
                "required_bytes": variant["required_bytes"],
                # Which versions the site's own lock is for, uv says.
                "python_versions": [] if lock else variant["python_versions"],
                "link": {"path": f"{root}/{name}", "target": made["path"].rpartition("/")[2]},
            }
        )
    return filled


def check(environment: Mapping[str, Any], frameworks: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with an environment, in one sentence; empty when nothing is."""
    name = environment.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"the name {name!r} is not made of small letters, digits, - and _."
    if DIRECTORY.fullmatch(name):
        return f"the name {name} ends like the directory of an environment (- and 12 hexadecimal digits); take another one."
    wanted = (environment.get("framework"), environment["device"])
    known = [(framework, device) for framework in sorted(frameworks) for device in frameworks[framework]["devices"]]
    if wanted not in known:
        pairs = ", ".join(" on ".join(pair) for pair in known)
        return f"the environment {name} names {wanted[0]!r} on {wanted[1]!r}; known are {pairs}."
    lock = environment.get("lock")
    if lock and not (Path(lock).is_absolute() and Path(lock).is_file()):
        return f"the environment {name} has the lock {lock}, which is not the absolute path of a file on the control node."
    return ""


def taken(name: str, earlier: Iterable[Mapping[str, Any]]) -> str:
    return f"two environments have the name {name}." if any(other["name"] == name for other in earlier) else ""


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"framework_environments": framework_environments}
