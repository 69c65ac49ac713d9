"""Models of sound of transformers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from public_models.subject import (
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Subject,
    from_transformers,
    token_losses,
)

MEL_BANDS, FRAMES, SAMPLES, LETTERS, SPOKEN = 20, 64, 1600, 24, 4


def _transcribed_spectrograms(records: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(4, VOCABULARY, (records, LENGTH))
    return torch.randn(records, MEL_BANDS, FRAMES), text


def _transcription(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    sound, text = batch
    found = model(input_features=sound, decoder_input_ids=text[:, :-1], use_cache=False)
    return token_losses(found.logits, text[:, 1:])


def _spoken_letters(records: int) -> tuple[Tensor, Tensor]:
    return torch.randn(records, SAMPLES), torch.randint(1, LETTERS, (records, SPOKEN))


def _alignment(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's CTC loss, over all alignments of letters with frames."""
    sound, letters = batch
    scores = model(sound).logits.log_softmax(-1).transpose(0, 1)
    frames = torch.full((len(letters),), len(scores))
    spoken = torch.full((len(letters),), SPOKEN)
    return functional.ctc_loss(scores, letters, frames, spoken, reduction="none")


SPEECH_MODELS = {
    "Whisper": Subject(
        "transformers",
        partial(
            from_transformers, "Whisper ForConditionalGeneration", vocab_size=VOCABULARY,
            num_mel_bins=MEL_BANDS, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
            encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, dropout=0.0,
            encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH, use_cache=False,
            max_source_positions=FRAMES // 2, max_target_positions=2 * LENGTH, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        _transcribed_spectrograms,
        _transcription,
    ),
    "Wav2Vec2": Subject(
        "transformers",
        partial(
            from_transformers, "Wav2Vec2 ForCTC", vocab_size=LETTERS, hidden_size=WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            conv_dim=[32, 32, 32], conv_kernel=[10, 3, 3], conv_stride=[5, 4, 2],
            num_feat_extract_layers=3, num_conv_pos_embeddings=16, hidden_dropout=0.0,
            num_conv_pos_embedding_groups=4, attention_dropout=0.0, activation_dropout=0.0,
            feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
        ),
        _spoken_letters,
        _alignment,
    ),
}  # fmt: skip
