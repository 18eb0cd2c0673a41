# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as inventory variables: what the roles themselves accept, with no GPU, port or name given twice."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.onprem.llm.plugins.filter.engine_instances import engine_instances
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import ModelError
from ansible_collections.onprem.llm.plugins.module_utils._model_deployment import deployment_of, model_of
from ansible_collections.onprem.llm.plugins.module_utils._model_plan import make_plan, plan_from
from ansible_collections.onprem.llm.plugins.module_utils._model_search import as_deployment, search
from ansible_collections.onprem.llm.plugins.plugin_utils._plan_inventory import as_yaml, inventory_of, naming
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import hardware, planning_data
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "tests/fixtures/configs"
TINY = ROOT / "tests/fixtures/models/licence-llama/1.0.0"
ROLE = ROOT / "roles/model_server"
TABLE = yaml.safe_load((ROLE / "vars/main/engines.yml").read_text(encoding="utf-8"))["__model_server_engines"]
DATA = planning_data()
GIB = 2**30
SOURCE = {"model_source": {"type": "http", "url": "https://models.example.internal/m/1"}, "model_release": "1"}
DEFAULTS = {
    "address": "10.0.0.5",
    "port": 8000,
    "model_root": "/var/lib/onprem/models",
    "environment_root": "/opt/onprem/environments",
    "ready_seconds": 900,
    "drain_seconds": 120,
    "memory_max_bytes": 0,
    "cpu_cores": 0,
    "role_path": str(ROLE),
}
WORK = {"requests_per_day": 100000, "peak_factor": 3, "prompt_tokens": 500, "answer_tokens": 150, "slo": {"itl_ms": 100}}
CPU = {"product": "xeon_8480", "memory_bytes": 64 * GIB}


@cache
def _plan(model: str, gpus: str, rest: str) -> dict[str, Any]:
    settings, quantisation, workload = json.loads(rest)
    request = {"model": model, "gpus": json.loads(gpus), "settings": settings, "workload": workload, "quantisation": quantisation}
    return plan_from(request, DATA, hardware)


def plan(name: str, gpus: Any, quantisation: str | None = None, workload: Any = None, **settings: Any) -> dict[str, Any]:
    model = str(CONFIGS / f"{name}.json") if "/" not in name else name
    # A copy of its own for each test.
    return json.loads(json.dumps(_plan(model, json.dumps(gpus), json.dumps([settings, quantisation, workload]))))


def tiny(**settings: Any) -> dict[str, Any]:
    return plan(str(TINY), CPU, **{"max_model_len": 512, "cache_bytes": GIB, **settings})


def options(role: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"][
        "main"
    ]["options"]


def accepted(variables: dict[str, Any]) -> list[dict[str, Any]]:
    """What the roles make of the variables, which they must take."""
    for role in ("model_store", "model_server", "gateway"):
        mine = {name: value for name, value in variables.items() if name.startswith(f"{role}_")}
        checked = ArgumentSpecValidator(options(role)).validate(mine)
        assert not checked.error_messages, checked.error_messages
    known = set(options("model_store")) | set(options("model_server")) | set(options("gateway"))
    assert set(variables) <= known
    return engine_instances(variables["model_server_instances"], TABLE, variables["model_store_models"], DEFAULTS)


def command(instance: dict[str, Any]) -> list[str]:
    lines = instance["files"][0]["content"].splitlines()
    return shlex.split(next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2])


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def environment(variables: dict[str, Any], number: int = 0) -> dict[str, str]:
    return variables["model_server_instances"][number].get("environment", {})


# --- what the roles take ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpus", "settings"),
    [
        ("llama-2-13b", "8xA100-SXM4-80GB", {}),
        ("llama-2-13b", "8xA100-SXM4-80GB", {"quantisation": "fp8", "tensor_parallel": 2, "workload": WORK}),
        ("llama-3.1-8b", "4xT4", {"dtype": "float16", "max_model_len": 4096, "tensor_parallel": 2, "cuda_graphs": False}),
        ("deepseek-v3", "8xH200-SXM5-141GB", {"data_parallel": 8, "expert_parallel": True, "kv_cache_dtype": "fp8"}),
        ("gemma-3-27b-it", "8xL40S", {"pipeline_parallel": 2, "vision": False, "prefix_caching": False, "max_model_len": 8192}),
        (str(TINY), CPU, {"max_model_len": 512, "cache_bytes": GIB}),
    ],
)
def test_the_roles_take_the_variables(name: str, gpus: Any, settings: dict[str, Any]) -> None:
    found = plan(name, gpus, **dict(settings))
    made = inventory_of(found, SOURCE)
    instances = accepted(made["variables"])
    assert len(instances) == found["settings"]["replicas"]
    assert made["needed"] == []
    text = as_yaml(found, SOURCE)
    assert yaml.safe_load(text) == made["variables"]
    for instance in instances:
        words = command(instance)
        assert option(words, "--max-model-len") == str(found["settings"]["max_model_len"])
        for key, name_of in (("tensor_parallel", "--tensor-parallel-size"), ("data_parallel", "--data-parallel-size")):
            assert found["settings"][key] == (int(option(words, name_of)) if name_of in words else 1)


def test_settings_become_the_engines_options() -> None:
    found = plan("gemma-3-27b-it", "8xL40S", pipeline_parallel=2, vision=False, prefix_caching=False, max_model_len=8192)
    words = command(accepted(inventory_of(found, SOURCE)["variables"])[0])
    assert option(words, "--pipeline-parallel-size") == "2"
    assert "--no-enable-prefix-caching" in words
    assert json.loads(option(words, "--limit-mm-per-prompt")) == {"image": 0, "video": 0}
    assert option(words, "--gpu-memory-utilization") == "0.92"
    assert option(words, "--max-num-seqs") == str(found["settings"]["max_num_seqs"])
    assert option(words, "--max-num-batched-tokens") == str(found["settings"]["max_num_batched_tokens"])
    assert not {"--kv-cache-dtype", "--quantization", "--dtype", "--enforce-eager", "--tensor-parallel-size"} & set(words)
    other = plan("llama-2-13b", "1xH100-SXM5-80GB", "fp8", dtype="bfloat16", kv_cache_dtype="fp8", cuda_graphs=False)
    words = command(accepted(inventory_of(other, SOURCE)["variables"])[0])
    assert [option(words, name) for name in ("--quantization", "--kv-cache-dtype", "--dtype")] == ["fp8", "fp8", "bfloat16"]
    assert "--enforce-eager" in words


def test_replicas_have_gpus_ports_and_names_of_their_own() -> None:
    found = plan("llama-2-13b", "8xA100-SXM4-80GB", tensor_parallel=2)
    variables = inventory_of(found, {**SOURCE, "port": 9000})["variables"]
    instances = variables["model_server_instances"]
    assert [one["environment"]["CUDA_VISIBLE_DEVICES"] for one in instances] == ["0,1", "2,3", "4,5", "6,7"]
    assert {one["environment"]["CUDA_DEVICE_ORDER"] for one in instances} == {"PCI_BUS_ID"}
    assert [one["port"] for one in instances] == [9000, 9001, 9002, 9003]
    assert [one["name"] for one in instances] == [f"llama-2-13b-{number}" for number in range(4)]
    assert {one["model"] for one in instances} == {"llama-2-13b"}


@effort(max_examples=60)
@given(count=some.integers(1, 64), gpus=some.integers(1, 64), replicas=some.integers(1, 64))
def test_no_gpu_is_given_twice(count: int, gpus: int, replicas: int) -> None:
    found = plan("llama-2-13b", "1xA100-SXM4-80GB")
    found["hardware"]["count"] = count
    found["settings"].update(replicas=replicas, gpus=gpus, tensor_parallel=gpus)
    if replicas * gpus > count:
        with pytest.raises(ModelError, match=rf"want {replicas * gpus} GPUs, and the host has {count}"):
            inventory_of(found, SOURCE)
        return
    instances = inventory_of(found, SOURCE)["variables"]["model_server_instances"]
    taken = [gpu for one in instances for gpu in one["environment"]["CUDA_VISIBLE_DEVICES"].split(",")]
    assert len(taken) == len(set(taken)) == replicas * gpus
    assert all(0 <= int(gpu) < count for gpu in taken)
    assert len({one["port"] for one in instances}) == len({one["name"] for one in instances}) == replicas


def test_the_gateway_balances_over_all_replicas_by_itself() -> None:
    """Its default for gateway_backends, with these variables on two hosts."""
    variables = inventory_of(plan("llama-2-13b", "8xA100-SXM4-80GB", tensor_parallel=4), SOURCE)["variables"]
    assert "gateway_backends" not in variables
    defaults = yaml.safe_load((ROOT / "roles/gateway/defaults/main.yml").read_text(encoding="utf-8"))
    template = jinja2.nativetypes.NativeEnvironment().from_string(defaults["gateway_backends"])
    hosts = {name: {**variables, "ansible_host": f"10.0.0.{number}"} for number, name in enumerate(("gpu1", "gpu2"), 1)}
    backends = template.render(gateway_model_server_hosts=list(hosts), hostvars=hosts)
    assert [(one["name"], one["address"], one["port"]) for one in backends] == [
        ("gpu1-llama-2-13b-0", "10.0.0.1", 8000),
        ("gpu1-llama-2-13b-1", "10.0.0.1", 8001),
        ("gpu2-llama-2-13b-0", "10.0.0.2", 8000),
        ("gpu2-llama-2-13b-1", "10.0.0.2", 8001),
    ]


def test_the_gateways_limits_are_raised_where_they_would_hold_requests_back() -> None:
    few = inventory_of(plan("llama-2-13b", "1xA100-SXM4-80GB", max_num_seqs=256), SOURCE)["variables"]
    assert not [name for name in few if name.startswith("gateway_")]
    many = plan("llama-2-13b", "1xA100-SXM4-80GB", max_num_seqs=512)
    assert inventory_of(many, SOURCE)["variables"]["gateway_backend_max_connections"] == 512
    busy = plan("llama-2-13b", "8xH100-SXM5-80GB", workload=WORK)
    busy["service"]["concurrency"] = 400
    assert inventory_of(busy, SOURCE)["variables"]["gateway_max_connections"] == 6400


# --- other engines ---------------------------------------------------------------------------------------------------


def test_a_cpu_gets_its_cache_in_whole_gib() -> None:
    variables = inventory_of(tiny(), SOURCE)["variables"]
    assert environment(variables) == {"VLLM_CPU_KVCACHE_SPACE": "1"}
    (instance,) = accepted(variables)
    assert instance["engine"] == "vllm_cpu"
    assert "--enforce-eager" in command(instance)
    # The role refuses a limit under what the engine takes besides.
    assert instance["memory_bytes"] + GIB < variables["model_server_instances"][0]["memory_max_bytes"] <= CPU["memory_bytes"]
    odd = tiny(cache_bytes=5 * GIB // 2)
    assert environment(inventory_of(odd, SOURCE)["variables"]) == {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert "2 of the 2.50 that were planned" in as_yaml(odd, SOURCE)
    with pytest.raises(ModelError, match="whole GiB on a CPU, and 1000000000 bytes are less than one"):
        inventory_of(tiny(cache_bytes=10**9), SOURCE)


def test_a_cpu_without_a_given_cache_gets_what_surely_fits() -> None:
    found = plan(str(TINY), CPU, max_model_len=512)
    low = found["memory"]["kv_cache"]["low_bytes"]
    assert environment(inventory_of(found, SOURCE)["variables"]) == {"VLLM_CPU_KVCACHE_SPACE": str(low // GIB)}


def test_llama_cpp_gets_the_context_of_all_slots() -> None:
    found = plan("llama-3.1-8b", "2xRTX-4090", "q4_k_m", engine="llama_cpp", max_model_len=8192, slots=4, kv_cache_dtype="q8_0")
    inputs = {**SOURCE, "program": "/opt/llama.cpp/llama-server"}
    made = inventory_of(found, inputs)
    (one,) = made["variables"]["model_server_instances"]
    assert one["max_model_len"] == 32768
    assert one["program"] == "/opt/llama.cpp/llama-server"
    assert any("GGUF" in sentence and "file" in sentence for sentence in made["needed"])
    # The site adds the name of its file.
    one["file"] = "model.gguf"
    words = command(accepted(made["variables"])[0])
    assert option(words, "--ctx-size") == "32768"
    assert [option(words, name) for name in ("--parallel", "--cache-type-k", "--cache-type-v")] == ["4", "q8_0", "q8_0"]
    assert option(words, "--split-mode") == "layer"
    assert int(option(words, "--n-gpu-layers")) > 32


def test_a_program_that_nobody_named_is_asked_for_and_not_guessed() -> None:
    found = plan("llama-3.1-8b", "1xRTX-4090", "q4_k_m", engine="llama_cpp", max_model_len=8192)
    made = inventory_of(found, SOURCE)
    assert any(sentence.startswith("program:") for sentence in made["needed"])
    assert "the path of llama-server" in as_yaml(found, SOURCE)
    with pytest.raises(AnsibleFilterError, match="needs 'program'"):
        engine_instances(made["variables"]["model_server_instances"], TABLE, made["variables"]["model_store_models"], DEFAULTS)


def test_the_file_of_a_gguf_is_named() -> None:
    found = plan("llama-3.1-8b", "1xRTX-4090", "q4_k_m", engine="llama_cpp", max_model_len=8192)
    found["model"].update(path="/srv/models/llama-3.1-8b/2026-10-01/llama-Q4_K_M.gguf", name="llama-Q4_K_M.gguf")
    made = inventory_of(found, {"program": "/opt/llama-server"})
    assert made["needed"] == []
    assert made["variables"]["model_server_instances"][0]["file"] == "llama-Q4_K_M.gguf"
    assert made["variables"]["model_store_models"][0]["source"]["path"] == "/srv/models/llama-3.1-8b/2026-10-01"
    accepted(made["variables"])


# --- the model -------------------------------------------------------------------------------------------------------


def test_a_local_directory_is_the_source() -> None:
    made = inventory_of(tiny())
    assert made["variables"]["model_store_models"] == [
        {"name": "licence-llama", "release": "1.0.0", "source": {"type": "directory", "path": str(TINY)}}
    ]
    accepted(made["variables"])
    assert "SHA256SUMS" in as_yaml(tiny())


def test_without_a_source_the_variable_is_left_out_and_said() -> None:
    found = plan("llama-2-13b", "1xA100-SXM4-80GB")
    made = inventory_of(found)
    assert "model_store_models" not in made["variables"]
    text = as_yaml(found)
    assert "# - model_store_models of the site must have the model llama-2-13b" in text
    assert yaml.safe_load(text) == made["variables"]
    # With the site's own the rest is as it should be.
    models = [{"name": "llama-2-13b", "release": "x"}]
    assert engine_instances(made["variables"]["model_server_instances"], TABLE, models, DEFAULTS)


def test_an_operators_source_is_taken_as_it_is() -> None:
    source = {"type": "http", "url": "http://mirror.example.internal/m", "manifest_sha256": "0" * 64, "keep": 2}
    made = inventory_of(tiny(), {"model_source": source, "model_release": "2026-10-01", "model_name": "chat"})
    assert made["variables"]["model_store_models"] == [
        {
            "name": "chat",
            "release": "2026-10-01",
            "source": {"type": "http", "url": "http://mirror.example.internal/m"},
            "manifest_sha256": "0" * 64,
            "keep": 2,
        }
    ]
    accepted(made["variables"])
    hub = {"type": "huggingface", "repo": "a/b", "revision": "f" * 40}
    found = plan("llama-2-13b", "1xA100-SXM4-80GB")
    assert inventory_of(found, {"model_source": hub})["variables"]["model_store_models"][0]["release"] == "f" * 12
    assert "1 stands for the first" in as_yaml(found, {"model_source": SOURCE["model_source"]})


def test_files_in_another_precision_are_asked_for() -> None:
    planned = plan("llama-2-13b", "1xA100-SXM4-80GB", "w4a16")
    made = inventory_of(planned, SOURCE)
    assert len(made["needed"]) == 1
    assert "must be quantised as w4a16 already" in made["needed"][0]
    assert "--quantization" not in made["variables"]["model_server_instances"][0]["arguments"]
    # Made while loading, or there already: nothing is needed.
    assert inventory_of(plan("llama-2-13b", "1xA100-SXM4-80GB", "fp8"), SOURCE)["needed"] == []
    assert inventory_of(plan("qwen2.5-72b-instruct-awq", "1xA100-SXM4-80GB", max_model_len=4096), SOURCE)["needed"] == []


def test_a_directory_in_16_bits_is_no_source_of_quantised_files(tmp_path: Path) -> None:
    folder = tmp_path / "llama-2-13b" / "2026-10-01"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((CONFIGS / "llama-2-13b.json").read_text(encoding="utf-8"), encoding="utf-8")
    plain = inventory_of(plan(str(folder), "1xA100-SXM4-80GB"))
    assert plain["variables"]["model_store_models"][0]["release"] == "2026-10-01"
    other = inventory_of(plan(str(folder), "1xA100-SXM4-80GB", "w4a16"))
    assert "model_store_models" not in other["variables"]
    assert other["variables"]["model_server_instances"][0]["model"] == "llama-2-13b"
    assert len(other["needed"]) == 2


@pytest.mark.parametrize(
    ("model", "inputs", "wanted"),
    [
        ({"name": "Llama-3.1-8B"}, {}, ("llama-3-1-8b", "")),
        ({"name": "meta-llama/Llama-2-13b-hf"}, {}, ("llama-2-13b-hf", "")),
        ({"name": "explicit numbers"}, {}, ("explicit-numbers", "")),
        ({"name": "1.0.0", "path": "/srv/models/my model/1.0.0"}, {}, ("my-model", "1.0.0")),
        ({"name": "1.0.0", "path": "/srv/models/m/1.0.0/config.json"}, {"model_release": "2"}, ("m", "2")),
        ({"name": "x-Q4.gguf", "path": "/srv/x-Q4.gguf"}, {"model_name": "Chat"}, ("chat", "")),
    ],
)
def test_names_are_made_of_what_units_and_paths_take(model: Any, inputs: Any, wanted: tuple[str, str]) -> None:
    assert naming(model, inputs) == wanted


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"source": {}, "sauce": 1}, r"inputs\.sauce: there is no such input; known are model_source"),
        ({"model_source": "/srv/models"}, r"model_source: '/srv/models' is no mapping"),
        ({"model_source": {"type": "ftp"}}, r"model_source\.type: 'ftp' is not one of directory, http, huggingface"),
        ({"model_source": {"type": "http"}}, r"model_source\.url: is needed for a source of type http"),
        ({"model_source": {"type": "huggingface", "repo": "a/b"}}, r"model_source\.revision: is needed"),
        ({"model_source": {"type": "http", "url": "x", "sha": 1}}, r"model_source\.sha: there is no such key"),
        ({"model_release": "a b"}, r"inputs\.model_release: 'a b' is not made of"),
        ({"model_name": "---"}, r"inputs\.model_name: found '---'"),
        ({"port": 65536}, r"inputs\.port: found 65536; wanted 1 to 65535"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        inventory_of(tiny(), {name: value for name, value in inputs.items() if name != "source"})


def test_a_plan_that_fails_makes_no_servers() -> None:
    with pytest.raises(ModelError, match=r"a plan that fails makes no servers: .* does not fit"):
        inventory_of(plan("llama-3.1-405b", "1xA100-SXM4-80GB", max_model_len=1024), SOURCE)


def test_a_models_name_cannot_leave_its_comment_or_become_a_template() -> None:
    found = tiny()
    found["model"]["name"] = "x\nmodel_server_state: absent\n# \x1b[31m"
    found["summary"] = "one\u2028two: {{ lookup('pipe', 'id') }}\nmodel_server_state: absent"
    text = as_yaml(found, SOURCE)
    assert "model_server_state" not in yaml.safe_load(text)
    assert "\x1b" not in text
    assert all(line.startswith("#") for line in text.split("---\n")[0].splitlines())
    found["model"]["path"] = "/srv/{{ lookup('pipe', 'id') }}"
    with pytest.raises(ModelError, match="what Ansible takes for a template"):
        inventory_of(found)


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_file_says_what_it_was_made_from() -> None:
    found = plan("llama-2-13b", "8xA100-SXM4-80GB", workload=WORK)
    text = as_yaml(found, SOURCE, date="2026-11-26")
    head = " ".join(text.split("---\n")[0].replace("#", " ").split())
    assert "Made by playbooks/plan.yml on 2026-11-26." in head
    assert f"{found['verdict']}: {' '.join(found['summary'].split())}" in head
    assert "8 x NVIDIA A100-SXM4-80GB, vllm 0.32.0" in head
    assert "100,000 requests a day, peak factor 3" in head
    assert "between tokens 100 ms" in head
    assert f"The workload needs {found['service']['replicas_needed']} of them." in text
    assert text == as_yaml(found, SOURCE, date="2026-11-26")
    assert "&id" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_another_version_of_the_engine_is_said() -> None:
    made = inventory_of(plan("llama-2-13b", "1xA100-SXM4-80GB", engine_version="0.21.0"), SOURCE)
    assert "installs 0.32.0" in made["needed"][0]


def test_the_planners_engine_versions_are_those_of_the_role() -> None:
    for name in ("vllm", "vllm_cpu"):
        assert DATA["engines"]["engines"][name]["version"] in TABLE[name]["python"]["lock"]


def test_a_chosen_deployment_becomes_servers() -> None:
    device, count = hardware("8xH100-SXM5-80GB")
    model = model_of(str(CONFIGS / "gpt-oss-120b.json"))
    engines = DATA["engines"]["engines"]
    given_ = {"max_model_len": 16384}
    result = search(model, device, count, given_, DATA, WORK)
    for entry in [one for one in result["deployments"] if one["front"]]:
        deployment = as_deployment(entry, model, device, count, given_, engines)
        variables = inventory_of(make_plan(deployment, DATA, WORK), SOURCE)["variables"]
        instances = accepted(variables)
        assert len(instances) == entry["replicas"]
        words = command(instances[0])
        assert option(words, "--max-num-seqs") == str(entry["settings"]["max_num_seqs"])
        assert ("--enable-expert-parallel" in words) is entry["settings"]["expert_parallel"]


def test_sockets_that_share_a_host_are_said() -> None:
    device, count = hardware({**CPU, "count": 2})
    deployment = deployment_of(
        model_of(str(TINY)), device, count, {"max_model_len": 512, "cache_bytes": GIB}, DATA["engines"]["engines"]
    )
    made = inventory_of(make_plan(deployment, DATA), SOURCE)
    assert len(made["variables"]["model_server_instances"]) == 2
    assert any("cpu_set" in sentence for sentence in made["needed"])
    accepted(made["variables"])
