# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Energy and cost of ownership of a deployment, against a price for a million tokens.

Everything that is assumed is an input with an example value in ``plugin_utils/planning_speed.yml`` (``cost``); the result lists
each with its value, unit and source, and whether it was given. Money is in whatever currency the inputs are in: nothing is
converted. A price is an example for the products that the data name, and has to be given for others. Energy is kWh, power W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._model_architecture import ModelError
from ._model_inputs import known_keys, quantity, shown
from ._model_memory import Device
from ._model_speed import Workload, row, title_of

HOURS = 24
# The least and the most that each input may be.
BOUNDS: dict[str, tuple[float, float]] = {
    "years": (0.25, 30),
    "gpu_price": (0, 1e9),
    "server_price": (0, 1e9),
    "gpus_per_server": (1, 1024),
    "installation_share": (0, 10),
    "maintenance_share": (0, 10),
    "residual_share": (0, 1),
    "discount_rate": (0, 1),
    "staff_cost_per_year": (0, 1e12),
    "space_cost_per_year": (0, 1e12),
    "electricity_price_per_kwh": (0, 1000),
    "pue": (1, 10),
    "gpu_power_watts": (0, 1e6),
    "active_power_share": (0, 1.5),
    "idle_power_share": (0, 1),
    "server_power_watts": (0, 1e6),
    "days_per_year": (1, 366),
    "api_price_input": (0, 1e6),
    "api_price_output": (0, 1e6),
}
# Those that are prices.
PRICES = ("gpu_price", "server_price", "electricity_price_per_kwh", "api_price_input", "api_price_output")
# GPUs of a server that the data's examples are of.
FULL_SERVER = 8


@dataclass(frozen=True)
class Assumption:
    """An input with where it is from; ``given``: an operator gave it, else it is the collection's example."""

    name: str
    value: float
    unit: str
    source: str
    given: bool

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "unit": self.unit, "source": self.source, "given": self.given}


def assumptions_of(
    given: Mapping[str, Any], device: Device, data: Mapping[str, Any], count: int = FULL_SERVER
) -> tuple[dict[str, Assumption], str]:
    """Every input by its name for so many devices, and the currency's label.

    Raises ModelError that names the input, the value found and what is wanted.
    """
    if not isinstance(given, Mapping):
        raise ModelError(f"cost: found {shown(given)}; wanted a mapping of inputs")
    examples = data["cost"]["inputs"]
    known_keys("cost", given, ("currency", *examples))
    currency = given.get("currency")
    if currency in (None, ""):
        currency = data["cost"]["currency"]
    if not isinstance(currency, str) or len(currency) > 16:
        raise ModelError(f"cost.currency: found {shown(currency)}; wanted a label such as EUR, of at most 16 characters")
    found: dict[str, Assumption] = {}
    for name in examples:
        least, most = BOUNDS.get(name, (0, math.inf))
        if given.get(name) not in (None, ""):
            value = quantity(f"cost.{name}", given[name], least, most)
            found[name] = Assumption(name, value, _unit(examples[name], currency), "given", True)
    # Examples of a server's power are for as many GPUs as it has.
    told = found.get("gpus_per_server")
    together = min(float(count), told.value if told else float(examples["gpus_per_server"]["value"]))
    _needs_prices(found, device, data)
    for name in examples:
        if name not in found:
            found[name] = _example(name, device, together, data, currency)
    found = {name: found[name] for name in examples}
    if not found["gpu_power_watts"].value:
        if device.power_watts <= 0:
            raise ModelError(f"cost.gpu_power_watts: {device.name} has no known power limit; wanted its watts")
        limit = device.power_watts
        found["gpu_power_watts"] = Assumption(
            "gpu_power_watts", limit, "W", device.sources.get("power", "the product's power limit"), False
        )
    if found["active_power_share"].value < found["idle_power_share"].value:
        raise ModelError(
            f"cost.active_power_share: found {found['active_power_share'].value:g}, which is less than idle_power_share "
            f"{found['idle_power_share'].value:g}; wanted at least that"
        )
    return found, currency


def _unit(example: Mapping[str, Any], currency: str) -> str:
    return str(example["unit"]).replace("currency", currency)


def _needs_prices(found: Mapping[str, Assumption], device: Device, data: Mapping[str, Any]) -> None:
    """An example for one product would mislead for another."""
    lacks_gpu = device.kind == "gpu" and "gpu_price" not in found and device.product not in data["cost"]["prices"]
    lacks_server = "server_price" not in found and device.product not in data["cost"]["full_servers"]
    if lacks_gpu:
        also = " (and server_price)" if lacks_server else ""
        raise ModelError(f"cost.gpu_price: there is no example price of {_article(device.name)}; give one{also}")
    if lacks_server:
        raise ModelError(f"cost.server_price: there is no example price of a server for {_article(device.name)}; give one")


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


def _example(name: str, device: Device, together: float, data: Mapping[str, Any], currency: str) -> Assumption:
    """What an input that was not given is taken to be; ``together``: devices of one server."""
    examples = data["cost"]
    unit, figure, value, note = examples["inputs"][name]["unit"], examples["inputs"][name], None, ""
    if name == "gpu_price" and device.kind != "gpu":
        return Assumption(name, 0.0, _unit(figure, currency), "a socket's price is part of its server's", False)
    if name == "gpu_price":
        figure = examples["prices"][device.product]
    elif name == "server_power_watts" and not (device.product in examples["full_servers"] and together >= FULL_SERVER):
        figure = examples["other_power_watts"]
        value = float(figure["value"]) * together
        note = f", {figure['value']:g} W for each of {together:g} {'GPUs' if device.kind == 'gpu' else 'sockets'}"
    least, most = BOUNDS.get(name, (0, math.inf))
    amount = quantity(f"cost.{name}", figure["value"] if value is None else value, least, most)
    money = figure.get("currency")
    if money:
        note = f", in {money} and not converted"
    source = f"example of the collection{note}: {title_of(data, figure['source'])}"
    return Assumption(name, amount, str(unit).replace("currency", money or currency), source, False)


def annuity(rate: float, years: float) -> float:
    """What a sum paid at the start is for each of so many years, at this interest."""
    return 1 / years if rate <= 0 else rate / (1 - (1 + rate) ** -years)


def cost_of(
    given: Mapping[str, Any],
    device: Device,
    count: int,
    workload: Workload,
    served: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``count`` devices that serve this workload cost and use in a year, and from where on that is less than an API's price.

    ``served``: what ``_model_speed.service`` said (its utilisation, and the requests of a day that can be served). Of the devices
    of a CPU plan ``count`` are sockets, which have no price of their own: the server's price is theirs.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ModelError(f"cost: found {shown(count)} devices; wanted at least 1")
    inputs, currency = assumptions_of(given, device, data, count)
    value = {name: assumption.value for name, assumption in inputs.items()}
    servers = math.ceil(count / value["gpus_per_server"])
    gpus = count if device.kind == "gpu" else 0
    hardware = gpus * value["gpu_price"] + servers * value["server_price"]
    installation = hardware * value["installation_share"]
    residual = hardware * value["residual_share"] / (1 + value["discount_rate"]) ** value["years"]
    investment = hardware + installation
    capital = (investment - residual) * annuity(value["discount_rate"], value["years"])
    # Requests of a year, no more of them than can be served.
    able = served.get("requests_per_day_at_capacity")
    daily = workload.requests_per_day if able is None else min(workload.requests_per_day, float(able))
    days = value["days_per_year"]
    prompts, answers = workload.prompt_mean, workload.answer_mean
    # Mean load of the day, from that of its peak.
    peak = served.get("utilisation")
    load = min(1.0, max(0.0, float(peak or 0.0)) / workload.peak_factor)
    idle = count * value["gpu_power_watts"] * value["idle_power_share"] + servers * value["server_power_watts"]
    extra = count * value["gpu_power_watts"] * (value["active_power_share"] - value["idle_power_share"])

    def energy(part: float) -> float:
        """kWh of a year at this mean load; machines run on days without requests too."""
        return ((idle * 365) + extra * part * days) * HOURS / 1000 * value["pue"]

    kilowatt_hours = energy(load)
    power_cost = kilowatt_hours * value["electricity_price_per_kwh"]
    maintenance = hardware * value["maintenance_share"]
    running = maintenance + power_cost + value["staff_cost_per_year"] + value["space_cost_per_year"]
    per_year = capital + running
    requests = daily * days
    millions = requests * (prompts + answers) / 1e6
    api_request = (prompts * value["api_price_input"] + answers * value["api_price_output"]) / 1e6
    api_year = api_request * requests
    volume = _break_even_volume(
        fixed=per_year - (energy(load) - energy(0.0)) * value["electricity_price_per_kwh"],
        each=((energy(load) - energy(0.0)) * value["electricity_price_per_kwh"] / requests) if requests else 0.0,
        price=api_request,
        days=days,
    )
    year = investment / (api_year - running) if api_year > running else None
    found: dict[str, Any] = {
        "currency": currency,
        "prices_are_examples": any(not inputs[name].given and inputs[name].value > 0 for name in PRICES),
        "years": value["years"],
        "devices": count,
        "servers": servers,
        "investment": investment,
        "capital_cost_per_year": capital,
        "running_cost_per_year": running,
        "energy_cost_per_year": power_cost,
        "maintenance_cost_per_year": maintenance,
        "staff_cost_per_year": value["staff_cost_per_year"],
        "cost_per_year": per_year,
        "total_cost": per_year * value["years"],
        "mean_utilisation": load,
        "mean_power_watts": kilowatt_hours * 1000 / (365 * HOURS),
        "energy_kwh_per_year": kilowatt_hours,
        "requests_per_year": requests,
        "million_tokens_per_year": millions,
        "energy_kwh_per_million_tokens": _each(kilowatt_hours, millions),
        "cost_per_request": _each(per_year, requests),
        "cost_per_million_tokens": _each(per_year, millions),
        "cost_per_million_answer_tokens": _each(per_year, requests * answers / 1e6),
        "api_cost_per_year": api_year,
        "api_cost_per_request": api_request,
        "api_cost_per_million_tokens": _each(api_year, millions),
        "cheaper_than_api": bool(requests) and per_year < api_year,
        "break_even_requests_per_day": volume,
        "break_even_within_capacity": None if volume is None or able is None else volume <= float(able),
        "break_even_years": year if year is not None and year <= value["years"] else None,
        "assumptions": [assumption.described() for assumption in inputs.values()],
    }
    found["summary"] = _summary(found, currency)
    found["figures"] = _figures(found, currency)
    return found


def _each(total: float, parts: float) -> float | None:
    return total / parts if parts > 0 else None


def _break_even_volume(fixed: float, each: float, price: float, days: float) -> float | None:
    """Requests a day at which a year costs as much as the API; None where each costs more in energy alone."""
    return fixed / (price - each) / days if price > each else None


def _summary(found: Mapping[str, Any], currency: str) -> list[dict[str, Any]]:
    rows = (
        ("cost per million tokens", found["cost_per_million_tokens"], currency),
        ("cost per year", found["cost_per_year"], currency),
        ("energy per year", found["energy_kwh_per_year"], "kWh"),
        ("break-even", found["break_even_requests_per_day"], "requests/day"),
    )
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in rows if value is not None]


def _figures(found: Mapping[str, Any], currency: str) -> list[dict[str, Any]]:
    source = "inputs of the cost, listed as its assumptions"
    return [
        row(
            "energy of a year",
            found["energy_kwh_per_year"],
            "kWh",
            "(devices x limit x (idle + (active - idle) x mean load) + servers x rest) x hours x PUE",
            source,
        ),
        row(
            "energy of a million tokens",
            found["energy_kwh_per_million_tokens"],
            "kWh",
            "energy / tokens of prompts and answers",
            source,
        ),
        row(
            "cost of a year",
            found["cost_per_year"],
            currency,
            "(hardware x (1 + installation) - residual) x annuity + maintenance + energy + staff + space",
            source,
        ),
        row("cost of a request", found["cost_per_request"], currency, "cost of a year / requests of a year", source),
        row(
            "cost of a million tokens",
            found["cost_per_million_tokens"],
            currency,
            "cost of a year / tokens of prompts and answers",
            source,
        ),
        row(
            "the API's cost of a year",
            found["api_cost_per_year"],
            currency,
            "requests x (prompt x price of input + answer x price of output)",
            source,
        ),
        row(
            "break-even",
            found["break_even_requests_per_day"],
            "requests/day",
            "cost without requests / (the API's cost of one - its energy here)",
            source,
        ),
        row(
            "break-even time",
            found["break_even_years"],
            "years",
            "investment / (the API's cost of a year - running cost of a year); null beyond the years of use",
            source,
        ),
    ]
