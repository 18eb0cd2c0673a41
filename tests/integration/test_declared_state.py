# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A role that is in sync is passed over; whatever changes, it is never passed over wrongly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import INVENTORY, ROOT, Run, playbook
from testinfra.host import Host

Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def mended(site: Callable[..., Run]) -> Iterator[None]:
    """Every test of this file leaves drift; one run of site.yml mends it all, and another finds nothing to do."""
    yield
    assert site().code == 0
    again = site()
    assert set(again.changed.values()) == {0}, again.output


def test_all_is_in_sync_after_site(compare: Compare) -> None:
    for host in ("gateway1", "gpu1"):
        found = compare(host)
        assert found["pending"] == [], found


def test_an_edited_file_makes_the_role_run(compare: Compare, lab_host: Callable[[str], Host]) -> None:
    lab_host("gateway1").check_output("echo '# by hand' >> /etc/haproxy/haproxy.cfg")
    found = compare("gateway1")
    assert found["pending"] == ["gateway"]
    assert "file /etc/haproxy/haproxy.cfg: its content is not what was declared" in found["roles"]["gateway"]["reasons"]


def test_a_stopped_unit_makes_the_role_run(compare: Compare, lab_host: Callable[[str], Host]) -> None:
    lab_host("gateway1").check_output("systemctl stop haproxy")
    reasons = compare("gateway1")["roles"]["gateway"]["reasons"]
    assert "unit haproxy.service: state is stopped, declared started" in reasons


def test_another_package_version_makes_the_role_run(compare: Compare, lab_host: Callable[[str], Host]) -> None:
    host = lab_host("gpu2")
    assert compare("gpu2")["pending"] == []
    host.check_output(
        "set -e; d=$(mktemp -d); mkdir $d/DEBIAN; dpkg-query --show --showformat 'Package: ${Package}\\nArchitecture: all\\n"
        "Version: 99:${Version}\\nMaintainer: nobody <nobody@localhost>\\nDescription: a newer one\\n' libnuma1 "
        "| sed 's/all/amd64/' > $d/DEBIAN/control; dpkg-deb --build $d $d.deb; "
        "cp -a /usr/lib/x86_64-linux-gnu/libnuma.so.1* /root/; dpkg --install $d.deb; "
        "cp -a /root/libnuma.so.1* /usr/lib/x86_64-linux-gnu/"
    )
    found = compare("gpu2")
    assert found["pending"] == ["model_server"]
    assert any(reason.startswith("package libnuma1: version is 99:") for reason in found["roles"]["model_server"]["reasons"])


def test_a_changed_variable_makes_the_role_run(compare: Compare) -> None:
    found = compare("gpu1", "-e", "host_journal_max_days=7")
    assert found["pending"] == ["host"]
    assert "its inputs or its code changed" in found["roles"]["host"]["reasons"][0]


def test_a_changed_role_file_makes_the_role_run(compare: Compare, tmp_path: Path) -> None:
    copy = tmp_path / "ansible_collections" / "onprem" / "llm"
    for name in ("plugins", "roles", "playbooks", "meta"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "galaxy.yml", copy)
    elsewhere = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}
    assert compare("gpu1", env=elsewhere)["pending"] == []
    with (copy / "roles/host/tasks/configure.yml").open("a", encoding="utf-8") as stream:
        stream.write("# a comment\n")
    assert compare("gpu1", env=elsewhere)["pending"] == ["host"]


def test_a_removed_record_makes_the_role_run(compare: Compare, lab_host: Callable[[str], Host]) -> None:
    lab_host("gpu1").check_output("mv /var/lib/onprem/state/host.json /var/lib/onprem/state/.host.json.away")
    try:
        assert compare("gpu1")["pending"] == ["host"]
    finally:
        lab_host("gpu1").check_output("mv /var/lib/onprem/state/.host.json.away /var/lib/onprem/state/host.json")


def test_drift_is_reported_with_diffs_and_nothing_is_changed(lab_host: Callable[[str], Host]) -> None:
    path = "/etc/security/limits.d/90-onprem.conf"
    gpu1 = lab_host("gpu1")
    gpu1.check_output(f"echo '* hard nproc 50000' >> {path}")
    # Everything that a role could have touched, by path, time and size.
    look = "find /etc /opt/onprem /var/lib/onprem /var/lib/dpkg -printf '%p %C@ %s\\n' | sort | sha256sum"
    before = gpu1.check_output(look)
    report = playbook("-i", INVENTORY, "playbooks/drift.yml", "--limit", "gpu1")
    assert report.code == 0
    assert "-* hard nproc 50000" in report.output
    assert gpu1.check_output(look) == before


def test_a_damaged_release_makes_the_store_run(compare: Compare, lab_host: Callable[[str], Host]) -> None:
    path = "/var/lib/onprem/models/licence-llama/releases/1.0.0/config.json"
    lab_host("gpu1").check_output(f"echo >> {path}")
    reasons = compare("gpu1")["roles"]["model_store"]["reasons"]
    assert any(reason.startswith("model release licence-llama/1.0.0: files is config.json ") for reason in reasons), reasons


def test_the_installed_collection_finds_the_same_state(tmp_path: Path) -> None:
    """`onprem.llm.site` from the built tarball, in a folder that knows nothing of this checkout."""
    config = tmp_path / "ansible.cfg"
    config.write_text("[defaults]\ninterpreter_python = /usr/bin/python3\n", encoding="utf-8")
    installed = tmp_path / "installed"
    alone = {"ANSIBLE_CONFIG": str(config), "ANSIBLE_COLLECTIONS_PATH": str(installed), "PWD": str(tmp_path)}
    for words in (["build", "--output-path", tmp_path, ROOT], ["install", "--no-deps", "-p", installed]):
        tarball = tmp_path.glob("onprem-llm-*.tar.gz")
        command = ["ansible-galaxy", "collection", *map(str, [*words, *tarball])]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, **alone})
    run = playbook("-i", INVENTORY, "onprem.llm.site", "--check", "--limit", "gpu1,gateway1", env=alone, cwd=tmp_path)
    assert run.code == 0, run.output
    assert "gpu1: in sync: " in run.output
