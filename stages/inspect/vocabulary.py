"""Token ids as text, with the tokenizers library alone: loading transformers takes longer than all statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.tokenization import vocabulary_hash
from ...errors import ModelError

Ids = npt.NDArray[np.int32]
_BEFORE = 8
"""Tokens of the prompt that a response's first token is decoded after: some have a space only there."""


class Vocabulary:
    """A tokenizer's texts.

    Args:
        name: a folder or hub name (NAME@REVISION).
        sha256: the manifest's `tokenizer_vocabulary_sha256`.

    Raises:
        ModelError: there is no such tokenizer, or its ids mean something else than the cache's.
    """

    def __init__(self, name: str, sha256: str) -> None:
        found = _from_file(name)
        if found is None or vocabulary_hash(found) != sha256:
            found = _from_transformers(name)
        if vocabulary_hash(found) != sha256:
            raise ModelError(
                f"{name} has another vocabulary than the cache was scored with",
                fix="name the tokenizer of the cache's models with --tokenizer",
            )
        self._backend = found

    def texts(self, ids: Ids, prompt: Ids) -> list[str]:
        """The text of each token of a response as it stands there. A token that ends inside a character has none, the
        token that completes the character has all of it."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=prompt[-_BEFORE:].tolist(), skip_special_tokens=False)
        return [stream.step(self._backend, token) or "" for token in ids.tolist()]

    def text(self, token: int) -> str:
        """The text of one token by itself, or its name in the vocabulary where that is no text."""
        name: str = self._backend.id_to_token(token) or f"<{token}>"
        if "\N{LOWER ONE EIGHTH BLOCK}" in name:  # SentencePiece's space, which decoding drops at the start
            return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        text: str = self._backend.decode([token], skip_special_tokens=False)
        return name if not text or "\N{REPLACEMENT CHARACTER}" in text else text


def _from_file(name: str) -> Any | None:
    import tokenizers

    path = _tokenizer_file(name)
    try:
        return tokenizers.Tokenizer.from_file(str(path)) if path else None
    except Exception:
        # The library knows one class of error; transformers reads other formats, or says what is wrong.
        return None


def _from_transformers(name: str) -> Any:
    from ..console import quiet_libraries
    from ..models import load_tokenizer, tokenizer_source

    quiet_libraries()
    backend = getattr(load_tokenizer(tokenizer_source(name)), "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{name} has a tokenizer without tokenizer.json", fix="save it with a current transformers")
    return backend


def _tokenizer_file(name: str) -> Path | None:
    """tokenizer.json of a folder, or of a hub model that was downloaded before."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else None
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, "tokenizer.json", revision=revision or None)
    except ValueError:
        return None
    return Path(found) if isinstance(found, str) else None
