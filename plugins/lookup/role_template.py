# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: role_template
short_description: A template file, rendered
version_added: 0.1.0
author: The onprem.llm authors (@onprem)
description:
  - Renders a template as M(ansible.builtin.template) does, for the content of a declared file.
  - It does what P(ansible.builtin.template#lookup) does without its deep copy of all variables, which took a third of the
    time that a comparison needs on the controller.
  - Keyword arguments are variables of the template.
options:
  _terms:
    description: Paths of the templates.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show what a declared file would hold
  ansible.builtin.debug:
    msg: "{{ lookup('onprem.llm.role_template', role_path ~ '/templates/haproxy.cfg.j2') }}"
"""

RETURN = r"""
_raw:
  description: The rendered texts.
  type: list
  elements: str
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

try:
    from ansible.template import trust_as_template
except ImportError:  # ansible-core 2.18 trusts what it reads

    def trust_as_template(value: str) -> str:
        return value


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[str]:
        rendered = []
        # An argument that is given wins over a variable of the same name.
        templar = self._templar
        if kwargs:
            templar = templar.copy_with_new_env(available_variables={**(variables or {}), **kwargs})
        for term in terms:
            try:
                text = Path(term).read_text(encoding="utf-8")
            except OSError as error:
                raise AnsibleLookupError(f"The template {term} cannot be read: {error.strerror}.") from error
            rendered.append(templar.template(trust_as_template(text), escape_backslashes=False, overrides={"trim_blocks": True}))
        return rendered
