#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: sensitivity_controls
short_description: Whether a host has the controls that its data's sensitivity demands
version_added: 0.4.0
description:
  - Looks up which controls a level of data sensitivity demands, and says of each whether the host's variables turn it on. All of
    it happens on the controller, in an action plugin; the host is not asked.
  - Levels, controls, the clauses of standards behind them and the variables that turn them on are data, in
    C(plugins/plugin_utils/sensitivity_controls.yml), and explained in C(docs/data-sensitivity.md).
  - A condition sees the variables of the host, and the defaults of the roles where the inventory says nothing.
  - Where no role turns a control on, the site sees to it and states so in C(onprem_llm_attested_controls). A statement for a
    control that variables turn on is refused, as is one for an unknown control, or one of fewer than 10 characters.
  - C(onprem_llm_sensitivity_controls) of the inventory adds controls, or levels and higher numbers to those there are. Nothing
    excepts a host from a control; a lower level does.
  - C(onprem_llm_own_domains) of the inventory lists the domains of the site, such as V(corp.example.com). Mirrors, indexes and
    time servers count as its own below them, at private addresses, and at names for private use such as C(.internal).
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: It changes nothing.
options:
  level:
    description:
      - V(L1) (public), V(L2) (internal), V(L3) (confidential) or V(L4) (strictly confidential).
      - The host's variable C(onprem_llm_data_sensitivity) where not set. Where that is not defined either, nothing is demanded.
    type: str
  attested:
    description:
      - Control to what the site did, by whom and when. The host's variable C(onprem_llm_attested_controls) where not set.
    type: dict
  groups:
    description:
      - Which of V(gateways), V(model_servers) and V(gpu_hosts) the host is; its groups in the inventory where not set.
    type: list
    elements: str
  enforce:
    description: Fail where a control is missing, with one message that names each, what was found and what to set.
    type: bool
    default: true
seealso:
  - module: onprem.llm.feasibility
"""

EXAMPLES = r"""
- name: Refuse an inventory that misses a control its data sensitivity demands
  onprem.llm.sensitivity_controls:
  any_errors_fatal: true

- name: Say what is missing for confidential data
  onprem.llm.sensitivity_controls:
    level: L3
    enforce: false
  register: __site_controls
"""

RETURN = r"""
level:
  description: The level; null where none is set.
  returned: always
  type: str
  sample: L3
controls:
  description: The controls that the level demands of this host; where the module fails, those that are missing.
  returned: always
  type: list
  elements: dict
  contains:
    name: {description: Name of the control., type: str, sample: log_retention}
    title: {description: What it is., type: str, sample: Logs kept long enough}
    state:
      description: >-
        V(on) (the host's variables turn it on), V(built_in) (the collection cannot be run without it), V(attested) (the site
        states it) or V(missing).
      type: str
    why: {description: What it is for., type: str}
    variables: {description: "What to set; V(<...>) in a value is for the site to fill in.", type: dict}
    found:
      description: What the host has of it, the document that says so, or the statement. Addresses are without name and password.
      type: raw
    wanted: {description: What it should have., type: str}
    clauses: {description: What asks for such a control., type: list, elements: str}
missing:
  description: Names of the controls that are missing.
  returned: always
  type: list
  elements: str
  sample: [log_retention, encryption_at_rest]
"""
