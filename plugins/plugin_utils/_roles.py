# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What the controller knows of a role of this collection: its arguments, its declaration, and a digest of its code."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible_collections.onprem.llm.plugins.filter.declared import declared as applying

COLLECTION = Path(__file__).resolve().parents[2]


@cache
def role_names() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (COLLECTION / "roles").iterdir() if (path / "tasks").is_dir()))


@cache
def tree_digest(*folders: Path) -> str:
    """SHA-256 over the names and contents of all files below the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path.relative_to(folder)).encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@cache
def role_data(role: str, name: str) -> dict[str, Any]:
    """What Ansible itself loads for a role: NAME.yml, or every file of the folder NAME."""
    loader = DataLoader()
    root = COLLECTION / "roles" / role
    whole: dict[str, Any] = {}
    for path in [root / f"{name}.yml", *sorted((root / name).glob("*.yml"))]:
        if path.exists():
            try:
                whole.update(loader.load_from_file(str(path), trusted_as_template=True) or {})
            except TypeError:  # ansible-core 2.18 has no such argument
                whole.update(loader.load_from_file(str(path)) or {})
    return whole


def preload() -> None:
    """Read all roles once, before Ansible forks a process for each host."""
    for role in role_names():
        tree_digest(COLLECTION / "roles" / role, COLLECTION / "plugins")
        for name in ("meta/argument_specs", "defaults/main", "vars/main"):
            role_data(role, name)


class RoleView:
    """One role as seen for one host: its variables evaluated, its arguments checked."""

    def __init__(self, name: str, templar: Any, task_vars: Mapping[str, Any]) -> None:
        self.name = name
        self.path = COLLECTION / "roles" / name
        if name not in role_names():
            raise AnsibleActionFail(f"There is no role {name!r}; the collection has {', '.join(role_names())}.")
        specs = role_data(name, "meta/argument_specs")
        self.options: dict[str, Any] = specs.get("argument_specs", {}).get("main", {}).get("options", {})
        self.variables = {
            **role_data(name, "defaults/main"),
            **task_vars,
            **role_data(name, "vars/main"),
            "role_path": str(self.path),
            "role_name": name,
            "ansible_search_path": [str(self.path), *task_vars.get("ansible_search_path", [])],
        }
        self._given = task_vars
        self._templar = templar.copy_with_new_env(available_variables=self.variables)
        self.arguments = self._evaluated()

    def value(self, name: str) -> Any:
        try:
            return self._templar.template(self.variables[name])
        except AnsibleError as error:
            # What a lookup of this collection says is made for the operator; Ansible's words around it are not.
            own = re.search(r"The lookup plugin 'onprem\.llm\.\w+' failed: (.*)", str(error), re.DOTALL)
            said = own[1] if own else f"the variable {name} cannot be evaluated: {error}"
            raise AnsibleActionFail(f"role {self.name}: {said}") from error

    def _evaluated(self) -> dict[str, Any]:
        """The values of all public variables, each evaluated once: what refers to one then finds its value."""
        arguments = {}
        for name in self.options:
            if name in self.variables:
                arguments[name] = self.variables[name] = self.value(name)
        return arguments

    def check(self) -> None:
        """Refuse variables that the role does not know, and values of a wrong type."""
        problems = []
        longer = [f"{other}_" for other in role_names() if other.startswith(f"{self.name}_")]
        for name in sorted(self._given):
            known = name in self.options or name.startswith(tuple(longer))
            if isinstance(name, str) and name.startswith(f"{self.name}_") and not known:
                near = difflib.get_close_matches(name, self.options, n=1)
                problems.append(f"unknown variable {name}" + (f" (did you mean {near[0]}?)" if near else ""))
        result = ArgumentSpecValidator(self.options).validate(self.arguments)
        problems += result.error_messages
        if problems:
            raise AnsibleActionFail(f"role {self.name}: " + "; ".join(problems) + ". See the role's README for its variables.")

    def declaration(self) -> dict[str, list[dict[str, Any]]]:
        """The declared state, with contents still in it; empty where the role's state is absent."""
        if self.value(f"{self.name}_state") == "absent":
            return {}
        declared = self.value(f"__{self.name}_state")
        return {kind: applying(resources) for kind, resources in declared.items()}

    def digest(self, declaration: Mapping[str, Any]) -> str:
        """Digest of all that decides what the role does: code, arguments, declaration.

        ``<role>_verify`` says how closely a run looks, not what it makes.
        """
        code = tree_digest(self.path, COLLECTION / "plugins")
        arguments = {name: value for name, value in self.arguments.items() if name != f"{self.name}_verify"}
        inputs = json.dumps([arguments, declaration], sort_keys=True, default=str)
        return hashlib.sha256(f"{code}\n{inputs}".encode()).hexdigest()


def without_contents(declaration: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The declaration as it travels: each file's content replaced by its SHA-256."""
    travelling: dict[str, list[dict[str, Any]]] = {}
    for kind, resources in declaration.items():
        travelling[kind] = []
        for resource in resources:
            spec = {key: value for key, value in resource.items() if key != "content"}
            if kind == "files" and resource.get("content") is not None:
                spec["sha256"] = hashlib.sha256(str(resource["content"]).encode()).hexdigest()
            travelling[kind].append(spec)
    return travelling
