"""The image encoders of SAM and SAM 2.1 as published: where objects are, for the gates.

Both take a square image of one size, 1024 in what is published, that holds the *whole* picture
(stretched, not padded): the map that they return then lies over the depth map corner to corner.
Normalisation is that of ImageNet, as for the depth encoder.

Source: Kirillov et al., Segment Anything (arXiv 2304.02643); Ravi et al., SAM 2 (arXiv 2408.00714).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Sam2VideoConfig,
    Sam2VisionConfig,
    Sam2VisionModel,
    SamConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamVisionEncoder

from briges_ros.network.checkpoints import empty_on_cpu

ENCODER = 'vision_encoder.'
# What else a published checkpoint holds: prompts, masks, and SAM 2's memory of a video.
OTHER_PARTS = (
    'mask_decoder.',
    'mask_downsample.',
    'memory_',
    'no_memory_',
    'no_object_pointer',
    'object_pointer_proj.',
    'occlusion_spatial_embedding_parameter',
    'prompt_encoder.',
    'shared_image_embedding.',
    'temporal_positional_encoding_projection_layer.',
)


class SamEncoder(nn.Module):
    """SAM's ViT-B, L or H: normalised image (B, 3, 1024, 1024) -> (B, channels, 64, 64).

    Attributes:
        before_neck: return the last block's output (768, 1024 or 1280 channels), as the paper's
            gate wants it, instead of the neck's (256 channels).
        size: of the image, pixels; no other is taken.
    """

    def __init__(self, config: SamVisionConfig, before_neck: bool) -> None:
        super().__init__()
        # The other implementation views a tensor in a way that ONNX export cannot follow.
        config._attn_implementation = 'eager'
        self.vision = SamVisionEncoder(config)
        self.before_neck = before_neck
        self.size = int(config.image_size)

    @property
    def channels(self) -> int:
        """Channels of the map."""
        config = self.vision.config
        return int(config.hidden_size if self.before_neck else config.output_channels)

    def forward(self, image: Tensor) -> Tensor:
        x = self.vision.patch_embed(image)
        if self.vision.pos_embed is not None:
            x = x + self.vision.pos_embed
        for block in self.vision.layers:
            x = block(x)
        return x.permute(0, 3, 1, 2) if self.before_neck else self.vision.neck(x)


class Sam2Encoder(nn.Module):
    """SAM 2.1's Hiera, tiny to large: normalised image (B, 3, 1024, 1024) -> (B, 256, 64, 64).

    The map is the level of the feature pyramid at stride 16, which sums those at 16 and 32. It is
    what SAM 2 takes as the image's embedding, but for one learnt vector ("no memory") that SAM 2
    adds to every pixel of a still image and that is no part of its encoder.

    Attributes:
        size: of the image, pixels.
    """

    def __init__(self, config: Sam2VisionConfig) -> None:
        super().__init__()
        self.vision = Sam2VisionModel(config)
        self.size = int(config.backbone_config.image_size[0])

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return int(self.vision.config.fpn_hidden_size)

    def forward(self, image: Tensor) -> Tensor:
        # Levels come from fine to coarse, and the one at stride 32 is left out.
        return self.vision(image).fpn_hidden_states[-1]


def empty_sam(config: Mapping[str, Any], before_neck: bool) -> SamEncoder:
    """The SAM encoder that a published ``config.json`` describes, without its weights."""
    with torch.device('meta'):
        encoder = SamEncoder(SamConfig.from_dict(dict(config)).vision_config, before_neck)
    empty_on_cpu(encoder)
    return encoder


def empty_sam2(config: Mapping[str, Any]) -> Sam2Encoder:
    """The SAM 2.1 encoder that a published ``config.json`` describes, without its weights."""
    with torch.device('meta'):
        encoder = Sam2Encoder(Sam2VideoConfig.from_dict(dict(config)).vision_config)
    empty_on_cpu(encoder)
    return encoder


def sam_tensors(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors out of a published checkpoint, by the names they have here."""
    return {
        'vision.' + name.removeprefix(ENCODER) if name.startswith(ENCODER) else name: tensor
        for name, tensor in published.items()
        if not name.startswith(OTHER_PARTS)
    }
