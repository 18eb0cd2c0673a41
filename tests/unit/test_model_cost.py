# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.onprem.llm.plugins.module_utils._model_architecture import ModelError
from ansible_collections.onprem.llm.plugins.module_utils._model_cost import BOUNDS, annuity, cost_of
from ansible_collections.onprem.llm.plugins.module_utils._model_memory import Device
from ansible_collections.onprem.llm.plugins.module_utils._model_speed import Workload
from ansible_collections.onprem.llm.plugins.plugin_utils._planning_data import planning_data
from hypothesis import given
from hypothesis import strategies as st

DATA = yaml.safe_load((Path(__file__).parents[2] / "plugins" / "plugin_utils" / "planning_speed.yml").read_text(encoding="utf-8"))
GPU = Device(product="a100", name="A100", kind="gpu", memory=85 * 10**9, power_watts=400.0, sources={"power": "datasheet"})
H100 = replace(GPU, product="h100_sxm5_80gb", name="NVIDIA H100 80GB HBM3", power_watts=700.0)
L4 = replace(GPU, product="l4", name="NVIDIA L4", power_watts=72.0)
CPU = Device(product="epyc", name="EPYC", kind="cpu", memory=0, power_watts=360.0)
LOAD = Workload(100_000, 2, 600, 1500, 200, 480)
SERVED = {"utilisation": 0.8, "requests_per_day_at_capacity": 125_000.0}
# Round figures, with which everything can be checked by hand.
ROUND = {
    "currency": "EUR",
    "years": 4,
    "gpu_price": 10_000,
    "server_price": 20_000,
    "gpus_per_server": 8,
    "installation_share": 0.1,
    "maintenance_share": 0.05,
    "residual_share": 0,
    "discount_rate": 0,
    "staff_cost_per_year": 12_000,
    "space_cost_per_year": 1_000,
    "electricity_price_per_kwh": 0.25,
    "pue": 1.5,
    "gpu_power_watts": 400,
    "active_power_share": 0.7,
    "idle_power_share": 0.2,
    "server_power_watts": 1000,
    "days_per_year": 365,
    "api_price_input": 1,
    "api_price_output": 4,
}


def cost(device: Device = GPU, count: int = 8, load: Workload = LOAD, served: Any = None, **changes: Any) -> dict[str, Any]:
    return cost_of({**ROUND, **changes}, device, count, load, served or SERVED, DATA)


def test_a_year_by_hand() -> None:
    found = cost()
    assert found["servers"] == 1
    assert found["investment"] == pytest.approx(1.1 * 100_000)
    assert found["mean_utilisation"] == pytest.approx(0.4)
    watts = (8 * 400 * (0.2 + 0.5 * 0.4) + 1000) * 1.5
    assert found["mean_power_watts"] == pytest.approx(watts)
    assert found["energy_kwh_per_year"] == pytest.approx(watts * 8.76)
    assert found["energy_cost_per_year"] == pytest.approx(watts * 8.76 * 0.25)
    yearly = 110_000 / 4 + 5_000 + watts * 8.76 * 0.25 + 13_000
    assert found["cost_per_year"] == pytest.approx(yearly)
    assert found["requests_per_year"] == 36_500_000
    assert found["million_tokens_per_year"] == pytest.approx(29_200)
    assert found["cost_per_million_tokens"] == pytest.approx(yearly / 29_200)
    assert found["cost_per_request"] == pytest.approx(yearly / 36_500_000)
    assert found["cost_per_million_answer_tokens"] == pytest.approx(yearly / 7_300)
    assert found["energy_kwh_per_million_tokens"] == pytest.approx(watts * 8.76 / 29_200)
    assert found["api_cost_per_year"] == pytest.approx(36.5 * (600 * 1 + 200 * 4))
    assert found["cheaper_than_api"] is (yearly < 36.5 * 1400)


def test_at_the_break_even_volume_both_cost_the_same() -> None:
    even = cost()["break_even_requests_per_day"]
    load = Workload(even, 2, 600, 1500, 200, 480)
    found = cost(load=load, served={"utilisation": 0.8 * even / 100_000, "requests_per_day_at_capacity": 1e9})
    assert found["cost_per_year"] == pytest.approx(found["api_cost_per_year"], rel=1e-6)
    assert cost()["break_even_within_capacity"] is (even <= 125_000)


def test_the_break_even_year_is_when_what_is_saved_has_paid_for_the_hardware() -> None:
    found = cost(api_price_input=3, api_price_output=12)
    saved = found["api_cost_per_year"] - found["running_cost_per_year"]
    assert found["break_even_years"] == pytest.approx(found["investment"] / saved)
    assert found["cheaper_than_api"] is True
    assert cost(api_price_input=0.01, api_price_output=0.01)["break_even_years"] is None


def test_an_api_below_the_price_of_energy_is_never_reached() -> None:
    found = cost(api_price_input=0, api_price_output=0)
    assert found["break_even_requests_per_day"] is None
    assert found["break_even_within_capacity"] is None
    assert found["break_even_years"] is None
    assert found["cheaper_than_api"] is False


def test_only_what_can_be_served_is_counted() -> None:
    found = cost(served={"utilisation": 1.6, "requests_per_day_at_capacity": 50_000.0})
    assert found["requests_per_year"] == 50_000 * 365
    assert found["mean_utilisation"] == pytest.approx(0.8)


def test_nothing_served_has_no_price_each_and_no_fraction() -> None:
    found = cost(served={"utilisation": None, "requests_per_day_at_capacity": 0.0})
    assert found["cost_per_request"] is None and found["cost_per_million_tokens"] is None
    assert found["cost_per_year"] > 0
    json.dumps(found, allow_nan=False)


def test_a_socket_has_no_price_but_its_servers() -> None:
    found = cost(device=CPU, count=2)
    assert found["investment"] == pytest.approx(1.1 * 20_000)


def test_interest_makes_hardware_dearer_and_a_residual_value_cheaper() -> None:
    plain = cost()["capital_cost_per_year"]
    assert cost(discount_rate=0.05)["capital_cost_per_year"] > plain
    assert cost(residual_share=0.2)["capital_cost_per_year"] == pytest.approx(plain - 0.2 * 100_000 / 4)
    assert annuity(0.05, 4) == pytest.approx(0.28201183, rel=1e-6)


def test_every_assumption_is_listed_with_unit_source_and_whether_it_was_given() -> None:
    found = cost_of({"electricity_price_per_kwh": "0.3", "currency": "CHF"}, H100, 8, LOAD, SERVED, DATA)
    listed = {entry["name"]: entry for entry in found["assumptions"]}
    assert set(listed) == set(DATA["cost"]["inputs"]) == set(BOUNDS)
    assert listed["electricity_price_per_kwh"] == {
        "name": "electricity_price_per_kwh",
        "value": 0.3,
        "unit": "CHF/kWh",
        "source": "given",
        "given": True,
    }
    assert listed["pue"]["given"] is False and listed["pue"]["source"].startswith("example of the collection: Uptime")
    assert listed["gpu_price"]["value"] == 30_000 and listed["gpu_price"]["unit"] == "USD"
    assert listed["gpu_price"]["source"].startswith("example of the collection, in USD and not converted: USD in mid 2026")
    assert listed["gpu_power_watts"]["value"] == 700 and listed["gpu_power_watts"]["source"] == "datasheet"
    assert all(entry["unit"] and entry["source"] for entry in listed.values())
    assert found["currency"] == "CHF"
    assert all(figure["formula"] and figure["unit"] for figure in found["figures"])


def test_every_example_is_within_its_bounds() -> None:
    for name, example in DATA["cost"]["inputs"].items():
        low, high = BOUNDS[name]
        assert name == "gpu_price" or low <= example["value"] <= high, name
        # Money of an example has a currency.
        assert name == "gpu_price" or ("currency" in example["unit"]) is ("currency" in example), name
    products = planning_data()["gpus"]["visible"]
    for product, price in DATA["cost"]["prices"].items():
        assert product in products and price["currency"] and 0 < price["low"] <= price["value"] <= price["high"], product
    assert set(DATA["cost"]["full_servers"]) <= set(products)


def test_there_is_no_example_price_for_a_product_that_it_is_not_of() -> None:
    message = r"^cost\.gpu_price: there is no example price of a NVIDIA L4; give one \(and server_price\)$"
    with pytest.raises(ModelError, match=message):
        cost_of({}, L4, 1, LOAD, SERVED, DATA)
    with pytest.raises(
        ModelError, match=r"^cost\.server_price: there is no example price of a server for a NVIDIA L4; give one$"
    ):
        cost_of({"gpu_price": 2500}, L4, 1, LOAD, SERVED, DATA)
    with pytest.raises(ModelError, match=r"^cost\.server_price: .* for an EPYC; give one$"):
        cost_of({}, CPU, 2, LOAD, SERVED, DATA)
    # The server of an A100 has an example, its GPU has none.
    with pytest.raises(ModelError, match=r"of a NVIDIA A100-SXM4-80GB; give one$"):
        cost_of({}, replace(GPU, product="a100_sxm4_80gb", name="NVIDIA A100-SXM4-80GB"), 8, LOAD, SERVED, DATA)


@pytest.mark.parametrize(
    ("device", "count", "given_too", "watts"),
    [
        (H100, 8, {}, 2300),
        (H100, 16, {}, 2300),
        (H100, 4, {}, 400),
        (H100, 8, {"gpus_per_server": 4}, 400),
        (L4, 1, {}, 100),
        (L4, 10, {}, 800),
        (CPU, 2, {}, 200),
        (L4, 1, {"server_power_watts": 250}, 250),
    ],
)
def test_a_server_s_power_is_that_of_its_kind(device: Device, count: int, given_too: dict[str, Any], watts: float) -> None:
    found = cost_of({"gpu_price": 1, "server_price": 1, **given_too}, device, count, LOAD, SERVED, DATA)
    power = next(entry for entry in found["assumptions"] if entry["name"] == "server_power_watts")
    assert power["value"] == watts
    assert watts not in (100, 400, 800) or "100 W for each of" in power["source"]


def test_example_prices_are_told_with_their_currency() -> None:
    found = cost_of({}, H100, 8, LOAD, SERVED, DATA)
    assert found["prices_are_examples"] is True and found["currency"] == "as given"
    units = {entry["name"]: entry["unit"] for entry in found["assumptions"]}
    assert units["server_price"] == "USD" and units["electricity_price_per_kwh"] == "EUR/kWh"
    assert units["api_price_input"] == "USD per million tokens"
    assert cost()["prices_are_examples"] is False
    # A socket has no price that could be an example.
    prices = {name: ROUND[name] for name in ("server_price", "electricity_price_per_kwh", "api_price_input", "api_price_output")}
    assert cost_of(prices, CPU, 2, LOAD, SERVED, DATA)["prices_are_examples"] is False


def test_the_summary_has_what_is_known() -> None:
    found = cost()
    assert found["summary"] == [
        {"name": "cost per million tokens", "value": found["cost_per_million_tokens"], "unit": "EUR"},
        {"name": "cost per year", "value": found["cost_per_year"], "unit": "EUR"},
        {"name": "energy per year", "value": found["energy_kwh_per_year"], "unit": "kWh"},
        {"name": "break-even", "value": found["break_even_requests_per_day"], "unit": "requests/day"},
    ]
    nothing = cost(served={"utilisation": None, "requests_per_day_at_capacity": 0.0}, api_price_input=0, api_price_output=0)
    assert [entry["name"] for entry in nothing["summary"]] == ["cost per year", "energy per year"]
    names = [figure["name"] for figure in found["figures"]]
    assert len(set(names)) == len(names) and "break-even time" in names


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"years": 0}, r"cost\.years: found 0; wanted a number from 0\.25 to 30"),
        ({"pue": 0.9}, r"cost\.pue: found 0\.9; wanted a number from 1"),
        ({"electricity_price_per_kwh": "cheap"}, r"cost\.electricity_price_per_kwh: found 'cheap'"),
        ({"electricity_price_per_kwh": float("nan")}, r"cost\.electricity_price_per_kwh: found nan"),
        ({"electricity_price_per_kwh": -1}, r"cost\.electricity_price_per_kwh: found -1"),
        ({"gpu_price": True}, r"cost\.gpu_price: found True"),
        (
            {"electricty_price_per_kwh": 0.2},
            r"cost\.electricty_price_per_kwh: there is no such input \(did you mean electricity_price_per_kwh",
        ),
        ({"residual_share": 1.5}, r"cost\.residual_share: found 1\.5; wanted a number from 0 to 1"),
        ({"active_power_share": 0.1}, r"cost\.active_power_share: found 0\.1, which is less than idle_power_share 0\.2"),
        ({"currency": 5}, r"cost\.currency: found 5; wanted a label"),
    ],
)
def test_a_wrong_input_names_key_value_and_what_is_wanted(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        cost(**changes)


def test_a_device_without_a_known_limit_wants_its_watts() -> None:
    nameless = Device(product="x", name="X1", kind="gpu", memory=1)
    with pytest.raises(ModelError, match=r"cost\.gpu_power_watts: X1 has no known power limit"):
        cost(device=nameless, gpu_power_watts=0)
    assert cost(device=nameless, gpu_power_watts=300)["cost_per_year"] > 0


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_number_of_devices_that_cannot_be_is_refused(count: Any) -> None:
    with pytest.raises(ModelError, match="wanted at least 1"):
        cost(count=count)


def test_a_cost_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ModelError, match="cost: found 5; wanted a mapping"):
        cost_of(5, GPU, 8, LOAD, SERVED, DATA)  # type: ignore[arg-type]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 3), st.integers(1, 64))
def test_more_load_never_needs_less_energy_nor_costs_more_for_a_token(one: float, two: float, pue: float, count: int) -> None:
    def at(share: float) -> dict[str, Any]:
        load = Workload(max(1e-3, share * 100_000), 2, 600, 1500, 200, 480)
        return cost(load=load, count=count, served={"utilisation": share, "requests_per_day_at_capacity": 1e9}, pue=pue)

    low, high = at(min(one, two)), at(max(one, two))
    assert high["energy_kwh_per_year"] >= low["energy_kwh_per_year"] * (1 - 1e-9)
    assert high["cost_per_million_tokens"] <= low["cost_per_million_tokens"] * (1 + 1e-6)
    assert math.isfinite(high["cost_per_year"])
