# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Keep what Python compiles from zip files, in the lab's hosts alone.

Ansible sends each task's module as source in a zip file; to compile it anew is two fifths of what a small one computes
(docs/lab.md). The code is the same; hosts whose figures are published (``make bench``) have no such directory, and compile.
"""

import _imp
import marshal
import os
import sys
import zipimport

KEPT = "/var/cache/onprem-lab/bytecode"
compile_source = getattr(zipimport, "_compile_source")  # noqa: B009 # private, and not in the stubs


def compiled(path: str, source: bytes) -> object:
    name = f"{KEPT}/{sys.implementation.cache_tag}-{len(source)}-{_imp.source_hash(0, source).hex()}"
    try:
        with open(name, "rb") as kept:
            return marshal.load(kept)
    except (OSError, EOFError, ValueError, TypeError):
        code = compile_source(path, source)
    if os.access(KEPT, os.W_OK):
        with open(f"{name}.{os.uname().nodename}.{os.getpid()}", "wb") as made:
            marshal.dump(code, made)
        os.replace(made.name, name)
    return code


setattr(zipimport, "_compile_source", compiled)  # noqa: B010
