# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role declares for a Python environment that is made from a lock file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def locked_environment(sources: Iterable[Path], root: str, *, name: str = "") -> dict[str, Any]:
    """Where the environment and copies of its sources lie on the host.

    The sources are the lock and, where there are any, the overrides; the environment's name ends with their digest, so that
    another lock makes another environment. Without a `name` it is that of the lock, and the copies keep the sources' names.
    """
    sources = list(sources)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    stem = f"{name or sources[0].name.removesuffix('.lock')}-{digest.hexdigest()[:12]}"
    names = [f"{stem}{suffix}" for suffix in (".lock", ".overrides")] if name else [source.name for source in sources]
    paths = [f"{root}/{copy}" for copy, _source in zip(names, sources)]
    owned = {"owner": "root", "group": "root", "mode": "0644"}
    return {
        "path": f"{root}/{stem}",
        "lock_sha256": digest.hexdigest(),
        "lock": paths[0],
        "overrides": paths[1] if len(paths) > 1 else None,
        "files": [{"path": path, "content": source.read_text(encoding="utf-8"), **owned} for path, source in zip(paths, sources)],
    }
