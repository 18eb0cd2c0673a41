# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Each fault of a machine has its verdict, found by the module through nvidia-ml-py from a library with NVML's symbols."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._verdict import Check, overall, summary
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import GpuDataError, expectation, xid_policy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/fixtures/nvml"))
import machines

RUN = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.onprem.llm.plugins.modules import {module}
with patch_module_args(json.load(sys.stdin)):
    {module}.main()
"""
QUIET_LOG = "Linux version 6.1.0\nNVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.124.06\n"
Validate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machines.build(tmp_path_factory.mktemp("nvml")).parent


@pytest.fixture
def run(library: Path, tmp_path: Path) -> Validate:
    def call(
        module: str = "gpu_validate",
        machine: str | None = "hgx_h100",
        faults: tuple[str, ...] = (),
        log: str | None = QUIET_LOG,
        **arguments: Any,
    ) -> dict[str, Any]:
        """The module's answer on this machine; without a machine there is no NVML."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "collections"), "FAKE_NVML_STATE": str(tmp_path / "state")}
        if machine:
            (tmp_path / "state").write_text(machines.state(machine, faults), encoding="utf-8")
            environment["LD_LIBRARY_PATH"] = str(library)
        if module == "gpu_validate":
            profile = arguments.pop("profile", machine)
            arguments.setdefault("policy", xid_policy())
            if profile:
                arguments.setdefault("expectation", expectation(profile))
            if log is not None:
                (tmp_path / "kern.log").write_text(log, encoding="utf-8")
            arguments.setdefault("kernel_log", str(tmp_path / "kern.log"))
        done = subprocess.run(
            [sys.executable, "-c", RUN.format(module=module)],
            input=json.dumps({"environment": "", **arguments}),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    return call


def failed(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (check["name"], check["subject"], check["verdict"])
        for check in result["checks"]
        if check["verdict"] not in ("PASS", "SKIPPED")
    ]


def test_every_fault_has_a_test() -> None:
    elsewhere = {"hang", "hang_init", "foreign_process", "retired_pages_pending"}
    assert {fault.partition(":")[0] for fault in FAULTS} | elsewhere == set(machines.FAULTS)


@pytest.mark.parametrize("machine", ["dgx_a100", "hgx_h100", "hgx_h200", "pcie_h100", "pcie_l4"])
def test_a_sound_machine_passes_its_profile(run: Validate, machine: str) -> None:
    result = run(machine=machine)
    assert failed(result) == []
    assert result["verdict"] == "PASS"
    assert len(result["checks"]) >= 20


# Fault, as injected; what must not pass; a word of the action. The table in docs/gpu-validation.md says the same.
FAULTS: dict[str, tuple[list[tuple[str, str, str]], str]] = {
    "gpu_lost:3": ([("responds", "GPU 3", "FAIL"), ("nvlink_mesh", "host", "NOT_RUN")], "reboot"),
    "fallen_off_bus:7": ([("gpu_count", "host", "FAIL")], "lspci"),
    "wrong_count": ([("gpu_count", "host", "FAIL")], "lspci"),
    "ecc_uncorrectable:0": ([("ecc_uncorrected", "GPU 0", "FAIL")], "reset"),
    "ecc_pending:2": ([("ecc_mode", "GPU 2", "FAIL")], "--ecc-config=1"),
    "recovery_reset:0": ([("recovery_action", "GPU 0", "FAIL")], "Reset"),
    "ecc_off:2": ([("ecc_mode", "GPU 2", "FAIL")], "--ecc-config=1"),
    "row_remap_pending:1": ([("row_remap_pending", "GPU 1", "FAIL")], "reset"),
    "row_remap_failed:1": ([("row_remap_failure", "GPU 1", "FAIL")], "replaced"),
    "nvlink_down:4": ([("nvlink_links", "GPU 4", "FAIL")], "link"),
    "nvlink_errors:4": ([("nvlink_errors", "GPU 4", "WARN")], "Watch"),
    "pcie_downgraded:5": ([("pcie_width", "GPU 5", "FAIL")], "Reseat"),
    "thermal_slowdown:6": ([("throttling", "GPU 6", "FAIL")], "cooling"),
    "power_brake:6": ([("throttling", "GPU 6", "FAIL")], "power supply"),
    "fabric_not_ready:0": ([("fabric", "GPU 0", "FAIL")], "fabric manager"),
    "fabric_failed:0": ([("fabric", "GPU 0", "FAIL")], "fabric manager"),
    "no_persistence:0": ([("persistence_mode", "GPU 0", "WARN")], "persistence daemon"),
    "mig_on:0": ([("mig_mode", "GPU 0", "FAIL")], "--multi-instance-gpu=0"),
    "wrong_product:0": ([("product", "GPU 0", "FAIL")], "Replace"),
    "small_memory:0": ([("memory_size", "GPU 0", "FAIL")], "memory"),
    "hot:0": ([("temperature", "GPU 0", "FAIL")], "cooling"),
    "row_bank_none:0": ([("row_remap_spare", "GPU 0", "WARN")], "replacement"),
    "slow_power_limit:0": ([("power_limit", "GPU 0", "FAIL")], "--power-limit"),
    "recovery_reboot:0": ([("recovery_action", "GPU 0", "FAIL")], "Reboot"),
    "driver_mismatch": ([("nvml", "host", "FAIL")], "another version"),
    "driver_not_loaded": ([("nvml", "host", "FAIL")], "modprobe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_verdict_and_its_action(run: Validate, fault: str) -> None:
    expected, action = FAULTS[fault]
    result = run(faults=(fault,))
    assert set(expected) <= set(failed(result))
    first = next(check for check in result["checks"] if (check["name"], check["subject"]) == expected[0][:2])
    assert action in first["action"]
    assert first["message"]
    worst = "FAIL" if any(verdict != "WARN" for _name, _subject, verdict in expected) else "WARN"
    assert result["verdict"] == worst


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("driver_mismatch", "driver_not_loaded")])
def test_a_fault_of_one_gpu_is_not_blamed_on_another(run: Validate, fault: str) -> None:
    subject = f"GPU {fault.partition(':')[2]}"
    others = [found for found in failed(run(faults=(fault,))) if found[1] not in (subject, "host")]
    assert others == []


def test_pages_that_wait_for_retirement_fail_a_card_that_retires_pages(run: Validate) -> None:
    expected = {"gpus": 8, "product": "NVIDIA A100-SXM4-80GB"}
    result = run(machine="dgx_a100", faults=("retired_pages_pending:0",), profile=None, expectation=expected)
    assert ("retired_pages_pending", "GPU 0", "FAIL") in failed(result)


def test_a_call_that_hangs_is_named_and_the_rest_is_read_all_the_same(run: Validate) -> None:
    result = run(faults=("hang:3",), call_seconds=1)
    assert ("responds", "GPU 3", "FAIL") in failed(result)
    (hung,) = [check for check in result["checks"] if check["name"] == "responds" and check["subject"] == "GPU 3"]
    assert "did not return within 1 s" in hung["message"]
    assert "Reboot" in hung["action"]
    assert result["verdict"] == "FAIL"
    assert len(result["reading"]["gpus"]) == 8
    assert result["reading"]["gpus"][3]["serial"]
    assert [found for found in failed(result) if found[1] == "GPU 4"] == []


def inject(run: Validate, machine: str, *lines: str, **arguments: Any) -> dict[str, Any]:
    """The module's answer on a machine with these lines added to its description."""
    original = machines.state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machines, "state", lambda *given: original(*given) + "".join(f"{line}\n" for line in lines))
        return run(machine=machine, **arguments)


@pytest.mark.parametrize(
    ("machine", "line"), [("pcie_l4", "system.cuda_version @hang"), ("hgx_h100", "device.3.topology.4 @hang")]
)
def test_a_call_about_the_whole_host_that_hangs_fails_it(run: Validate, machine: str, line: str) -> None:
    result = inject(run, machine, line, call_seconds=1)
    assert ("nvml", "host", "FAIL") in failed(result)
    (check,) = [check for check in result["checks"] if check["name"] == "nvml"]
    assert "did not return within 1 s" in check["message"]


def test_a_value_that_nvml_fails_to_read_is_said_although_no_check_needs_it(run: Validate) -> None:
    result = inject(run, "hgx_h100", "device.2.inforom.image !NVML_ERROR_CORRUPTED_INFOROM")
    assert ("readings", "GPU 2", "WARN") in failed(result)


def test_the_deadline_of_the_whole_reading_blames_no_call(run: Validate) -> None:
    result = run(faults=("hang:3",), call_seconds=60, deadline_seconds=1)
    assert result["verdict"] == "FAIL"
    assert result["reading"]["hung_calls"] == {}
    assert ("nvml", "host", "FAIL") in failed(result)
    assert "did not end within 1 s" in result["reading"]["reason"]


def test_a_machine_with_mig_that_is_to_have_it_passes(run: Validate) -> None:
    result = run(machine="hgx_h100_mig", profile="hgx_h100", mig=True)
    assert [found for found in failed(result) if "nvlink" in found[0] or found[0] == "mig_mode"] == []


def test_links_that_a_board_leaves_unused_are_not_missed(run: Validate) -> None:
    lines = [f"device.0.nvlink.{link}.state 0" for link in range(12, 18)]
    result = inject(run, "hgx_h100", *lines, nvlink_links=12, nvlink_gbytes_per_second=300)
    assert [found for found in failed(result) if found[0] == "nvlink_links"] == []


@pytest.mark.parametrize("line", ["default.field.230 !2", "device.0.field.230 !2"])
def test_a_driver_that_does_not_know_a_field_yet_is_no_fault(run: Validate, line: str) -> None:
    assert failed(inject(run, "hgx_h100", line)) == []


def test_a_driver_that_hangs_at_the_start_ends_at_the_deadline(run: Validate) -> None:
    result = run(faults=("hang_init",), init_seconds=1)
    assert ("nvml", "host", "FAIL") in failed(result)
    assert result["reading"]["state"] == "hung"
    assert result["reading"]["seconds"] < 10
    assert result["verdict"] == "FAIL"


def test_a_slot_that_gives_less_than_the_gpu_can_fails_also_at_rest(run: Validate) -> None:
    result = run(faults=("pcie_downgraded:5:generation",))
    assert ("pcie_generation", "GPU 5", "FAIL") in failed(result)


def test_a_gpu_at_rest_has_lowered_its_link_and_is_not_blamed(run: Validate) -> None:
    (check,) = [check for check in run(machine="pcie_l4")["checks"] if check["name"] == "pcie_generation"]
    assert check["verdict"] == "SKIPPED"
    assert "at rest" in check["message"]


def test_a_process_on_the_gpu_matters_only_where_it_must_rest(run: Validate) -> None:
    assert run(faults=("foreign_process:2",))["verdict"] == "PASS"
    result = run(faults=("foreign_process:2",), idle=True)
    assert ("idle", "GPU 2", "FAIL") in failed(result)


# --- by no path healthy -------------------------------------------------------------------------------------------------


def test_a_machine_without_nvml_fails(run: Validate) -> None:
    result = run(machine=None, profile="hgx_h100")
    assert result["verdict"] == "FAIL"
    assert result["reading"]["state"] == "no_library"
    assert ("gpu_count", "host", "NOT_RUN") in failed(result)


def test_a_machine_without_a_gpu_fails(run: Validate) -> None:
    result = run(machine="empty", profile="hgx_h100")
    assert result["verdict"] == "FAIL"
    assert ("gpu_count", "host", "FAIL") in failed(result)


@pytest.mark.parametrize("gpus", [None, 0])
def test_no_gpu_cannot_be_what_is_expected(run: Validate, gpus: int | None) -> None:
    result = run(machine="empty", profile=None, gpus=gpus)
    assert result["failed"]
    assert "no GPU is never healthy" in result["msg"]


def test_a_kernel_log_that_cannot_be_read_fails_the_host(run: Validate, tmp_path: Path) -> None:
    result = run(kernel_log=str(tmp_path / "nowhere"))
    assert failed(result) == [("xid", "host", "NOT_RUN")]
    assert result["verdict"] == "FAIL"


def test_a_value_that_is_expected_and_cannot_be_read_is_not_run(run: Validate) -> None:
    result = run(machine="pcie_l4", profile=None, gpus=1, nvlink="full_mesh", nvlink_links=2, fabric=True)
    assert result["verdict"] == "FAIL"
    assert ("nvlink_links", "GPU 0", "FAIL") in failed(result)
    assert ("fabric", "GPU 0", "NOT_RUN") in failed(result)


def test_skipped_and_missing_checks_make_no_host_healthy() -> None:
    assert overall([]) == "FAIL"
    assert overall([Check("a", "SKIPPED"), Check("b", "SKIPPED")]) == "FAIL"
    assert overall([Check("a", "PASS"), Check("b", "NOT_RUN")]) == "FAIL"
    assert overall([Check("a", "PASS"), Check("b", "SKIPPED")]) == "PASS"
    assert summary([]) == "nothing was checked"
    with pytest.raises(ValueError, match="no verdict"):
        Check("a", "OK")


# --- the kernel's log ---------------------------------------------------------------------------------------------------


def xid(run: Validate, code: int, text: str = "x", gpu: int = 2) -> dict[str, Any]:
    reading = run("gpu_info")
    bus = reading["gpus"][gpu]["pci"]["bus_id"].split(".")[0][-10:]
    result = run(log=f"{QUIET_LOG}NVRM: Xid (PCI:{bus}): {code}, {text}\n")
    (check,) = [check for check in result["checks"] if check["name"] == "xid"]
    return {**check, "overall": result["verdict"]}


def test_an_xid_is_laid_at_the_door_of_its_gpu(run: Validate) -> None:
    check = xid(run, 79, "GPU has fallen off the bus.")
    assert (check["subject"], check["verdict"], check["overall"]) == ("GPU 2", "FAIL", "FAIL")
    assert "Xid 79" in check["message"]
    assert "reboot" in check["action"]


def test_an_xid_of_an_application_is_worth_a_look(run: Validate) -> None:
    assert (xid(run, 31)["verdict"], xid(run, 31)["overall"]) == ("WARN", "WARN")


def test_an_xid_of_a_device_that_is_gone_is_told_by_its_address(run: Validate) -> None:
    result = run(log=f"{QUIET_LOG}NVRM: Xid (PCI:0000:fe:00): 79, GPU has fallen off the bus.\n")
    assert ("xid", "PCI 0000:fe:00", "FAIL") in failed(result)


def test_a_log_that_was_cut_off_is_said_also_when_there_are_xids(run: Validate) -> None:
    result = run(log="NVRM: Xid (PCI:0000:fe:00): 43, x\n")
    assert ("xid", "host", "WARN") in failed(result)


# --- what is read -------------------------------------------------------------------------------------------------------


def test_what_a_card_does_not_have_is_null_with_the_reason_and_not_zero(run: Validate) -> None:
    (gpu,) = run("gpu_info", machine="pcie_l4")["gpus"]
    assert gpu["nvlink"] == []
    assert gpu["fabric"]["state"] is None
    assert "Not Supported" in gpu["unsupported"]["nvlink.0"]
    assert gpu["ecc"]["uncorrected_volatile"] == 0
    assert "ecc.uncorrected_volatile" not in gpu["unsupported"]


def test_mig_devices_are_listed(run: Validate) -> None:
    gpus = run("gpu_info", machine="hgx_h100_mig")["gpus"]
    assert any(gpu["mig"]["enabled"] and gpu["mig"]["devices"] for gpu in gpus)


def test_check_mode_looks_as_well(run: Validate) -> None:
    assert run(faults=("ecc_off:2",), _ansible_check_mode=True)["verdict"] == "FAIL"


def test_fail_makes_the_task_fail_with_the_reason(run: Validate) -> None:
    result = run(faults=("ecc_off:2",), fail=True)
    assert result["failed"]
    assert "may not serve" in result["msg"]
    assert "ECC is off" in result["msg"]


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(GpuDataError, match=r"hgx_h1000.*hgx_h100"):
        expectation("hgx_h1000")
