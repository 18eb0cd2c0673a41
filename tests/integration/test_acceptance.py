# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Hosts are accepted or not, with a record that says why; a host that is not may not serve unless it is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import INVENTORY, ROOT, Run, playbook
from testinfra.host import Host

sys.path.insert(0, str(ROOT / "tests/fixtures/nvml"))
import machines

Break = Callable[..., None]


@pytest.fixture
def break_gpus() -> Iterator[Break]:
    """Inject faults into a host's GPUs, and take them away in the end."""

    def inject(host: str, *faults: str) -> None:
        machines.write(ROOT / ".lab/nvml" / host / "state", machines.state("hgx_h100", faults, host))

    yield inject
    for host in ("gpu1", "gpu2"):
        inject(host)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "acceptance"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def accept(directory: Path, key: Path, *arguments: str) -> Run:
    given = {"acceptance_directory": str(directory), "acceptance_signing_key": str(key)}
    return playbook("-i", INVENTORY, "playbooks/acceptance.yml", "-e", json.dumps(given), *arguments)


def record(directory: Path, host: str) -> dict[str, Any]:
    return dict(json.loads((directory / f"{host}.json").read_text(encoding="utf-8")))


def verdicts(found: dict[str, Any], name: str) -> dict[str, str]:
    return {check["subject"]: check["verdict"] for check in found["checks"] if check["name"] == name}


def test_sound_hosts_are_accepted_with_signed_records_and_a_page(directory: Path, key: Path) -> None:
    run = accept(directory, key)
    assert run.code == 0, run.output
    for host in ("gpu1", "gpu2"):
        found = record(directory, host)
        assert found["verdict"] in ("PASS", "WARN"), found["checks"]
        assert len(found["hardware"]["gpus"]) == 8
        assert len({gpu["serial"] for gpu in found["hardware"]["gpus"]}) == 8
        assert set(verdicts(found, "ecc_mode").values()) == {"PASS"}
        signature = directory / f"{host}.json.sig"
        checked = ["ssh-keygen", "-Y", "check-novalidate", "-n", "onprem-acceptance", "-s", str(signature)]
        with (directory / f"{host}.json").open("rb") as stream:
            assert subprocess.run(checked, stdin=stream, capture_output=True, check=False).returncode == 0
    # Every pair of hosts was measured, by one of the two.
    pairs = [entry for host in ("gpu1", "gpu2") for entry in record(directory, host)["measurements"]]
    assert {entry["subject"] for entry in pairs if entry["name"] == "network_latency_median"} & {"gpu1 -> gpu2", "gpu2 -> gpu1"}
    page = (directory / "index.html").read_text(encoding="utf-8")
    assert "gpu1" in page
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?:\w+:)?//', page), "the page loads something"


def test_a_broken_gpu_fails_its_host_alone_and_is_reported_as_drift(directory: Path, key: Path, break_gpus: Break) -> None:
    break_gpus("gpu2", "ecc_uncorrectable:5")
    run = accept(directory, key)
    assert run.code != 0
    assert "Failed: gpu2." in run.output
    assert record(directory, "gpu1")["verdict"] in ("PASS", "WARN")
    found = record(directory, "gpu2")
    assert found["verdict"] == "FAIL"
    assert verdicts(found, "ecc_uncorrected")["GPU 5"] == "FAIL"
    assert verdicts(found, "ecc_uncorrected")["GPU 4"] == "PASS"
    assert len(list((directory / "history").glob("gpu2-*.json"))) == 1


def test_a_host_that_is_not_reached_does_not_keep_its_good_record(directory: Path, key: Path, tmp_path: Path) -> None:
    assert record(directory, "gpu1")["verdict"] in ("PASS", "WARN")
    away = tmp_path / "away.yml"
    away.write_text("lab: {hosts: {gpu1: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n", encoding="utf-8")
    run = accept(directory, key, "-i", str(away), "--limit", "gpu1,localhost")
    assert run.code != 0
    found = record(directory, "gpu1")
    assert found["verdict"] == "FAIL"
    assert {check["verdict"] for check in found["checks"]} == {"NOT_RUN"}


def test_a_run_for_one_host_leaves_the_others_records_alone(directory: Path, key: Path) -> None:
    before = (directory / "gpu2.json").read_bytes()
    accept(directory, key, "-e", json.dumps({"acceptance_network": False}), "--limit", "gpu1,localhost")
    assert record(directory, "gpu1")["verdict"] in ("PASS", "WARN")
    assert verdicts(record(directory, "gpu1"), "network") == {"host": "SKIPPED"}
    assert (directory / "gpu2.json").read_bytes() == before


def test_a_limit_without_the_control_node_is_refused(directory: Path, key: Path) -> None:
    run = accept(directory, key, "--limit", "gpu1")
    assert run.code != 0
    assert "--limit gpu1,localhost" in run.output


def test_a_part_that_fails_to_run_costs_nothing_of_the_rest(directory: Path, key: Path) -> None:
    given = {"acceptance_network_mtu": "many"}
    run = accept(directory, key, "-e", json.dumps(given), "--limit", "gpu1,gpu2,localhost")
    assert run.code != 0
    found = record(directory, "gpu1")
    assert found["verdict"] == "FAIL"
    assert verdicts(found, "network") == {"host": "NOT_RUN"}
    assert set(verdicts(found, "ecc_mode").values()) == {"PASS"}


def test_active_tests_without_anything_to_run_them_with_are_refused(directory: Path, key: Path) -> None:
    run = accept(directory, key, "-e", "gpu_probe_active_tests=quick")
    assert run.code != 0
    assert "gpu_probe_device is none" in " ".join(run.output.split())


def test_check_mode_writes_nothing(tmp_path: Path, key: Path) -> None:
    accept(tmp_path / "reports", key, "--check")
    assert not (tmp_path / "reports").exists()


def test_a_changed_record_is_found_out(directory: Path, key: Path) -> None:
    path = directory / "gpu1.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"serial"', '"serial" ', 1), encoding="utf-8")
    try:
        run = accept(directory, key)
        assert run.code != 0
        assert "gpu1.json" in run.output
        assert "signature" in run.output
    finally:
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def server_has_to_run(lab_host: Callable[[str], Host]) -> Iterator[Host]:
    """The model server's role on gpu1 has no record, so site.yml runs it."""
    gpu1, record = lab_host("gpu1"), "/var/lib/onprem/state/model_server.json"
    gpu1.check_output(f"mv {record} {record}.away")
    yield gpu1
    gpu1.run(f"test -e {record} || mv {record}.away {record}; rm -f {record}.away")


def test_no_model_server_is_started_on_a_host_that_failed(
    site: Callable[..., Run], break_gpus: Break, server_has_to_run: Host
) -> None:
    break_gpus("gpu1", "gpu_lost:3")
    run = site("--limit", "gpu1")
    said = " ".join(run.output.split())
    assert run.code != 0
    assert "GPU 3" in said
    assert "onprem_llm_serve_unvalidated" in said
    assert not server_has_to_run.file("/var/lib/onprem/state/model_server.json").exists
    named = site("--limit", "gpu1", "-e", json.dumps({"onprem_llm_serve_unvalidated": ["gpu1"]}))
    assert named.code == 0, named.output
    assert server_has_to_run.file("/var/lib/onprem/state/model_server.json").exists
    # Mended and no longer named: the GPUs are looked at again, and the host serves as any other.
    break_gpus("gpu1")
    mended = site("--limit", "gpu1")
    assert mended.code == 0, mended.output
    assert "gpu1: GPUs PASS" in mended.output


def test_a_gpu_host_without_a_profile_is_refused(site: Callable[..., Run], server_has_to_run: Host) -> None:
    run = site("--limit", "gpu1", "-e", "onprem_llm_gpu_profile=")
    assert run.code != 0
    assert "onprem_llm_gpu_profile" in " ".join(run.output.split())
