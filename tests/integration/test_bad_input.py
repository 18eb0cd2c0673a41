# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs are refused with a sentence that says what to set, before any host is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import INVENTORY, Run, playbook

MISSING_MODEL = (
    '{"model_store_models": [{"name": "licence-llama", "release": "9.9.9", '
    '"source": {"type": "directory", "path": "/mnt/models/licence-llama/9.9.9"}}]}'
)


def squeezed(text: str) -> str:
    return " ".join(text.replace("\n", " ").split())


def instance(**given: str) -> str:
    return json.dumps({"model_server_instances": [{"engine": "vllm_cpu", "model": "licence-llama", **given}]})


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("gateway_prot=8443", "role gateway: unknown variable gateway_prot (did you mean gateway_port?)"),
        ("gateway_port=https", "role gateway: argument 'gateway_port'"),
        ("host_transparent_hugepage=sometimes", "role host: value of host_transparent_hugepage must be one of: always, madvise"),
        ('{"gateway_api_keys": []}', "gateway_api_keys is empty: nobody could use the gateway"),
        (instance(engine="vlm"), "names the engine 'vlm'; known are llama_cpp, vllm"),
        (instance(model="gpt"), "serves the model 'gpt', which model_store_models does not have (licence-llama)"),
        ("model_server_listen_address=0.0.0.0", "0.0.0.0, which is not a"),
        (MISSING_MODEL, "/mnt/models/licence-llama/9.9.9"),
    ],
)
def test_a_wrong_input_is_refused_before_anything_is_changed(site: Callable[..., Run], extra: str, said: str) -> None:
    run = site("-e", extra)
    assert run.code != 0
    assert said in squeezed(run.output), run.output
    assert set(run.changed.values()) == {0}, run.output


@pytest.mark.parametrize("group", ["gateways", "model_servers"])
def test_an_inventory_without_a_part_of_the_service_is_refused(tmp_path: Path, group: str) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(f"{group}:\n  hosts:\n    one:\n      ansible_host: 127.0.0.1\n", encoding="utf-8")
    run = playbook("-i", inventory, "site.yml")
    other = {"gateways": "model_servers", "model_servers": "gateways"}[group]
    assert run.code != 0
    assert f"0 {'host(s) in the group gateways' if other == 'gateways' else 'in the group model_servers'}" in squeezed(run.output)
    assert "unreachable=0" in run.output


def test_a_role_alone_refuses_unknown_variables(tmp_path: Path) -> None:
    book = tmp_path / "book.yml"
    book.write_text("- hosts: gpu1\n  gather_facts: false\n  roles: [onprem.llm.host]\n", encoding="utf-8")
    run = playbook("-i", INVENTORY, book, "-e", "host_timezome=UTC")
    assert run.code != 0
    assert "role host: unknown variable host_timezome (did you mean host_timezone?)" in squeezed(run.output)
