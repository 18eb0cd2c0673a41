# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  environment:
    description:
      - Virtual environment on the host in whose packages nvidia-ml-py is looked for, when the host's own Python has none.
    type: path
    default: /opt/onprem/gpu-probe
  deadline_seconds:
    description: When the whole reading is given up, in seconds.
    type: float
    default: 120
  call_seconds:
    description: When one call of NVML is given up, in seconds.
    type: float
    default: 10
  init_seconds:
    description: >-
      When NVML's start is given up, in seconds. Without the persistence daemon it wakes every GPU, which takes seconds for each.
    type: float
    default: 60
"""
