# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``onprem.llm.gpu_benchmark``: look up the floors, look again and again, and say how far it is."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import (
    GpuDataError,
    profile,
    source_of,
    thresholds,
)

display = Display()

# A line of progress about this often, in seconds.
PROGRESS_SECONDS = 15
# Ansible loads this file before it forks for the hosts, so all hosts of a run have the same one, and no variable holds it.
TOKEN = secrets.token_hex(32)


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            arguments.update(floors(arguments))
        except GpuDataError as error:
            raise AnsibleActionFail(str(error)) from error
        if arguments.get("cluster"):
            arguments["cluster"] = {**arguments["cluster"], "token": arguments["cluster"].get("token") or TOKEN}
        host = task_vars.get("inventory_hostname", "?")
        if self._task.check_mode or arguments.get("phase", "all") != "all":
            return {**result, **self._call(arguments, task_vars)}
        started = self._call({**arguments, "phase": "start"}, task_vars)
        if started.get("failed") or "run" not in started:
            return {**result, **started}
        arguments["run"] = started["run"]
        judged = False
        try:
            failed = self._watch(host, arguments, task_vars)
            if failed:
                return {**result, **failed}
            arguments["found"] = []
            for tool in arguments.get("tools") or []:
                display.display(f"{host}: GPU tests: {tool}")
                done = self._call({**arguments, "phase": "tool", "tools": [tool]}, task_vars)
                if done.get("failed"):
                    return {**result, **done}
                arguments["found"] += done["checks"]
            result.update(self._call({**arguments, "phase": "judge"}, task_vars))
            judged = not result.get("unreachable") and "verdict" in result
        finally:
            if not judged:
                # Nothing goes on loading the GPUs when nobody looks any more.
                with contextlib.suppress(Exception):
                    self._call({**arguments, "phase": "stop"}, task_vars)
        if "verdict" in result:
            display.display(f"{host}: GPU tests {result['verdict']}: {result['summary']}")
        return result

    def _watch(self, host: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Until the run has ended; what failed, where looking at it failed."""
        begun, offset = time.monotonic(), 0
        while True:
            words = {**arguments, "phase": "look", "offset": offset, "wait_seconds": PROGRESS_SECONDS}
            looked = self._call(words, task_vars)
            if looked.get("failed"):
                return looked
            if looked["ended"]:
                return {}
            offset, far = looked["offset"], looked["progress"]
            if far:
                display.display(
                    f"{host}: GPU tests, {time.monotonic() - begun:.0f} s: step {far['done']} of {far['total']}, {far['what']}"
                )

    def _call(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        return self._execute_module("onprem.llm.gpu_benchmark", module_args=arguments, task_vars=task_vars)


def floors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a task means by `machine` or `product`; all products where it means whatever is found."""
    own, given = arguments.get("thresholds") or None, arguments.get("figures")
    if arguments.get("machine"):
        found = profile(str(arguments["machine"]), own)
        more = {}
        if arguments.get("expect_gpus") is None and arguments.get("gpus") is None:
            more["expect_gpus"] = found["gpus"]
        return {"figures": given or worded(found["figures"], found["documents"]), **more}
    if given:
        return {}
    data = thresholds(own)
    name = arguments.get("product")
    if name:
        if name not in data["products"]:
            raise GpuDataError(f"There is no GPU product {name!r}; known are {', '.join(data['products'])}.")
        return {"figures": worded(data["products"][name]["figures"], data["documents"])}
    kept = {
        key: {**{k: product[k] for k in ("name", "pci_device_ids")}, "figures": worded(product["figures"], data["documents"])}
        for key, product in data["products"].items()
    }
    return {"products": kept}


def worded(figures: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures with their sources in words, as a report prints them."""
    whole = {"figures": figures, "documents": documents}
    return {
        name: {
            **figure,
            **{key: source_of(whole, name, key[: -len("_source")]) for key in figure if key.endswith("_source")},
        }
        for name, figure in figures.items()
    }
