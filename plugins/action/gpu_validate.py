# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``onprem.llm.gpu_validate``: look up profile and Xid table, and tell the operator the verdict."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import GpuDataError, expectation, xid_policy

display = Display()


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        arguments.update(arguments.pop("expectations", None) or {})
        own = arguments.pop("thresholds", None)
        try:
            arguments["policy"] = xid_policy(arguments.pop("xid_policy", None))
            if arguments.get("profile"):
                arguments["expectation"] = expectation(arguments["profile"], own)
        except GpuDataError as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(self._execute_module("onprem.llm.gpu_validate", module_args=arguments, task_vars=task_vars))
        if "verdict" in result:
            host = task_vars.get("inventory_hostname", "?")
            display.display(f"{host}: GPUs {result['verdict']}: {result['summary']}")
        return result
