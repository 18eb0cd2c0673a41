# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Read the collection's data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# libyaml, ten times as fast, where PyYAML has it: each task of each host reads anew.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content; raises OSError and yaml.YAMLError."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)  # noqa: S506 # a safe loader
