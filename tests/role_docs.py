#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
"""Each role's README table comes from its argument specs, and the compatibility table from its data file.

Defaults and specs may not drift apart, nor tables from what they show.

tests/role_docs.py            check; ends with 1 and says what differs
tests/role_docs.py --write    write them
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
GPU_STACK = ROOT / "docs" / "gpu-stack.md"


def prose(text: Any) -> str:
    """Ansible's markup as Markdown."""
    joined = " ".join(text) if isinstance(text, list) else str(text)
    joined = re.sub(r"[CVO]\(([^)]*)\)", r"`\1`", joined)
    joined = re.sub(r"[IB]\(([^)]*)\)", r"*\1*", joined)
    joined = re.sub(r"[ML]\(([^),]*)[^)]*\)", r"`\1`", joined)
    return " ".join(joined.split()).replace("|", "\\|")


def kind(option: dict[str, Any]) -> str:
    name = option.get("type", "str")
    if name == "list":
        name = f"list of {option.get('elements', 'raw')}"
    return name + (f": {', '.join(f'`{choice}`' for choice in option['choices'])}" if "choices" in option else "")


def shown(value: Any) -> str:
    if isinstance(value, str) and ("\n" in value or len(value) > 60):
        return "*computed*"
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)
    return f"`{text}`" if text not in ("", "None") else ""


def rows(options: dict[str, Any], defaults: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, option in options.items():
        default = defaults.get(name, option.get("default", "")) if not indent else option.get("default", "")
        required = " **required**" if option.get("required") else ""
        cells = [f"{indent}`{name}`", kind(option) + required, shown(default), prose(option["description"])]
        lines.append(f"| {' | '.join(cells)} |")
        lines += rows(option.get("options", {}), {}, indent + "&nbsp;&nbsp;")
    return lines


def readme(role: Path) -> tuple[str, list[str]]:
    """The README's text, and what is wrong with the role's variables."""
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8"))
    options = spec["options"]
    problems = [f"{role.name}: {name} is in defaults, not in the argument spec" for name in defaults if name not in options]
    problems += [f"{role.name}: {name} is in the argument spec, not in defaults" for name in options if name not in defaults]
    for name, option in options.items():
        literal = not (isinstance(defaults.get(name), str) and "{{" in defaults[name])
        if "default" in option and literal and defaults.get(name) != option["default"]:
            problems.append(f"{role.name}: {name} is {defaults.get(name)!r} in defaults, {option['default']!r} in the spec")
    text = [
        "<!-- Written by `make docs` from meta/argument_specs.yml. -->",
        f"# onprem.llm.{role.name}",
        "",
        f"{spec['short_description']}.",
        "",
        *(prose(line) for line in spec.get("description", [])),
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
        *rows(options, defaults),
        "",
        "What the role manages on a host is declared once, in `vars/`; how that declaration is used: docs/declared-state.md.",
    ]
    return "\n".join(text) + "\n", problems


def compatibility() -> str:
    """docs/gpu-stack.md with its tables written anew between the markers."""
    data = yaml.safe_load((ROOT / "plugins/plugin_utils/gpu_stacks.yml").read_text(encoding="utf-8"))
    marks = {name: str(number) for number, name in enumerate(data["documents"], 1)}
    lines = [
        "| set | driver at least | within the major release | compute capability | packages | sources |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in data["stacks"].items():
        packages = []
        for origin, platforms in figures["packages"].items():
            for platform, versions in platforms.items():
                listed = ", ".join(f"{component} {version}" for component, version in versions.items())
                packages.append(f"{origin}, {platform}: {listed}".replace("*", "\\*"))
        capability = figures["compute_capability"]
        cells = [
            f"`{name}`",
            figures["driver"]["minimum"],
            figures["driver"]["minimum_compatible"],
            f"{capability['lowest']} to {capability['highest']}",
            "<br>".join(packages),
            ", ".join(marks[figure] for figure in figures["figures"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| platform | form | folder | signing key | sources |", "|---|---|---|---|---|"]
    for name, platform in data["platforms"].items():
        sources = ", ".join(marks[figure] for figure in platform["figures"])
        lines.append(f"| {name} | {platform['format']} | `{platform['folder']}` | `{platform['fingerprint']}` | {sources} |")
    lines += ["", f"Sources, as of {data['date']}:", ""]
    lines += [f"{marks[name]}. [{document['title']}]({document['url']})" for name, document in data["documents"].items()]
    text = GPU_STACK.read_text(encoding="utf-8")
    begin, end = "<!-- sets: written by make docs -->\n", "<!-- sets: end -->"
    return text[: text.index(begin) + len(begin)] + "\n".join(lines) + "\n" + text[text.index(end) :]


def main() -> int:
    write = "--write" in sys.argv
    problems = []
    for role in sorted(path.parent for path in (ROOT / "roles").glob("*/meta")):
        text, wrong = readme(role)
        problems += wrong
        path = role / "README.md"
        if write:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{role.name}: README.md is not what `make docs` writes")
    text = compatibility()
    if write:
        GPU_STACK.write_text(text, encoding="utf-8")
    elif GPU_STACK.read_text(encoding="utf-8") != text:
        problems.append("docs/gpu-stack.md is not what `make docs` writes")
    print("\n".join(problems) or "the roles' variables, specs and tables agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
