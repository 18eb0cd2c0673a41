# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""What of a declaration applies, and what of it travels to the host."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible_collections.onprem.llm.plugins.filter.declared import declared
from ansible_collections.onprem.llm.plugins.plugin_utils._roles import without_contents


@pytest.mark.parametrize(
    ("when", "kept"), [(True, 1), ("True", 1), ("yes", 1), (1, 1), (False, 0), ("False", 0), ("", 0), ("no", 0), (0, 0)]
)
def test_a_resource_counts_only_where_its_condition_holds(when: Any, kept: int) -> None:
    assert len(declared([{"path": "/a", "when": when}])) == kept


def test_a_plain_string_is_a_name_and_nothing_is_no_list() -> None:
    assert declared(["haproxy"]) == [{"name": "haproxy"}]
    assert declared(None) == []


def test_contents_stay_on_the_controller() -> None:
    spec = {"path": "/a", "content": "a secret", "mode": "0600"}
    sent = without_contents({"files": [spec], "directories": [{"path": "/b"}]})
    assert "a secret" not in json.dumps(sent)
    assert sent["files"] == [{"path": "/a", "mode": "0600", "sha256": hashlib.sha256(b"a secret").hexdigest()}]
    assert sent["directories"] == [{"path": "/b"}]
