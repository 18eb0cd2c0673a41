# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The lab as its users see it: an endpoint, a key, hosts reached over ssh, and ansible-playbook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import testinfra
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab"
GOLDEN = json.loads((ROOT / "tests/fixtures/models/golden.json").read_text(encoding="utf-8"))


@dataclass
class Endpoint:
    url: str
    model: str
    ca_file: str
    key: str = field(repr=False)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    def client(self, key: str | None = None) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=self.context())
        return openai.OpenAI(base_url=self.url, api_key=key or self.key, http_client=http, max_retries=0, timeout=120)

    def context(self) -> Any:
        import ssl

        return ssl.create_default_context(cafile=self.ca_file)


@pytest.fixture(scope="session")
def endpoint() -> Endpoint:
    path = ROOT / ".lab" / "endpoint.json"
    assert path.exists(), "the lab is not up: run `make up`"
    given = json.loads(path.read_text(encoding="utf-8"))
    key = Path(given["api_key_file"]).read_text(encoding="ascii").strip()
    return Endpoint(given["url"], given["model"], given["ca_file"], key)


@pytest.fixture(scope="session")
def lab_host() -> Callable[[str], Host]:
    """A host of the lab through testinfra's ansible backend."""

    def get(name: str) -> Host:
        return testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}&force_ansible=True")

    return get


@dataclass
class Run:
    code: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        recap = self.output.rpartition("PLAY RECAP")[2]
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s+:.*changed=(\d+)", recap, re.M)}


def playbook(*arguments: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Run:
    done = subprocess.run(
        ["ansible-playbook", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=900,
    )
    return Run(done.returncode, done.stdout)


@pytest.fixture(scope="session")
def site() -> Callable[..., Run]:
    return lambda *arguments, **options: playbook("-i", INVENTORY, "site.yml", *arguments, **options)


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """What `host_state` says of one host's roles."""
    book = tmp_path / "compare.yml"
    book.write_text(
        f"""
- hosts: "{{{{ target }}}}"
  gather_facts: false
  vars_files: ["{ROOT}/playbooks/vars/site.yml"]
  tasks:
    - onprem.llm.host_state:
        roles: "{{{{ onprem_llm_host_roles }}}}"
""",
        encoding="utf-8",
    )

    def run(target: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        answer = playbook(
            *("-i", INVENTORY, book, "-e", f"target={target}", *arguments), env={"ANSIBLE_STDOUT_CALLBACK": "json", **(env or {})}
        )
        text = answer.output[answer.output.index("{\n") :]
        hosts = json.JSONDecoder().raw_decode(text)[0]["plays"][0]["tasks"][0]["hosts"]
        assert answer.code == 0, answer.output
        return hosts[target]

    yield run


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition; the time it took in seconds."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if condition():
            return time.monotonic() - begun
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {what}")
