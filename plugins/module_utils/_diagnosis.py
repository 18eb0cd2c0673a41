# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a dead server's last words to a likely cause and what to do about it.

The signs are what vLLM 0.32, PyTorch 2.13, CUDA 12 and 13, llama.cpp and the kernel print; the first that fits wins, so
the specific ones stand before the general.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Cause(NamedTuple):
    name: str
    signs: str
    advice: str


CAUSES = (
    Cause(
        "port taken",
        r"[Aa]ddress already in use|couldn't bind (HTTP )?server socket|EADDRINUSE",
        "Another process listens on the port: stop it (`ss -ltnp` names it), or give the instance another port.",
    ),
    Cause(
        "out of GPU memory",
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
        r"|Free memory on device .* is less than desired|No available memory for the cache blocks"
        r"|larger than the available KV cache memory",
        "The model and its KV cache do not fit: fewer bits, a shorter max_model_len, more GPUs, or another process holds "
        "the GPU's memory (`nvidia-smi`).",
    ),
    Cause(
        "out of memory",
        r"Cannot allocate memory|MemoryError|std::bad_alloc|DefaultCPUAllocator: can't allocate|oom-kill|Killed process"
        r"|unable to mmap|No space left on device.*shm|Available memory on node",
        "The process met its memory limit or the host's end: raise memory_max_bytes, lower the KV cache or "
        "max_model_len, or take a host with more memory.",
    ),
    Cause(
        "wrong model architecture",
        r"Model architectures? \[?.*\]? (are|is) not supported|does not recognize this architecture"
        r"|unknown model architecture|has no vLLM implementation|Cannot find model module",
        "This engine's version cannot serve this kind of model: take a newer engine or another model.",
    ),
    Cause(
        "wrong processor or GPU architecture",
        r"Illegal instruction|no kernel image is available|SIGILL|compute capability|AVX-?512 .*required",
        "The build was made for another processor or GPU generation: take one that fits this host.",
    ),
    Cause(
        "GPU driver",
        r"Found no NVIDIA driver|NVIDIA driver .* is too old|Failed to infer device type|CUDA driver version is insufficient"
        r"|libcuda\.so",
        "The driver is missing or too old for this engine (`nvidia-smi`): run the GPU stack, or use a CPU engine.",
    ),
    Cause(
        "bad model",
        r"SafetensorError|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer|incomplete metadata|header too (large|small)"
        r"|Invalid repository ID or local directory|Repo id must|does not appear to have a file named"
        r"|is not a valid JSON|JSONDecodeError|Error\(s\) in loading|size mismatch for|Following weights were not initialized"
        r"|failed to load model|invalid magic|tensor .* (missing|not found)|Cannot find any model weights"
        r"|shape mismatch|The size of tensor a .* must match|Can't load (the configuration|tokenizer)|Unrecognized model"
        r"|There is no module or parameter",
        "The release is incomplete or damaged: verify it with `ansible-playbook site.yml -e onprem_llm_verify=full`, or "
        "activate another release.",
    ),
    Cause(
        "permission",
        r"Permission denied|PermissionError",
        "The service user may not read or write a path named in the log.",
    ),
    Cause(
        "unknown argument",
        r"unrecognized arguments|error: argument|invalid choice|error: unknown argument",
        "The engine does not know an argument: see the instance's `arguments` and the engine table.",
    ),
    Cause(
        "missing system library",
        r"cannot open shared object file",
        "A library of the distribution is not installed: add its package to the engine's `packages`.",
    ),
    Cause(
        "missing Python package",
        r"ModuleNotFoundError|ImportError",
        "The Python environment is not complete: remove its directory and run again.",
    ),
)

RESULTS = {
    "oom-kill": CAUSES[2],
    "signal-ILL": CAUSES[4],
}


def likely_cause(lines: Iterable[str], result: str = "", signal: str = "") -> Cause | None:
    """The likely cause of a death; `result` is systemd's, `signal` the name of the signal that ended the process."""
    by_result = RESULTS.get(result) or RESULTS.get(f"signal-{signal}")
    if by_result:
        return by_result
    text = "\n".join(lines)
    return next((cause for cause in CAUSES if re.search(cause.signs, text)), None)
