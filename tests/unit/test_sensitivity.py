# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What a level demands, whether a host has it, and what a site may change of that."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.onprem.llm.plugins.action.sensitivity_controls import ActionModule
from ansible_collections.onprem.llm.plugins.plugin_utils import _sensitivity
from ansible_collections.onprem.llm.plugins.plugin_utils._sensitivity import (
    ATTESTED,
    LEVELS,
    OWN_CONTROLS,
    SensitivityError,
    checked_attestations,
    checkout_of,
    controls,
    controls_of,
    demanded,
    filled,
    own_patterns,
    problems,
    shipped,
    shown,
)
from ansible_collections.onprem.llm.plugins.test.private_address import is_private
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, meta

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = yaml.safe_load(_sensitivity.FILE.read_text(encoding="utf-8"))
CONDITIONS = {name: control for name, control in SHIPPED["controls"].items() if "condition" in control}
STATEMENTS = {
    name: "by the server team, ticket 4711, 2026-10-02" for name, control in SHIPPED["controls"].items() if "attested" in control
}
DIGEST = "a3f1c2d4e5b60718293a4b5c6d7e8f90a3f1c2d4e5b60718293a4b5c6d7e8f91"
GROUPS = ["gateways", "model_servers", "gpu_hosts"]

# A host that has everything; each test takes one thing away.
WHOLE: dict[str, Any] = {
    "inventory_hostname": "one",
    "group_names": GROUPS,
    "gateway_api_keys": [{"name": "chat", "sha256": DIGEST}],
    "host_journal_max_days": 366,
    "host_time_servers": ["ntp1.bank.example.com", "10.1.1.1"],
    "onprem_llm_own_domains": ["bank.example.com"],
    "host_apt_sources_exclusive": True,
    "host_apt_sources": [{"uris": "http://mirror.bank.example.com/debian file:/mnt/mirror", "suites": "bookworm"}],
    "onprem_llm_apt_proxy": "http://10.0.0.1:3142",
    "onprem_llm_python_index": "https://name:password@packages.bank.example.com/simple",
    "onprem_llm_python_find_links": ["/mnt/wheels"],
    "onprem_llm_gpu_source": "nvidia_mirror",
    "onprem_llm_gpu_repository": "http://mirror/cuda",
    "onprem_llm_pki_dir": "/nonexistent/pki",
    "model_server_allowed_networks": ["10.20.0.10", "fd00::1", "10.20.0.11/32"],
    "model_server_instances": [{"engine": "vllm", "model": "m", "arguments": ["--enforce-eager"], "environment": {"A": "b"}}],
    "model_store_verify": "full",
    "model_store_models": [
        {
            "name": "m",
            "release": "1",
            "manifest_sha256": DIGEST,
            "source": {"type": "http", "url": "https://models.bank.example.com/m"},
        }
    ],
    "acceptance_signing_key": "~/.ssh/acceptance",
    "acceptance_allowed_signers": "/etc/onprem/signers",
    "acceptance_require_signatures": True,
    "onprem_llm_attested_controls": STATEMENTS,
}
MODEL = WHOLE["model_store_models"][0]


def run(level: str | None, variables: Mapping[str, Any], /, **arguments: Any) -> dict[str, Any]:
    """The action plugin, as a task runs it."""
    task_vars = dict(variables)
    if level is not None:
        task_vars["onprem_llm_data_sensitivity"] = level
    loader = DataLoader()
    task = SimpleNamespace(args=arguments, check_mode=False, diff=False, async_val=0, action="sensitivity_controls")
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nonexistent"))
    action = ActionModule(task, connection, None, loader, Templar(loader=loader, variables=task_vars), None)
    return action.run(task_vars=task_vars)


def missing(level: str, variables: Mapping[str, Any] = WHOLE, **changes: Any) -> list[str]:
    return run(level, {**variables, **changes}, enforce=False)["missing"]


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(AnsibleActionFail) as caught:
        run(*arguments, **options)
    return str(caught.value)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The data file with one field changed, or taken away with a value of ``...``."""
    data = deepcopy(SHIPPED)
    *parts, last = path.split("/")
    at: Any = data
    for part in parts:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


# The data file.


def test_the_shipped_file_has_no_problems() -> None:
    assert problems(SHIPPED) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("form", 2, "form: is 2; 1 is wanted"),
        ("levels/L4", ..., "levels: are L1, L2, L3; L1, L2, L3, L4 in this order"),
        ("levels/L2/meaning", "", "levels.L2.meaning: is missing"),
        ("controls/own_time/levels/L4", ..., "own_time.levels: L3 demands it, and L4, which is higher, does not"),
        ("controls/log_retention/levels/L4/days", 100, "log_retention.levels.L4.days: is 100, less than the 184 of L3"),
        ("controls/log_retention/levels/L4", {}, "log_retention.levels: L3 has the numbers days, and L4 "),
        ("controls/log_retention/levels/L3", {"days": True}, "log_retention.levels.L3: is {'days': True}"),
        ("controls/log_retention/levels/L9", {"days": 1}, "log_retention.levels.L9: is no level"),
        ("controls/log_retention/condition", "wanted.weeks > 1", "condition: uses wanted.weeks, which levels.L2 does not have"),
        ("controls/own_time/attested", "Do it.", "own_time.built_in/attested/condition: are 2 of them"),
        ("controls/own_time/condition", ..., "are 0 of them (none); exactly one is wanted"),
        ("controls/own_time/condition", "x is match('\\d')", "own_time.condition: holds a backslash"),
        ("controls/own_time/variables", {}, "own_time.variables: is missing"),
        ("controls/own_time/roles", ..., "own_time.roles: is missing"),
        ("controls/own_time/wanted", ..., "own_time.wanted: is missing or null"),
        ("controls/own_time/applies_to", ["gateway"], "own_time.applies_to: is ['gateway']"),
        ("controls/own_time/clauses", {"iso27002": ["8.17"]}, "clauses.iso27002: is no standard (did you mean iso27001?)"),
        ("controls/own_time/clauses", {"iso27001": "A.8.17"}, "clauses.iso27001: is 'A.8.17'; a list of clauses"),
        ("controls/own_time/applys_to", ["all"], "own_time.applys_to: is no key of such a control (did you mean applies_to?)"),
        ("controls/own_time", "yes", "own_time: is 'yes'; a mapping is wanted"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(path: str, value: Any, said: str) -> None:
    assert any(said in text and text.startswith("sensitivity_controls.yml: ") for text in problems(changed(path, value)))


def test_each_standard_is_named_by_a_control() -> None:
    used = {key for control in SHIPPED["controls"].values() for key in control["clauses"]}
    assert used == set(SHIPPED["standards"])


def test_the_document_of_a_built_in_control_says_so() -> None:
    texts = {
        "gateway_tls": "TLS below 1.3",
        "gateway_logs": "a prompt, an answer or a key cannot get in",
        "model_integrity": "checked file by file",
    }
    built_in = {name: control["built_in"] for name, control in SHIPPED["controls"].items() if "built_in" in control}
    assert set(built_in) == set(texts)
    for name, path in built_in.items():
        assert texts[name] in " ".join((ROOT / path).read_text(encoding="utf-8").split())


def defaults_of(control: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for role in control["roles"]:
        whole.update(yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")))
    return whole


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_knows_no_name_that_is_not_there(name: str) -> None:
    """Each is a default of the control's roles, which a condition sees, or has a default where it stands."""
    control = CONDITIONS[name]
    environment = Environment(autoescape=True)
    for builtin in ("search", "match"):
        environment.tests[builtin] = bool
    for plugin in ("bool", "regex_replace", "flatten", "dict2items", "split"):
        environment.filters[plugin] = str
    for key in ("condition", "found"):
        if key in control:
            text = control[key]
            names = meta.find_undeclared_variables(environment.parse("{{ " + text + " }}"))
            for unknown in names - set(defaults_of(control)) - {"wanted", "known", "found", "inventory_hostname"}:
                assert len(re.findall(rf"\b{unknown}\b(?!')", text)) == len(re.findall(rf"\b{unknown} \| default\(", text)), (
                    unknown
                )


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_variables_to_set_are_some_that_something_reads(name: str) -> None:
    control = CONDITIONS[name]
    places = [ROOT / "roles" / role / "defaults/main.yml" for role in control["roles"]] + [ROOT / "playbooks/acceptance.yml"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in places)
    for variable in control["variables"]:
        assert re.search(rf"\b{variable}\b", text), variable


def test_the_documentation_has_each_control_with_its_levels() -> None:
    text = (ROOT / "docs/data-sensitivity.md").read_text(encoding="utf-8")
    for name, control in SHIPPED["controls"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` "))
        levels = list(control["levels"])
        assert f"| {levels[0]} to L4 |" in row if levels[0] != "L4" else "| L4 |" in row, row
        for numbers in control["clauses"].values():
            for number in numbers:
                assert number in row, (name, number)
    for key in ("public_api", "private_cloud", "single_node", "cluster", "airgapped_cluster"):
        assert f"`{key}`" in text


# Levels.


def test_nothing_is_demanded_where_no_level_is_set() -> None:
    assert run(None, {"inventory_hostname": "one", "group_names": GROUPS}) == {
        "changed": False,
        "level": None,
        "controls": [],
        "missing": [],
    }


@pytest.mark.parametrize("level", ["L5", "l3", "", 3, None, ["L3"]])
def test_a_level_that_is_none_is_refused(level: Any) -> None:
    said = refused(None, {**WHOLE, "onprem_llm_data_sensitivity": level})
    assert "onprem_llm_data_sensitivity: is " in said
    assert "L1 (public), L2 (internal), L3 (confidential), L4 (strictly confidential) is wanted" in said


def test_the_argument_comes_before_the_variable() -> None:
    assert run("L1", WHOLE, level="L2")["level"] == "L2"
    assert "is 'L0'" in refused("L1", WHOLE, level="L0")


def test_a_level_demands_all_that_the_one_below_demands() -> None:
    for lower, higher in zip(LEVELS, LEVELS[1:]):
        assert set(demanded(lower)) < set(demanded(higher))


def test_controls_of_a_level_say_how_they_are_turned_on() -> None:
    found = {item["name"]: item for item in controls_of("L3")}
    assert found["log_retention"]["variables"] == {"host_journal_max_days": 184}
    assert found["log_retention"]["wanted"].startswith("184 days or more")
    assert found["encryption_at_rest"]["how"] == "attested"
    assert found["gateway_tls"]["document"] == "docs/gateway.md"
    assert "ISO/IEC 27001:2022, Annex A: A.5.14, A.8.24" in found["gateway_tls"]["clauses"]
    assert "air_gap" not in found


# Hosts.


@pytest.mark.parametrize("level", LEVELS)
def test_a_host_that_has_everything_misses_nothing(level: str) -> None:
    result = run(level, WHOLE)
    assert result["missing"] == [] and not result.get("failed") and result["changed"] is False
    assert {item["name"] for item in result["controls"]} == set(demanded(level))
    keys = ["name", "title", "state", "why", "variables", "found", "wanted", "clauses"]
    assert all(list(item) == keys for item in result["controls"])


def test_a_host_of_which_the_inventory_says_nothing_misses_what_the_defaults_do_not_have() -> None:
    bare = {"inventory_hostname": "one", "group_names": GROUPS}
    assert missing("L1", bare) == ["client_keys"]
    assert missing("L2", bare) == ["client_keys", "model_server_isolation", "log_retention"]
    assert set(missing("L4", bare)) == {
        *("client_keys", "model_server_isolation", "log_retention", "own_time", "own_packages", "own_python_index"),
        *("own_gpu_repository", "signed_acceptance", "full_model_verification", *STATEMENTS),
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("client_keys", {"gateway_api_keys": []}),
        ("client_keys", {"gateway_api_keys": [{"name": "chat", "sha256": "0" * 64}]}),
        ("client_keys", {"gateway_api_keys": [{"name": "a", "sha256": DIGEST}, {"name": "b", "sha256": "F" * 64}]}),
        (
            "client_keys",
            {
                "gateway_api_keys": [
                    {"name": "a", "sha256": "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"},
                ]
            },
        ),
        ("client_keys", {"gateway_api_keys": [{"name": "chat", "sha256": DIGEST, "state": "revoked"}]}),
        ("model_server_isolation", {"model_server_allowed_networks": ["10.20.0.0/24"]}),
        ("model_server_isolation", {"model_server_allowed_networks": ["10.20.0.10", "fd00::/64"]}),
        ("model_server_isolation", {"model_server_allowed_networks": ["8.8.8.8"]}),
        ("model_server_isolation", {"model_server_allowed_networks": ["any"]}),
        ("model_server_isolation", {"model_server_allowed_networks": ["0.0.0.0/0"]}),
        ("model_server_logs", {"model_server_instances": [{"engine": "vllm", "arguments": ["--enable-log-requests"]}]}),
        ("model_server_logs", {"model_server_instances": [{"engine": "vllm", "arguments": ["--enable_log_outputs"]}]}),
        ("model_server_logs", {"model_server_instances": [{"engine": "llama_cpp", "arguments": ["-lv", "4"]}]}),
        ("model_server_logs", {"model_server_instances": [{"engine": "vllm", "environment": {"VLLM_LOGGING_LEVEL": "debug"}}]}),
        ("model_server_logs", {"model_server_instances": [{"environment": {"VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "1"}}]}),
        ("safe_model_files", {"model_store_models": [{**MODEL, "allow_pickle": True}]}),
        ("pinned_manifests", {"model_store_models": [MODEL, {**MODEL, "name": "n", "manifest_sha256": ""}]}),
        ("pinned_manifests", {"model_store_models": [{key: MODEL[key] for key in ("name", "release", "source")}]}),
        ("own_model_sources", {"model_store_models": [{**MODEL, "source": {"type": "http", "url": "https://example.org/m"}}]}),
        (
            "own_model_sources",
            {"model_store_models": [{**MODEL, "source": {"type": "huggingface", "repo": "a/b", "revision": "c"}}]},
        ),
        ("full_model_verification", {"model_store_verify": "fast"}),
        ("gpus_validated", {"onprem_llm_serve_unvalidated": ["two", "one"]}),
        ("gpus_validated", {"onprem_llm_serve_unvalidated": "one"}),
        ("private_key_custody", {"onprem_llm_pki_dir": str(ROOT / "inventories/example/pki")}),
        ("private_key_custody", {"certificates_mode": "supplied", "certificates_supplied_key": str(ROOT / "key.pem")}),
        ("log_retention", {"host_journal_max_days": 365}),
        ("log_retention", {"host_journal_max_days": "for ever"}),
        ("log_retention", {"host_journal_max_days": -1}),
        ("own_time", {"host_time_servers": []}),
        ("own_time", {"host_time_servers": ["10.1.1.1", "0.debian.pool.ntp.org"]}),
        ("own_packages", {"host_apt_sources_exclusive": False}),
        ("own_packages", {"host_apt_sources": []}),
        (
            "own_packages",
            {"host_apt_sources": [{"uris": "http://mirror/debian http://mirror.example.org/debian", "suites": "x"}]},
        ),
        ("own_packages", {"onprem_llm_apt_proxy": "http://proxy.example.net:3128"}),
        ("own_python_index", {"onprem_llm_python_index": ""}),
        ("own_python_index", {"gpu_probe_python_index": "https://index.example.org/simple"}),
        ("own_python_index", {"onprem_llm_python_extra_indexes": ["https://download.pytorch.org/whl/cu129"]}),
        ("own_python_index", {"framework_python_find_links": ["https://example.org/wheels"]}),
        ("own_gpu_repository", {"onprem_llm_gpu_repository": "https://developer.download.nvidia.com/compute/cuda/repos"}),
        ("own_gpu_repository", {"onprem_llm_gpu_repository": ""}),
        ("own_gpu_repository", {"gpu_repository_container_toolkit_url": "https://nvidia.github.io/libnvidia-container"}),
        ("signed_acceptance", {"acceptance_signing_key": ""}),
        ("signed_acceptance", {"acceptance_allowed_signers": ""}),
        ("signed_acceptance", {"acceptance_require_signatures": False}),
        *((name, {ATTESTED: {key: value for key, value in STATEMENTS.items() if key != name}}) for name in STATEMENTS),
    ],
)
def test_a_control_that_is_taken_away_is_missed_alone(name: str, changes: dict[str, Any]) -> None:
    assert missing("L4", **changes) == [name]


@pytest.mark.parametrize(
    "changes",
    [
        {"host_journal_max_days": 0},
        {"host_journal_max_days": "400"},
        {"host_time_service": "none", "host_time_servers": []},
        {"onprem_llm_gpu_stack": "preinstalled", "onprem_llm_gpu_repository": ""},
        {"onprem_llm_gpu_source": "distribution", "onprem_llm_gpu_repository": ""},
        {"onprem_llm_serve_unvalidated": ["two"]},
        {"model_store_models": [{**MODEL, "allow_pickle": False, "source": {"type": "directory", "path": "/mnt/m"}}]},
        {
            "model_store_models": [{**MODEL, "source": {"type": "huggingface", "repo": "a/b", "revision": "c"}}],
            "model_store_huggingface_endpoint": "https://hub.bank.example.com",
        },
        {"model_server_allowed_networks": []},
    ],
)
def test_other_ways_to_have_a_control(changes: dict[str, Any]) -> None:
    assert missing("L4", **changes) == []


@pytest.mark.parametrize(
    ("level", "narrow", "wide"), [("L2", "10.20.0.0/16", "10.0.0.0/8"), ("L3", "10.20.1.0/24", "10.20.0.0/23")]
)
def test_networks_narrow_with_the_level(level: str, narrow: str, wide: str) -> None:
    assert missing(level, model_server_allowed_networks=[narrow]) == []
    assert missing(level, model_server_allowed_networks=[wide]) == ["model_server_isolation"]


def test_only_the_controls_of_the_hosts_groups_are_demanded() -> None:
    gateway = {item["name"] for item in run("L4", {**WHOLE, "group_names": ["gateways"]})["controls"]}
    assert "gateway_tls" in gateway and "log_retention" in gateway
    assert not gateway & {"model_integrity", "own_gpu_repository", "model_server_isolation"}
    assert {item["name"] for item in run("L4", WHOLE, groups=["gateways"])["controls"]} == gateway


def test_what_is_taken_off_a_host_has_nothing_to_be_protected() -> None:
    assert missing("L4", gateway_state="absent", gateway_api_keys=[]) == []
    assert missing("L4", model_server_state="absent", model_server_allowed_networks=["0.0.0.0/0"]) == []


def test_a_host_that_misses_controls_fails_and_is_told_what_to_set() -> None:
    lacking = {**WHOLE, "host_journal_max_days": 30, ATTESTED: {}, "group_names": ["gateways"]}
    result = run("L3", lacking)
    assert result["failed"] and result["missing"] == [
        "log_retention",
        "encryption_at_rest",
        "central_audit_trail",
        "role_based_access",
    ]
    assert [item["name"] for item in result["controls"]] == result["missing"]
    said = result["msg"]
    assert said.startswith("one misses 4 of the 10 controls that L3 (confidential) demands: (1) log_retention")
    assert 'found {"host_journal_max_days": 30}; wanted 184 days or more' in said
    assert "Set host_journal_max_days: 184" in said
    assert "onprem_llm_attested_controls: {encryption_at_rest: <what was done" in said
    assert "docs/data-sensitivity.md" in said


def test_passwords_and_digests_are_not_shown() -> None:
    lacking = {
        **WHOLE,
        "onprem_llm_python_index": "https://name:opensesame@index.example.org/simple",
        "onprem_llm_apt_proxy": "http://name:opensesame@proxy.example.net:3128",
        "host_apt_sources": [{"uris": "http://name:opensesame@mirror.example.net/", "suites": "x"}],
        "model_store_models": [{**MODEL, "source": {"type": "http", "url": "https://name:opensesame@example.org/m"}}],
        "model_server_instances": [
            {"engine": "vllm", "environment": {"HF_TOKEN": "opensesame", "VLLM_DEBUG_LOG_X": "opensesame"}}
        ],
        "gateway_api_keys": [{"name": "chat", "sha256": "0" * 64}],
    }
    result = run("L4", lacking)
    assert "index.example.org" in result["msg"] and "VLLM_DEBUG_LOG_X" in result["msg"]
    assert "opensesame" not in str(result) and "0" * 64 not in str(result)


def test_a_variable_that_cannot_be_evaluated_is_an_error_that_names_the_control() -> None:
    assert "own_time: " in refused("L3", {**WHOLE, "host_time_servers": 5})


# Statements.


@pytest.mark.parametrize(
    ("attested", "said"),
    [
        ({"encription_at_rest": "LUKS2 everywhere"}, "no control 'encription_at_rest' (did you mean encryption_at_rest?)"),
        ({"encryption_at_rest": ""}, "encryption_at_rest: is ''; say in 10 characters or more"),
        ({"encryption_at_rest": "   yes      "}, "say in 10 characters or more"),
        ({"encryption_at_rest": None}, "encryption_at_rest: is missing or null"),
        ({"encryption_at_rest": True}, "encryption_at_rest: is True"),
        ({"own_time": "our own clocks, all of them"}, "own_time: is turned on by host_time_servers, and no statement stands in"),
        ({"gateway_tls": "it has TLS, look at it"}, "gateway_tls: is built in and needs no statement"),
        (["encryption_at_rest"], "a mapping from controls to statements is wanted"),
    ],
)
def test_a_statement_that_states_nothing_is_refused(attested: Any, said: str) -> None:
    with pytest.raises(SensitivityError) as caught:
        checked_attestations(attested, controls())
    assert str(caught.value).startswith("onprem_llm_attested_controls: ") and said in str(caught.value)


def test_a_statement_is_returned_as_what_was_found() -> None:
    found = {item["name"]: item for item in run("L3", WHOLE)["controls"]}
    assert found["encryption_at_rest"]["state"] == "attested"
    assert found["encryption_at_rest"]["found"] == STATEMENTS["encryption_at_rest"]


def test_wrong_statements_are_refused_whatever_the_level_demands() -> None:
    assert "air_gab" in refused("L1", {**WHOLE, ATTESTED: {"air_gab": "a network of its own"}})


# What a site adds.


OWN = {
    "title": "Corporate zone",
    "why": "The rules of the corporation.",
    "levels": {"L2": {}, "L3": {}, "L4": {}},
    "clauses": {},
    "applies_to": ["all"],
    "roles": ["host"],
    "condition": "corp_zone | default('') == 'red'",
    "wanted": "red",
    "variables": {"corp_zone": "red"},
}


def own_refused(own: Any) -> str:
    with pytest.raises(SensitivityError) as caught:
        controls(own)
    return str(caught.value)


def test_a_site_adds_a_control() -> None:
    assert "corp_zone" in demanded("L2", ["gateways"], {"corp_zone": OWN})
    attested = {key: OWN[key] for key in ("title", "why", "levels", "clauses", "applies_to")} | {"attested": "Do it."}
    assert missing("L2", **{OWN_CONTROLS: {"corp_zone": attested}}) == ["corp_zone"]
    stated = {**STATEMENTS, "corp_zone": "moved on 2026-10-02"}
    assert missing("L2", **{OWN_CONTROLS: {"corp_zone": attested}, ATTESTED: stated}) == []


def test_a_raised_number_holds_for_the_levels_above() -> None:
    levels = controls({"log_retention": {"levels": {"L2": {"days": 300}}}})["log_retention"]["levels"]
    assert levels == {"L2": {"days": 300}, "L3": {"days": 300}, "L4": {"days": 366}}
    assert missing("L2", host_journal_max_days=250) == []
    own = {OWN_CONTROLS: {"log_retention": {"levels": {"L2": {"days": 300}}}}}
    assert missing("L2", host_journal_max_days=250, **own) == ["log_retention"]


def test_a_control_of_a_higher_level_is_demanded_lower() -> None:
    assert "own_time" not in demanded("L2")
    assert "own_time" in demanded("L2", None, {"own_time": {"levels": {"L2": {}}}})
    assert controls() == SHIPPED["controls"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"log_retention": {"levels": {"L4": {"days": 30}}}},
            "log_retention.levels.L4.days: is 30, and the collection demands 366",
        ),
        ({"log_retention": {"condition": "true"}}, "log_retention: sets condition; of a control of the collection only levels"),
        ({"log_retention": {"levels": {"L1": {}}}}, "L1 has the numbers , and L2 days"),
        ({"log_retention": {"levels": {"L2": {"days": "many"}}}}, "log_retention.levels.L2: is {'days': 'many'}"),
        ({"log_retention": None}, "log_retention: is missing or null"),
        ({"log_retentoin": {"levels": {"L2": {"days": 400}}}}, "no control 'log_retentoin' (did you mean log_retention?)"),
        ({"own_time": {"levels": {"L1": {}}}}, "own_time.levels: L1 demands it, and L2, which is higher, does not"),
        ({"corp_zone": {**OWN, "roles": []}}, "corp_zone.roles: is missing"),
        ({"corp_zone": {key: OWN[key] for key in OWN if key != "condition"}}, "corp_zone.built_in/attested/condition: are 0"),
        ({"Corp Zone": OWN}, "'Corp Zone': is not a name"),
        ("more", "a mapping from names to controls is wanted"),
    ],
)
def test_a_site_cannot_take_away_or_make_weaker(own: Any, said: str) -> None:
    assert said in own_refused(own)
    assert own_refused(own).startswith("onprem_llm_sensitivity_controls: ")


@pytest.mark.skipif(not hasattr(Templar, "evaluate_conditional"), reason="ansible-core 2.18 trusts every text")
def test_a_condition_that_something_computed_is_not_evaluated() -> None:
    assert "corp_zone: condition: cannot be evaluated" in refused("L2", {**WHOLE, OWN_CONTROLS: {"corp_zone": OWN}})
    with_found = {**OWN, "found": "corp_zone"}
    assert "corp_zone: found: was computed" in refused("L2", {**WHOLE, OWN_CONTROLS: {"corp_zone": with_found}})


@pytest.mark.parametrize(("zone", "state"), [("red", "on"), ("green", "missing")])
def test_a_condition_of_the_inventory_is_evaluated(tmp_path: Path, zone: str, state: str) -> None:
    path = tmp_path / "site.yml"
    path.write_text(yaml.safe_dump({OWN_CONTROLS: {"corp_zone": {**OWN, "roles": ["host"]}}}), encoding="utf-8")
    try:
        inventory = DataLoader().load_from_file(str(path), trusted_as_template=True)
    except TypeError:  # ansible-core 2.18
        inventory = DataLoader().load_from_file(str(path))
    found = run("L2", {**WHOLE, **inventory, "corp_zone": zone}, enforce=False)["controls"]
    assert next(item for item in found if item["name"] == "corp_zone")["state"] == state


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1/debian",
        "https://172.16.0.1:8443",
        "https://172.31.255.255/simple",
        "http://192.168.1.2/",
        "http://127.0.0.1:3142",
        "http://[fd00::5]/x",
        "http://mirror/debian",
        "https://mirror.example.internal/simple",
        "HTTPS://Mirror.Corp.Example.COM/simple",
        "https://corp.example.com",
        "https://name:pa%40ss@packages.corp.example.com/simple",
        "mirror+http://mirror.lan/list",
        "file:///mnt/mirror",
        "file:/mnt/mirror",
        "/mnt/wheels",
        "cdrom:[Debian]/",
    ],
)
def test_an_address_of_the_site(address: str) -> None:
    assert re.match(own_patterns(["corp.example.com"])["own_address"], address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://mirror.example.org/debian",
        "https://8.8.8.8/",
        "https://172.32.0.1/",
        "https://172.15.0.1/",
        "https://192.169.0.1/",
        "https://10.0.0.256/",
        "https://10.0.0.1.example.org/",
        "http://10.0.0.1@example.org/",
        "http://name:10.0.0.1@example.org",
        "http://mirror.internal\\@example.org/",
        "http://mirror.internal.example.org/",
        "http://notcorp.example.com/",
        "http://example.com/",
        "http://corp.example.com.example.org/",
        "http://134744072/",
        "http://0x08080808/",
        "http://[2606:4700::1]/",
        "wheels",
        "none set (the public one)",
        "https:// mirror/",
    ],
)
def test_an_address_of_somebody_else(address: str) -> None:
    assert not re.match(own_patterns(["corp.example.com"])["own_address"], address)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *(
            ("ntp1.example.internal", True),
            ("ntp1", True),
            ("10.1.1.1", True),
            ("fd12::1", True),
            ("ntp.corp.example.com.", True),
        ),
        *(("pool.ntp.org", False), ("1.1.1.1", False), ("10.1.1.1 pool.ntp.org", False), ("", False), ("2001:db8::1", False)),
    ],
)
def test_a_host_of_the_site(host: str, own: bool) -> None:
    assert bool(re.match(own_patterns(["corp.example.com"])["own_host"], host)) is own


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (["com"], "is 'com' in the list; a domain of two parts or more is wanted"),
        (["github.com"], "github.com is not the site's own"),
        (["raw.githubusercontent.com"], "githubusercontent.com is everybody's"),
        (["10.0"], "is '10.0' in the list"),
        (["a b.com"], "a domain of two parts"),
        ([5], "is 5 in the list"),
        ("corp.example.com", "a list of domains"),
    ],
)
def test_a_domain_that_cannot_be_the_sites(domains: Any, said: str) -> None:
    with pytest.raises(SensitivityError, match="onprem_llm_own_domains") as caught:
        own_patterns(domains)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("network", "private"),
    [
        *(("10.0.0.0/8", True), ("192.168.3.4", True), ("fd00::/48", True), ("::1", True), ("172.16.0.0/12", True)),
        *(
            ("any", False),
            ("localhost", False),
            ("0.0.0.0/0", False),
            ("8.8.8.8", False),
            ("::/0", False),
            ("2001:db8::/48", False),
        ),
        *(("10.0.0.0/8 0.0.0.0/0", False), ("10.0.0.0-10.0.0.9", False), ("", False)),
    ],
)
def test_a_private_network(network: str, private: bool) -> None:
    assert bool(re.match(own_patterns()["private_network"], network)) is private
    assert not private or is_private(network)


# Keys and checkouts.


def test_a_key_in_a_checkout_is_found_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "site/.git").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "site", target_is_directory=True)
    assert checkout_of(tmp_path / "site/inventory/pki") == str(tmp_path / "site")
    assert checkout_of(tmp_path / "link/pki") == str(tmp_path / "site")
    assert checkout_of(tmp_path / "pki") == ""


def test_a_worktree_is_a_checkout_too(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /elsewhere\n")
    assert checkout_of(tmp_path / "pki") == str(tmp_path)


def test_a_supplied_key_may_lie_in_a_checkout_where_it_is_encrypted(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    key = tmp_path / "key.pem"
    supplied = {"certificates_mode": "supplied", "certificates_supplied_key": str(key)}
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    assert missing("L2", **supplied) == ["private_key_custody"]
    key.write_text("$ANSIBLE_VAULT;1.1;AES256\n61\n")
    assert missing("L2", **supplied) == []


# Small things.


def test_numbers_are_filled_in() -> None:
    assert filled({"a": "{days}", "b": ["{days} days", "{other}"], "c": True}, {"days": 92}) == {
        "a": 92,
        "b": ["92 days", "{other}"],
        "c": True,
    }


def test_shown_values_are_plain() -> None:
    assert shown({"a": ("https://u:p@h/x", 1, 1.5, None, True)}) == {"a": ["https://h/x", 1, 1.5, None, True]}


def test_the_file_is_not_changed_by_whoever_gets_it() -> None:
    shipped()["controls"].clear()
    assert controls() == SHIPPED["controls"]


@given(days=st.integers(0, 500), prefix=st.integers(8, 32))
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_level_misses_the_one_above_misses_too(days: int, prefix: int) -> None:
    changes = {"host_journal_max_days": days, "model_server_allowed_networks": [f"10.0.0.0/{prefix}"]}
    lacking = [set(missing(level, **changes)) for level in LEVELS]
    assert lacking[0] <= lacking[1] <= lacking[2] <= lacking[3]


def test_nothing_of_the_roles_is_evaluated_without_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[ActionModule.__module__]
    monkeypatch.setattr(module, "HostView", None)
    assert run(None, WHOLE)["level"] is None
