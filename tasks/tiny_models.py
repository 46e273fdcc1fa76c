"""A model folder written on the spot: facts and a tokenizer, weights left to ``vllm serve --load-format dummy``.

Real vLLM then runs without a download. The formats are those of ``transformers`` and ``tokenizers``, written as plain
JSON, so that neither library has to be installed, or imported for seconds, where tasks run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from srfa.errors import CatalogError

_UNKNOWN: Final = "<unk>"
_SPECIAL: Final = ("bos", "eos")
_FIRST_IDS: Final = {"bos": 1, "eos": 2}
_FEWEST_WORDS: Final = 8
_CONTEXT_TOKENS: Final = 4096
"""``tokenizer_config.json`` wants a length; vLLM takes its own from ``max_position_embeddings`` or its argument."""


def write_tiny_model(config: Mapping[str, object], into: Path) -> Path:
    """Write ``config`` and a word-level tokenizer to the folder ``into`` and return it; ``config.json`` comes last.

    Word ``t17`` is token 17, words are apart by spaces, and nothing is added before or after: a prompt of n words is
    n tokens, in both directions, which is what a load generator of random prompts counts on.

    Parameters
    ----------
    config
        Facts of a Hugging Face ``config.json``, written as they are; ``vocab_size`` sizes the tokenizer, and
        ``bos_token_id`` and ``eos_token_id`` (1 and 2 where absent) name its special tokens.
    into
        A folder, made where missing.

    Raises
    ------
    CatalogError
        ``vocab_size`` is missing or too small, or a special token lies outside it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = write_tiny_model({"model_type": "llama", "vocab_size": 64}, Path(folder) / "tiny")
    ...     sorted(path.name for path in model.iterdir())
    ['config.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    words = _vocabulary(config, into / "config.json")
    into.mkdir(parents=True, exist_ok=True)
    _write(into / "tokenizer.json", _tokenizer(words))
    _write(into / "tokenizer_config.json", _tokenizer_config())
    _write(into / "config.json", config)
    return into


def _vocabulary(config: Mapping[str, object], place: Path) -> dict[str, int]:
    """Return every word with its token, ``vocab_size`` of them."""
    size = config.get("vocab_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < _FEWEST_WORDS:
        raise CatalogError(f"{place}: vocab_size={size!r} should be a whole number of at least {_FEWEST_WORDS}")
    special = {_special_id(config, name, size, place): f"<{name}>" for name in _SPECIAL}
    unknown = next(token for token in range(size) if token not in special)
    named = special | {unknown: _UNKNOWN}
    return {named.get(token, f"t{token}"): token for token in range(size)}


def _special_id(config: Mapping[str, object], name: str, size: int, place: Path) -> int:
    """Return the token; of several (Llama 3 has three ends) the first."""
    value = config.get(f"{name}_token_id")
    token = _FIRST_IDS[name] if value is None else value[0] if isinstance(value, list) and value else value
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
        raise CatalogError(f"{place}: {name}_token_id={value!r} should lie between 0 and vocab_size - 1 = {size - 1}")
    return token


def _tokenizer(words: Mapping[str, int]) -> dict[str, object]:
    """Return the document that ``tokenizers.Tokenizer.from_file`` reads."""
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": token, "content": word, **how} for word, token in words.items() if word.startswith("<")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(words), "unk_token": _UNKNOWN},
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _UNKNOWN,
        **{f"{name}_token": f"<{name}>" for name in _SPECIAL},
        "clean_up_tokenization_spaces": False,
        "model_max_length": _CONTEXT_TOKENS,
    }


def _write(path: Path, document: Mapping[str, object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
    partial.replace(path)
