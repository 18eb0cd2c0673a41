# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``onprem.llm.host_state``: evaluate declarations, check arguments, tell the operator what was found."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.onprem.llm.plugins.plugin_utils._roles import RoleView, preload, without_contents

display = Display()
preload()


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        names = arguments.get("roles") or [arguments.get("role")]
        if not all(names):
            raise AnsibleActionFail("host_state needs `role` or `roles`.")
        views = {name: RoleView(name, self._templar, task_vars) for name in names}
        declarations, contents = {}, {}
        for name, view in views.items():
            view.check()
            declaration = view.declaration()
            contents[name] = {item["path"]: item.get("content") for item in declaration.get("files", [])}
            declarations[name] = {"declaration": without_contents(declaration), "digest": view.digest(declaration)}
        arguments["declarations"] = declarations
        state = arguments.get("state", "compared")
        if state == "applied":
            files = [item for item in declaration.get("files", []) if item.get("content") is not None]
            for option, secret in (("contents", False), ("secrets", True)):
                arguments[option] = {item["path"]: str(item["content"]) for item in files if bool(item.get("secret")) is secret}
        if state == "absent":
            name = names[0]
            safe_mode = f"{name}_safe_mode"
            if safe_mode in views[name].variables:
                arguments.setdefault("safe_mode", views[name].value(safe_mode))
        result.update(self._execute_module("onprem.llm.host_state", module_args=arguments, task_vars=task_vars))
        if state == "compared" and not result.get("failed"):
            self._tell(task_vars.get("inventory_hostname", "?"), result)
            if arguments.get("report"):
                result["changed"] = any(not found["in_sync"] for found in result["roles"].values())
                result["diff"] = self._diffs(contents, result["roles"])
        for found in result.get("roles", {}).values():
            found.pop("files", None)
        return result

    @staticmethod
    def _tell(host: str, result: dict[str, Any]) -> None:
        """One line per host for what is in sync, one per role for what is not and why."""
        in_sync = [name for name, found in result["roles"].items() if found["in_sync"]]
        if in_sync:
            display.display(f"{host}: in sync: {', '.join(in_sync)}")
        for name, found in result["roles"].items():
            if not found["in_sync"]:
                reasons = found["reasons"]
                if reasons[0].startswith("has not run"):
                    reasons = reasons[:1]  # all the rest follows from that
                display.display(f"{host}: {name} has to run: {'; '.join(reasons)}")
            for line in found["not_applied"]:
                display.display(f"{host}: {name}: not applied: {line}")

    @staticmethod
    def _diffs(contents: dict[str, dict[str, Any]], roles: dict[str, Any]) -> list[dict[str, Any]]:
        diffs = []
        for name, found in roles.items():
            for path, live in found["files"].items():
                wanted = contents[name].get(path)
                after = "(made on the host)\n" if wanted is None else wanted
                diffs.append(
                    {"before_header": f"{path} (live)", "after_header": f"{path} ({name})", "before": live, "after": after}
                )
            shown = set(found["files"])
            facts = [item for item in found["differences"] if item["resource"].removeprefix("file ") not in shown]
            if facts:
                before = "".join(f"{item['resource']} {item['field']}: {item['found']}\n" for item in facts)
                after = "".join(f"{item['resource']} {item['field']}: {item['declared']}\n" for item in facts)
                diffs.append(
                    {"before_header": f"{name} (live)", "after_header": f"{name} (declared)", "before": before, "after": after}
                )
        return diffs
