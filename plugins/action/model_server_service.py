# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``onprem.llm.model_server_service``: look again and again, and tell the operator how far it is."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# A line of progress about this often, in seconds.
PROGRESS_SECONDS = 15


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        started = self._call({**arguments, "phase": "start"}, task_vars)
        result.update(started)
        if started.get("failed") or self._task.check_mode or not started.get("invocation"):
            return result
        host = task_vars.get("inventory_hostname", "?")
        unit = arguments["unit"]
        limit = int(arguments.get("ready_seconds", 900))
        begun = time.monotonic()
        while True:
            looked = self._call(
                {**arguments, "phase": "look", "invocation": started["invocation"], "wait_seconds": PROGRESS_SECONDS}, task_vars
            )
            seconds = round(time.monotonic() - begun, 1)
            if looked.get("failed"):
                return {**result, **looked}
            result["status"] = looked["status"]
            if looked["status"] == "ready":
                if started["started"]:
                    result["seconds"] = seconds
                    display.display(f"{host}: {unit} can serve, {seconds:.0f} s after its start")
                return result
            log = "\n".join(f"    {line}" for line in looked["log"])
            if looked["status"] == "dead":
                return {
                    **result,
                    "failed": True,
                    "cause": looked["cause"],
                    "log": looked["log"],
                    "msg": f"{unit} died {seconds:.0f} s after its start ({looked['how']}). Likely cause: {looked['cause']}. "
                    f"{looked['advice']}\nThe last lines of its log:\n{log}",
                }
            if seconds > limit:
                return {
                    **result,
                    "failed": True,
                    "log": looked["log"],
                    "msg": f"{unit} runs, but {arguments['health_url']} did not answer 200 within {limit} s. If the model is "
                    f"large, raise ready_seconds.\nThe last lines of its log:\n{log}",
                }
            memory = f", {looked['memory_bytes'] / 2**30:.1f} GiB" if looked.get("memory_bytes") else ""
            display.display(f"{host}: {unit} is starting, {seconds:.0f} s of at most {limit} s{memory}: {looked['last'][:120]}")

    def _call(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return self._execute_module("onprem.llm.model_server_service", module_args=arguments, task_vars=task_vars)
