"""The published table: what is reached is held here; and the fit finds constants that it cannot have seen."""

from dataclasses import replace

import pytest

from memsim.models.lora import n_trainable
from memsim.models.presets import preset
from memsim.simulator import validation
from memsim.simulator.device_file import find_device
from memsim.simulator.published_figures import DEVICE, LORA, TABLE
from memsim.simulator.validation import Case, Fitted, Validation, fit, make_case, predict, validate_table

PHONE = find_device(DEVICE)


@pytest.fixture(scope="module")
def table() -> Validation:
    return validate_table(PHONE)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [make_case(cell, PHONE) for cell in TABLE if cell.model in ("qwen2.5-0.5b", "gemma3-1b")]


def test_the_table_is_the_published_one() -> None:
    # Published ratios of the two methods, from 1.437 to 1.943 in time; trainable parameters in millions.
    ratios = [mebp.step_s / mezo.step_s for mezo, mebp in zip(TABLE[::2], TABLE[1::2], strict=True)]
    assert (min(ratios), max(ratios)) == pytest.approx((1.437, 1.943), abs=5e-4)
    trainable = [round(n_trainable(preset(cell.model), LORA) / 1e6, 2) for cell in TABLE[::2]]
    assert trainable == pytest.approx([4.39, 9.23, 14.97, 6.52, 14.90], abs=0.011)


def test_models_that_are_left_out_are_predicted(table: Validation) -> None:
    memory, time = table.errors["memory", "held_out"], table.errors["time", "held_out"]
    assert memory.mean <= 0.10 and memory.worst <= 0.20 and memory.disordered == 0
    assert time.mean <= 0.12 and time.worst <= 0.20 and time.disordered == 0
    assert memory.pairs == 40 and time.pairs == 44


def test_errors_are_those_of_the_predictions(table: Validation) -> None:
    off = [abs(p.held_out.step_s / p.published.step_s - 1) for p in table.predictions]
    assert table.errors["time", "held_out"].worst == pytest.approx(max(off))
    assert table.errors["time", "held_out"].mean == pytest.approx(sum(off) / 10)
    assert [p.published for p in table.predictions] == list(TABLE)
    assert len({p.held_out.step_s / p.fitted.step_s for p in table.predictions}) > 5  # the fits do differ


def test_a_fit_finds_the_constants_that_made_its_data(cases: list[Case]) -> None:
    truth = Fitted(8e11, 1.3e9, 73e6)
    made = [predict(case, PHONE, truth.applied(PHONE.at("nominal"))) for case in cases]
    found = fit([replace(case, published=cell) for case, cell in zip(cases, made, strict=True)], PHONE)
    # The search ends when factors of 0.1 % no longer help; the two rates trade against each other.
    assert found.flops_per_s == pytest.approx(truth.flops_per_s, rel=0.01)
    assert found.vocabulary_bytes_per_s == pytest.approx(truth.vocabulary_bytes_per_s, rel=0.01)
    assert found.app_baseline_bytes == pytest.approx(truth.app_baseline_bytes, rel=1e-3)


def test_heat_makes_a_long_step_longer(cases: list[Case]) -> None:
    slow = Fitted(2e11, 4e8, 5e7).applied(PHONE.at("nominal"))
    case = max(cases, key=lambda item: predict(item, PHONE, slow).step_s)
    cool = replace(slow, thermal_hold_s=1e6)
    ratio = predict(case, PHONE, slow).step_s / predict(case, PHONE, cool).step_s
    assert 1.3 < ratio < 1 / slow.thermal_floor


def test_pairs_in_the_wrong_order_are_counted() -> None:
    # Published 100, 104, 120; the pair (100, 104) is too close to count.
    errors = validation._errors([(100.0, 130.0), (104.0, 104.0), (120.0, 110.0)])
    assert (errors.pairs, errors.disordered) == (2, 1)
    assert errors.worst == pytest.approx(0.3)
