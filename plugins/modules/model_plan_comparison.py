#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_plan_comparison
short_description: Compare a plan with what a running model server reported
version_added: 0.4.0
description:
  - Reads what a server said of itself (the log of its start, its metrics, the memory in use on its GPUs), sets it beside a plan,
    and returns the error of each term.
  - Understands vLLM 0.4 to 0.32 on GPUs and CPUs, and llama.cpp. Of several processes or GPUs the one that decides is taken;
    the others' figures are in the row's note.
  - With O(learn), what was found is kept in O(corrections_file), for later plans of the same model, quantisation, engine,
    version, GPU and division over GPUs. The median of the last nine observations counts.
  - Nothing is learnt where a setting of the server is not the plan's (RV(mismatches)), where a factor is not between 0.5 and 2,
    or where a figure is too coarse; RV(refused) says why.
  - All of it happens on the controller, in an action plugin.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is written; the same is returned.
  diff_mode:
    support: full
    description: Shows the file of corrections.
options:
  plan:
    description:
      - The plan, or the path of the JSON file that holds it. A relative path begins where C(ansible-playbook) was started.
    type: raw
    required: true
  log:
    description:
      - Text of the server's log. Lines may have a journal's or a container's prefix. Of several starts the last one is read.
    type: str
  log_path:
    description: Path of a log on the controller, in place of O(log).
    type: path
  metrics:
    description: What the server answers at C(/metrics).
    type: str
  gpu_info:
    description: What M(onprem.llm.gpu_info) returned for the server's host, where no other server uses its GPUs.
    type: dict
  corrections_file:
    description: Path of the file of corrections on the controller. It is made where it is missing and something is learnt.
    type: path
  learn:
    description: Keep what was found. Needs O(corrections_file).
    type: bool
    default: false
  run:
    description:
      - Name of the run of the server, such as systemd's invocation. A second look at the same run takes the place of the first.
      - Where not given, reports with the same figures count as one run.
    type: str
    default: ''
seealso:
  - module: onprem.llm.gpu_info
"""

EXAMPLES = r"""
- name: Compare a plan with the log of a server
  onprem.llm.model_plan_comparison:
    plan: reports/plan.json
    log_path: reports/model-server.log
  delegate_to: localhost
  register: __comparison

- name: Show the errors
  ansible.builtin.debug:
    msg: "{{ __comparison.table }}"
"""

RETURN = r"""
key:
  description: To what corrections apply (model, parameters, quantisation, engine, version, GPU, division over GPUs).
  returned: success
  type: str
  sample: llama 8030261248 none | vllm 0.32.0 | h100_sxm5_80gb | tp1 pp1 dp1
rows:
  description: One row for each term that was reported.
  returned: success
  type: list
  elements: dict
  contains:
    term:
      description: >-
        V(weights), V(activation), V(non_torch), V(cuda_graphs), V(kv_memory), V(kv_tokens), V(max_concurrency), V(memory_used)
        (each on one GPU), V(itl), V(ttft), V(prefill).
      type: str
    unit: {description: "Unit of the figures.", type: str, sample: bytes}
    planned: {description: The plan's figure; null where it has none., type: float}
    low: {description: Least that the plan expects., type: float}
    high: {description: Most that the plan expects., type: float}
    reported: {description: The server's figure., type: float}
    error_percent: {description: "(planned - reported) / reported, in percent.", type: float, sample: -1.3}
    within_interval: {description: Whether the server's figure is within the plan's interval; null without one., type: bool}
    note: {description: "Under which load, from how many processes, and how far these differ.", type: str}
mismatches:
  description: Settings of the server that are not the plan's.
  returned: success
  type: list
  elements: dict
  contains:
    setting: {description: Name of the setting., type: str, sample: max_model_len}
    planned: {description: The plan's value., type: raw}
    reported: {description: The server's value., type: raw}
worst:
  description: The row with the largest error; null without any.
  returned: success
  type: dict
notes:
  description: What else a reader should know.
  returned: success
  type: list
  elements: str
factors:
  description: Term of the plan to reported over uncorrected prediction, where it can be learnt.
  returned: success
  type: dict
  sample: {weights: 1.002}
refused:
  description: Terms that cannot be learnt, each with C(term), C(factor) and C(why).
  returned: success
  type: list
  elements: dict
learnt:
  description: >-
    What the file of corrections has gained, or in check mode would have (C(term), C(factor), C(observed), C(observations),
    C(before)).
  returned: success
  type: list
  elements: dict
corrections:
  description: What later plans with the same key use, term to C(factor), C(observations), C(from).
  returned: success
  type: dict
hints:
  description: What was learnt of the same model and engine elsewhere, and is not applied.
  returned: success
  type: list
  elements: dict
table:
  description: All of it as lines of text.
  returned: success
  type: list
  elements: str
"""
