#!/usr/bin/python
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: acceptance_report
short_description: Keep, compare, sign and show the records of acceptance tests
version_added: 0.3.0
description:
  - Takes what the acceptance tests found on each host, and writes one JSON record for each host and one page,
    C(index.html), for the site. The page needs nothing beside it and no network.
  - All of it happens on the controller, in an action plugin; run it once, with C(run_once) or on C(localhost).
  - It fails closed. A record that says better of itself than its checks do is refused, and so is one without a GPU that is
    not FAIL. A site without a record is FAIL.
  - A figure that is 5 % or more behind the median of at least three equals (the same figure of GPUs of the same product,
    on the host first and then at the site) becomes a check C(outlier) with the verdict WARN. Temperatures, powers and
    percentages are not compared, nor is what was measured between hosts.
  - A record that takes the place of an earlier one sends it, with its signature, to C(history/<host>-<time>.json), and what
    changed is reported as drift. A record that is already there changes nothing.
  - The verdict is returned and is no error of this module; assert on RV(verdict) after it.
author: The onprem.llm authors (@onprem)
attributes:
  check_mode:
    support: full
    description: Nothing is written and no signature is made; the same paths, verdicts and differences are returned.
  diff_mode:
    support: full
    description: Shows the records; signatures and the page are shown by their digest.
options:
  directory:
    description:
      - Where records and page are. It is made where it is missing. A relative path begins where C(ansible-playbook) was
        started.
    type: path
    required: true
  records:
    description:
      - The new records, one for each host. Without any, the page is made from the records in O(directory).
      - Each has C(host), C(checks) (as V(gpu_validate) and the others return them), C(hardware) and C(measurements);
        C(profile), C(time) (UTC, such as V(2026-11-25T08:30:00Z)), C(collection_version), C(verdict) and C(form) are filled
        in where they are missing. C(profile) is the name of what the host was compared with.
      - C(hardware) has C(system) (C(vendor), C(product), C(serial), C(bios_version)), C(kernel), C(driver_version),
        C(cuda_version), C(gpus), and may have C(nics), each with a C(name).
      - C(hardware.gpus) are as M(onprem.llm.gpu_info) returns them, of which the record keeps what identifies a card, or
        have C(index), C(name), C(uuid), C(serial), and may have C(pci_bus_id), C(vbios_version), C(board_part_number),
        C(memory_total_bytes).
      - C(measurements) have C(name), C(subject) (C(GPU 3), C(GPU 0 -> GPU 1), C(host), or C(gpu1 -> gpu2) between hosts),
        C(value), C(unit), and may have C(floor) (for a figure of which less is better, the highest that is allowed),
        C(peak), C(source), and C(better) (V(higher) or V(lower), where unit and name do not say).
    type: list
    elements: dict
    default: []
  hosts:
    description:
      - The hosts that were to be examined in this run. One of them that has no record in O(records) gets one that says
        NOT_RUN, which is FAIL, so that a host that was not reached never keeps the good verdict of an earlier day.
      - An empty list without any record is an error. Leave the option out to make the page from the records that are there.
    type: list
    elements: str
  title:
    description: Heading of the page, such as the site's name.
    type: str
    default: Acceptance of the site
  signing_key:
    description:
      - Path of the OpenSSH key to sign new records with (C(ssh-keygen -Y sign -n onprem-acceptance)); the signature is
        beside the record as C(<host>.json.sig). The key has no passphrase or is held by an ssh-agent, and then the path may be
        that of the public key.
    type: path
  allowed_signers:
    description:
      - Path of a file in the form of C(ssh-keygen)'s ALLOWED SIGNERS. With it, each signature must be of one of these;
        without it, it must only fit its record.
    type: path
  signer:
    description: Whose signatures count, as named in O(allowed_signers); anyone's in that file when empty.
    type: str
    default: ''
  require_signatures:
    description: Refuse a directory in which a record has no signature.
    type: bool
    default: false
seealso:
  - module: onprem.llm.gpu_info
"""

EXAMPLES = r"""
- name: Write the records of all hosts and the site's page
  onprem.llm.acceptance_report:
    directory: "{{ lookup('ansible.builtin.env', 'PWD') }}/reports/acceptance"
    title: Acceptance of hall 2
    hosts: "{{ ansible_play_hosts_all }}"
    records: >-
      {{ ansible_play_hosts_all | map('extract', hostvars) | selectattr('__acceptance_record', 'defined')
         | map(attribute='__acceptance_record') }}
  run_once: true
  register: __acceptance_report

- name: Show the records that are there on a new page, and insist on their signatures
  onprem.llm.acceptance_report:
    directory: /srv/reports/acceptance
    allowed_signers: /etc/onprem/acceptance_signers
    require_signatures: true
  delegate_to: localhost
"""

RETURN = r"""
verdict:
  description: The worst verdict of all hosts; V(FAIL) without any.
  returned: success
  type: str
  sample: PASS
hosts:
  description: Host to verdict, over all records in the directory.
  returned: success
  type: dict
  sample: {gpu1: PASS, gpu2: FAIL}
drift:
  description: What changed since each host's record before this one.
  returned: success
  type: list
  elements: dict
  contains:
    host: {description: The host., type: str}
    what: {description: What changed., type: str, sample: GPU 3 serial}
    before: {description: The value in the earlier record; null where there was none., type: raw}
    now: {description: The value now; null where there is none any more., type: raw}
    kind:
      description: V(identity), V(firmware), V(software), V(count), V(expectation), V(verdict) or V(measurement).
      type: str
    unit: {description: "The unit, for measurements.", type: str}
outliers:
  description: Figures that are 5 % or more behind the median of their equals.
  returned: success
  type: list
  elements: dict
  contains:
    host: {description: The host., type: str}
    name: {description: Name of the figure., type: str, sample: memory_bandwidth}
    subject: {description: The device., type: str, sample: GPU 3}
    value: {description: "The value, in RV(outliers[].unit).", type: float}
    unit: {description: The unit., type: str, sample: GB/s}
    median: {description: The median of its equals., type: float}
    percent: {description: How far it is from the median., type: float, sample: -6.2}
    siblings: {description: How many equals there are., type: int}
    scope: {description: "Whether they are those of its V(host) or of the V(site).", type: str}
signatures:
  description: >-
    Host to the state of its record's signature: V(valid), V(unverified) (it fits, and O(allowed_signers) is not set), or
    V(unsigned).
  returned: success
  type: dict
index:
  description: Path of the page.
  returned: success
  type: str
records:
  description: Host to the path of its record.
  returned: success
  type: dict
written:
  description: Paths of the files that were written, or in check mode would be.
  returned: success
  type: list
  elements: str
"""
