"""How text is cut into words before byte-level BPE, by llama.cpp's names of it (``tokenizer.ggml.pre``).

The expressions are those of the models' own tokenizer.json. Names are llama.cpp's, with their aliases, of tokenizers
that models of the supported families have. Where transformers reads the same file it cuts in the same way. So digits
before which several spaces stand are cut as GPT-2 does in the last group, though llama.cpp's ``smollm`` sets each
digit apart first.
"""

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
QWEN2_SPLIT = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_OTHERS}"


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut a text.

    Attributes:
        split: The expression; None is GPT-2's.
        normalizer: What is done to the text before.
        whole_words: Whether a word of the vocabulary is taken whole.
        begins: Whether a text begins with a token of its own, where the file does not say.
    """

    split: str | None = None
    normalizer: str | None = None
    whole_words: bool = False
    begins: bool = False


_QWEN2 = Cut(QWEN2_SPLIT, "NFC")
_LLAMA3 = Cut(rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}", whole_words=True, begins=True)
_TEKKEN = Cut(
    rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    whole_words=True,
    begins=True,
)
_GPT2 = Cut()

CUTS: dict[str | None, Cut] = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), _QWEN2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"), _LLAMA3),
    "smaug-bpe": Cut(_LLAMA3.split),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-2", "mellum", "gigachat", "a.x-4.0", "exaone4"), _GPT2),
    **dict.fromkeys(("smollm", "minerva-7b", "default", None), _GPT2),
}
"""Name (None where the file has none) to the way to cut."""
