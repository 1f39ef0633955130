"""Text as it may leave memsim: for a terminal or a page that must not be told anything by a name in a file."""

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object) -> str:
    r"""Return ``text`` on one line: what is no printable character becomes its escape, as Python writes it.

    So line ends cannot forge a line, escape sequences move no cursor, and marks that turn the direction of writing
    (U+202E), that are invisible, or that stand for bytes that are no UTF-8, are seen: ``\u202e``.
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    short = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _ESCAPES.get(character, short)
