# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A declaration against a host: what differs, what is recorded, what removal takes and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.module_utils import _host_state
from ansible_collections.onprem.llm.plugins.module_utils._host_state import Host, HostStateError, Limits, Role, Units
from ansible_collections.onprem.llm.plugins.module_utils._package_manager import Apt

DPKG = """Package: haproxy
Status: install ok installed
Version: 2.6.12-1

Package: linux-image-amd64
Status: hold ok installed
Version: 6.1.1

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/swappiness").write_text("60\n")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(DPKG)
    return tmp_path


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def role(root: Path, declaration: dict[str, list[dict[str, Any]]], inputs: str = "one", name: str = "gateway") -> Role:
    return Role(name, Host(root), declaration, inputs)


def file(path: str, text: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "mode": "0644", "sha256": digest(text), **more}


def converge(root: Path, declaration: dict[str, list[dict[str, Any]]], **options: Any) -> None:
    """What a role does: note what was there, write its files, record."""
    role(root, declaration, **options).begin(apply=True)
    for kind in ("directories", "files", "links"):
        for spec in declaration.get(kind, []):
            path = root / spec["path"].lstrip("/")
            if kind == "directories":
                path.mkdir(exist_ok=True)
            elif kind == "links":
                path.is_symlink() or path.symlink_to(spec["target"])
            else:
                path.write_text(spec.get("text", "text"))
            if kind != "links":
                path.chmod(int(spec["mode"], 8))
    role(root, declaration, **options).finish(apply=True)


FILE = {"files": [file("/etc/one.conf", "text")]}


def test_a_role_that_never_ran_is_not_in_sync_even_where_the_host_is_as_declared(root: Path) -> None:
    (root / "etc/one.conf").write_text("text")
    os.chmod(root / "etc/one.conf", 0o644)
    found = role(root, FILE).compare()
    assert not found["in_sync"]
    assert found["reasons"] == ["has not run to its end on this host yet"]
    assert found["violations"] == []


def test_after_a_run_it_is_in_sync(root: Path) -> None:
    converge(root, FILE)
    assert role(root, FILE).compare()["in_sync"]


def test_other_inputs_are_a_reason(root: Path) -> None:
    converge(root, FILE)
    assert role(root, FILE, "two").compare()["reasons"] == ["its inputs or its code changed since it last ran here"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}'])
def test_a_torn_or_foreign_record_proves_nothing(root: Path, content: str) -> None:
    converge(root, FILE)
    (root / "var/lib/onprem/state/gateway.json").write_text(content)
    assert not role(root, FILE).compare()["in_sync"]


def test_each_change_of_a_file_is_named(root: Path) -> None:
    converge(root, FILE)
    path = root / "etc/one.conf"
    path.write_text("other")
    path.chmod(0o600)
    assert role(root, FILE).compare()["reasons"] == [
        "file /etc/one.conf: mode is 0600, declared 0644",
        "file /etc/one.conf: its content is not what was declared",
    ]
    path.unlink()
    assert role(root, FILE).compare()["reasons"] == ["file /etc/one.conf: absent, declared present"]
    path.mkdir()
    assert "file /etc/one.conf: type is directory, declared file" in role(root, FILE).compare()["reasons"]


def test_what_is_declared_without_content_is_compared_with_the_last_run(root: Path) -> None:
    made = {"files": [{"path": "/etc/key.pem", "mode": "0600"}]}
    converge(root, made)
    (root / "etc/key.pem").write_text("replaced by hand")
    found = role(root, made).compare()
    assert found["reasons"] == ["file /etc/key.pem: its content is not what was there after the last run"]
    assert found["violations"] == []


def test_diffs_show_no_secret(root: Path) -> None:
    declared = {"files": [file("/etc/open", "text"), file("/etc/secret", "text", secret=True)]}
    converge(root, declared)
    (root / "etc/open").write_text("changed")
    (root / "etc/secret").write_text("hunter2")
    found = role(root, declared).compare(diff=True)
    assert found["files"] == {"/etc/open": "changed"}
    assert "hunter2" not in json.dumps(found)


def test_packages_and_holds(root: Path) -> None:
    wanted = {
        "packages": [{"name": "haproxy", "version": "3.*"}, {"name": "gone"}],
        "holds": [{"name": "linux-image-amd64"}, {"name": "haproxy"}, {"name": "not-installed"}],
    }
    assert role(root, wanted).compare()["violations"] == [
        "package haproxy: version is 2.6.12-1, declared 3.*",
        "package gone: not installed, declared installed",
        "package hold haproxy: not on hold (haproxy), declared on hold",
    ]


def test_a_hold_that_another_pattern_wants_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = "".join(f"Package: {name}\nStatus: hold ok installed\nVersion: 1\n\n" for name in ("cuda-a", "cuda-b", "nccl"))
    (root / "var/lib/dpkg/status").write_text(status.replace("hold ok", "install ok"))
    role(root, {"holds": [{"name": "cuda-*"}, {"name": "nccl"}]}).begin(apply=True)
    (root / "var/lib/dpkg/status").write_text(status)
    role(root, {"holds": [{"name": "cuda-*"}, {"name": "nccl"}]}).finish(apply=True)
    ran: list[str] = []
    monkeypatch.setattr(_host_state, "run", lambda words, apply: ran.append(" ".join(words)) or [])
    role(root, {"holds": [{"name": "cuda-a"}]}).prune(apply=True)
    assert ran == ["apt-mark unhold nccl", "apt-mark unhold cuda-b"]


def test_a_setting_that_the_host_cannot_take_is_said_and_is_no_drift(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"sysctls": [{"name": "vm.swappiness", "value": 1}, {"name": "vm.unheard_of", "value": 1}]}
    assert role(root, wanted).compare()["violations"] == ["sysctl vm.swappiness: value is 60, declared 1"]
    monkeypatch.setattr(_host_state.os, "access", lambda *_: False)
    found = role(root, wanted).compare()
    assert found["violations"] == []
    assert found["not_applied"] == [
        "sysctl vm.swappiness: read-only here, its value stays 60",
        "sysctl vm.unheard_of: cannot be read here: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("hard", "capabilities", "wanted", "applied"),
    [
        (20000, 0, 1048576, False),
        (20000, 1 << 24, 1048576, True),
        (-1, 0, 1048576, True),
        (2097152, 0, 1048576, True),
        (20000, 0, "unlimited", False),
        (-1, 0, "unlimited", True),
    ],
)
def test_a_limit_above_the_hard_limit_needs_the_capability(
    root: Path, monkeypatch: pytest.MonkeyPatch, hard: int, capabilities: int, wanted: int | str, applied: bool
) -> None:
    (root / "proc/self").mkdir()
    (root / "proc/self/status").write_text(f"Name:\tpython3\nCapEff:\t{capabilities:016x}\n")
    monkeypatch.setattr(_host_state.resource, "getrlimit", lambda _: (1024, hard))
    live = Limits(Host(root)).look({"name": "nofile", "value": wanted})
    assert ("not_applied" not in live) is applied


def test_locked_memory_is_asked_for_in_kib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "proc/self").mkdir()
    (root / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    monkeypatch.setattr(_host_state.resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    assert "not_applied" not in Limits(Host(root)).look({"name": "memlock", "value": 8192})
    assert "not_applied" in Limits(Host(root)).look({"name": "memlock", "value": 65536})


def test_what_is_no_longer_declared_is_taken_away_but_not_what_was_there_before(root: Path) -> None:
    (root / "etc/theirs.conf").write_text("text")
    declared = {"files": [file("/etc/one.conf", "text"), file("/etc/two.conf", "text"), file("/etc/theirs.conf", "text")]}
    converge(root, declared)
    fewer = role(root, {"files": [file("/etc/one.conf", "text")]}, "two")
    assert fewer.finish(apply=False) == ["rm /etc/two.conf"]
    assert (root / "etc/two.conf").exists(), "a check-mode run removed a file"
    assert fewer.finish(apply=True) == ["rm /etc/two.conf"]
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["one.conf", "theirs.conf"]


def test_removal_takes_what_the_role_brought_and_nothing_else(root: Path) -> None:
    (root / "etc/before").mkdir()
    declared = {
        "directories": [
            {"path": "/etc/before", "mode": "0755"},
            {"path": "/etc/mine", "mode": "0755"},
            {"path": "/etc/mine/inner", "mode": "0755"},
            {"path": "/etc/shared", "mode": "0755"},
        ],
        "files": [file("/etc/mine/inner/a.conf", "text"), file("/etc/common.conf", "text")],
        "links": [{"path": "/etc/mine/current", "target": "inner"}],
    }
    converge(root, declared)
    converge(root, {"files": [file("/etc/common.conf", "text")]}, name="host")
    (root / "etc/shared/by-hand").write_text("not declared")
    mine = role(root, {})
    planned = mine.remove(apply=False, safe_mode=True)
    assert (root / "etc/mine/current").is_symlink(), "a check-mode run removed a link"
    mine = role(root, {})
    assert mine.remove(apply=True, safe_mode=True) == planned
    assert "rmdir /etc/mine" in planned
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["before", "common.conf", "shared"]
    assert not (root / "var/lib/onprem/state/gateway.json").exists()
    assert mine.remove(apply=True, safe_mode=True) == []


def test_data_is_not_dropped_in_safe_mode(root: Path) -> None:
    declared = {"directories": [{"path": "/etc/models", "mode": "0755", "data": True}]}
    converge(root, declared)
    (root / "etc/models/weights").write_text("12345")
    with pytest.raises(HostStateError, match=r"/etc/models with 1 files \(5 bytes\).*gateway_safe_mode: false"):
        role(root, {}).remove(apply=True, safe_mode=True)
    assert (root / "etc/models/weights").exists()
    assert "rm -r /etc/models" in role(root, {}).remove(apply=True, safe_mode=False)
    assert not (root / "etc/models").exists()


def test_a_run_that_died_before_its_end_can_still_be_removed(root: Path) -> None:
    (root / "etc/theirs.conf").write_text("text")
    declared = {"files": [file("/etc/one.conf", "text"), file("/etc/theirs.conf", "text")]}
    role(root, declared).begin(apply=True)
    (root / "etc/one.conf").write_text("half")
    other = {"files": [file("/etc/two.conf", "text")]}
    role(root, other).begin(apply=True)
    (root / "etc/two.conf").write_text("half")
    role(root, {}).begin(apply=True)  # the run that removes begins like any other
    commands = role(root, {}).remove(apply=True, safe_mode=True)
    assert {"rm /etc/one.conf", "rm /etc/two.conf"} <= set(commands)
    assert (root / "etc/theirs.conf").exists()


def test_what_a_run_that_died_had_made_is_taken_away_by_the_next_that_does_not_want_it(root: Path) -> None:
    converge(root, FILE)
    dead = {"files": [*FILE["files"], file("/etc/two.conf", "text")]}
    role(root, dead, "two").begin(apply=True)
    (root / "etc/two.conf").write_text("half")
    assert role(root, FILE, "three").finish(apply=True) == ["rm /etc/two.conf"]


def test_a_run_that_did_not_come_to_its_end_is_a_reason_even_with_the_old_inputs(root: Path) -> None:
    converge(root, FILE)
    changed = {"files": [file("/etc/one.conf", "other")]}
    role(root, changed, "two").begin(apply=True)
    again = role(root, FILE)
    assert again.unfinished
    assert again.compare()["reasons"] == ["its last run here did not come to its end"]
    again.begin(apply=True)
    again.finish(apply=True)
    assert role(root, FILE).compare()["in_sync"]


def test_absent_and_never_there_is_in_sync_and_leaves_no_record(root: Path) -> None:
    nothing = role(root, {})
    nothing.begin(apply=True)
    assert nothing.compare()["in_sync"]
    assert not nothing.record_path.exists()


def test_a_file_that_was_there_before_gets_its_text_back(root: Path) -> None:
    path = root / "etc/one.conf"
    path.write_text("theirs")
    path.chmod(0o640)
    converge(root, FILE)
    assert path.read_text() == "text"
    saved = list((root / "var/lib/onprem/state/before").iterdir())
    assert [item.stat().st_mode & 0o777 for item in saved] == [0o600]
    assert "restore /etc/one.conf" in role(root, {}).remove(apply=False, safe_mode=True)
    assert path.read_text() == "text", "a check-mode run restored a file"
    role(root, {}).remove(apply=True, safe_mode=True)
    assert path.read_text() == "theirs"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_that_was_there_before_points_where_it_did(root: Path) -> None:
    link = root / "etc/localtime"
    link.symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    declared = {"links": [{"path": "/etc/localtime", "target": "/usr/share/zoneinfo/Etc/UTC"}]}
    role(root, declared).begin(apply=True)
    link.unlink()
    link.symlink_to("/usr/share/zoneinfo/Etc/UTC")
    role(root, declared).finish(apply=True)
    role(root, {}).remove(apply=True, safe_mode=True)
    assert os.readlink(link) == "/usr/share/zoneinfo/Europe/Berlin"


def test_what_two_roles_declare_goes_with_the_last_of_them(root: Path) -> None:
    converge(root, FILE, name="host")
    converge(root, FILE, name="gateway")
    assert "rm /etc/one.conf" not in role(root, {}, name="host").remove(apply=True, safe_mode=True)
    assert "rm /etc/one.conf" in role(root, {}, name="gateway").remove(apply=True, safe_mode=True)


def test_only_units_are_pruned_ahead_of_a_start(root: Path) -> None:
    converge(root, FILE)
    assert role(root, {"files": []}, "two").prune(apply=True, only=("units",)) == []
    assert (root / "etc/one.conf").exists()


def environment(root: Path, **marker: str) -> Path:
    path = root / "opt/env"
    (path / "lib/python3.11/site-packages/torch-2.13.0.dist-info").mkdir(parents=True)
    (path / "bin").mkdir()
    (path / "bin/python").touch()
    (path / ".onprem-environment.json").write_text(json.dumps({"lock_sha256": "abc", **marker}))
    return path


def test_a_package_changed_by_hand_breaks_an_environments_declaration(root: Path) -> None:
    path = environment(root)
    made = _host_state.distributions(path)
    (path / ".onprem-environment.json").write_text(json.dumps({"lock_sha256": "abc", "distributions": made}))
    declared = {"environments": [{"path": "/opt/env", "lock_sha256": "abc"}]}
    assert role(root, declared).compare()["violations"] == []
    (path / "lib/python3.11/site-packages/torch-2.13.0.dist-info").rename(
        path / "lib/python3.11/site-packages/torch-2.14.0.dist-info"
    )
    assert role(root, declared).compare()["violations"] == [
        "Python environment /opt/env: distributions is changed since, declared as installed"
    ]


def test_packages_that_others_need_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {
        ("haproxy",): {"haproxy", "haproxy-exporter"},
        ("libnuma1",): {"libnuma1"},
        ("--auto-remove", "libnuma1"): {"libnuma1", "libnuma-data", "old-kernel"},
        ("--auto-remove",): {"old-kernel"},
    }
    monkeypatch.setattr(Apt, "purged", lambda _self, *words: plans[words])
    (root / "var/lib/dpkg/status").write_text("")
    declared = {"packages": [{"name": "haproxy"}, {"name": "libnuma1"}]}
    role(root, declared).begin(apply=True)
    (root / "var/lib/dpkg/status").write_text(
        "".join(f"Package: {name}\nStatus: install ok installed\nVersion: 1\n\n" for name in ("haproxy", "libnuma1"))
    )
    role(root, declared).finish(apply=True)
    commands = role(root, {}).remove(apply=False, safe_mode=True)
    assert "# haproxy stays: haproxy-exporter would go with it" in commands
    assert any(line.endswith(" purge libnuma-data libnuma1") for line in commands)


def test_a_damaged_release_breaks_the_stores_declaration(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {"releases": [{"name": "llama/1", "root": "/models", "model": "llama", "release": "1"}]}
    found = role(root, declared).compare()["violations"]
    assert len(found) == 1
    assert found[0].startswith("model release llama/1: files is ")
    monkeypatch.setattr(_host_state, "damaged", lambda *_: "")
    assert role(root, declared).compare()["violations"] == []


def test_the_first_look_is_kept_over_later_runs(root: Path) -> None:
    converge(root, FILE)
    converge(root, FILE, inputs="two")
    assert "rm /etc/one.conf" in role(root, {}).remove(apply=False, safe_mode=True)


def test_unknown_kinds_are_refused(root: Path) -> None:
    with pytest.raises(HostStateError, match="unknown kinds \\['flies'\\]"):
        role(root, {"flies": []})


def test_records_are_for_root_alone(root: Path) -> None:
    converge(root, FILE)
    record = root / "var/lib/onprem/state/gateway.json"
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("before", "live", "expected"),
    [
        (None, ("enabled", "active"), ["systemctl disable --now x.service"]),
        (("disabled", "inactive"), ("enabled", "active"), ["systemctl disable --now x.service"]),
        (("enabled", "inactive"), ("enabled", "active"), ["systemctl stop x.service"]),
        (("disabled", "active"), ("enabled", "active"), ["systemctl disable x.service"]),
        (("enabled", "active"), ("enabled", "active"), []),
        (("disabled", "inactive"), ("disabled", "failed"), ["systemctl stop x.service"]),
        (("disabled", "inactive"), ("masked", "inactive"), ["systemctl unmask x.service"]),
    ],
)
def test_a_unit_goes_back_to_what_it_was(
    root: Path, before: tuple[str, str] | None, live: tuple[str, str], expected: list[str]
) -> None:
    def seen(state: tuple[str, str] | None) -> Host:
        host = Host(root)
        fields = (
            {"LoadState": "loaded", "UnitFileState": state[0], "ActiveState": state[1], "NeedDaemonReload": "no"} if state else {}
        )
        host._units = {"x.service": fields}
        return host

    unit = {"name": "x.service", "enabled": True, "state": "started"}
    was = Units(seen(before)).look(unit)
    assert Units(seen(live)).remove(unit, was, apply=False) == expected


def make(
    root: Path, declared: dict[str, list[dict[str, Any]]], contents: dict[str, str] | None = None, apply: bool = True
) -> Any:
    kinds = ["directories", "links", "files", "settings", "sysctls"]
    return role(root, declared).make(kinds, contents or {}, apply)


def owned(**spec: Any) -> dict[str, Any]:
    return {"owner": _host_state.owner_name(os.getuid()), "group": _host_state.group_name(os.getgid()), **spec}


def test_what_is_declared_is_made_once(root: Path) -> None:
    text = "setting = 1\n"
    declared = {
        "files": [owned(path="/etc/onprem/a.conf", mode="0640", sha256=hashlib.sha256(text.encode()).hexdigest())],
        "directories": [owned(path="/etc/onprem", mode="0750")],
        "links": [{"path": "/etc/onprem/current", "target": "a.conf"}],
    }
    contents = {"/etc/onprem/a.conf": text}
    predicted, diffs = make(root, declared, contents, apply=False)
    assert not (root / "etc/onprem").exists()
    assert [item["after"] for item in diffs if "before_header" in item] == [text]
    commands, _diffs = make(root, declared, contents)
    assert commands == predicted == ["mkdir -p /etc/onprem", "ln -s -f -n a.conf /etc/onprem/current", "write /etc/onprem/a.conf"]
    assert (root / "etc/onprem/current").read_text() == text
    assert (root / "etc/onprem/a.conf").stat().st_mode & 0o7777 == 0o640
    assert make(root, declared, contents) == ([], [])
    (root / "etc/onprem/a.conf").chmod(0o600)
    assert make(root, declared, contents)[0] == ["chmod 0640 /etc/onprem/a.conf"]
    assert role(root, declared).compare()["violations"] == []


def test_a_secret_is_in_no_diff(root: Path) -> None:
    declared = {"files": [owned(path="/etc/key", mode="0600", secret=True, sha256=hashlib.sha256(b"hush").hexdigest())]}
    _commands, diffs = make(root, declared, {"/etc/key": "hush"})
    assert (root / "etc/key").read_text() == "hush"
    assert "hush" not in str(diffs)


def test_what_is_in_the_way_is_not_overwritten(root: Path) -> None:
    (root / "etc/onprem").mkdir()
    with pytest.raises(HostStateError, match="is a directory, and a file is to be there"):
        make(root, {"files": [owned(path="/etc/onprem", sha256="0" * 64)]}, {"/etc/onprem": "x"})
    with pytest.raises(HostStateError, match="is a directory, and a link is to be there"):
        make(root, {"links": [{"path": "/etc/onprem", "target": "x"}]})


def governor(root: Path, *values: str) -> None:
    for number, value in enumerate(values):
        path = root / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_governor"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_a_setting_of_several_devices(root: Path) -> None:
    spec = {"path": "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", "value": "performance"}
    declared = {"settings": [spec]}
    assert role(root, declared).compare()["not_applied"] == [f"setting {spec['path']}: there is none on this host"]
    governor(root, "powersave", "powersave")
    role(root, declared).begin(apply=True)
    assert len(make(root, declared)[0]) == 2
    role(root, declared).finish(apply=True)
    governor(root, "performance", "schedutil")
    assert role(root, declared).compare()["violations"] == [
        f"setting {spec['path']}: value is performance, schedutil, declared performance"
    ]
    role(root, {}).remove(apply=True, safe_mode=True)
    assert (root / "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor").read_text() == "powersave\n"


def test_a_module_without_its_device_is_neither_loaded_nor_missing(root: Path) -> None:
    declared = {"modules": [{"name": "nvidia", "pci_vendor": "0x10de", "device": "NVIDIA", "version": "575.*"}]}
    found = role(root, declared).compare()
    assert found["violations"] == []
    assert found["not_applied"] == ["kernel module nvidia: module not loaded: no NVIDIA device"]
    device = root / "sys/bus/pci/devices/0000:17:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    assert role(root, declared).compare()["violations"] == ["kernel module nvidia: not loaded, declared loaded"]
    (root / "sys/module/nvidia").mkdir(parents=True)
    (root / "sys/module/nvidia/version").write_text("535.261.03\n")
    assert role(root, declared).compare()["violations"] == ["kernel module nvidia: version is 535.261.03, declared 575.*"]
    (root / "sys/module/nvidia/version").write_text("575.57.08\n")
    assert role(root, declared).compare()["violations"] == []
