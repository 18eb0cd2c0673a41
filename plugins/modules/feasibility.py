#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: feasibility
short_description: Which kind of deployment suits the data, the compute need and the operations there are
version_added: 0.4.0
description:
  - Scores a public API, a managed private cloud, and three kinds of on-premise sites from 0 to 100, says what speaks for and
    against each, which are excluded and why, and what people and skills are missing. All of it happens on the controller.
  - The scores, their reasons and the default weights are data, in C(plugins/plugin_utils/sensitivity_controls.yml); they are this
    project's judgement, and explained in C(docs/data-sensitivity.md).
  - A level above an option's highest excludes it whatever its score, as does a need that it cannot carry. Operations that do not
    carry an option do not exclude it; what is missing is said.
  - With it come the controls that the level demands, and the variables that turn them on.
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
      - How sensitive the data is, V(L1) (public), V(L2) (internal), V(L3) (confidential) or V(L4) (strictly confidential).
      - The variable C(onprem_llm_data_sensitivity) where not set; one of both has to be.
    type: str
  need:
    description:
      - How much is to be computed. V(small) (one GPU or less), V(medium) (up to eight, one node) or V(large) (more).
      - Or a mapping with C(gpus); or one with C(requests_per_day) and C(answer_tokens_per_request), and, in place of the
        assumptions, C(peak_factor) (the peak over the mean of a day) and C(tokens_per_second_per_gpu).
    type: raw
    required: true
  operations:
    description:
      - Who will run it. V(none) (nobody runs servers), V(basic) (administrators of Linux hosts in office hours), V(skilled) (a
        team that runs hosts by automation, watches them, and can be called) or V(expert) (a platform team around the clock, with
        its own supply chain and security operations).
    type: str
    required: true
  weights:
    description:
      - Weights in place of the default ones; C(data_control) 30, C(operations) 25, C(compute) 15, C(cost) 10, C(availability) 10,
        C(independence) 5, C(time_to_service) 5. Only their proportions matter.
    type: dict
seealso:
  - module: onprem.llm.sensitivity_controls
"""

EXAMPLES = r"""
- name: Ask what suits confidential data on a few GPUs
  onprem.llm.feasibility:
    level: L3
    need: medium
    operations: basic
  register: __plan_feasibility

- name: Ask for 350,000 requests a day, where availability counts twice
  onprem.llm.feasibility:
    level: L3
    need: {requests_per_day: 350000, answer_tokens_per_request: 300}
    operations: skilled
    weights: {availability: 20}
  register: __plan_feasibility

- name: Say it
  ansible.builtin.debug:
    msg: "{{ __plan_feasibility.recommendation }}"
"""

RETURN = r"""
level:
  description: The level.
  returned: success
  type: str
  sample: L3
level_title:
  description: What the level is called.
  returned: success
  type: str
  sample: confidential
need:
  description: The need as it was understood.
  returned: success
  type: dict
  contains:
    class: {description: "V(small), V(medium) or V(large).", type: str}
    title: {description: What that means., type: str}
    gpus: {description: "Number of GPUs; null where only the class was given.", type: int}
    derivation: {description: "How the number was reached, assumptions among it.", type: str}
operations:
  description: The operations that were given.
  returned: success
  type: str
operations_title:
  description: What they mean.
  returned: success
  type: str
weights:
  description: Criterion to the weight that was used.
  returned: success
  type: dict
options:
  description: All options, the best first, excluded ones last.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: V(public_api), V(private_cloud), V(single_node), V(cluster) or V(airgapped_cluster).
      type: str
    title: {description: What it is., type: str}
    excluded: {description: Whether it is out of the question., type: bool}
    exclusions: {description: Why., type: list, elements: str}
    score: {description: "0 to 100, rounded to a tenth; null where it is excluded.", type: float}
    scores:
      description: What the score is made of; empty where the option is excluded.
      type: list
      elements: dict
      contains:
        criterion: {description: Name of the criterion., type: str}
        title: {description: What it is., type: str}
        score: {description: 0 to 10., type: int}
        weight: {description: Its weight., type: float}
        reason: {description: Why it has this score., type: str}
    operations:
      description: What it takes to run it.
      type: dict
      contains:
        demands: {description: The operations that it wants., type: str}
        demands_title: {description: What they mean., type: str}
        effort: {description: The effort in plain words., type: str}
        people: {description: "How many persons, as an estimate.", type: str}
        carried: {description: Whether the operations there are carry it., type: bool}
        gap: {description: By how many steps they do not., type: int}
        missing: {description: People and skills that are missing., type: list, elements: str}
recommended:
  description: Names of the best options; more than one is a tie.
  returned: success
  type: list
  elements: str
tie:
  description: Whether several options have the best score.
  returned: success
  type: bool
carried:
  description: Whether the operations there are carry what is recommended.
  returned: success
  type: bool
alternative:
  description: The best option that the operations carry, where they do not carry what is recommended; null where there is none.
  returned: success
  type: str
recommendation:
  description: The answer in sentences.
  returned: success
  type: str
controls:
  description: The controls that the level demands.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: Name of the control., type: str}
    title: {description: What it is., type: str}
    why: {description: What it is for., type: str}
    applies_to: {description: "Groups whose hosts have to have it, or V(all).", type: list, elements: str}
    how: {description: "V(built_in), V(attested) or V(condition).", type: str}
    document: {description: "For V(built_in), the document that says so.", type: str}
    attest: {description: "For V(attested), what the site has to see to.", type: str}
    wanted: {description: "For V(condition), what a host should have.", type: str}
    variables: {description: "What to set; V(<...>) in a value is for the site to fill in.", type: dict}
    clauses: {description: What asks for such a control., type: list, elements: str}
variables:
  description: The variables of all controls in one mapping. V(<...>) in a value is for the site to fill in.
  returned: success
  type: dict
attest:
  description: Controls that no role turns on, and what the site has to see to; for C(onprem_llm_attested_controls).
  returned: success
  type: dict
"""
