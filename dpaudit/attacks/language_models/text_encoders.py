"""Texts as tokens: the bytes of a text, or a Hugging Face tokenizer that is read as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, read_bytes
from dpaudit.vocabulary.errors import InvalidData, MissingExtra, UnreadableFile

BYTES, TOKENIZER_FILE = "bytes", "tokenizer.json"


@dataclass(frozen=True)
class EncodedText:
    """Tokens of a text, and the part of the text that they stand for.

    Attributes:
        tokens: Token numbers.
        text: The text of these tokens: all of it, unless tokens at its end were cut off.
    """

    tokens: tuple[int, ...]
    text: str


class TextEncoder(Protocol):
    """Turns texts into tokens."""

    def encode(self, text: str, length: int | None) -> EncodedText:
        """Return the first tokens of a text.

        Args:
            text: The text.
            length: Largest number of tokens; None for all.

        Returns:
            The tokens, and the text up to the last of them.
        """

    def plain(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a part of a text, without special tokens around it.

        Args:
            text: The part.

        Returns:
            Token numbers.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens.

        Args:
            tokens: Token numbers.

        Returns:
            The text.
        """


@dataclass(frozen=True)
class ByteEncoder:
    """Takes the UTF-8 bytes of a text as its tokens.

    Example:
        >>> ByteEncoder().encode("to be", 2)
        EncodedText(tokens=(116, 111), text='to')
    """

    def encode(self, text: str, length: int | None) -> EncodedText:
        """Return the first bytes of a text.

        Args:
            text: The text.
            length: Largest number of bytes; None for all.

        Returns:
            The bytes; a character that was cut is replaced in the text.
        """
        kept = text.encode()[:length]
        return EncodedText(tuple(kept), kept.decode(errors="replace"))

    def plain(self, text: str) -> tuple[int, ...]:
        """Return the bytes of a text.

        Args:
            text: The text.

        Returns:
            The bytes.
        """
        return tuple(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes; others than bytes, and invalid ones, are replaced.

        Args:
            tokens: Numbers from 0 to 255.

        Returns:
            The text.
        """
        return bytes(token if token < 256 else 0xFF for token in tokens).decode(errors="replace")


class TokenizerEncoder:
    """A Hugging Face tokenizer from a file, with its special tokens.

    Args:
        folder: Folder with ``tokenizer.json``; nothing else in it is read.

    Raises:
        UnreadableFile: If the file is missing or no tokenizer.
        MissingExtra: If the tokenizers library is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415  an extra
        except ImportError as error:
            raise MissingExtra("tokenizers", "llm") from error
        content = read_bytes(InputFile(folder / TOKENIZER_FILE, "tokenizer", DATA_LIMIT))
        try:
            self._encoder: Any = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            raise UnreadableFile("tokenizer", str(folder), f"a tokenizer ({error})") from error
        self._encoder.no_truncation()
        self._encoder.no_padding()

    def encode(self, text: str, length: int | None) -> EncodedText:
        """Return the first tokens of a text.

        Args:
            text: The text.
            length: Largest number of tokens; None for all.

        Returns:
            The tokens, and the text up to the last of them.
        """
        found = self._encoder.encode(text)
        if length is None or len(found.ids) <= length:
            return EncodedText(tuple(found.ids), text)
        ends = [end for _, end in found.offsets[:length]]
        return EncodedText(tuple(found.ids[:length]), text[: max(ends, default=0)])

    def plain(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a part of a text, without special tokens around it.

        Args:
            text: The part.

        Returns:
            Token numbers.
        """
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens.

        Args:
            tokens: Token numbers.

        Returns:
            The text.
        """
        return str(self._encoder.decode(list(tokens), skip_special_tokens=True))


def open_encoder(tokenizer: str | None, folder: Path | None) -> TextEncoder:
    """Return the encoder of a model.

    Args:
        tokenizer: ``bytes``, or a folder with ``tokenizer.json``; None: the model's folder.
        folder: The model's folder.

    Returns:
        The encoder.

    Raises:
        InvalidData: If neither names a tokenizer.
        UnreadableFile: If the file is missing or no tokenizer.
        MissingExtra: If the tokenizers library is not installed.

    Example:
        >>> open_encoder("bytes", None)
        ByteEncoder()
    """
    if tokenizer == BYTES:
        return ByteEncoder()
    if tokenizer is not None:
        return TokenizerEncoder(Path(tokenizer))
    if folder is None or not (folder / TOKENIZER_FILE).is_file():
        allowed = f"a folder with {TOKENIZER_FILE}, or bytes: the model's folder has none"
        raise InvalidData("tokenizer", None, allowed)
    return TokenizerEncoder(folder)
