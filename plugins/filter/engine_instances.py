# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter ``onprem.llm.engine_instances``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.onprem.llm.plugins.plugin_utils._python_environments import locked_environment

DOCUMENTATION = r"""
name: engine_instances
short_description: Model server instances with their engine's data filled in
version_added: 0.1.0
author: The onprem.llm authors (@onprem)
description:
  - Joins each instance with its engine from the table in the role C(model_server), and gives what the role declares for
    it. The unit's name, its drop-in with command line, environment and limits, the Python environment, and the
    addresses of health and metrics.
positional: _input, engines, models, defaults
options:
  _input:
    description: Instances as in C(model_server_instances).
    type: list
    elements: dict
    required: true
  engines:
    description: The engine table.
    type: dict
    required: true
  models:
    description: Models on the host, each with name and release.
    type: list
    elements: dict
    required: true
  defaults:
    description: Values for what an instance does not set.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show where the servers answer
  ansible.builtin.debug:
    msg: "{{ model_server_instances | onprem.llm.engine_instances(engines, models, defaults) | map(attribute='url') }}"
"""

RETURN = r"""
_value:
  description: The instances, filled in.
  type: list
  elements: dict
"""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
WORD = re.compile(r"\{([a-z_]+)\}")


def fill(text: Any, values: Mapping[str, Any]) -> Any:
    """Replace the words in braces, in strings, lists and mappings alike; every word must have a value."""
    if isinstance(text, Mapping):
        return {key: fill(value, values) for key, value in text.items()}
    if isinstance(text, list):
        return [fill(item, values) for item in text]
    if not isinstance(text, str):
        return text

    def value(found: re.Match[str]) -> str:
        if values.get(found[1]) in (None, ""):
            raise AnsibleFilterError(
                f"model_server_instances: the engine {values['engine']} needs {found[1]!r} for the instance {values['name']}."
            )
        return str(values[found[1]])

    return WORD.sub(value, text)


def systemd_quoted(word: str) -> str:
    """One word of an Environment line: systemd reads escapes and quotes and expands % (systemd.exec(5))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{escaped}"'


def systemd_argument(word: str) -> str:
    """One word of a command line, where systemd expands variables too."""
    return systemd_quoted(word).replace("$", "$$")


def python_environment(engine: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the engine's Python environment lies; its name holds the digest of what it is made from."""
    python = engine.get("python")
    if not python:
        return None
    sources = [
        Path(name) if name.startswith("/") else Path(defaults["role_path"]) / "files" / name
        for name in filter(None, (python["lock"], python.get("overrides")))
    ]
    return {
        **locked_environment(sources, defaults["environment_root"]),
        "imports": python.get("imports", []),
        "required_bytes": python.get("required_bytes", 0),
        "version": python.get("version"),
    }


def drop_in(command: list[str], environment: Mapping[str, str], instance: Mapping[str, Any]) -> str:
    """The part of the unit that differs between instances."""
    lines = [
        "# Command line, environment and limits of this instance; all else is in the template unit.",
        "[Service]",
        *(f"Environment={systemd_quoted(f'{name}={value}')}" for name, value in sorted(environment.items())),
        f"ExecStart={' '.join(map(systemd_argument, command))}",
        # Longer than the drain, so that systemd never cuts what the server is still draining.
        f"TimeoutStopSec={int(instance['drain_seconds']) + 30}",
    ]
    if instance["memory_max_bytes"]:
        lines.append(f"MemoryMax={instance['memory_max_bytes']}")
    if instance["cpu_cores"]:
        lines.append(f"CPUQuota={float(instance['cpu_cores']) * 100:.0f}%")
    if instance.get("cpu_set"):
        lines.append(f"AllowedCPUs={instance['cpu_set']}")
    devices = instance["devices"]
    lines += [f"PrivateDevices={'no' if devices else 'yes'}", "DevicePolicy=closed"]
    lines += [f"DeviceAllow={device} rw" for device in devices]
    return "\n".join(lines) + "\n"


def engine_instances(
    instances: Iterable[Mapping[str, Any]],
    engines: Mapping[str, Mapping[str, Any]],
    models: Iterable[Mapping[str, Any]],
    defaults: Mapping[str, Any],
) -> list[dict[str, Any]]:
    releases = {model["name"]: model["release"] for model in models}
    filled = []
    for given in instances:
        instance = {**defaults, **{key: value for key, value in given.items() if value is not None}}
        name = instance.setdefault("name", instance.get("model"))
        problem = check(instance, engines, releases)
        if problem:
            raise AnsibleFilterError(f"model_server_instances: {problem}")
        engine = engines[instance["engine"]]
        environment = python_environment(engine, defaults)
        values = {
            **instance,
            "environment": environment["path"] if environment else "",
            "model_path": f"{instance['model_root']}/{instance['model']}/releases/{releases[instance['model']]}",
            "cache": f"/var/cache/onprem-model-server/{name}",
        }
        options = [word for setting, words in engine["options"].items() if values.get(setting) for word in words]
        command = fill([*engine["command"], *options], values) + [str(word) for word in instance.get("arguments") or []]
        variables = {**fill(engine.get("environment") or {}, values), **(given.get("environment") or {})}
        unit = f"onprem-model-server@{name}.service"
        instance["devices"] = engine.get("devices") or []
        directory = f"/etc/systemd/system/{unit}.d"
        owned = {"owner": "root", "group": "root"}
        base = f"http://{instance['address']}:{instance['port']}"
        smoke = fill(engine["smoke"], values)
        filled.append(
            {
                "name": name,
                "engine": instance["engine"],
                "model": instance["model"],
                "release": releases[instance["model"]],
                "address": instance["address"],
                "port": int(instance["port"]),
                "health_url": base + engine["health_path"],
                "metrics_url": base + engine["metrics_path"] if engine.get("metrics_path") else "",
                "smoke_url": base + smoke["path"],
                "smoke_body": smoke["body"],
                "ready_seconds": int(instance["ready_seconds"]),
                "python_environment": environment,
                "packages": engine.get("packages") or [],
                "memory_bytes": engine.get("memory_bytes", 0),
                "memory_max_bytes": int(instance["memory_max_bytes"]),
                "directory": {"path": directory, "mode": "0755", **owned},
                "files": [
                    {
                        "path": f"{directory}/instance.conf",
                        # Variables may hold a token.
                        "content": drop_in(command, variables, instance),
                        "mode": "0640",
                        "secret": True,
                        **owned,
                    }
                ],
                "unit": {"name": unit, "enabled": True, "state": "started"},
            }
        )
    for field in ("name", "port"):
        taken = [item[field] for item in filled]
        twice = sorted({str(value) for value in taken if taken.count(value) > 1})
        if twice:
            raise AnsibleFilterError(f"model_server_instances: two instances have the {field} {', '.join(twice)}.")
    return filled


def check(instance: Mapping[str, Any], engines: Mapping[str, Any], releases: Mapping[str, str]) -> str:
    """What is wrong with an instance, in one sentence; empty when nothing is."""
    name = instance.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"the name {name!r} is not made of small letters, digits, - and _."
    if instance.get("engine") not in engines:
        return f"the instance {name} names the engine {instance.get('engine')!r}; known are {', '.join(sorted(engines))}."
    if instance.get("model") not in releases:
        known = ", ".join(sorted(releases)) or "none"
        return (
            f"the instance {name} serves the model {instance.get('model')!r}, which model_store_models does not have ({known})."
        )
    return ""


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"engine_instances": engine_instances}
