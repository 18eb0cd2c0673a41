# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Records of acceptance tests: their form, their verdict, outliers, drift, signatures and the page."""

from __future__ import annotations

import copy
import html.parser
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.onprem.llm.plugins.action.acceptance_report import ActionModule
from ansible_collections.onprem.llm.plugins.module_utils._verdict import Check
from ansible_collections.onprem.llm.plugins.modules import acceptance_report as documented
from ansible_collections.onprem.llm.plugins.plugin_utils import _acceptance_page as page
from ansible_collections.onprem.llm.plugins.plugin_utils._acceptance import (
    AcceptanceError,
    Signatures,
    canonical,
    complete,
    drift,
    file_stem,
    identity_of_gpu,
    outliers,
    spans,
    validate,
    verdict_of,
    worst,
)
from ansible_collections.onprem.llm.plugins.plugin_utils._page import DASH

H100 = "NVIDIA H100 80GB HBM3"


def gpu(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": index,
        "name": H100,
        "uuid": f"GPU-0000-{index}",
        "serial": f"165000000{index}",
        "pci_bus_id": f"00000000:{index + 16:x}:00.0",
        "vbios_version": "96.00.99.00.01",
        "board_part_number": "692-2G520",
        "memory_total_bytes": 85520809984,
        **changes,
    }


def figures(*values: float, name: str = "memory_bandwidth", unit: str = "GB/s", **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "subject": f"GPU {index}",
            "value": value,
            "unit": unit,
            "floor": 2000,
            "peak": 3352,
            "source": "x",
            **more,
        }
        for index, value in enumerate(values)
    ]


def record(host: str = "gpu1", *, gpus: int = 4, **changes: Any) -> dict[str, Any]:
    hardware = {
        "system": {"vendor": "Maker", "product": "Box", "serial": "S1", "bios_version": "2.1"},
        "kernel": "6.1.0",
        "driver_version": "550.163.01",
        "cuda_version": "12.4",
        "gpus": [gpu(index) for index in range(gpus)],
        "nics": [{"name": "mlx5_0", "mtu": 4096, "firmware_version": "28.39"}],
    }
    return {
        "form": 1,
        "host": host,
        "time": "2026-11-25T08:30:00Z",
        "collection_version": "0.1.0",
        "verdict": "PASS",
        "profile": "hgx_h100",
        "checks": [Check("gpu_count", "PASS", measured=gpus, expected=gpus).as_dict()],
        "hardware": hardware,
        "measurements": figures(*[2900.0] * gpus),
        **changes,
    }


def run(directory: Path, *, check_mode: bool = False, diff: bool = False, **arguments: Any) -> dict[str, Any]:
    """The action plugin, as a task runs it."""
    task = SimpleNamespace(
        args={"directory": str(directory), **arguments}, check_mode=check_mode, diff=diff, async_val=0, action="acceptance_report"
    )
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nonexistent"))
    action = ActionModule(task, connection, None, None, None, None)
    return action.run(task_vars={})


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)], check=True)
    return path


def signers(path: Path, **keys: Path) -> Path:
    lines = [f"{name} {key.with_name(f'{key.name}.pub').read_text()}" for name, key in keys.items()]
    path.write_text("".join(lines))
    return path


# --- form and verdict ------------------------------------------------------------------------------------------------


def test_a_good_record_is_valid_and_has_one_text() -> None:
    good = record()
    validate(good, "gpu1.json")
    assert canonical(good).endswith(b"}\n")
    assert canonical(dict(reversed(list(good.items())))) == canonical(good)


@pytest.mark.parametrize("name", sorted(record()))
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    broken = record()
    del broken[name]
    (tmp_path / "gpu1.json").write_text(json.dumps(broken))
    with pytest.raises(AnsibleActionFail, match=rf"{re.escape(str(tmp_path))}/gpu1\.json: {name}: is missing"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": 2}, r"f: form: is 2, must be the number 1"),
        ({"form": True}, r"f: form: is True"),
        ({"time": "2026-11-25 08:30"}, r"f: time: is '2026-11-25 08:30', must be a time such as"),
        ({"time": "2026-13-25T08:30:00Z"}, r"f: time: .* is no time"),
        ({"verdict": "HEALTHY"}, r"f: verdict: is 'HEALTHY', must be one of PASS, WARN, FAIL"),
        ({"verdict": "SKIPPED"}, r"f: verdict: is 'SKIPPED'"),
        ({"measurments": []}, r"f: measurments: is not known in form 1"),
        ({"checks": [{"name": "a", "verdict": "OK", "subject": "host"}]}, r"f: checks\[0\]\.verdict: is 'OK', must be one of"),
        ({"checks": [{"name": "a", "verdict": "PASS"}]}, r"f: checks\[0\]\.subject: is missing"),
        ({"checks": ["PASS"]}, r"f: checks\[0\]: is 'PASS', must be a dictionary"),
        (
            {"measurements": [{"name": "a", "subject": "host", "value": None, "unit": "GB/s"}]},
            r"f: measurements\[0\]\.value: is None",
        ),
        ({"measurements": figures(1.0, float("nan"))}, r"f: measurements\[1\]\.value: is nan, must be a finite number"),
        ({"measurements": figures(1.0, unit="")}, r"f: measurements\[0\]\.unit: "),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(AcceptanceError, match=said):
        validate(record(**change), "f")


def test_a_wrong_field_of_a_gpu_is_named() -> None:
    broken = record()
    del broken["hardware"]["gpus"][2]["serial"]
    with pytest.raises(AcceptanceError, match=r"f: hardware\.gpus\[2\]\.serial: is missing"):
        validate(broken, "f")


@pytest.mark.parametrize(
    ("verdicts", "carried"),
    [
        (["PASS", "SKIPPED"], "PASS"),
        (["PASS", "WARN"], "WARN"),
        (["PASS", "FAIL"], "FAIL"),
        (["PASS", "NOT_RUN"], "FAIL"),
        (["SKIPPED", "SKIPPED"], "FAIL"),
        ([], "FAIL"),
    ],
)
def test_a_verdict_is_never_better_than_the_checks(verdicts: list[str], carried: str) -> None:
    checks = [Check(f"c{index}", verdict).as_dict() for index, verdict in enumerate(verdicts)]
    given = record(checks=checks, verdict="FAIL")
    assert verdict_of(given) == carried
    for claimed in ("FAIL", "WARN", "PASS"):
        better = ("FAIL", "WARN", "PASS").index(claimed) > ("FAIL", "WARN", "PASS").index(carried)
        if better:
            with pytest.raises(AcceptanceError, match=rf"f: verdict: is {claimed}, but its checks say {carried}"):
                validate({**given, "verdict": claimed}, "f")
        else:
            validate({**given, "verdict": claimed}, "f")
    without = {name: value for name, value in given.items() if name != "verdict"}
    assert complete(without, "f")["verdict"] == carried


def test_a_host_without_a_gpu_is_never_healthy() -> None:
    bare = record(gpus=0, checks=[Check("nvml", "PASS").as_dict()], measurements=[])
    assert verdict_of(bare) == "FAIL"
    with pytest.raises(AcceptanceError, match=r"f: verdict: is PASS, but hardware\.gpus is empty, which is FAIL"):
        validate(bare, "f")
    bare.pop("verdict")
    assert complete(bare, "f")["verdict"] == "FAIL"


def test_what_can_be_derived_is_filled_in() -> None:
    given = {name: record()[name] for name in ("host", "checks", "hardware", "measurements")}
    made = complete(given, "f")
    version = yaml.safe_load((Path(__file__).parents[2] / "galaxy.yml").read_text())["version"]
    assert (made["form"], made["verdict"], made["profile"], made["collection_version"]) == (1, "PASS", None, version)
    validate(made, "f")
    with pytest.raises(AcceptanceError, match=r"f: checks: is missing"):
        complete({name: value for name, value in given.items() if name != "checks"}, "f")


def test_of_gpu_info_only_what_stays_is_kept() -> None:
    read = {
        "index": 3,
        "name": H100,
        "uuid": "GPU-1",
        "serial": "165",
        "architecture": "hopper",
        "compute_capability": "9.0",
        "pci": {"bus_id": "00000000:1b:00.0", "device_id": "2330"},
        "board": {"id": 1, "part_number": "692"},
        "firmware": {"vbios": "96.00", "inforom_image": "G520", "gsp": "550.163.01"},
        "memory": {"total_bytes": 85520809984, "used_bytes": 5},
        "temperature": {"gpu_celsius": 40},
        "unsupported": {},
    }
    kept = identity_of_gpu(read)
    assert (kept["pci_bus_id"], kept["board_part_number"], kept["vbios_version"]) == ("00000000:1b:00.0", "692", "96.00")
    assert kept["memory_total_bytes"] == 85520809984
    assert "temperature" not in kept
    given = record()
    given["hardware"]["gpus"] = [read, {"index": 4, "lost": True, "unsupported": {}, "errors": {}}]
    gpus = complete({**given, "measurements": []}, "f")["hardware"]["gpus"]
    assert [item["serial"] for item in gpus] == ["165", None]


# --- outliers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "flagged"), [(0.94, True), (0.95, True), (0.97, False), (0.951, False), (1.06, False), (0.5, True)]
)
def test_an_outlier_is_five_percent_under_its_siblings(factor: float, flagged: bool) -> None:
    made = complete(record(gpus=8, measurements=figures(*[3000.0] * 7, 3000.0 * factor)), "f")
    found = [check for check in made["checks"] if check["name"] == "outlier"]
    assert bool(found) is flagged
    assert made["verdict"] == ("WARN" if flagged else "PASS")
    if flagged:
        (check,) = found
        assert (check["verdict"], check["subject"], check["expected"], check["unit"]) == ("WARN", "GPU 7", 3000.0, "GB/s")
        assert check["measured"] == 3000.0 * factor
        assert check["source"] == "median of 7 siblings on this host"
        assert "memory_bandwidth" in check["message"] and check["action"]


def test_an_outlier_does_not_make_a_failed_host_better() -> None:
    checks = [Check("ecc", "FAIL").as_dict()]
    assert (
        complete(record(gpus=8, checks=checks, verdict="FAIL", measurements=figures(*[9.0] * 7, 5.0)), "f")["verdict"] == "FAIL"
    )


def test_less_is_better_for_latencies() -> None:
    slow = record(gpus=5, measurements=figures(10.0, 10.0, 10.0, 9.0, 10.6, name="launch", unit="us"))
    assert [(item.subject, item.percent) for item in outliers([slow])] == [("GPU 4", 6.0)]
    told = record(gpus=5, measurements=figures(10.0, 10.0, 10.0, 9.0, 10.6, name="steps", unit="count", better="lower"))
    assert [item.subject for item in outliers([told])] == ["GPU 4"]


def test_temperatures_are_no_outliers() -> None:
    assert outliers([record(gpus=5, measurements=figures(60.0, 60.0, 60.0, 60.0, 30.0, name="temperature", unit="C"))]) == []


def test_two_siblings_are_too_few() -> None:
    assert outliers([record(gpus=3, measurements=figures(9.0, 9.0, 5.0))]) == []
    assert len(outliers([record(gpus=4, measurements=figures(9.0, 9.0, 9.0, 5.0))])) == 1


def test_only_equal_products_are_compared() -> None:
    mixed = record(gpus=4, measurements=figures(3000.0, 3000.0, 3000.0, 2000.0))
    mixed["hardware"]["gpus"][3]["name"] = "NVIDIA A100-SXM4-80GB"
    assert outliers([mixed]) == []


def test_a_slow_host_is_found_among_the_hosts_of_the_site(tmp_path: Path) -> None:
    hosts = [record(f"gpu{number}", gpus=2, measurements=figures(3000.0, 3000.0)) for number in (1, 2, 3)]
    hosts.append(record("gpu4", gpus=2, measurements=figures(2700.0, 2710.0)))
    done = run(tmp_path, records=hosts)
    assert [(item["host"], item["subject"], item["scope"]) for item in done["outliers"]] == [
        ("gpu4", "GPU 0", "site"),
        ("gpu4", "GPU 1", "site"),
    ]
    assert done["hosts"] == {"gpu1": "PASS", "gpu2": "PASS", "gpu3": "PASS", "gpu4": "WARN"}
    assert done["verdict"] == "WARN"
    # What others measured is not part of a host's own, signed record.
    assert json.loads((tmp_path / "gpu4.json").read_text())["verdict"] == "PASS"


def test_whole_hosts_are_compared_with_equal_hosts() -> None:
    reduced = [{"name": "all_reduce", "subject": "host", "value": value, "unit": "GB/s"} for value in (478, 477, 479, 440)]
    hosts = [record(f"gpu{index}", measurements=[item]) for index, item in enumerate(reduced)]
    assert [item.host for item in outliers(hosts)] == ["gpu3"]
    hosts[3] = record("gpu3", gpus=2, measurements=[reduced[3]])
    assert outliers(hosts) == []


# --- drift -----------------------------------------------------------------------------------------------------------


def kinds(found: list[dict[str, Any]]) -> dict[str, tuple[str, Any, Any]]:
    return {item["what"]: (item["kind"], item["before"], item["now"]) for item in found}


def test_nothing_drifts_but_the_time() -> None:
    assert drift(record(), record(time="2026-12-01T00:00:00Z")) == []


def test_what_drifted() -> None:
    later = record(verdict="WARN")
    hardware = later["hardware"]
    hardware["gpus"][1]["serial"] = "1659999999"
    hardware["gpus"][2]["vbios_version"] = "96.00.AA"
    hardware["system"]["bios_version"] = "2.2"
    hardware["nics"][0]["firmware_version"] = "28.40"
    hardware["driver_version"] = "570.10"
    later["checks"] = [Check("gpu_count", "WARN", measured=4).as_dict()]
    later["measurements"] = figures(2900.0, 2750.0, 2760.0, 3050.0)
    assert kinds(drift(record(), later)) == {
        "GPU 1 serial": ("identity", "1650000001", "1659999999"),
        "GPU 2 vbios_version": ("firmware", "96.00.99.00.01", "96.00.AA"),
        "system bios_version": ("firmware", "2.1", "2.2"),
        "network device mlx5_0 firmware_version": ("firmware", "28.39", "28.40"),
        "driver_version": ("software", "550.163.01", "570.10"),
        "verdict of the host": ("verdict", "PASS", "WARN"),
        "check gpu_count (host)": ("verdict", "PASS", "WARN"),
        "memory_bandwidth (GPU 1)": ("measurement", 2900.0, 2750.0),
        "memory_bandwidth (GPU 3)": ("measurement", 2900.0, 3050.0),
    }


def test_a_missing_gpu_drifts_by_its_place() -> None:
    later = record()
    del later["hardware"]["gpus"][1], later["measurements"][1]
    for index, item in enumerate(later["hardware"]["gpus"]):
        item["index"] = index
    found = kinds(drift(record(), later))
    assert found["number of GPUs"] == ("count", 4, 3)
    assert found["GPU 1"] == ("identity", "1650000001", None)
    assert found["number of values of memory_bandwidth"] == ("count", 4, 3)
    assert not any("serial" in what for what in found)  # the others are in their places, whatever their numbers are


def test_a_check_that_is_no_longer_made_drifts_once_for_all_gpus() -> None:
    before = record(checks=[Check("ecc_mode", "PASS", f"GPU {index}").as_dict() for index in range(4)])
    after = record(checks=[Check("nvml", "FAIL").as_dict()], verdict="FAIL")
    found = kinds(drift(before, after))
    assert found["check ecc_mode (GPU 0-3)"] == ("verdict", "PASS", None)
    assert found["check nvml (host)"] == ("verdict", None, "FAIL")


def test_subjects_in_few_words() -> None:
    assert spans(["GPU 0", "GPU 1", "GPU 2", "GPU 7", "host"]) == "GPU 0-2, GPU 7, host"
    assert spans([f"a -> b{index}" for index in range(6)]) == "a -> b0, a -> b1, a -> b2, a -> b3, and 2 more"


# --- the directory ---------------------------------------------------------------------------------------------------


def test_the_same_records_change_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "reports/acceptance"
    given = [record("gpu1", gpus=8, measurements=figures(*[3000.0] * 7, 2800.0)), record("gpu2")]
    first = run(directory, records=given)
    assert first["changed"] and first["verdict"] == "WARN"
    assert sorted(tree(directory)) == ["gpu1.json", "gpu2.json", "index.html"]
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}
    before = tree(directory)
    for records in (given, [], given[:1], [json.loads(before["gpu1.json"])]):
        again = run(directory, records=records)
        assert not again["changed"] and again["written"] == [], records
        assert again["hosts"] == {"gpu1": "WARN", "gpu2": "PASS"}
    assert tree(directory) == before


def test_a_new_run_keeps_the_earlier_record(tmp_path: Path) -> None:
    run(tmp_path, records=[record()])
    old = (tmp_path / "gpu1.json").read_bytes()
    swapped = record(time="2026-12-01T10:00:00Z")
    swapped["hardware"]["gpus"][2]["serial"] = "1651111111"
    done = run(tmp_path, records=[swapped])
    assert done["changed"]
    expected = {"host": "gpu1", "what": "GPU 2 serial", "before": "1650000002", "now": "1651111111", "kind": "identity"}
    assert done["drift"] == [expected]
    assert (tmp_path / "history/gpu1-20261125T083000Z.json").read_bytes() == old
    assert json.loads((tmp_path / "gpu1.json").read_text())["time"] == "2026-12-01T10:00:00Z"
    # A page that is made again, and the same record once more, say the same.
    for records in ([], [swapped]):
        again = run(tmp_path, records=records)
        assert not again["changed"] and again["drift"] == [expected]
    third = run(tmp_path, records=[{**swapped, "time": "2026-12-02T10:00:00Z"}])
    assert third["changed"] and third["drift"] == []
    assert len(list((tmp_path / "history").iterdir())) == 2


def test_two_records_of_one_second_are_both_kept(tmp_path: Path) -> None:
    for driver in ("1", "2", "3"):
        given = record()
        given["hardware"]["driver_version"] = driver
        done = run(tmp_path, records=[given])
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == [
        "gpu1-20261125T083000Z-2.json",
        "gpu1-20261125T083000Z.json",
    ]
    assert [(item["before"], item["now"]) for item in done["drift"]] == [("2", "3")]
    assert run(tmp_path)["drift"] == done["drift"]


def test_an_older_record_does_not_take_the_place_of_a_newer_one(tmp_path: Path) -> None:
    run(tmp_path, records=[record(time="2026-12-01T00:00:00Z", verdict="FAIL", checks=[])])
    before = tree(tmp_path)
    with pytest.raises(AnsibleActionFail, match=r"records \(gpu1\): time: 2026-11-25T08:30:00Z is before 2026-12-01T00:00:00Z"):
        run(tmp_path, records=[record()])
    assert tree(tmp_path) == before


def test_zero_records_fail(tmp_path: Path) -> None:
    done = run(tmp_path, title="Nobody")
    assert (done["verdict"], done["hosts"]) == ("FAIL", {})
    text = (tmp_path / "index.html").read_text()
    assert "Nothing was examined" in text and "Nobody: FAIL" in text
    assert worst([]) == "FAIL"


def test_a_host_that_was_not_reached_loses_its_good_verdict(tmp_path: Path) -> None:
    day = "2020-01-01T00:00:00Z"
    assert run(tmp_path, records=[record("gpu1", time=day), record("gpu2", time=day)])["verdict"] == "PASS"
    done = run(tmp_path, records=[record("gpu1")], hosts=["gpu1", "gpu2", "gpu3"])
    assert done["hosts"] == {"gpu1": "PASS", "gpu2": "FAIL", "gpu3": "FAIL"}
    kept = json.loads((tmp_path / "gpu2.json").read_text())
    assert [(check["name"], check["verdict"]) for check in kept["checks"]] == [("examined", "NOT_RUN")]
    assert run(tmp_path / "other", hosts=["gpu9"])["verdict"] == "FAIL"


def test_an_empty_group_is_not_the_good_verdict_of_an_earlier_day(tmp_path: Path) -> None:
    assert run(tmp_path, records=[record()])["verdict"] == "PASS"
    with pytest.raises(AnsibleActionFail, match=r"hosts: is empty, so that nothing was examined"):
        run(tmp_path, hosts=[])
    assert run(tmp_path)["verdict"] == "PASS"


def test_check_mode_predicts_and_writes_nothing(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    options = {"signing_key": str(key), "allowed_signers": str(signers(tmp_path / "signers", me=key))}
    foreseen = run(directory, check_mode=True, records=[record()], **options)
    assert not directory.exists()
    done = run(directory, records=[record()], **options)
    assert foreseen == done and done["changed"]
    assert not run(directory, check_mode=True, records=[record()], **options)["changed"]
    later = record(time="2026-12-01T00:00:00Z", profile="own")
    before = tree(directory)
    foreseen = run(directory, check_mode=True, records=[later], **options)
    assert tree(directory) == before
    assert foreseen["written"] == run(directory, records=[later], **options)["written"]
    assert [Path(path).relative_to(directory).as_posix() for path in foreseen["written"]] == [
        "history/gpu1-20261125T083000Z.json",
        "history/gpu1-20261125T083000Z.json.sig",
        "gpu1.json",
        "gpu1.json.sig",
        "index.html",
    ]


def test_diff_shows_the_records(tmp_path: Path) -> None:
    run(tmp_path, records=[record()])
    later = record(time="2026-12-01T00:00:00Z")
    shown = {Path(item["after_header"]).name: item for item in run(tmp_path, check_mode=True, diff=True, records=[later])["diff"]}
    assert '"time": "2026-11-25T08:30:00Z"' in shown["gpu1.json"]["before"]
    assert '"time": "2026-12-01T00:00:00Z"' in shown["gpu1.json"]["after"]
    assert shown["index.html"]["after"].startswith("sha256:")
    assert "diff" not in run(tmp_path, records=[later])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gpu1.json", "{", r"gpu1\.json: is no JSON"),
        ("gpu1.json", "[]", r"gpu1\.json: the record: is \[\], must be a dictionary"),
        ("gpu9.json", json.dumps(record("gpu1")), r"gpu9\.json: host: is 'gpu1', whose record is gpu1\.json"),
        (
            "gpu1.json",
            json.dumps(record(checks=[Check("a", "FAIL").as_dict()])),
            r"gpu1\.json: verdict: is PASS, but its checks say FAIL",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(AnsibleActionFail, match=said):
        run(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_new_record_that_is_wrong_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    broken = record("gpu2")
    del broken["measurements"][1]["unit"]
    with pytest.raises(AnsibleActionFail, match=r"records\[1\] \(gpu2\): measurements\[1\]\.unit: is missing"):
        run(tmp_path, records=[record(), broken])
    with pytest.raises(AnsibleActionFail, match=r"records\[1\]: host: gpu1 has two records in one run"):
        run(tmp_path, records=[record(), record()])
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("host", ["../../etc/x", "..", ".hidden", "a/b", "<script>alert(1)</script>", "fe80::1", "hôte"])
def test_no_host_name_leaves_the_directory(tmp_path: Path, host: str) -> None:
    directory = tmp_path / "in"
    done = run(directory, records=[record(host)])
    path = Path(done["records"][host])
    assert path.parent == directory and path.is_file() and not path.name.startswith(".")
    assert "/" not in file_stem(host)
    assert [item.name for item in tmp_path.iterdir()] == ["in"]
    assert not run(directory, records=[record(host)])["changed"]


# --- signatures ------------------------------------------------------------------------------------------------------


def test_a_signature_is_openssh_and_can_be_checked_by_hand(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    allowed = signers(tmp_path / "signers", me=key)
    done = run(directory, records=[record()], signing_key=str(key), allowed_signers=str(allowed), signer="me")
    assert done["signatures"] == {"gpu1": "valid"}
    assert (directory / "gpu1.json.sig").stat().st_mode & 0o777 == 0o644
    by_hand = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "me", "-n", "onprem-acceptance"]
    with (directory / "gpu1.json").open("rb") as file:
        subprocess.run([*by_hand, "-s", str(directory / "gpu1.json.sig")], stdin=file, check=True, capture_output=True)
    secret = key.read_text().splitlines()[2].encode()
    assert secret not in json.dumps(done).encode() and not any(secret in content for content in tree(directory).values())
    again = run(directory, require_signatures=True, allowed_signers=str(allowed), signer="me")
    assert not again["changed"]
    assert "signed by me" in (directory / "index.html").read_text()


@pytest.mark.parametrize("checked", [True, False])
def test_one_changed_byte_is_found(tmp_path: Path, key: Path, checked: bool) -> None:
    directory = tmp_path / "acceptance"
    run(directory, records=[record()], signing_key=str(key))
    path = directory / "gpu1.json"
    path.write_bytes(path.read_bytes().replace(b"1650000002", b"1650000003"))
    options = {"allowed_signers": str(signers(tmp_path / "signers", me=key))} if checked else {}
    page_before = (directory / "index.html").read_bytes()
    with pytest.raises(AnsibleActionFail, match=rf"{re.escape(str(path))}\.sig: the signature does not fit gpu1\.json: .+"):
        run(directory, **options)
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json\.sig: the signature does not fit"):
        run(directory, records=[record(time="2026-12-01T00:00:00Z")], signing_key=str(key), **options)
    assert (directory / "index.html").read_bytes() == page_before


def test_a_signature_that_is_none_is_found(tmp_path: Path, key: Path) -> None:
    run(tmp_path / "a", records=[record()], signing_key=str(key))
    (tmp_path / "a/gpu1.json.sig").write_text("nonsense\n")
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json\.sig: the signature does not fit"):
        run(tmp_path / "a")


def test_a_missing_signature_is_found_where_it_is_required(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    allowed = str(signers(tmp_path / "signers", me=key))
    run(directory, records=[record()], signing_key=str(key), allowed_signers=allowed)
    (directory / "gpu1.json.sig").unlink()
    assert run(directory, allowed_signers=allowed)["signatures"] == {"gpu1": "unsigned"}
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json\.sig: the signature is missing, and require_signatures is set"):
        run(directory, allowed_signers=allowed, require_signatures=True)
    # The same record may be signed afterwards.
    signed = run(directory, records=[record()], signing_key=str(key), allowed_signers=allowed, require_signatures=True)
    assert signed["changed"] and signed["signatures"] == {"gpu1": "valid"}
    assert not (directory / "history").exists()


def test_the_history_that_is_compared_is_checked_too(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    run(directory, records=[record()], signing_key=str(key))
    run(directory, records=[record(time="2026-12-01T00:00:00Z")], signing_key=str(key))
    old = directory / "history/gpu1-20261125T083000Z.json"
    old.write_bytes(old.read_bytes().replace(b"550.163.01", b"550.163.02"))
    with pytest.raises(AnsibleActionFail, match=r"history/gpu1-20261125T083000Z\.json\.sig: the signature does not fit"):
        run(directory)


def test_a_stranger_has_no_say(tmp_path: Path, key: Path) -> None:
    other = make_key(tmp_path / "other")
    directory = tmp_path / "acceptance"
    run(directory, records=[record()], signing_key=str(other))
    allowed = signers(tmp_path / "signers", me=key)
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json\.sig: was made with a key that .*signers does not list"):
        run(directory, allowed_signers=str(allowed))
    signers(allowed, me=key, you=other)
    assert run(directory, allowed_signers=str(allowed))["signatures"] == {"gpu1": "valid"}
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json\.sig: the signature is not one of me as .*signers has it"):
        run(directory, allowed_signers=str(allowed), signer="me")


def test_a_signature_for_another_purpose_does_not_count(tmp_path: Path, key: Path) -> None:
    content = canonical(record())
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(key)]
    other = subprocess.run(command, input=content, capture_output=True, check=True).stdout
    with pytest.raises(AcceptanceError, match="does not fit"):
        Signatures().state(content, other, tmp_path / "gpu1.json")


def test_a_record_without_signature_replaces_one_with_and_takes_its_signature_away(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    run(directory, records=[record()], signing_key=str(key))
    done = run(directory, records=[record(time="2026-12-01T00:00:00Z")])
    assert done["signatures"] == {"gpu1": "unsigned"}
    assert sorted(tree(directory)) == [
        "gpu1.json",
        "history/gpu1-20261125T083000Z.json",
        "history/gpu1-20261125T083000Z.json.sig",
        "index.html",
    ]
    assert not run(directory)["changed"]


def test_keys_that_cannot_sign(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "acceptance"
    with pytest.raises(AnsibleActionFail, match=r"signing_key: .*nokey is no file"):
        run(directory, records=[record()], signing_key=str(tmp_path / "nokey"))
    locked = make_key(tmp_path / "locked", "a passphrase")
    with pytest.raises(AnsibleActionFail, match=r"gpu1\.json: cannot be signed with signing_key .*locked: .+passphrase"):
        run(directory, records=[record()], signing_key=str(locked))
    with pytest.raises(AnsibleActionFail) as told:
        run(directory, records=[record()], signing_key=key.read_text())
    assert "signing_key: is not a path" in str(told.value)
    assert key.read_text().splitlines()[1] not in str(told.value)
    with pytest.raises(AnsibleActionFail, match=r"require_signatures: needs allowed_signers"):
        run(directory, records=[record()], require_signatures=True)
    allowed = str(signers(tmp_path / "signers", me=key))
    with pytest.raises(AnsibleActionFail, match=r"require_signatures is set, and there is no signing_key"):
        run(directory, records=[record()], require_signatures=True, allowed_signers=allowed)
    assert not directory.exists()


def test_ssh_keygen_that_is_not_there_is_told(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.environ["PATH"] == str(tmp_path)
    with pytest.raises(AnsibleActionFail, match="ssh-keygen is not installed on the controller"):
        run(tmp_path / "a", records=[record()], signing_key=str(key))


# --- the page --------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Every element that is opened, and whether all are closed in their order."""

    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.seen if tag == name]


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def evil_record() -> dict[str, Any]:
    made = record(f"gpu{EVIL}", profile=EVIL, gpus=8, measurements=figures(*[3000.0] * 6, 2500.0, 1000.0, source=EVIL))
    for item in made["hardware"]["gpus"]:
        item.update({name: EVIL for name in ("name", "uuid", "serial", "vbios_version")})
    made["hardware"]["system"] = {"vendor": EVIL, "product": EVIL, "serial": EVIL}
    made["hardware"]["nics"] = [{"name": EVIL, EVIL: EVIL}]
    made["measurements"].append({"name": EVIL, "subject": "host", "value": 1, "unit": EVIL})
    made["measurements"].append({"name": EVIL, "subject": "a<script> -> b<script>", "value": 1, "unit": EVIL})
    texts = dict.fromkeys(("measured", "expected", "unit", "source", "action", "message"), EVIL)
    made["checks"] = [Check(name=EVIL, verdict=verdict, subject=EVIL, **texts).as_dict() for verdict in ("WARN", "SKIPPED")]
    return {**made, "verdict": "WARN"}


def test_names_with_markup_come_out_harmless(tmp_path: Path) -> None:
    run(tmp_path, title=EVIL, records=[evil_record()])
    later = evil_record()
    later["hardware"]["gpus"][0]["serial"] = f"{EVIL}2"
    done = run(tmp_path, title=EVIL, records=[{**later, "time": "2026-12-01T00:00:00Z"}])
    assert done["drift"] and done["outliers"]
    text = (tmp_path / "index.html").read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.tags("script")) == 1 and text.count("<script") == 1
    assert not parsed.tags("img")
    assert not any(name.startswith("on") for _tag, attributes in parsed.seen for name in attributes)
    assert EVIL in "".join(parsed.text)  # it is shown, as text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, records=[record(), record("gpu2", verdict="FAIL", checks=[Check("ecc", "FAIL").as_dict()])])
    text = (tmp_path / "index.html").read_text()
    parsed = Page(text)
    assert parsed.open == []
    for tag, attributes in parsed.seen:
        assert tag not in ("link", "iframe", "object", "embed")
        assert "src" not in attributes
        if "href" in attributes:
            assert (attributes["href"] or "").startswith("#host-") or attributes["href"] in ("gpu1.json", "gpu2.json")
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    anchors = {attributes["id"] for attributes in parsed.tags("details")}
    assert {item["href"] for item in parsed.tags("a") if (item["href"] or "").startswith("#")} == {f"#{name}" for name in anchors}
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_page_says_what_an_operator_asks(tmp_path: Path) -> None:
    bad = Check(
        "nvlink_links", "FAIL", "GPU 2", 14, 18, "links", "NVIDIA H100 data sheet", "Reset the GPU.", "4 of 18 links are down"
    )
    skipped = [
        Check("retired_pages", "SKIPPED", f"GPU {index}", message=f"GPU {index}: it remaps rows").as_dict() for index in range(8)
    ]
    given = record("gpu1", gpus=8, verdict="FAIL", checks=[bad.as_dict(), *skipped], measurements=figures(*[3000.0] * 7, 2760.0))
    given["measurements"] += [
        {"name": "network_latency", "subject": "gpu1 -> gpu2", "value": 1046.0, "unit": "us", "floor": 500},
        {"name": "network_latency", "subject": "gpu1 -> gpu3", "value": 40.0, "unit": "us", "floor": 500},
    ]
    done = run(tmp_path, title="Hall 2", records=[given, record("gpu10"), record("gpu2")])
    assert list(done["hosts"]) == ["gpu1", "gpu2", "gpu10"]
    text = (tmp_path / "index.html").read_text()
    parsed = Page(text)
    said = " ".join(" ".join(parsed.text).split())
    for words in (
        *("Hall 2", "14 links", "18 links", "NVIDIA H100 data sheet", "Reset the GPU.", "4 of 18 links are down"),
        *("GPU 0-7", "it remaps rows", "1650000003", "96.00.99.00.01", "GPU 7: 2,760 (-8.0 %)", "floor 2,000", "peak 3,352"),
        *("GB/s (higher is better)", "✕ 1,046", "not signed", "What the verdicts mean", "gpu1, gpu2, gpu10"),
    ):
        assert words in said, words
    cells = [item for item in parsed.tags("td") if "cell" in (item.get("class") or "").split()]
    assert {item["class"] for item in cells} == {"cell v-FAIL", "cell v-SKIPPED", "cell v-PASS", "cell v-WARN", "cell absent"}
    assert any("measured 14 links; expected 18 links; source: NVIDIA H100 data sheet" in (item["title"] or "") for item in cells)
    over = [item for item in parsed.tags("td") if item.get("class") == "over"]
    assert [item["title"] for item in over] == ["gpu1 to gpu2: 1,046 µs, limit 500 µs"]


def test_every_mark_of_a_plot_is_inside_of_it() -> None:
    for values, floor, peak in (([3.0] * 8, None, None), ([0.0, 0.0], 0, 0), ([1e-6, 5.0], 3, 1e6), ([-5.0, 5.0], 2, None)):
        points = [{"subject": "GPU 0", "value": v, "flag": "odd", "note": "", "percent": -5.0} for v in values]
        drawn = page.strip_plot("t", "u", [{"label": "h", "points": points, "floor": floor, "peak": peak}])
        for name, number in re.findall(r' (x1|x2|x|cx|y1|y2|y|cy)="([^"]+)"', drawn):
            limit = page.WIDTH if "x" in name else page.TOP + 64 + page.BOTTOM
            assert 0 <= float(number) <= limit, (values, name, number)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "GB/s", DASH),
        (0, "errors", "0 errors"),
        (True, None, "yes"),
        (85520809984, "bytes", "79.65 GiB"),
        (0.0123456, "us", "0.01235 µs"),
        (2930.123, "GB/s", "2,930 GB/s"),
        ([], None, "none"),
        ([79, 63], None, "79, 63"),
        ("550.163.01", None, "550.163.01"),
    ],
)
def test_values_as_an_operator_reads_them(value: Any, unit: str | None, shown: str) -> None:
    assert page.figure(value, unit) == shown


def test_the_documentation_has_the_options_of_the_plugin(tmp_path: Path) -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    given = {name: copy.deepcopy(option.get("default")) for name, option in options.items() if name != "directory"}
    run(tmp_path, **{name: value for name, value in given.items() if value is not None})
    with pytest.raises(AnsibleActionFail, match="Unsupported parameters"):
        run(tmp_path, nonsense=True)
    done = run(tmp_path, records=[record()])
    assert set(done) - {"changed"} == set(yaml.safe_load(documented.RETURN))
