# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleLookupError
from ansible_collections.onprem.llm.plugins.lookup import gpu_profile as gpu_profile_lookup
from ansible_collections.onprem.llm.plugins.lookup import xid_policy as xid_policy_lookup
from ansible_collections.onprem.llm.plugins.module_utils._gpu_checks import Expectation
from ansible_collections.onprem.llm.plugins.plugin_utils import _gpu_data
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_data import (
    ACTIONS,
    EXACT,
    MATMUL,
    PROJECT,
    RECOVERY_TEXTS,
    UNITS,
    GpuDataError,
    entry_of,
    expectation,
    problems,
    product_of,
    profile,
    thresholds,
    xid_policy,
    xid_problems,
)
from ansible_collections.onprem.llm.plugins.plugin_utils._gpu_stack import gpu

SHIPPED = yaml.safe_load(_gpu_data.THRESHOLDS.read_text(encoding="utf-8"))
POLICY = yaml.safe_load(_gpu_data.XID_POLICY.read_text(encoding="utf-8"))


def changed(base: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field changed, or taken away with a value of ``...``; the last part of a path may hold dots."""
    data = deepcopy(dict(base))
    *parts, last = path.split("/")
    at: Any = data
    for part in parts:
        at = at[int(part)] if part.isdecimal() else at[part]
    if value is ...:
        del at[last]
    else:
        at[int(last) if last.isdecimal() else last] = value
    return data


def refused(own: Mapping[str, Any], say: Any = thresholds) -> str:
    with pytest.raises(GpuDataError) as caught:
        say(own)
    return str(caught.value)


# The shipped files.


def test_the_shipped_files_have_no_problems() -> None:
    assert problems(SHIPPED) == []
    assert xid_problems(POLICY) == []


def test_each_document_is_named_by_something() -> None:
    text = re.sub(r"(?s)\ndocuments:.*?\n\n", "\n", _gpu_data.THRESHOLDS.read_text(encoding="utf-8"))
    assert [key for key in SHIPPED["documents"] if not re.search(rf"\b{key}\b", text)] == []
    text = re.sub(r"(?s)\ndocuments:.*?\n\n", "\n", _gpu_data.XID_POLICY.read_text(encoding="utf-8"))
    assert [key for key in POLICY["documents"] if not re.search(rf"\b{key}\b", text)] == []


def test_products_are_those_that_the_gpu_stack_knows() -> None:
    for name, product in SHIPPED["products"].items():
        for device_id in product["pci_device_ids"]:
            known = gpu(device_id)
            assert known.get("compute_capability", product["compute_capability"]) == product["compute_capability"], name
            assert product["form_factor"][:3] != "SXM" or "SXM" in known["name"] or name.startswith("b200"), name


def test_each_product_can_be_tested_at_all() -> None:
    for name, product in SHIPPED["products"].items():
        figures = product["figures"]
        assert {"memory_size", "memory_bandwidth", "host_to_device_bandwidth", "power_limit", *EXACT[:2]} <= set(figures), name
        assert any(kind in figures for kind in MATMUL), name
        # FP8 arithmetic begins with compute capability 8.9, bf16 with 8.0.
        capability = tuple(int(part) for part in product["compute_capability"].split("."))
        assert ("matmul_fp8" in figures) is (capability >= (8, 9)), name
        assert ("matmul_bf16" in figures) is (capability >= (8, 0)), name


def test_each_profile_is_whole() -> None:
    for name, entry in SHIPPED["profiles"].items():
        found = profile(name)
        assert found["product_name"] == SHIPPED["products"][entry["product"]]["name"]
        assert found["pci_device_ids"] and found["compute_capability"]
        assert (entry["nvlink"] == "full_mesh") is (entry["nvswitches"] > 0) is entry["fabric_manager"]
        for figure in found["figures"].values():
            assert {value for key, value in figure.items() if key.endswith("_source")} <= set(found["documents"])
        json.dumps(found)


def test_the_figures_that_the_project_was_planned_with() -> None:
    h100, h200, a100 = profile("hgx_h100")["figures"], profile("hgx_h200")["figures"], profile("dgx_a100")["figures"]
    assert h100["host_to_device_bandwidth"]["floor"] == 48
    assert h100["peer_to_peer_bandwidth"]["floor"] == 335
    assert h100["all_reduce_bus_bandwidth"]["floor"] == 460
    # What was measured on machines that are well passes, and what a machine without NVLS makes does not.
    assert h100["all_reduce_bus_bandwidth"]["floor"] < 480
    assert 366 < h200["all_reduce_bus_bandwidth"]["floor"] < 473
    assert a100["all_reduce_bus_bandwidth"]["floor"] < 235
    assert h100["matmul_bf16"]["floor"] < 711
    assert a100["matmul_bf16"]["floor"] < 271
    assert a100["nvlink_bandwidth"]["floor"] == 600


# Mistakes that others have made.

H100, H200, L40S = (f"products/{name}/figures" for name in ("h100_sxm5_80gb", "h200_sxm5_141gb", "l40s"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        # Three zeros short: MB/s in a column of GB/s, or the unit left as it was.
        (f"{H200}/memory_bandwidth/floor", 2.333, "memory_bandwidth.floor: 2.333 GB/s is under 50 % of the peak 4800 GB/s"),
        (f"{H200}/memory_bandwidth/floor", 2333, "memory_bandwidth.floor: 2333 GB/s is under 50 % of the peak 4800 GB/s"),
        (f"{H200}/memory_bandwidth/unit", "MB/s", "memory_bandwidth.unit: is 'MB/s'; memory_bandwidth is in GB/s"),
        # One zero short: 137500 for 1372500 MB/s.
        ("products/a100_sxm4_40gb/figures/memory_bandwidth/floor", 137.5, "floor: 137.5 GB/s is under 50 % of the peak 1555"),
        # A card of the fifth generation that is asked for the third.
        (f"{H200}/pcie_generation/floor", 3, "pcie_generation.floor: 3 generation lets one pass that was trained down from 5"),
        (f"{H200}/pcie_width/floor", 8, "pcie_width.floor: 8 lanes lets one pass that was trained down from 16 lanes"),
        (f"{H200}/nvlink_links/floor", 17, "nvlink_links.floor: 17 links lets one pass"),
        (f"{H200}/host_to_device_bandwidth/floor", 12, "host_to_device_bandwidth.floor: 12 GB/s is under 50 % of the peak 63.0"),
        (f"{H200}/host_to_device_bandwidth/peak", 64, None),
        (f"{H200}/host_to_device_bandwidth/peak", 90, "is not what PCIe generation 5 with 16 lanes moves (63.0 GB/s)"),
        # The figure with sparsity.
        (
            "products/a100_sxm4_80gb/figures/matmul_bf16/floor",
            468,
            "matmul_bf16.floor: 468 TFLOP/s is above the peak 312 TFLOP/s",
        ),
        # Both directions for one.
        (f"{H200}/peer_to_peer_bandwidth/peak", 600, "600 GB/s is more than one direction of the NVLinks (450 GB/s)"),
        (f"{H100}/all_reduce_bus_bandwidth/peak", 910, "910 GB/s is more than both directions of the NVLinks (900 GB/s)"),
        (f"{H200}/temperature/ceiling", 850, "temperature.ceiling: 850 C is not between 40 and 110 C"),
    ],
)
def test_what_cannot_be_true(path: str, value: Any, says: str | None) -> None:
    found = [text for text in problems(changed(SHIPPED, path, value)) if ".share:" not in text]
    if says is None:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(f"gpu_thresholds.yml: {'.'.join(path.split('/')[:4])}")
    assert says in found[0]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (f"{L40S}/memory_bandwidth/peak_source", ..., "memory_bandwidth.peak_source: is missing; every figure says where"),
        (f"{L40S}/memory_bandwidth/floor_source", ..., "memory_bandwidth.floor_source: is missing"),
        (f"{L40S}/memory_bandwidth/floor_source", "l40", "'l40' is none of the documents (did you mean l40s?)"),
        (f"{L40S}/memory_bandwidth/date", ..., "memory_bandwidth.date: is missing"),
        (f"{L40S}/memory_bandwidth/date", "2026-13-01", "memory_bandwidth.date: '2026-13-01' is no date (YYYY-MM-DD)"),
        (f"{L40S}/memory_bandwidth/unit", ..., "memory_bandwidth.unit: is missing"),
        (f"{L40S}/memory_bandwidth/peak", "864", "memory_bandwidth.peak: '864' is no number above zero"),
        (f"{L40S}/memory_bandwidth/floor", True, "memory_bandwidth.floor: True is no number above zero"),
        (f"{L40S}/memory_bandwidth/floor", 0, "memory_bandwidth.floor: 0 is no number above zero"),
        (f"{L40S}/memory_bandwidth/share", ..., "memory_bandwidth.share: is missing; a floor of this project's own"),
        (f"{L40S}/memory_bandwidth/share", 0.9, "memory_bandwidth.share: 0.9 of 864 is not the floor 604"),
        (f"{L40S}/memory_bandwidth/flor", 1, "memory_bandwidth.flor: is not known (did you mean floor?)"),
        (f"{L40S}/memory_bandwith", {}, "figures.memory_bandwith: is not known (did you mean memory_bandwidth?)"),
        (f"{L40S}/temperature/ceiling", ..., "temperature: lacks peak (what is physically possible) or ceiling"),
        (f"{L40S}/temperature/floor", 20, "temperature.floor: needs a peak to be held against"),
        (f"{L40S}/memory_bandwidth", 864, "memory_bandwidth: is 864, not a mapping"),
        ("products/l40s/form_factor", "OAM", "products.l40s.form_factor: is 'OAM'; there are SXM2"),
        ("products/l40s/pci_device_ids", ["26B9"], "'26B9' is no device id (four lower-case hexadecimal digits, in quotes)"),
        ("products/l40s/pci_device_ids", [2330], "2330 is no device id (four lower-case hexadecimal digits, in quotes)"),
        ("products/l40s/pci_device_ids", [], "pci_device_ids: is [], not a list of device ids"),
        ("products/l40s/pci_device_ids", ["2331"], "products.l40s.pci_device_ids: 2331 is h100_pcie_80gb's already"),
        ("products/l40s/compute_capability", 8.9, 'compute_capability: 8.9 is none (as "9.0", in quotes)'),
        ("products/l40s/colour", "green", "products.l40s.colour: is not known"),
        ("products/l40s/name", ..., "products.l40s.name: is missing"),
        ("profiles/pcie_l4/product", "l4s", "profiles.pcie_l4.product: 'l4s' is not known (did you mean l40s?); there are"),
        ("profiles/pcie_l4/gpus", 0, "profiles.pcie_l4.gpus: is 0, not a number from 1"),
        ("profiles/pcie_l4/nvlink", "full_mesh", "nvlink: is full_mesh, and l4 has no figure nvlink_links"),
        ("profiles/pcie_l4/nvlink", "ring", "nvlink: is 'ring'; there are full_mesh, none"),
        ("profiles/pcie_l4/minimum_driver", 535, "minimum_driver: 535 is no driver version"),
        ("profiles/pcie_l4/minimum_driver_source", ..., "minimum_driver_source: is missing"),
        ("profiles/pcie_l4/ecc", "on", "ecc: is 'on', not true, false or null"),
        ("profiles/pcie_l4/minimum_memory_bytes", 24, "minimum_memory_bytes: 24 is not between half and all of"),
        ("profiles/pcie_l4/figures", {"memory_bandwidth": {}}, "profiles.pcie_l4.figures.memory_bandwidth.unit: is missing"),
        ("profiles/pcie_l4/gpu", 1, "profiles.pcie_l4.gpu: is not known (did you mean gpus?)"),
        ("documents/l4", {"title": "L4"}, "documents.l4.url: is missing"),
        ("form", 2, "form: is 2, and this version reads 1"),
        ("date", ..., "date: is missing"),
        ("products", [], "products: is [], not a mapping"),
        ("profiles", ..., "profiles: is missing"),
    ],
)
def test_what_a_file_must_have(path: str, value: Any, says: str) -> None:
    found = problems(changed(SHIPPED, path, value), "here.yml")
    assert any(text.startswith("here.yml: ") and says in text for text in found), found or "nothing was found"


def test_one_device_id_may_have_two_form_factors() -> None:
    data = changed(SHIPPED, "products/l40s/pci_device_ids", ["2330"])
    assert problems(data) == []
    assert product_of("2330")["product"] == "h100_sxm5_80gb"  # type: ignore[index]


@pytest.mark.parametrize("nothing", [None, [], "text", {}])
def test_what_is_no_data_at_all(nothing: Any) -> None:
    assert problems(nothing)
    assert xid_problems(nothing)


def test_a_file_that_cannot_be_used_is_never_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu_thresholds.yml"
    monkeypatch.setattr(_gpu_data, "THRESHOLDS", file)
    with pytest.raises(GpuDataError, match=r"gpu_thresholds\.yml: .*No such file"):
        thresholds()
    file.write_text("form: [", encoding="utf-8")
    with pytest.raises(GpuDataError, match=r"gpu_thresholds\.yml: "):
        thresholds()
    file.write_text(yaml.safe_dump(changed(SHIPPED, f"{H200}/memory_bandwidth/floor", 2.333)), encoding="utf-8")
    with pytest.raises(
        GpuDataError, match=r"^gpu_thresholds\.yml: products\.h200_sxm5_141gb\.figures\.memory_bandwidth\.floor: 2\.333"
    ):
        profile("hgx_h100")


# Asking.


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(GpuDataError) as caught:
        profile("hgx_h10")
    assert "no GPU profile 'hgx_h10' (did you mean hgx_h100?); known are dgx_a100, dgx_a100_40gb, hgx_h100" in str(caught.value)
    with pytest.raises(GpuDataError, match=r"no GPU profile 'quantum'; known are dgx_a100"):
        profile("quantum")


def test_a_profile_as_an_expectation() -> None:
    found = expectation("hgx_h100")
    assert (found["gpus"], found["product"], found["fabric"], found["nvswitches"]) == (8, "NVIDIA H100 80GB HBM3", True, 4)
    assert (found["nvlink_links"], found["nvlink_gbytes_per_second"], found["memory_bytes"]) == (18, 900, 84100000000)
    assert "power_limit_watts" not in found
    assert found["sources"]["memory_bytes"] == "This project's own floor, 98 % of the peak"
    assert found["sources"]["nvlink_links"] == "NVIDIA H100 GPU, specifications"
    assert found["sources"]["gpus"] == "profile hgx_h100"
    assert set(found["sources"]) | {"sources"} == set(found)
    assert set(found) - {"sources"} <= {field.name for field in dataclasses.fields(Expectation)}
    assert not {"nvlink_links", "nvlink_gbytes_per_second"} & set(expectation("pcie_h100"))


def test_an_expectation_with_a_sites_own() -> None:
    own = {
        "profiles": {
            "capped": {
                "like": "hgx_h100",
                "minimum_memory_bytes": 80_000_000_000,
                "minimum_driver": "570.124.06",
                "figures": {"power_limit": {"floor": 500}, "temperature": {"ceiling": 80}},
            }
        }
    }
    found = expectation("capped", own)
    assert (found["memory_bytes"], found["power_limit_watts"], found["temperature_celsius"]) == (80_000_000_000, 500, 80)
    assert found["sources"]["memory_bytes"] == "profile capped"
    for field in ("power_limit_watts", "temperature_celsius", "minimum_driver"):
        assert found["sources"][field] == "The site's own onprem_llm_gpu_thresholds"


def test_a_product_is_found_by_its_device_id() -> None:
    assert product_of("26B9")["name"] == "NVIDIA L40S"  # type: ignore[index]
    assert product_of("2330", "SXM5")["product"] == "h100_sxm5_80gb"  # type: ignore[index]
    assert product_of("2330", "PCIe") is None
    assert product_of("ffff") is None


def test_nobody_can_change_what_others_get() -> None:
    profile("hgx_h100")["figures"]["memory_bandwidth"]["floor"] = 1
    thresholds()["products"].clear()
    xid_policy()["codes"].clear()
    assert profile("hgx_h100")["figures"]["memory_bandwidth"]["floor"] == 2849
    assert xid_policy()["codes"][79]["action"] == "reboot_host"


# A site's own.


def test_a_site_changes_a_floor() -> None:
    own = {"products": {"l40s": {"figures": {"memory_bandwidth": {"floor": 700}}}}}
    found = profile("pcie_l40s", own)["figures"]["memory_bandwidth"]
    assert found["floor"] == 700
    assert found["floor_source"] == "site"
    assert (found["peak"], found["unit"], found["peak_source"]) == (864, "GB/s", "l40s")
    assert "share" not in found
    assert "site" in profile("pcie_l40s", own)["documents"]
    assert profile("pcie_l40s")["figures"]["memory_bandwidth"]["floor_source"] == PROJECT


def test_a_site_takes_a_floor_away() -> None:
    own = {"profiles": {"pcie_h100": {"figures": {"matmul_fp8": {"floor": None}}}}}
    assert "floor" not in profile("pcie_h100", own)["figures"]["matmul_fp8"]
    assert profile("pcie_h100", own)["figures"]["matmul_bf16"]["floor"] == 415


def test_a_slot_with_fewer_lanes() -> None:
    figures: dict[str, Any] = {"pcie_width": {"peak": 8, "floor": 8}}
    assert (
        "profiles.x8.figures.host_to_device_bandwidth.peak: 31.5 GB/s is not what PCIe generation 4 with 8 lanes moves"
        in refused({"profiles": {"x8": {"like": "pcie_l4", "figures": figures}}})
    )
    for name in ("host_to_device_bandwidth", "device_to_host_bandwidth"):
        figures[name] = {"peak": 15.8}
    found = profile("x8", {"profiles": {"x8": {"like": "pcie_l4", "figures": figures}}})["figures"]
    assert found["pcie_width"]["floor"] == 8
    # This project's share is of the site's peak then.
    assert found["host_to_device_bandwidth"]["floor"] == pytest.approx(0.75 * 15.8, abs=0.1)
    assert found["host_to_device_bandwidth"]["floor_source"] == PROJECT


def test_a_site_adds_a_machine_and_a_product() -> None:
    own = {
        "documents": {"bench": {"title": "Our bench", "url": None, "date": "2026-11-01"}},
        "products": {
            "l40": {
                "like": "l40s",
                "name": "NVIDIA L40",
                "pci_device_ids": ["26b5"],
                "figures": {"matmul_bf16": {"peak": 181, "floor": 120, "peak_source": "bench"}},
            }
        },
        "profiles": {
            "four_l40": {"like": "pcie_l40s", "title": "Four", "product": "l40", "gpus": 4, "minimum_driver": "550.54.14"}
        },
    }
    found = profile("four_l40", own)
    assert (found["gpus"], found["product_name"], found["minimum_driver_source"]) == (4, "NVIDIA L40", "site")
    assert found["figures"]["matmul_bf16"] == {
        **{"unit": "TFLOP/s", "peak": 181, "floor": 120},
        **{"peak_source": "bench", "floor_source": "site", "date": "2026-11-25"},
    }
    assert found["documents"]["bench"]["title"] == "Our bench"
    assert "four_l40" not in thresholds()["profiles"]
    assert product_of("26b5", own=own)["product"] == "l40"  # type: ignore[index]


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"products": {"l40s": {"figures": {"memory_bandwidth": {"floor": 7}}}}}, "floor: 7 GB/s is under 50 % of the peak 864"),
        (
            {"profiles": {"pcie_l4": {"figures": {"memory_bandwidth": {"floor": 400}}}}},
            "profiles.pcie_l4.figures.memory_bandwidth.floor: 400 GB/s is above the peak 300 GB/s",
        ),
        ({"profiles": {"ours": {"like": "hgx_h20"}}}, "profiles.ours.like: 'hgx_h20' is not known (did you mean hgx_h200?)"),
        ({"profiles": {"ours": {"gpus": 4}}}, "profiles.ours.title: is missing"),
        ({"profiles": {"pcie_l4": {"product": "l5"}}}, "profiles.pcie_l4.product: 'l5' is not known"),
        ({"profile": {}}, "profile: is not known (did you mean profiles?); there are documents, products, profiles"),
        ({"profiles": {"pcie_l4": 4}}, "profiles.pcie_l4: is 4, not a mapping"),
        ({"products": []}, "products: is [], not a mapping"),
        ({"products": {"l4": {"figures": 3}}}, "products.l4.figures: is 3, not a mapping"),
        ({"products": {"l4": {"figures": {"power_limit": 60}}}}, "products.l4.figures.power_limit: is 60, not a mapping"),
        ({"products": {"l4": {"figures": {"watts": {"peak": 60}}}}}, "products.l4.figures.watts: is not known"),
        (["l4"], "is ['l4'], not a mapping with documents, products, profiles"),
    ],
)
def test_a_sites_own_is_looked_at_as_closely(own: Any, says: str) -> None:
    found = refused(own)
    assert found.startswith("onprem_llm_gpu_thresholds: ")
    assert says in found


# Errors of the driver.


def test_the_actions_that_were_established() -> None:
    codes = xid_policy()["codes"]
    actions = {
        "RESTART_APP": (13, 31, 94),
        "IGNORE": (43, 63, 92),
        "WORKFLOW_XID_45": (45,),
        "WORKFLOW_XID_48": (48,),
        "RESET_GPU": (62, 64, 95, 109, 119, 120, 140, 143),
        "WORKFLOW_NVLINK_ERR": (74,),
        "RESTART_BM": (79,),
        "XID_154": (154,),
    }
    for action, numbers in actions.items():
        assert {codes[number]["nvidia_action"] for number in numbers} == {action}
    # What this project does is never less than what NVIDIA asks for.
    least = {
        "RESTART_APP": "restart_application",
        "RESET_GPU": "reset_gpu",
        "RESTART_BM": "reboot_host",
        "RESTART_VM": "reboot_host",
    }
    for number, entry in codes.items():
        wanted = least.get(entry["nvidia_action"])
        assert wanted is None or ACTIONS.index(entry["action"]) >= ACTIONS.index(wanted), number


def test_every_code_of_the_catalogue_is_in_one_list() -> None:
    assert sorted([*POLICY["codes"], *POLICY["unused"]["codes"]]) == list(range(1, 173))


def test_the_text_of_154_has_an_action_each() -> None:
    policy = xid_policy()
    by_text = {entry["text"]: entry["action"] for entry in policy["recovery_actions"]}
    assert set(by_text) == set(RECOVERY_TEXTS)
    assert set(by_text.values()) <= set(policy["actions"])
    assert by_text["None"] == "ignore"
    assert by_text["GPU Reset Required"] == by_text["Drain and Reset"] == "reset_gpu"
    assert by_text["Node Reboot Required"] == "reboot_host"
    # As nvmlDeviceGpuRecoveryAction_t counts them.
    assert [entry["text"] for entry in sorted(policy["recovery_actions"], key=lambda entry: entry["value"])] == list(
        RECOVERY_TEXTS
    )
    # A text that is not known must not pass for one that calls for nothing.
    assert ACTIONS.index(policy["codes"][154]["action"]) >= ACTIONS.index("reset_gpu")
    # "None" is in most messages, as what the action was before.
    assert policy["recovery_actions"][-1]["text"] == "None"


def test_switch_errors_by_severity() -> None:
    sxid = xid_policy()["sxid"]
    assert {sxid[code]["action"] for code in (11012, 22013)} == {"ignore"}
    assert (sxid[20001]["action"], sxid[11001]["action"], sxid[12020]["action"]) == ("watch", "reset_gpu", "reboot_host")
    least = {"fatal": "reset_gpu", "always_fatal": "reboot_host"}
    for code, entry in sxid.items():
        assert ACTIONS.index(entry["action"]) >= ACTIONS.index(least.get(entry["severity"], "ignore")), code


def test_a_code_that_is_not_known_is_watched() -> None:
    assert entry_of(xid_policy(), 999) == {"code": 999, "name": "not in the table", "source": None, **POLICY["unknown"]}
    assert entry_of(xid_policy(), "79")["action"] == "reboot_host"
    with pytest.raises(GpuDataError, match=r"'seven' is no Xid code"):
        entry_of(xid_policy(), "seven")


def test_a_site_decides_otherwise() -> None:
    own = {
        "codes": {"94": {"action": "reset_gpu"}, 61: {"name": "PMU breakpoint", "nvidia_action": None, "action": "reset_gpu"}},
        "unknown": {"action": "reset_gpu"},
        "sxid": {"20001": {"action": "ignore"}},
    }
    found = xid_policy(own)
    assert found["codes"][94] == {**POLICY["codes"][94], "action": "reset_gpu", "source": "site"}
    assert found["codes"][61]["source"] == "site"
    assert 61 not in found["unused"]["codes"]
    assert entry_of(found, 999)["action"] == "reset_gpu"
    assert found["sxid"][20001]["action"] == "ignore"
    assert xid_policy()["codes"][94]["action"] == "restart_application"


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"codes": {79: {"action": "reboot"}}}, "codes.79.action: 'reboot' is no action (did you mean reboot_host?)"),
        ({"codes": {79: {"acton": "replace"}}}, "codes.79.acton: is not known (did you mean action?)"),
        ({"codes": {999: {"action": "watch"}}}, "codes.999.name: is missing"),
        ({"codes": {"x79": {"action": "watch"}}}, "codes.x79: is no code (a number)"),
        ({"codes": {79: "replace"}}, "codes.79: is 'replace', not a mapping"),
        ({"code": {}}, "code: is not known (did you mean codes?)"),
        ({"unknown": {"action": "panic"}}, "unknown.action: 'panic' is no action"),
        ({"codes": {79: {"source": "hearsay"}}}, "codes.79.source: 'hearsay' is none of the documents"),
        ("79", "is '79', not a mapping"),
    ],
)
def test_a_sites_own_policy_is_looked_at_as_closely(own: Any, says: str) -> None:
    found = refused(own, xid_policy)
    assert found.startswith("onprem_llm_xid_policy: ")
    assert says in found


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("codes/79/source", ..., "codes.79.source: is missing"),
        ("codes/79/name", None, "codes.79.name: is missing, not a text"),
        ("codes/79/nvidia_action", 3, "codes.79.nvidia_action: is 3, not a text"),
        ("sxid/20001/severity", "mild", "sxid.20001.severity: is 'mild'; there are non_fatal"),
        ("actions", ["ignore"], "actions: are ['ignore']; this version knows ignore, watch"),
        ("recovery_actions/0/action", "reset", "recovery_actions[0].action: 'reset' is no action"),
        ("recovery_actions/0/text", "Reboot", "recovery_actions: lack 'Node Reboot Required', which Xid 154 can say"),
        ("recovery_actions/1/text", "Drain P2P", "recovery_actions[3].text: 'Drain P2P' is there already"),
        ("recovery_actions", {}, "recovery_actions: are {}, not a list"),
        ("unused/codes", [79], "unused.codes: 79 is in codes as well"),
        ("version", "soon", "version: 'soon' is no date"),
        ("unknown", ..., "unknown: is missing"),
        ("codes", [79], "codes: is [79], not a mapping"),
        ("sxid", ..., "sxid: is missing"),
    ],
)
def test_what_a_policy_must_have(path: str, value: Any, says: str) -> None:
    found = xid_problems(changed(POLICY, path, value))
    assert any(text.startswith("xid_policy.yml: ") and says in text for text in found), found or "nothing was found"


# The lookup plugins.


def looked_up(module: Any, terms: list[Any], **options: Any) -> list[Any]:
    plugin = module.LookupModule()
    plugin.set_options = lambda **_: None
    plugin.get_option = options.get
    return list(plugin.run(terms))


def test_the_lookup_of_profiles() -> None:
    assert looked_up(gpu_profile_lookup, ["hgx_h100", "pcie_t4"])[1]["product_name"] == "Tesla T4"
    own = {"profiles": {"four": {"like": "pcie_l40s", "gpus": 4}}}
    assert looked_up(gpu_profile_lookup, ["four"], thresholds=own)[0]["gpus"] == 4
    with pytest.raises(AnsibleLookupError, match="no GPU profile 'pcie_l50s'"):
        looked_up(gpu_profile_lookup, ["pcie_l50s"])


def test_the_lookup_of_the_policy() -> None:
    assert looked_up(xid_policy_lookup, [79, "13"]) == [entry_of(POLICY, 79), entry_of(POLICY, 13)]
    assert looked_up(xid_policy_lookup, [13], policy={"codes": {13: {"action": "watch"}}})[0]["action"] == "watch"
    assert looked_up(xid_policy_lookup, []) == [POLICY]
    with pytest.raises(AnsibleLookupError, match=r"onprem_llm_xid_policy: codes\.13\.action: 'wach' is no action"):
        looked_up(xid_policy_lookup, [13], policy={"codes": {13: {"action": "wach"}}})


def test_units_are_those_of_the_contract() -> None:
    assert set(UNITS.values()) == {"bytes", "GB/s", "TFLOP/s", "generation", "lanes", "links", "C", "W"}
