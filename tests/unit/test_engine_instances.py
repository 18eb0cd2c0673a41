# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Engines are data: what becomes of an instance and an engine's entry."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.onprem.llm.plugins.filter.engine_instances import engine_instances

ROLE = Path(__file__).resolve().parents[2] / "roles" / "model_server"
ENGINES = yaml.safe_load((ROLE / "vars/main/engines.yml").read_text(encoding="utf-8"))["__model_server_engines"]
MODELS = [{"name": "llama", "release": "1.0.0"}]
DEFAULTS = {
    "address": "10.0.0.5",
    "port": 8000,
    "model_root": "/var/lib/onprem/models",
    "environment_root": "/opt/onprem/environments",
    "ready_seconds": 900,
    "drain_seconds": 120,
    "memory_max_bytes": 0,
    "cpu_cores": 0,
    "role_path": str(ROLE),
}
# A program that no table of this project knows, with all that an entry may hold.
FOREIGN = {
    "command": ["/opt/foreign/serve", "--weights", "{model_path}"],
    "options": {"max_model_len": ["--context", "{max_model_len}"], "adapter": ["--adapter", "{adapter}"]},
    "environment": {"CACHE": "{cache}"},
    "health_path": "/ready",
    "smoke": {"path": "/generate", "body": {"inputs": "a", "model": "{model}"}},
}


def filled(*instances: dict[str, Any], engines: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return engine_instances(instances, {**ENGINES, "foreign": FOREIGN, **(engines or {})}, MODELS, DEFAULTS)


def unit(instance: dict[str, Any]) -> dict[str, list[str]]:
    """The drop-in as settings with their values."""
    settings: dict[str, list[str]] = {}
    for line in instance["files"][0]["content"].splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def test_an_engine_of_the_site_needs_nothing_but_its_entry() -> None:
    (one,) = filled({"engine": "foreign", "model": "llama", "max_model_len": 512})
    assert shlex.split(unit(one)["ExecStart"][0]) == [
        *("/opt/foreign/serve", "--weights", "/var/lib/onprem/models/llama/releases/1.0.0"),
        *("--context", "512"),
    ]
    assert one["health_url"] == "http://10.0.0.5:8000/ready"
    assert one["metrics_url"] == ""
    assert one["smoke_body"] == {"inputs": "a", "model": "llama"}
    assert one["python_environment"] is None
    assert one["unit"]["name"] == "onprem-model-server@llama.service"


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_each_engine_of_the_table_makes_a_command(engine: str) -> None:
    (one,) = filled({"engine": engine, "model": "llama", "max_model_len": 512, "program": "/usr/bin/x", "file": "a.gguf"})
    words = shlex.split(unit(one)["ExecStart"][0])
    assert words[0].startswith("/")
    assert "10.0.0.5" in words
    assert not any("{" in word for word in words)
    assert one["smoke_url"].startswith("http://10.0.0.5:8000/v1/")


def test_the_drain_is_shorter_than_the_stop_timeout() -> None:
    (one,) = filled({"engine": "vllm_cpu", "model": "llama", "drain_seconds": 45})
    words = shlex.split(unit(one)["ExecStart"][0])
    assert words[words.index("--shutdown-timeout") + 1] == "45"
    assert int(unit(one)["TimeoutStopSec"][0]) > 45


def test_limits_are_written_only_where_they_are_set() -> None:
    (free,) = filled({"engine": "foreign", "model": "llama"})
    assert not {"MemoryMax", "CPUQuota", "AllowedCPUs"} & set(unit(free))
    (bound,) = filled({"engine": "foreign", "model": "llama", "memory_max_bytes": 2**34, "cpu_cores": 1.5, "cpu_set": "0-3"})
    assert [unit(bound)[name] for name in ("MemoryMax", "CPUQuota", "AllowedCPUs")] == [["17179869184"], ["150%"], ["0-3"]]


def test_only_an_engine_with_devices_sees_devices() -> None:
    (cpu,) = filled({"engine": "vllm_cpu", "model": "llama"})
    (gpu,) = filled({"engine": "vllm", "model": "llama"})
    assert unit(cpu)["PrivateDevices"] == ["yes"]
    assert "char-nvidia-uvm rw" in unit(gpu)["DeviceAllow"]
    assert unit(gpu)["PrivateDevices"] == ["no"]


def test_systemd_expands_nothing_of_an_argument_or_a_variable() -> None:
    (one,) = filled(
        {"engine": "foreign", "model": "llama", "arguments": ['100% "$HOME" \\'], "environment": {"SECRET": '5%i$HOME"\\'}}
    )
    assert unit(one)["ExecStart"][0].endswith(r'"100%% \"$$HOME\" \\"')
    # In Environment= systemd expands specifiers, but leaves a dollar sign as it is (systemd.exec(5)).
    assert r'"SECRET=5%%i$HOME\"\\"' in unit(one)["Environment"]


def test_the_environments_name_follows_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "mine.lock"
    paths = []
    for text in ("a==1\n", "a==2\n", "a==1\n"):
        lock.write_text(text)
        engine = {"engines": {"mine": {**FOREIGN, "python": {"lock": str(lock)}}}}
        (one,) = filled({"engine": "mine", "model": "llama"}, **engine)
        paths.append(one["python_environment"]["path"])
    assert paths[0] == paths[2] != paths[1]
    assert paths[0].startswith("/opt/onprem/environments/mine-")


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([{"engine": "vlm", "model": "llama"}], "names the engine 'vlm'; known are foreign, llama_cpp, vllm, vllm_cpu"),
        ([{"engine": "vllm", "model": "lama"}], "serves the model 'lama', which model_store_models does not have .llama."),
        ([{"engine": "vllm", "model": "llama", "name": "../x"}], "the name '../x' is not made of small letters"),
        ([{"engine": "llama_cpp", "model": "llama", "file": "x"}], "the engine llama_cpp needs 'program' for the instance llama"),
        ([{"engine": "vllm", "model": "llama"}] * 2, "two instances have the name llama"),
        (
            [{"engine": "vllm", "model": "llama"}, {"engine": "vllm", "model": "llama", "name": "b"}],
            "two instances have the port 8000",
        ),
    ],
)
def test_bad_instances_are_refused_by_name(instances: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        filled(*instances)
