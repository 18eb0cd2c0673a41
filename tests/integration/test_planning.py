# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A plan is what a real server then does, the playbook answers at once, and what it writes is what site.yml takes."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import INVENTORY, ROOT, Run, playbook
from testinfra.host import Host

CONFIGS = ROOT / "tests/fixtures/configs"
TINY = ROOT / "tests/fixtures/models/licence-llama/1.0.0"
UNIT = "onprem-model-server@licence-llama.service"
# As the lab's server is started (inventories/lab).
AS_THE_LAB = {
    "gpus": {"product": "cpu", "memory_bytes": 16 * 2**30},
    "engine": "vllm_cpu",
    "max_model_len": 512,
    "cache_bytes": 2**30,
}


def squeezed(text: str) -> str:
    return " ".join(text.split())


def planned(directory: Path, given: dict[str, Any], *more: str) -> tuple[Run, dict[str, Any]]:
    run = playbook("playbooks/plan.yml", "-e", json.dumps({"plan_directory": str(directory), **given}), *more)
    path = directory / "plan.json"
    return run, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What Python compiles in a first run is there."""
    planned(tmp_path_factory.mktemp("first"), {"model": str(TINY), **AS_THE_LAB})


@pytest.mark.parametrize(
    ("model", "gpus", "settings"),
    [
        ("deepseek-v3", "hgx_h200", {"tensor_parallel": 8}),
        ("qwen3-235b-a22b", "hgx_h200", {"tensor_parallel": 8}),
        ("gpt-oss-120b", "1xH200", {}),
        ("gemma-3-27b-it", "1xH200", {}),
        ("mixtral-8x22b", "hgx_h100", {"tensor_parallel": 8}),
        ("llama-3.1-405b", "hgx_h200", {"tensor_parallel": 8}),
    ],
)
def test_the_playbook_answers_in_three_seconds(
    model: str, gpus: str, settings: dict[str, Any], tmp_path: Path, compiled: None
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run, found = planned(tmp_path, {"model": str(CONFIGS / f"{model}.json"), "gpus": gpus, **settings})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.code == 0, run.output
    assert found["fits"] and (tmp_path / "index.html").stat().st_size > 10000
    # Of processor time, as the machine may be busy with something else; nothing in it waits.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_the_labs_cache_is_what_was_planned(lab_host: Callable[[str], Host], tmp_path: Path) -> None:
    run, found = planned(tmp_path, {"model": str(TINY), **AS_THE_LAB})
    assert run.code == 0, run.output
    log = lab_host("gpu1").check_output(f"journalctl --no-pager --output=cat --unit={UNIT}")
    logged = re.findall(r"CPU KV cache size: ([\d,]+) tokens", log)
    assert logged, log[-3000:]
    assert found["memory"]["kv_cache"]["tokens"] == int(logged[-1].replace(",", ""))


def test_a_comparison_reads_the_labs_server_and_learns_nothing_new(tmp_path: Path) -> None:
    planned(tmp_path, {"model": str(TINY), **AS_THE_LAB})
    store = tmp_path / "corrections.json"
    given = {"plan": str(tmp_path / "plan.json"), "learn": True, "corrections": str(store)}
    run = playbook("-i", INVENTORY, "playbooks/plan_compare.yml", "-e", json.dumps(given))
    assert run.code == 0, run.output
    assert re.search(r"kv_tokens.*\+?0\.0", run.output), run.output


def test_what_is_written_is_taken_by_site_as_it_is(site: Callable[..., Run], tmp_path: Path) -> None:
    """The plan of another deployment of the lab's model becomes the lab's, on paper: preflight has nothing against it."""
    source = {"type": "directory", "path": "/mnt/models/licence-llama/1.0.0"}
    given = {"model": str(TINY), **AS_THE_LAB, "max_model_len": 256, "plan_model_source": source, "plan_model_release": "1.0.0"}
    run, _found = planned(tmp_path, given)
    assert run.code == 0, run.output
    written = tmp_path / "site_variables.yml"
    variables = yaml.safe_load(written.read_text(encoding="utf-8"))
    assert variables["model_server_instances"][0]["max_model_len"] == 256
    tried = site("-e", f"@{written}", "--check")
    assert tried.code == 0, tried.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gpus": "8xB9000"}, "gpus: there is no product 'B9000'"),
        ({"model": "/nowhere/model", "gpus": "1xL4"}, "/nowhere/model"),
        (
            {"model": str(CONFIGS / "llama-3.1-405b.json"), "gpus": "hgx_h100", "tensor_parallel": 8},
            "does not fit: 34.55 GiB are missing",
        ),
        ({"gpus": "8xL40S", "tensor_parallel": 3}, "tensor_parallel 3 does not divide the 40 attention heads"),
        (
            {"gpus": "1xL4", "requests_per_day": "many", "peak_factor": 2, "prompt_tokens": 10, "answer_tokens": 10},
            "requests_per_day",
        ),
        ({"gpus": "1xL4", "data_sensitivity": "L9", "operations_capability": "skilled"}, "L9"),
    ],
)
def test_wrong_input_ends_the_run_with_what_to_set(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    run, _found = planned(tmp_path, {"model": str(CONFIGS / "llama-2-13b.json"), **given})
    assert run.code != 0
    assert squeezed(said) in squeezed(run.output), run.output


def test_the_level_of_the_data_is_weighed(tmp_path: Path) -> None:
    given = {
        "gpus": "hgx_h100",
        "tensor_parallel": 8,
        "data_sensitivity": "L4",
        "compute_need": "medium",
        "operations_capability": "expert",
    }
    run, _found = planned(tmp_path, {"model": str(CONFIGS / "llama-2-13b.json"), **given})
    assert run.code == 0, run.output
    assert "airgapped_cluster" in run.output or "air-gapped" in run.output
    assert "encryption_at_rest" in run.output and "air_gap" in run.output
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "L4" in page


def test_an_inventory_that_misses_a_control_is_refused(site: Callable[..., Run]) -> None:
    run = site("-e", "onprem_llm_data_sensitivity=L3", "--check")
    assert run.code != 0
    told = squeezed(run.output)
    assert "encryption_at_rest" in told and "onprem_llm_attested_controls" in told
    wrong = site("-e", "onprem_llm_data_sensitivity=L5", "--check")
    assert wrong.code != 0 and "L1 (public)" in squeezed(wrong.output)


def test_check_mode_writes_nothing_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    given = {"model": str(CONFIGS / "llama-2-13b.json"), "gpus": "8xA100-SXM4-80GB"}
    run, found = planned(tmp_path / "plan", given, "--check")
    assert run.code == 0 and run.changed["localhost"] == 1 and not found, run.output
    planned(tmp_path / "plan", given)
    again, found = planned(tmp_path / "plan", given)
    assert again.code == 0 and again.changed["localhost"] == 0 and found["fits"]
