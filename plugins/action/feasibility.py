# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``onprem.llm.feasibility``: which kind of deployment suits whom. All of it is on the controller."""

from __future__ import annotations

import json
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.onprem.llm.plugins.plugin_utils._feasibility import feasibility
from ansible_collections.onprem.llm.plugins.plugin_utils._sensitivity import LEVEL, OWN_CONTROLS, SensitivityError, shown


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(
            argument_spec={
                "level": {"type": "str"},
                "need": {"type": "raw", "required": True},
                "operations": {"type": "str", "required": True},
                "weights": {"type": "dict"},
            }
        )
        level = given["level"]
        if level is None:
            level = self._templar.template(task_vars.get(LEVEL))
        try:
            answer = feasibility(
                shown(level),
                as_given(given["need"]),
                shown(given["operations"]),
                shown(given["weights"]),
                task_vars.get(OWN_CONTROLS),
            )
        except SensitivityError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, **answer, "changed": False}


def as_given(need: Any) -> Any:
    """A mapping that came from a command line is text."""
    plain = shown(need)
    if isinstance(plain, str) and plain.lstrip().startswith("{"):
        try:
            return json.loads(plain)
        except json.JSONDecodeError:
            return plain
    return plain
