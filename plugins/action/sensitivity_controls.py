# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``onprem.llm.sensitivity_controls``: has this host what its data's sensitivity demands? All of it is on the controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.onprem.llm.plugins.plugin_utils._roles import role_data
from ansible_collections.onprem.llm.plugins.plugin_utils._sensitivity import (
    ATTESTED,
    LEVEL,
    OWN_CONTROLS,
    OWN_DOMAINS,
    SensitivityError,
    checked_level,
    checkout_of,
    controls,
    judge,
    message,
    own_patterns,
    shown,
)

try:
    from ansible.template import is_trusted_as_template as is_trusted
    from ansible.template import trust_as_template
except ImportError:  # ansible-core 2.18 trusts every string

    def trust_as_template(value: str) -> str:
        return value

    def is_trusted(value: object) -> bool:
        return True


# Read once, before Ansible forks a process for each host.
for known_control in controls().values():
    for its_role in known_control.get("roles", []):
        role_data(its_role, "defaults/main")


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
                "attested": {"type": "dict"},
                "groups": {"type": "list", "elements": "str"},
                "enforce": {"type": "bool", "default": True},
            }
        )
        # An inventory that says nothing costs nothing.
        if given["level"] is None and LEVEL not in task_vars:
            return {**result, "changed": False, "level": None, "controls": [], "missing": []}
        host = str(task_vars.get("inventory_hostname", "?"))
        try:
            result.update(self._judged(given, task_vars))
        except SensitivityError as error:
            raise AnsibleActionFail(f"{host}: {error}") from None
        if result["missing"] and given["enforce"]:
            result.update(failed=True, msg=message(host, result["level"], result["controls"]))
            # Ansible prints a failed result whole, and what a host has is not its question.
            result["controls"] = [item for item in result["controls"] if item["state"] == "missing"]
        return result

    def _judged(self, given: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        host = HostView(self._templar, self._loader, task_vars)
        level = checked_level(host.given(LEVEL) if given["level"] is None else given["level"])
        attested = host.given(ATTESTED) if given["attested"] is None else given["attested"]
        groups = task_vars.get("group_names", []) if given["groups"] is None else given["groups"]
        found = judge(level, [str(group) for group in groups], host, attested, host.own_controls)
        return {
            "changed": False,
            "level": level,
            "controls": found,
            "missing": [item["name"] for item in found if item["state"] == "missing"],
        }


class HostView:
    """A host's variables, with the defaults of roles below them and what conditions are told besides."""

    def __init__(self, templar: Any, loader: Any, task_vars: Mapping[str, Any]) -> None:
        self._given = task_vars
        self._loader = loader
        self._templar = templar
        self._present: dict[str, bool] = {}
        self._shipped = set(controls())
        self._known = own_patterns(shown(self.given(OWN_DOMAINS)))
        # Left as it is: its conditions are expressions. Ansible (2.19 and later) evaluates those that the inventory itself
        # says, and refuses those that something else computed.
        own = task_vars.get(OWN_CONTROLS)
        self.own_controls: Any = self.given(OWN_CONTROLS) if isinstance(own, str) else own

    def given(self, name: str) -> Any:
        """What the inventory says, None where it says nothing."""
        if name not in self._given:
            return None
        return self._evaluated(name, "{{ " + name + " }}", dict(self._given))

    def present(self, role: str) -> bool:
        if role not in self._present:
            state = f"{role}_state"
            self._present[role] = self._evaluated(state, "{{ " + state + " }}", self._names([role])) != "absent"
        return self._present[role]

    def variable(self, control: Mapping[str, Any], name: str) -> Any:
        names = self._names(control["roles"])
        return self._evaluated(control["name"], "{{ " + name + " }}", names) if name in names else None

    def value(self, control: Mapping[str, Any], expression: str, names: Mapping[str, Any]) -> Any:
        return self._evaluated(control["name"], self._template(control, expression), self._all_names(control, names))

    def holds(self, control: Mapping[str, Any], condition: str, names: Mapping[str, Any]) -> bool:
        templar = self._templar.copy_with_new_env(available_variables=self._all_names(control, names))
        try:
            if hasattr(templar, "evaluate_conditional"):
                is_own = control["name"] not in self._shipped
                return bool(templar.evaluate_conditional(condition if is_own else trust_as_template(condition)))
            from ansible.playbook.conditional import Conditional  # ansible-core 2.18

            conditional = Conditional(loader=self._loader)
            conditional.when = [condition]
            return bool(conditional.evaluate_conditional(templar, templar.available_variables))
        except AnsibleError as error:
            raise SensitivityError(f"{control['name']}: condition: cannot be evaluated: {error}") from None

    def _template(self, control: Mapping[str, Any], expression: str) -> str:
        """An expression as a template, as trusted as the expression was."""
        template = "{{ " + expression + " }}"
        if control["name"] in self._shipped or is_trusted(expression):
            return trust_as_template(template)
        raise SensitivityError(f"{control['name']}: found: was computed and is not evaluated; write it in the inventory.")

    def _evaluated(self, place: str, template: str, names: dict[str, Any]) -> Any:
        try:
            return self._templar.copy_with_new_env(available_variables=names).template(trust_as_template(template))
        except AnsibleError as error:
            raise SensitivityError(f"{place}: cannot be evaluated: {error}") from None

    def _names(self, roles: list[str]) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for role in roles:
            names.update(role_data(role, "defaults/main"))
        return {**names, **self._given}

    def _all_names(self, control: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
        names = self._names(control["roles"])
        known: dict[str, Any] = dict(self._known)
        if "private_key_checkout" in f"{control.get('condition')} {control.get('found')}":
            known["private_key_checkout"] = self._private_key_checkout()
        return {**names, **more, "known": known}

    def _private_key_checkout(self) -> str:
        control = {"name": "private key", "roles": ["certificates"]}
        if self.variable(control, "certificates_mode") != "supplied":
            return checkout_of(str(self.variable(control, "certificates_ca_dir")))
        key = str(self.variable(control, "certificates_supplied_key"))
        return checkout_of(key, encrypted_is_fine=True) if key else ""
