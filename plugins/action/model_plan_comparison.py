# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``onprem.llm.model_plan_comparison``: a plan beside what a running server reported. All of it is on the controller."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.onprem.llm.plugins.module_utils._plan_comparison import (
    Comparison,
    ComparisonError,
    Reported,
    compare,
    corrections_for,
    hints_for,
    learnt_from,
    load_store,
    locked,
    merged,
    read_gpu_info,
    read_log,
    read_metrics,
    store_text,
    table,
    write_store,
)
from ansible_collections.onprem.llm.plugins.plugin_utils._acceptance import absolute, plain

# The lines of a start are few; a log of this size is of something else.
MOST_LOG_BYTES = 64 * 2**20
REPORTS = ("log", "log_path", "metrics", "gpu_info")


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(
            argument_spec={
                "plan": {"type": "raw", "required": True},
                "log": {"type": "str"},
                "log_path": {"type": "path"},
                "metrics": {"type": "str"},
                "gpu_info": {"type": "dict"},
                "corrections_file": {"type": "path"},
                "learn": {"type": "bool", "default": False},
                "run": {"type": "str", "default": ""},
            },
            mutually_exclusive=[("log", "log_path")],
            required_one_of=[REPORTS],
            required_if=[("learn", True, ("corrections_file",))],
        )
        try:
            result.update(self._compared(given))
        except ComparisonError as error:
            raise AnsibleActionFail(str(error)) from None
        return result

    def _compared(self, given: dict[str, Any]) -> dict[str, Any]:
        comparison = compare(plan_of(given["plan"]), reported(given))
        return {"changed": False, **comparison.as_dict(), "table": table(comparison), **self._learnt(comparison, given)}

    def _learnt(self, comparison: Comparison, given: dict[str, Any]) -> dict[str, Any]:
        """What the file of corrections says of this plan's key, after what is to be learnt was."""
        if not given["corrections_file"]:
            return {"learnt": [], "corrections": {}, "hints": []}
        path = str(absolute(given["corrections_file"]))
        writes = given["learn"] and not self._task.check_mode
        if writes:
            make_directory(os.path.dirname(path))
        with locked(path) if writes else nullcontext():
            before = load_store(path)
            store, learnt = learnt_from(before, comparison, given["run"]) if given["learn"] else (before, [])
            if learnt and writes:
                write_store(path, store)
        found: dict[str, Any] = {
            "changed": bool(learnt),
            "learnt": learnt,
            "corrections": corrections_for(store, comparison.key),
            "hints": hints_for(store, comparison.key),
        }
        if learnt and self._task.diff:
            texts = {"before": store_text(before) if before["entries"] else "", "after": store_text(store)}
            found["diff"] = {"before_header": path, "after_header": path, **texts}
        return found


def plan_of(given: Any) -> Any:
    """A plan, or the JSON file that holds one."""
    if isinstance(given, str) and not given.lstrip().startswith("{"):
        where = str(absolute(given))
        text = read_text(where, "plan")
    elif isinstance(given, str):
        where, text = "plan", given
    else:
        return plain(given)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ComparisonError(f"{where}: is not JSON: {error}.") from None


def reported(given: dict[str, Any]) -> Reported:
    """All reports together. Of the log, the metrics and the GPUs, whichever comes first has the last word."""
    reports = []
    if given["log"] is not None or given["log_path"]:
        reports.append(
            read_log(given["log"] if given["log"] is not None else read_text(str(absolute(given["log_path"])), "log_path"))
        )
    if given["metrics"] is not None:
        reports.append(read_metrics(given["metrics"]))
    if given["gpu_info"] is not None:
        reports.append(read_gpu_info(plain(given["gpu_info"])))
    return merged(*reports)


def read_text(path: str, option: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_LOG_BYTES + 1)
    except OSError as error:
        raise ComparisonError(f"{option}: {path}: cannot be read: {error.strerror}.") from None
    if len(content) > MOST_LOG_BYTES:
        raise ComparisonError(f"{option}: {path}: has more than {MOST_LOG_BYTES} bytes; give the lines of one start.")
    return content.decode("utf-8", errors="replace")


def make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ComparisonError(f"corrections_file: {path}: cannot be made: {error.strerror}.") from None
