#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_plan
short_description: What fits, how fast it is, and what it costs, before anything is bought or changed
version_added: 0.4.0
description:
  - Plans the serving of one model on the GPUs (or the CPU) of one host. The parameters are counted from the model's
    configuration, the weights under their quantisation with scales and the layers that stay in 16 bits, the KV cache as the
    engine divides it, and what the engine takes besides, each figure with its formula, its source and its interval.
  - Predicts speed by a roofline, latency at the workload's concurrency, the requests a day that the goals allow, and cost.
  - Searches for deployments and writes the chosen one as inventory variables.
  - All of it happens on the controller, in an action plugin, without a network; docs/planning.md has formulas, accuracy and
    limits. The verdict is returned and is no error of this module; wrong input is.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: The same plan; the files of O(directory) are not written.
  diff_mode:
    support: full
    description: Shows the inventory variables.
options:
  model:
    description:
      - A directory with a Hugging Face model, a C(config.json), or a GGUF file (also a part of one that is split). Weights that
        are there are compared with the configuration by their headers; their data is not read.
      - Or a mapping of numbers, where only those are known. C(parameters), C(layers), C(hidden_size), C(heads), C(kv_heads),
        C(head_dim), C(intermediate_size), C(vocabulary), C(experts), C(experts_per_token), C(expert_intermediate_size),
        C(shared_expert_intermediate_size), C(window), C(windowed_layers), C(max_context), C(tied), C(dtype).
    type: raw
    required: true
  gpus:
    description:
      - The GPUs of one host, such as V(8xA100-SXM4-80GB), a profile such as V(hgx_h100), or V(cpu).
      - Or what M(onprem.llm.gpu_info) returned for a real host.
      - Or a mapping with C(product) and what is otherwise than the product's. C(count), C(memory_bytes), C(bandwidth_gbps)
        and C(nvlink_gbps) or C(pcie_gbps) (GB/s, one direction), C(tflops) (dense, by type), C(compute_capability),
        C(power_watts), C(name).
    type: raw
    required: true
  quantisation:
    description: >-
      What is to be made of the weights, such as V(fp8), V(int8), V(w4a16), V(awq), V(q4_k_m), V(none). As the checkpoint is,
      where not given; a quantised checkpoint stays as it is.
    type: str
  settings:
    description: >-
      Engine and settings. C(engine) (V(vllm), V(vllm_cpu), V(llama_cpp)), C(engine_version), C(dtype), C(kv_cache_dtype),
      C(tensor_parallel), C(pipeline_parallel), C(data_parallel), C(expert_parallel), C(replicas), C(max_model_len) (tokens),
      C(memory_utilization), C(max_num_batched_tokens), C(max_num_seqs), C(block_size) (tokens), C(cuda_graphs),
      C(prefix_caching), C(cache_bytes), C(draft_tokens), C(draft_layers), C(vision), C(slots). The engine's own default holds
      for what is not given, and the plan says which that were.
    type: dict
    default: {}
  workload:
    description: >-
      C(requests_per_day), C(peak_factor) (peak rate over mean rate), C(prompt_tokens) and C(answer_tokens) (a number, C(mean)
      and C(p95), or a list of tokens and shares that sum to 1), C(slo) with C(ttft_ms), C(itl_ms), C(e2e_ms), and
      C(prefix_hit_ratio).
    type: dict
  speculation:
    description: >-
      Speculative decoding to be looked at, with C(acceptance) (the probability that a drafted token is taken), C(draft_tokens)
      (the best number where not given), and C(method) (V(draft_model) with C(draft), a model, or C(relative_cost); V(mtp);
      V(ngram)).
    type: dict
  cost:
    description: >-
      Inputs of the cost of ownership, such as C(years), C(gpu_price), C(server_price), C(electricity_price_per_kwh), C(pue). What
      is not given is an example of the data file, and is marked so; where there is none (most prices), it must be given.
    type: dict
  search:
    description: >-
      Search over parallelism, quantisation, KV cache type, batch sizes and replicas, keep what is given, and plan the chosen
      deployment.
    type: bool
    default: false
  corrections_file:
    description: >-
      What M(onprem.llm.model_plan_comparison) learnt from running servers. Corrections for this model and engine are applied
      and named. A file that is not there is as an empty one.
    type: path
  thresholds:
    description: The site's own GPU figures, as C(onprem_llm_gpu_thresholds).
    type: dict
  directory:
    description: >-
      Where C(plan.json), C(index.html) and C(site_variables.yml) (variables that C(site.yml) takes as they are) are written.
      Nothing is written where not given. A plan that fails leaves no variables.
    type: path
  title:
    description: Heading of the page.
    type: str
  model_source:
    description: The C(source) of the model in C(model_store_models), for the variables.
    type: dict
  model_release:
    description: The C(release) of the model in C(model_store_models).
    type: str
  feasibility:
    description: What M(onprem.llm.feasibility) returned, for the page.
    type: dict
seealso:
  - module: onprem.llm.model_plan_comparison
  - module: onprem.llm.feasibility
  - module: onprem.llm.gpu_info
"""

EXAMPLES = r"""
- name: Plan Llama 2 13B for 350,000 requests a day on one server
  onprem.llm.model_plan:
    model: /srv/models/llama-2-13b
    gpus: 8xA100-SXM4-80GB
    workload:
      requests_per_day: 350000
      peak_factor: 3
      prompt_tokens: {mean: 500, p95: 1500}
      answer_tokens: {mean: 150, p95: 400}
      slo: {ttft_ms: 450, itl_ms: 50}
    search: true
    directory: "{{ lookup('ansible.builtin.env', 'PWD') }}/reports/plan"
  register: plan
  delegate_to: localhost

- name: Refuse a plan that does not serve
  ansible.builtin.assert:
    that: plan.verdict != 'FAIL'
    fail_msg: "{{ plan.summary }}"
"""

RETURN = r"""
verdict:
  description: V(PASS), V(WARN) (it serves, and something is not as one may expect), V(FAIL).
  returned: success
  type: str
summary:
  description: The verdict in one sentence.
  returned: success
  type: str
plan:
  description: >-
    The plan. C(model), C(hardware), C(settings), C(quantisation), C(memory), C(fits), C(missing_bytes), C(spare_bytes),
    C(workload), C(speed), C(service), C(speculative), C(cost), C(warnings), C(advice), C(corrections), and C(figures), which has
    every figure with C(value), C(unit), C(low), C(high), C(formula) and C(source). Sizes are in bytes on one GPU.
  returned: success
  type: dict
search:
  description: Deployments, those of the Pareto front first, and which was chosen and why; null without O(search).
  returned: success
  type: dict
files:
  description: Name to path of what belongs into O(directory).
  returned: with O(directory)
  type: dict
written:
  description: Paths of the files that were written, or in check mode would be.
  returned: with O(directory)
  type: list
  elements: str
"""
