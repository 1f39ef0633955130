"""No text of a file is anything but text when it leaves memsim."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Qwen2.5 größe ≤ 1 日本 ▁█", "Qwen2.5 größe ≤ 1 日本 ▁█"),
        ("a\nfake: fits", r"a\nfake: fits"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred\x07\x7f\x9b", r"\x1b[31mred\x07\x7f\x9b"),
        ("cod\u202egnp.exe\u2066", r"cod\u202egnp.exe\u2066"),
        ("line\u2028end\u0085", r"line\u2028end\x85"),
        ("no\u200bwidth\ufeff", r"no\u200bwidth\ufeff"),
        ("bytes \udcff", r"bytes \udcff"),
        ("tag \U000e0041", r"tag \U000e0041"),
    ],
)
def test_what_is_not_printable_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
