# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What dying servers say, and the cause that is told. The lines of vLLM were taken from vLLM 0.32 on a CPU, dying."""

from __future__ import annotations

import pytest
from ansible_collections.onprem.llm.plugins.module_utils._diagnosis import likely_cause

# A start that fails ends with this, whatever failed.
LAST = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("OSError: [Errno 98] Address already in use", "port taken"),
        ("safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", "bad model"),
        (
            "RuntimeError: The size of tensor a (256) must match the size of tensor b (128) at non-singleton dimension 1",
            "bad model",
        ),
        ("OSError: It looks like the config file at '/x/config.json' is not a valid JSON file.", "bad model"),
        ("RuntimeError: Cannot find any model weights with `/x`", "bad model"),
        ("HFValidationError: Repo id must use alphanumeric chars, '-', '_' or '.'.", "bad model"),
        ("Model architectures ['UnheardOfForCausalLM'] are not supported for now.", "wrong model architecture"),
        ("llama_model_load: error loading model: unknown model architecture: 'x'", "wrong model architecture"),
        ("api_server.py: error: unrecognized arguments: --bogus-flag", "unknown argument"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "out of GPU memory"),
        ("ValueError: Free memory on device (1.2/79.1 GiB) on startup is less than desired", "out of GPU memory"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("RuntimeError: CUDA error: no kernel image is available for execution", "wrong processor or GPU architecture"),
        ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "GPU driver"),
        ("OSError: libnuma.so.1: cannot open shared object file: No such file or directory", "missing system library"),
        ("ModuleNotFoundError: No module named 'xgrammar'", "missing Python package"),
        ("PermissionError: [Errno 13] Permission denied: '/var/lib/onprem/models'", "permission"),
    ],
)
def test_the_line_that_matters_is_found(line: str, cause: str) -> None:
    found = likely_cause(["INFO starting", line, LAST])
    assert found is not None
    assert found.name == cause
    assert found.advice.endswith((".", ")"))


@pytest.mark.parametrize(
    ("result", "signal", "cause"),
    [("oom-kill", "", "out of memory"), ("signal", "ILL", "wrong processor or GPU architecture")],
)
def test_what_systemd_saw_counts_more_than_the_log(result: str, signal: str, cause: str) -> None:
    found = likely_cause(["OSError: [Errno 98] Address already in use"], result, signal)
    assert found is not None
    assert found.name == cause


def test_an_ordinary_log_has_no_cause() -> None:
    ordinary = ["INFO Application startup complete.", 'INFO "POST /v1/completions HTTP/1.1" 200 OK', LAST]
    assert likely_cause(ordinary) is None
