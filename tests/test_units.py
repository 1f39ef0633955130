import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.errors import UsageError
from memsim.units import MIB, format_bytes, is_decimal, parse_bytes, parse_share


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        (" 10 kb ", 10_000),
        ("7B", 7),
        ("2TB", 2 * 10**12),
        ("0GB", 0),
    ],
)
def test_parse_bytes(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


def test_a_bare_number_is_refused_with_both_readings() -> None:
    with pytest.raises(UsageError, match=r"'512' has no unit; write 512MB \(10\^6 bytes\) or 512MiB \(2\^20 bytes\)"):
        parse_bytes("512")


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9B", "1 GB 2", "one GB", "nanGB", "1,5GB", "\u0661\u0662GB", "\uff11GB"]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


def test_an_unknown_unit_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"'1GBs' has an unknown unit 'GBs'; use one of B, KB, MB, GB, TB, KiB"):
        parse_bytes("1GBs")


def test_a_number_beyond_a_float_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_bytes("9" * 400 + "GB")


@given(st.integers(min_value=0, max_value=10**5), st.sampled_from([("MiB", 2**20), ("MB", 10**6)]))
def test_whole_numbers_are_exact(number: int, unit: tuple[str, int]) -> None:
    assert parse_bytes(f"{number}{unit[0]}") == number * unit[1]


def test_format_bytes() -> None:
    assert format_bytes(612.4 * MIB) == "612.4 MiB"
    assert format_bytes(10**9, decimal=True) == "1,000.0 MB"
    assert format_bytes(0) == "0.0 MiB"


def test_answers_use_the_unit_of_the_question() -> None:
    assert is_decimal("1GB")
    assert not is_decimal("512MiB")


@pytest.mark.parametrize(
    ("n_bytes", "decimal", "text"),
    [
        (0, True, "0.0 MB"),
        (1, True, "1 B"),
        (1000, True, "1.0 KB"),
        (1024, False, "1.0 KiB"),
        (999, True, "999 B"),
        (49_999, True, "50.0 KB"),
        (60_000, True, "0.1 MB"),
        (-1000, True, "-1.0 KB"),
    ],
)
def test_a_small_size_is_never_shown_as_nothing(n_bytes: int, decimal: bool, text: str) -> None:
    assert format_bytes(n_bytes, decimal) == text


@pytest.mark.parametrize("text", ["", "%", "-1%", "\u0661%", "1_0%", "nan", "2%%", "10001%"])
def test_what_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        parse_share(text)


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), (" 0.5 ", 0.5), ("1e-3", 1e-3), ("10000%", 100.0)])
def test_a_share_is_a_number_or_a_percentage(text: str, share: float) -> None:
    assert parse_share(text) == share
