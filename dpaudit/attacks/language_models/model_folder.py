"""Causal language models in a local folder, as targets of attacks.

The folder is untrusted. ``config.json`` and ``*.safetensors`` are read as data: weights that were
pickled, code in the folder, adapters and quantized weights are refused, and nothing is downloaded.
The architecture is a class of the installed transformers library. Every one of its weights must be
in the files, and every weight of the files in the model: a weight that was drawn at random, or left
out, would make a model that remembers look private.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.language_models.text_encoders import EncodedText, TextEncoder, open_encoder
from dpaudit.attacks.language_models.token_signals import (
    SamplingScheme,
    TokenSignals,
    zlib_bytes,
)
from dpaudit.attacks.language_models.torch_signals import model_signals, sample_sequences
from dpaudit.files.documents import read_json_document
from dpaudit.files.regular_files import (
    DATA_LIMIT,
    DOCUMENT_LIMIT,
    MIB,
    InputFile,
    open_input,
    path_exists,
)
from dpaudit.vocabulary.errors import InvalidArgument, InvalidData, MissingExtra, UnreadableFile

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtra("torch", "llm") from error

CONFIG, WEIGHTS = "config.json", "*.safetensors"
REFUSED_KEYS = (
    *("auto_map", "quantization_config", "attn_implementation", "_attn_implementation"),
    "transformers_weights",
)
"""Keys of a configuration that name code or other weights to load, at any depth."""

ADAPTER_CONFIG = "adapter_config.json"
HEADER_LIMIT = 100 * MIB
DECLARED_OVER_STORED = 2
"""Most parameters that a configuration may declare, in multiples of those in the files."""

BUFFER_LIMIT = 256 * MIB
"""Bytes of buffers, as causal masks, that a model may have beyond the multiple of its files."""

MOST_POSITIONS = 1 << 24
POSITIONS = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
"""Names of the number of positions in configurations."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, which has precedence, and the index of several."""


@dataclass(frozen=True)
class FolderLanguageModel:
    """A causal language model with its tokens.

    Attributes:
        model: The model in evaluation mode, on the CPU.
        encoder: Turns texts into tokens.
        vocabulary: Number of tokens that the model has logits for.
        longest: Largest number of tokens that the model has positions for; None without limit.

    Example:
        >>> from types import SimpleNamespace
        >>> def uniform(input_ids):
        ...     return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 256))
        >>> model = FolderLanguageModel(uniform, open_encoder("bytes", None), 256, None)
        >>> model.signals(("to be",))[0].log_probabilities.round(3)
        array([-5.545, -5.545, -5.545, -5.545])
    """

    model: nn.Module
    encoder: TextEncoder
    vocabulary: int
    longest: int | None

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position.

        Args:
            tokens: Shape ``(texts, length)``.

        Returns:
            Shape ``(texts, length, vocabulary)``.
        """
        found: Tensor = self.model(input_ids=tokens).logits
        return found

    def encode(self, texts: tuple[str, ...], length: int | None = None) -> list[EncodedText]:
        """Return the tokens of texts.

        Args:
            texts: The texts.
            length: Number of tokens after which a text is cut off; None: no text is cut.

        Returns:
            The tokens of each text.

        Raises:
            InvalidData: If a text has more tokens than the model has positions, or a token that it
                does not know.
        """
        found = [self.encoder.encode(text, length) for text in texts]
        for row, one in enumerate(found):
            if self.longest is not None and len(one.tokens) > self.longest:
                allowed = f"at most {self.longest}, the model's positions: give --sequence-length"
                raise InvalidData(f"text {row}", f"{len(one.tokens)} tokens", allowed)
            if one.tokens and max(one.tokens) >= self.vocabulary:
                allowed = f"below {self.vocabulary}: the tokenizer is not that of the model"
                raise InvalidData(f"text {row}", f"token {max(one.tokens)}", allowed)
        return found

    def signals(
        self,
        texts: tuple[str, ...],
        *,
        length: int | None = None,
        scheme: SamplingScheme | None = None,
        on_texts: Callable[[int], None] = lambda count: None,
    ) -> tuple[TokenSignals, ...]:
        """Compute the signals of texts.

        Args:
            texts: The texts.
            length: Number of tokens after which a text is cut off; None: no text is cut.
            scheme: Sampling scheme of an extraction; None: the model's own distribution.
            on_texts: Called after each batch with its number of texts.

        Returns:
            Signals of each text, with its compressed size.

        Raises:
            InvalidData: If a text has fewer than two tokens, or cannot be used by the model.
        """
        encoded = self.encode(texts, length)
        found = model_signals(
            self.logits,
            [np.array(one.tokens, dtype=np.int64) for one in encoded],
            scheme=scheme,
            on_texts=on_texts,
        )
        return tuple(
            replace(signals, compressed_bytes=zlib_bytes(one.text))
            for signals, one in zip(found, encoded, strict=True)
        )

    def sample(
        self, prompts: tuple[str, ...], *, length: int, scheme: SamplingScheme, seed: int
    ) -> tuple[str, ...]:
        """Draw one continuation of each prompt.

        Args:
            prompts: Beginnings of texts, of at least one token each.
            length: Number of drawn tokens.
            scheme: The sampling scheme.
            seed: Seed of the draws.

        Returns:
            The prompts with their continuations, as text.

        Raises:
            InvalidData: If a prompt is empty, or the model has too few positions.
        """
        encoded = self.encode(prompts)
        longest = max(len(one.tokens) for one in encoded) + length
        if min(len(one.tokens) for one in encoded) == 0:
            raise InvalidData("prompt", "no token", "a text of one token or more")
        if self.longest is not None and longest > self.longest:
            allowed = f"at most {self.longest}, the model's positions"
            raise InvalidData("length", f"{longest} tokens with the prompt", allowed)
        generator = torch.Generator().manual_seed(seed)
        drawn = sample_sequences(
            self.logits,
            [np.array(one.tokens, dtype=np.int64) for one in encoded],
            length=length,
            scheme=scheme,
            generator=generator,
        )
        return tuple(self.encoder.decode(tokens.tolist()) for tokens in drawn)


def open_language_model(
    folder: Path, *, tokenizer: str | None = None, argument: str = "language_model"
) -> FolderLanguageModel:
    """Open a folder with a causal language model of the transformers library.

    Args:
        folder: Folder with ``config.json`` and ``*.safetensors``.
        tokenizer: ``bytes``, or a folder with ``tokenizer.json``; None: the model's folder.
        argument: Name of the argument that gave the folder, for errors.

    Returns:
        The model, on the CPU.

    Raises:
        UnreadableFile: If a file is missing, broken or too large, or weights do not fit.
        InvalidArgument: If the configuration names code, or the weights are adapters.
        InvalidData: If no tokenizer is known.
        MissingExtra: If the transformers library is not installed.

    Example:
        >>> import tempfile, transformers
        >>> settings = transformers.GPT2Config(vocab_size=256, n_embd=4, n_layer=1, n_head=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
        ...     model = open_language_model(Path(folder), tokenizer="bytes")
        >>> model.vocabulary, model.longest
        (256, 1024)
    """
    try:
        import transformers  # noqa: PLC0415  an extra, and heavy
    except ImportError as error:
        raise MissingExtra("transformers", "llm") from error
    _require_no_code(folder, argument)
    headers = [_tensor_shapes(file, argument) for file in _weight_files(folder, argument)]
    shapes = [shape for header in headers for shape in header]
    encoder = open_encoder(tokenizer, folder)
    shown = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        model = _loaded(transformers, folder, shapes)
    except Exception as error:  # the library raises errors of many kinds
        why = f"a causal language model ({type(error).__name__}: {_shortened(error)})"
        raise UnreadableFile(argument, str(folder), why) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if shown:
            transformers.utils.logging.enable_progress_bar()
    model.config.use_cache = False
    positions = getattr(model.config, "max_position_embeddings", None)
    width = int(model.get_output_embeddings().weight.shape[0])
    return FolderLanguageModel(model.float().eval(), encoder, width, positions)


def _loaded(transformers: Any, folder: Path, shapes: list[tuple[int, ...]]) -> Any:
    """Return the model, all of whose weights are in the files."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(str(folder), **local)
    layers = getattr(config, "num_hidden_layers", 0)
    if not 0 <= layers <= len(shapes):
        raise ValueError(f"{layers} layers, but {len(shapes)} tensors")
    for name in POSITIONS:
        if (getattr(config, name, None) or 0) > MOST_POSITIONS:
            raise ValueError(f"{name} {getattr(config, name)}, at most {MOST_POSITIONS}")
    # On the meta device nothing is allocated: sizes are compared before memory is used.
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    declared = sum(parameter.numel() for parameter in empty.parameters())
    stored = sum(int(np.prod(shape, dtype=object)) for shape in shapes)
    if declared > DECLARED_OVER_STORED * stored:
        raise ValueError(f"{declared} parameters declared, but {stored} stored")
    buffers = sum(buffer.nbytes for buffer in empty.buffers())
    allowed = DECLARED_OVER_STORED * stored + BUFFER_LIMIT
    if buffers > allowed:
        raise ValueError(f"{buffers} bytes of buffers, as of causal masks; at most {allowed}")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        attn_implementation="eager",
        **local,
    )
    wrong = {
        what: sorted(map(str, found[name]))[:3]
        for name, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "of another shape"),
        )
        if found[name]
    }
    if wrong:
        raise ValueError(f"tensors {wrong}")
    return model


def _weight_files(folder: Path, argument: str) -> list[Path]:
    """Return the files of weights that the library loads; refuse adapters and other files."""
    if (folder / ADAPTER_CONFIG).exists():
        allowed = f"merged weights: {ADAPTER_CONFIG} names another model, which is not read"
        raise InvalidArgument(argument, str(folder), allowed)
    found = sorted(folder.glob(WEIGHTS))
    if not found:
        allowed = "a folder with safetensors weights: pickled weights can run code"
        raise UnreadableFile(argument, str(folder), allowed)
    for file in found:
        if file.resolve().parent != folder.resolve():
            raise UnreadableFile(argument, str(file), "a file of the folder, not a link out of it")
    indexed = _indexed_files(folder, {file.name for file in found}, argument)
    single = [file for file in found if file.name == SINGLE]
    return single or [file for file in found if file.name in indexed] or found


def _indexed_files(folder: Path, checked: set[str], argument: str) -> set[str]:
    """Return the files that an index of weights names, all of which must be checked ones."""
    file = folder / INDEX
    if not path_exists(file):
        return set()
    index = read_json_document(InputFile(file, argument, HEADER_LIMIT))
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise UnreadableFile(argument, str(file), "an index with a weight_map")
    for name in names.values():
        if not isinstance(name, str) or name not in checked:
            allowed = f"an index of {WEIGHTS} files in its folder, not of {name!r:.100}"
            raise UnreadableFile(argument, str(file), allowed)
    return set(names.values())


def _require_no_code(folder: Path, argument: str) -> None:
    """Refuse a configuration that names code to load."""
    file = folder / CONFIG
    settings = read_json_document(InputFile(file, argument, DOCUMENT_LIMIT))
    if not isinstance(settings, dict):
        raise UnreadableFile(argument, str(file), "a JSON object")
    level: list[Any] = [settings]
    while level:
        for one in level:
            for key in REFUSED_KEYS:
                if isinstance(one, dict) and one.get(key) is not None:
                    allowed = f"a configuration without {key}, which names code or weights to load"
                    raise InvalidArgument(argument, str(file), allowed)
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]


def _tensor_shapes(file: Path, argument: str) -> list[tuple[int, ...]]:
    """Return the shapes in the header of a safetensors file, and check their total size."""
    source = InputFile(file, argument, DATA_LIMIT)
    with open_input(source) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        begin = opened.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else size
        if length > min(HEADER_LIMIT, size):
            raise source.error("no safetensors file")
        try:
            header = json.loads(opened.read(length))
            entries = [value for name, value in header.items() if name != "__metadata__"]
            shapes = [tuple(int(side) for side in entry["shape"]) for entry in entries]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise source.error(f"a broken header: {error}") from error
    stored = sum(int(np.prod(shape, dtype=object)) for shape in shapes)
    if any(side < 0 for shape in shapes for side in shape) or stored > size * 2:
        raise source.error("shapes that do not fit into the file")  # two 4-bit values a byte
    return shapes


def _shortened(error: Exception) -> str:
    """Return the beginning of an error."""
    return " ".join(str(error).split())[:300]
