"""Models of images: transformers, timm, torchvision and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer import fix
from public_models.subject import (
    CLASSES,
    HEADS,
    IMAGE,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Subject,
    from_transformers,
    image_batch,
    image_classes,
    named,
)

PATCH = 8


def _fixed(make: Callable[[], nn.Module]) -> nn.Module:
    return fix(make()).model


def _of_transformers(name: str, *, fixed: bool = False, **settings: Any) -> Subject:
    shape = {"num_labels": CLASSES, "image_size": IMAGE} | settings
    make: Callable[[], nn.Module] = partial(from_transformers, name, **shape)
    return Subject(
        "transformers", partial(_fixed, make) if fixed else make, image_batch, image_classes
    )


def _of_timm(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = named("timm", "create_model")(name, num_classes=CLASSES, **settings)
    return model.train()


def _mixer() -> nn.Module:
    """Return a smaller mixer than timm has a name for."""
    model: nn.Module = named("timm.models", "MlpMixer")(
        num_classes=CLASSES, img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, num_blocks=4
    )
    return model.train()


def _of_torchvision(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = named("torchvision.models", name)(num_classes=CLASSES, **settings)
    return model.train()


def _images(library: str, make: Callable[[], nn.Module], *, fixed: bool = False) -> Subject:
    return Subject(library, partial(_fixed, make) if fixed else make, image_batch, image_classes)


def _clip() -> nn.Module:
    shape = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }  # fmt: skip
    text = shape | {
        "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "eos_token_id": 2,
        "pad_token_id": 1, "bos_token_id": 0,
    }  # fmt: skip
    images = shape | {"image_size": IMAGE, "patch_size": PATCH}
    return from_transformers(
        "CLIP Model", text_config=text, vision_config=images, projection_dim=WIDTH // 2
    )


def _captioned_images(records: int) -> tuple[Tensor, Tensor]:
    captions = torch.randint(4, VOCABULARY, (records, LENGTH))
    captions[:, -1] = 2  # the end, whose output is the embedding of the caption
    return torch.randn(records, 3, IMAGE, IMAGE), captions


def _distances(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return one loss per pair: how far its image is from its own caption."""
    found = model(pixel_values=batch[0], input_ids=batch[1])
    return 1 - functional.cosine_similarity(found.image_embeds, found.text_embeds)


def _contrasts(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the contrastive losses, in which each pair is compared with all other pairs."""
    scores = model(pixel_values=batch[0], input_ids=batch[1]).logits_per_image
    return functional.cross_entropy(scores, torch.arange(len(scores)), reduction="none")


def _unet() -> nn.Module:
    model: nn.Module = named("diffusers", "UNet2DModel")(
        sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    return model.train()


def _noisy_images(records: int) -> dict[str, Tensor]:
    """Return images with the noise and the time step of each as a part of its record."""
    shape = (records, 3, 16, 16)
    steps = torch.randint(0, 1000, (records,))
    return {"image": torch.randn(shape), "noise": torch.randn(shape), "step": steps}


def _denoising(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    kept = torch.cos(batch["step"] / 1000 * torch.pi / 2)[:, None, None, None]
    noisy = kept * batch["image"] + (1 - kept**2).sqrt() * batch["noise"]
    gap = model(noisy, batch["step"]).sample - batch["noise"]
    return gap.square().flatten(1).mean(dim=1)


VIT = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH, "patch_size": PATCH, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip

IMAGE_MODELS = {
    "ViT": _of_transformers("ViT ForImageClassification", **VIT),
    "DeiT": _of_transformers("DeiT ForImageClassification", **VIT),
    "Swin": _of_transformers(
        "Swin ForImageClassification", patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4],
        window_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
    ),
    "ConvNeXt": _of_transformers(
        "ConvNext ForImageClassification", hidden_sizes=[32, 64], depths=[2, 2], num_stages=2,
        patch_size=2, drop_path_rate=0.0,
    ),
    "ResNet (fix)": _of_transformers(
        "ResNet ForImageClassification", fixed=True, embedding_size=32, hidden_sizes=[32, 64],
        depths=[2, 2], layer_type="basic",
    ),
    "MobileNet-V2 (fix)": _of_transformers(
        "MobileNetV2 ForImageClassification", fixed=True, depth_multiplier=0.5, tf_padding=False,
        classifier_dropout_prob=0.0,
    ),
    "CLIP (pairwise loss)": Subject("transformers", _clip, _captioned_images, _distances),
    "CLIP (contrastive loss)": Subject(
        "transformers", _clip, _captioned_images, _contrasts, mixes=True
    ),
    "timm ViT-tiny": _images(
        "timm",
        partial(_of_timm, "vit_tiny_patch16_224", img_size=IMAGE, patch_size=PATCH, depth=4),
    ),
    "timm ResNet18 (fix)": _images("timm", partial(_of_timm, "resnet18"), fixed=True),
    "timm MobileNetV3 (fix)": _images(
        "timm", partial(_of_timm, "mobilenetv3_small_050", drop_rate=0.0), fixed=True
    ),
    "timm EfficientNet-B0 (fix)": _images(
        "timm",
        partial(_of_timm, "efficientnet_b0", drop_rate=0.0, drop_path_rate=0.0),
        fixed=True,
    ),
    "timm ConvNeXt-atto": _images("timm", partial(_of_timm, "convnext_atto")),
    "timm nf_resnet26": _images("timm", partial(_of_timm, "nf_resnet26")),
    "timm Swin-tiny": _images(
        "timm",
        partial(
            _of_timm, "swin_tiny_patch4_window7_224", img_size=IMAGE, patch_size=2, window_size=4,
            embed_dim=32, depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.0,
        ),
    ),
    "timm MLP-Mixer": _images("timm", _mixer),
    "torchvision ResNet18 (fix)": _images(
        "torchvision", partial(_of_torchvision, "resnet18"), fixed=True
    ),
    "torchvision ResNet18 (fix, zero_init_residual)": _images(
        "torchvision", partial(_of_torchvision, "resnet18", zero_init_residual=True), fixed=True
    ),
    "torchvision DenseNet121 (fix)": _images(
        "torchvision", partial(_of_torchvision, "densenet121"), fixed=True
    ),
    "torchvision ShuffleNet (fix)": _images(
        "torchvision", partial(_of_torchvision, "shufflenet_v2_x0_5"), fixed=True
    ),
    "diffusers UNet2D": Subject("diffusers", _unet, _noisy_images, _denoising),
}  # fmt: skip
