import tomllib
from pathlib import Path

import pytest

from memsim.errors import InputError
from memsim.simulator.device import BETTER, UNITS
from memsim.simulator.device_file import built_in, find_device, format_device, host_file, parse_device, read_device
from phones import phone

TEXT = format_device(phone(spread=0.5, warning_fraction=0.5, flash_hot_multiplier=0.5, thermal_floor=0.5))
LIMIT = "foreground_limit_bytes = { low = 5e7, nominal = 1e8, high = 1.5e8"


@pytest.mark.parametrize("name", built_in())
def test_every_device_that_comes_along_is_sound(name: str) -> None:
    device = find_device(name)
    assert device.name == name
    assert list(device.numbers) == list(UNITS)
    assert {quantity.source for quantity in device.numbers.values()} == set(device.sources)
    assert parse_device(tomllib.loads(format_device(device)), name, name) == device
    better, worse = device.at("better"), device.at("worse")
    for key, direction in BETTER.items():
        assert (getattr(better, key) - getattr(worse, key)) * direction >= 0
    # A measured or documented number says where; derived and assumed ones may have no page.
    assert all(
        device.sources[q.source].url for q in device.numbers.values() if q.confidence == "M" and name != "mac-m4"
    )


def test_the_phones_of_the_project_are_there() -> None:
    assert {"iphone-15-pro-max", "iphone-17-pro", "oneplus-12", "raspberry-pi-5", "mac-m4"} <= set(built_in())
    phone_15 = find_device("iphone-15-pro-max").at("nominal")
    assert (phone_15.ram_bytes, phone_15.page_bytes, phone_15.cluster_max_bytes) == (8 << 30, 16_384, 524_288)


def test_a_corner_takes_the_end_that_helps_or_hurts() -> None:
    device = phone(spread=0.1)
    assert device.at("better").matmul_flops_per_s == pytest.approx(1.1e9)
    assert device.at("better").op_launch_s == pytest.approx(0.9e-5)
    assert device.at("worse").app_baseline_bytes == pytest.approx(1.1e6)
    assert device.at("worse").page_bytes == device.at("better").page_bytes == device.at("nominal").page_bytes


def test_a_user_s_own_file_is_a_device(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    device = find_device(str(tmp_path / "mine.toml"))
    assert (device.name, device.title, device.rule) == ("mine", "A phone of round numbers", "ios")
    assert device.numbers["foreground_limit_bytes"].nominal == 1e8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('schema = "memsim.device/1"', 'schema = "memsim.device/9"', "has schema 'memsim.device/9'; this memsim reads"),
        ('rule = "ios"', 'rule = "symbian"', "rule must be one of ios, linux"),
        ('title = "A phone of round numbers"', "title = 3", "title must be a string"),
        ('rule = "ios"', 'rule = "ios"\ncolour = "red"', "unknown field 'colour'"),
        (LIMIT, "page_bits" + LIMIT.removeprefix("foreground_limit_bytes"), "an unknown number 'page_bits'"),
        (LIMIT, LIMIT.replace("5e7", "2e8"), "foreground_limit_bytes must have low <= nominal <= high"),
        (LIMIT, LIMIT.replace("5e7", "-5e7"), "foreground_limit_bytes must be above 0"),
        (LIMIT, LIMIT.replace("5e7", "nan"), "low must be a finite number"),
        (LIMIT, LIMIT.replace("5e7", '"5e7"'), "low must be a finite number"),
        (LIMIT, LIMIT.replace("1.5e8", "1e40"), "at most 1e18"),
        (LIMIT, LIMIT.replace("low = 5e7, ", ""), "foreground_limit_bytes has no field 'low'"),
        (LIMIT + ', unit = "B"', LIMIT + ', unit = "MB"', "foreground_limit_bytes must be in B, not 'MB'"),
        (
            LIMIT + ', unit = "B", source = "tests"',
            LIMIT + ', unit = "B", source = "hearsay"',
            "names the source 'hearsay'",
        ),
        (
            LIMIT + ', unit = "B", source = "tests", confidence = "L"',
            LIMIT + ', unit = "B", source = "tests", confidence = "X"',
            "one of H, M, L",
        ),
        ('date = "2026"', 'date = "lately"', "needs `what` and a `date` such as 2026-11, not 'lately'"),
        ("[numbers]", "[numbers", "is not valid TOML"),
        ("low = 8192, nominal = 16384", "low = 1, nominal = 4095", "must have 4096 <= page_bytes <= cluster_min_bytes"),
        (
            "low = 16384, nominal = 32768",
            "low = 1, nominal = 16383",
            "must have 4096 <= page_bytes <= cluster_min_bytes",
        ),
        ("nominal = 524288", "nominal = 1e9", "cluster_max_bytes must have low <= nominal <= high"),
        (
            "thermal_floor = { low = 0.25, nominal = 0.5, high = 0.75",
            "thermal_floor = { low = 0.25, nominal = 0.5, high = 1.5",
            "at most 1",
        ),
        (TEXT[TEXT.index("[numbers]") :], "", "has no number 'active_power_w' (W)"),
    ],
)
def test_a_file_that_breaks_a_rule_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    path = tmp_path / "mine.toml"
    text = TEXT.replace(old, new)
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_device(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSIM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="no device called 'nokia'; devices: .*iphone-15-pro-max.*host"):
        find_device("nokia")
    with pytest.raises(InputError, match="cannot read .*none.toml"):
        find_device(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="run `memsim devices calibrate`"):
        find_device("host")
    (tmp_path / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="larger than the 1 MiB"):
        find_device(str(tmp_path / "large.toml"))
    (tmp_path / "latin.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(InputError, match="not valid TOML"):
        find_device(str(tmp_path / "latin.toml"))
    host_file().parent.mkdir(parents=True)
    host_file().write_text(TEXT)
    assert find_device("host").name == "host"
