# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""The driver's messages are found in the kernel's log, and the table says what is to be done."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _xid
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import xid_policy

LOG = """\
[    3.1] Linux version 6.1.0
[   12.9] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.124.06
[ 1100.2] NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[ 1100.3] NVRM: GPU at PCI:0000:05:00: GPU-00000000-0000-0000-0000-000000000000
[ 1101.0] NVRM: Xid (PCI:0000:1b:00): 13, pid=4711, name=python3, Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0)
[ 1101.1] NVRM: Xid (PCI:0000:1b:00): 13, pid=4711, name=python3, Graphics Exception: ESR 0x504730=0x1
[ 1102.0] nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)
[ 1103.0] NVRM: Xid (PCI:0000:5d:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
[ 1103.5] NVRM: Xid (PCI:0000:19:00 GPU-I:05 GPU-CI:02): 94, pid=7194, name=python3, Contained: SM (0x1)
[ 1104.0] NVRM: Xid (PCI:00010000:3b:00): 63, pid='<unknown>', name=<unknown>, Row Remapper: New row marked for remapping
"""


CHANGED = "NVRM: Xid (PCI:0000:05:00): 154, GPU recovery action changed from"


def test_each_message_is_found_with_its_device() -> None:
    found = _xid.events(LOG.splitlines())
    assert [(event["kind"], event["code"], event["bus_id"]) for event in found] == [
        ("xid", 79, "0000:05:00"),
        ("xid", 13, "0000:1b:00"),
        ("xid", 13, "0000:1b:00"),
        ("sxid", 12028, "0000:c1:00"),
        ("xid", 154, "0000:5d:00"),
        ("xid", 94, "0000:19:00"),
        ("xid", 63, "10000:3b:00"),
    ]
    assert found[0]["text"] == "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def test_other_lines_are_no_messages_of_the_driver() -> None:
    assert _xid.events(["usb 1-1: Xid looks like this", "NVRM: loading NVIDIA UNIX", ""]) == []


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("NVRM: Xid (PCI:0000:05:00): 79, GPU has fallen off the bus.", "reboot_host"),
        ("NVRM: Xid (PCI:0000:05:00): 13, Graphics Exception", "restart_application"),
        ("NVRM: Xid (PCI:0000:05:00): 63, Row Remapper", "ignore"),
        ("NVRM: Xid (PCI:0000:05:00): 119, Timeout waiting for RPC from GSP", "reset_gpu"),
        (f"{CHANGED} 0x0 (None) to 0x1 (GPU Reset Required)", "reset_gpu"),
        (f"{CHANGED} 0x0 (None) to 0x2 (Node Reboot Required)", "reboot_host"),
        ("NVRM: Xid (PCI:0000:05:00): 9999, something new", "watch"),
    ],
)
def test_the_table_says_what_is_to_be_done(line: str, action: str) -> None:
    policy = xid_policy()
    assert _xid.classify(_xid.events([line])[0], policy)["action"] == action


def test_the_text_of_a_recovery_message_names_the_new_action_and_not_the_old_one() -> None:
    line = "NVRM: Xid (PCI:0000:05:00): 154, GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)"
    assert _xid.classify(_xid.events([line])[0], xid_policy())["action"] == "ignore"


def test_the_worst_comes_first_and_each_code_once() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:05:00): 13, x",
        "NVRM: Xid (PCI:0000:05:00): 13, x",
        "NVRM: Xid (PCI:0000:05:00): 79, x",
    ]
    (device, entries), *_none = _xid.worst_by_device(_xid.events(lines), xid_policy()).items()
    assert device == "0000:05:00"
    assert [(entry["code"], entry["count"]) for entry in entries] == [(79, 1), (13, 2)]


def test_only_the_last_recovery_message_of_a_device_counts() -> None:
    lines = [f"{CHANGED} 0x0 (None) to 0x1 (GPU Reset Required)", f"{CHANGED} 0x1 (GPU Reset Required) to 0x0 (None)"]
    (entries,) = _xid.worst_by_device(_xid.events(lines), xid_policy()).values()
    assert [entry["action"] for entry in entries] == ["ignore"]


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kern.log").touch()
    with pytest.raises(_xid.KernelLogError, match="is empty"):
        _xid.kernel_log(str(tmp_path / "kern.log"))


def test_a_log_that_does_not_go_back_to_the_boot_says_so(tmp_path: Path) -> None:
    (tmp_path / "kern.log").write_text("[ 99.0] usb 1-1: new device\n", encoding="utf-8")
    assert _xid.kernel_log(str(tmp_path / "kern.log"))[2] == "the log does not go back to the boot"
    (tmp_path / "kern.log").write_text(LOG, encoding="utf-8")
    assert _xid.kernel_log(str(tmp_path / "kern.log"))[2] is None


def test_a_named_log_that_is_not_there_is_an_error_and_not_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(_xid.KernelLogError, match="No such file"):
        _xid.kernel_log(str(tmp_path / "kern.log"))


def test_a_log_that_nobody_can_read_names_every_way_that_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_xid.shutil, "which", lambda _name: None)
    monkeypatch.setattr(_xid, "KMSG", tmp_path / "kmsg")
    with pytest.raises(_xid.KernelLogError, match=r"journalctl is not there; .*kmsg: No such file"):
        _xid.kernel_log()
