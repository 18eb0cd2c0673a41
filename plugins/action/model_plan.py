# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``onprem.llm.model_plan``: plan a deployment, search for better ones, write what came out. All of it is on the controller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import ModelError
from ansible_collections.onprem.llm.plugins.module_utils._model_deployment import Deployment, deployment_of
from ansible_collections.onprem.llm.plugins.module_utils._model_plan import make_plan, opened
from ansible_collections.onprem.llm.plugins.module_utils._model_search import as_deployment, search
from ansible_collections.onprem.llm.plugins.module_utils._model_speed import workload_of
from ansible_collections.onprem.llm.plugins.module_utils._plan_comparison import (
    ComparisonError,
    corrections_for,
    hints_for,
    load_store,
)
from ansible_collections.onprem.llm.plugins.plugin_utils._acceptance import absolute, plain
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import GpuDataError
from ansible_collections.onprem.llm.plugins.plugin_utils._plan_inventory import as_yaml
from ansible_collections.onprem.llm.plugins.plugin_utils._plan_page import render
from ansible_collections.onprem.llm.plugins.plugin_utils._plan_text import search_lines, summary_lines
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import hardware, planning_data

display = Display()
SPEC: dict[str, dict[str, Any]] = {
    "model": {"type": "raw", "required": True},
    "gpus": {"type": "raw", "required": True},
    "quantisation": {"type": "str"},
    "settings": {"type": "dict", "default": {}},
    "workload": {"type": "dict"},
    "speculation": {"type": "dict"},
    "cost": {"type": "dict"},
    "search": {"type": "bool", "default": False},
    "corrections_file": {"type": "path"},
    "thresholds": {"type": "dict"},
    "directory": {"type": "path"},
    "title": {"type": "str"},
    "model_source": {"type": "dict"},
    "model_release": {"type": "str"},
    "feasibility": {"type": "dict"},
}


def known_of(store: Any, deployment: Deployment, data: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was learnt of such a deployment, and of others of the model: found by what a plan without it says."""
    if store is None:
        return {}, []
    without = make_plan(deployment, data)
    return corrections_for(store, without), hints_for(store, without)


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(argument_spec=SPEC)
        try:
            result.update(self._planned(plain(given)))
        except (ModelError, GpuDataError, ComparisonError) as error:
            raise AnsibleActionFail(str(error)) from None
        return result

    def _planned(self, given: dict[str, Any]) -> dict[str, Any]:
        data = planning_data()
        engines = data["engines"]["engines"]
        own = given["thresholds"]
        asked = {name: given[name] for name in ("model", "gpus", "quantisation", "settings")}
        model, device, count = opened(asked, lambda wanted: hardware(wanted, own))
        work = workload_of(given["workload"])
        deployment = deployment_of(model, device, count, given["settings"], engines)
        found = None
        store = load_store(given["corrections_file"]) if given["corrections_file"] else None
        if given["search"]:
            learnt, _hints = known_of(store, deployment, data)
            found = search(model, device, count, given["settings"], data, work, corrections=learnt)
            # Where nothing serves, the plan is of what comes nearest, and says what it lacks.
            best = found["chosen"] or found["nearest"]
            if best:
                deployment = as_deployment(best, model, device, count, given["settings"], engines)
        learnt, hints = known_of(store, deployment, data)
        deployment = replace(deployment, corrections=learnt)
        plan = make_plan(deployment, data, work, given["speculation"], given["cost"])
        for line in (*summary_lines(plan), *search_lines(found), *(f"  known elsewhere: {hint['text']}" for hint in hints)):
            display.display(line)
        answer = {"changed": False, "plan": plan, "search": found, "verdict": plan["verdict"], "summary": plan["summary"]}
        answer["hints"] = hints
        if given["directory"]:
            answer.update(self._written(given, plan, found))
        return answer

    def _written(self, given: Mapping[str, Any], plan: dict[str, Any], found: dict[str, Any] | None) -> dict[str, Any]:
        """The plan as JSON, as a page, and as inventory variables; only what differs is written."""
        directory = absolute(given["directory"])
        title = given["title"] or f"{plan['model']['name']} on {plan['hardware']['count']} x {plan['hardware']['name']}"
        inputs = {"model_source": given["model_source"], "model_release": given["model_release"]}
        texts = {
            "plan.json": json.dumps({**plan, "search": found}, indent=1, sort_keys=True) + "\n",
            "index.html": render(plan, title, found, given["feasibility"]),
        }
        if plan["verdict"] != "FAIL":
            texts["site_variables.yml"] = as_yaml(plan, inputs)
        changed, diff = [], []
        for name, text in texts.items():
            path = directory / name
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            if before == text:
                continue
            changed.append(str(path))
            if name.endswith(".yml"):
                diff.append({"before_header": str(path), "after_header": str(path), "before": before, "after": text})
            if not self._task.check_mode:
                directory.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                part.write_text(text, encoding="utf-8")
                part.replace(path)
        # Variables of a plan that failed now are not those of this plan.
        stale = directory / "site_variables.yml"
        if "site_variables.yml" not in texts and stale.exists():
            changed.append(str(stale))
            if not self._task.check_mode:
                stale.unlink()
        return {
            "changed": bool(changed),
            "written": changed,
            "files": {name: str(directory / name) for name in texts},
            **({"diff": diff} if diff and self._task.diff else {}),
        }
