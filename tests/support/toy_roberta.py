"""A small RoBERTa of transformers, and a tokenizer for it."""

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import RobertaConfig

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
VOCAB, SEQ_LEN = 384, 66


def save_tokenizer(path: Path, special: Sequence[str] = (*SPECIAL, "<mask>")) -> None:
    """Train a byte-level BPE tokenizer on CPython's documentation, with the special tokens of RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.save(str(path))


def roberta_config() -> RobertaConfig:
    return RobertaConfig(
        vocab_size=VOCAB,  # beyond the mask, as some checkpoints pad it
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=SEQ_LEN + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.2,  # large enough for the frozen head to give a token much weight
    )
