"""Depth Anything V1 and V2 as published: an encoder and a decoder, with a place for gates between.

The parts are those of `transformers.DepthAnythingForDepthEstimation` and keep its arithmetic. What
is ours is how they are wired, so that the levels between them are plain maps and so that ONNX
export keeps height and width dynamic: transformers turns both into Python integers (in the head)
or branches on them (in the position embedding), which bakes the size of the example into a graph.

Source: Yang et al., Depth Anything (arXiv 2401.10891) and Depth Anything V2 (arXiv 2406.09414).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DepthAnythingConfig, Dinov2Config
from transformers.models.depth_anything.modeling_depth_anything import (
    DepthAnythingDepthEstimationHead,
    DepthAnythingNeck,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2Backbone

from briges_ros.errors import BrigesError
from briges_ros.network.checkpoints import empty_on_cpu

LEVELS = 4
RELATIVE = 'relative_inverse_depth'  # the decoder's output: 1/z up to scale and shift
METRIC = 'metric_depth'  # the decoder's output: z, metres
# Checkpoints keep the names on the left; newer transformers calls the layers by those on the right.
RENAMED = {
    'attention.attention.query.': 'attention.q_proj.',
    'attention.attention.key.': 'attention.k_proj.',
    'attention.attention.value.': 'attention.v_proj.',
    'attention.output.dense.': 'attention.o_proj.',
}


class DepthAnythingEncoder(nn.Module):
    """The DINOv2 encoder: normalised image (B, 3, 14 h, 14 w) -> four maps (B, d, h, w).

    Each is the output of one block through the final LayerNorm, without the class token. Which
    blocks is in the checkpoint's configuration: the last four in V1, four evenly spaced ones in V2.

    Attributes:
        patch: pixels along a patch's side, 14.
        width: d; 384, 768 or 1024.
        blocks: index of the four blocks, from 0.
    """

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.backbone = Dinov2Backbone(config)
        self.patch = int(config.patch_size)
        self.width = int(config.hidden_size)
        self.blocks = tuple(config.stage_names.index(stage) - 1 for stage in config.out_features)
        if len(self.blocks) != LEVELS or min(self.blocks) < 0:
            raise ValueError(f'{LEVELS} blocks are wanted, not {list(config.out_features)}')

    def forward(self, image: Tensor) -> list[Tensor]:
        h, w = image.shape[2] // self.patch, image.shape[3] // self.patch
        x = self._embed(image, h, w)
        levels = []
        for index, block in enumerate(self.backbone.encoder.layer):
            x = block(x)
            if index in self.blocks:
                tokens = self.backbone.layernorm(x)[:, 1:]
                levels.append(tokens.transpose(1, 2).reshape(x.shape[0], self.width, h, w))
        return levels

    def _embed(self, image: Tensor, h: int, w: int) -> Tensor:
        """(B, 3, 14 h, 14 w) -> tokens (B, 1 + h w, d), the class token first."""
        embeddings = self.backbone.embeddings
        patches = embeddings.patch_embeddings(image)
        position = embeddings.position_embeddings
        grid = round((position.shape[1] - 1) ** 0.5)
        position_map = position[:, 1:].reshape(1, grid, grid, self.width).permute(0, 3, 1, 2)
        # Always resized, which at the size of the training is the identity.
        position_map = F.interpolate(position_map, size=(h, w), mode='bicubic', align_corners=False)
        patches = patches + position_map.flatten(2).transpose(1, 2)
        first = (embeddings.cls_token + position[:, :1]).expand(image.shape[0], -1, -1)
        return torch.cat([first, patches], dim=1)


class DepthAnythingDecoder(nn.Module):
    """The DPT neck and head: four maps (B, d, h, w) -> (B, 1, 14 h, 14 w).

    Attributes:
        output: `RELATIVE` or `METRIC`, what the values are.
        max_depth: metres; the end of the range of a metric decoder, 1 for a relative one.
    """

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        self.neck = DepthAnythingNeck(config)
        self.head = DepthAnythingDepthEstimationHead(config)
        self.patch = int(config.patch_size)
        self.output = METRIC if config.depth_estimation_type == 'metric' else RELATIVE
        self.max_depth = float(self.head.max_depth)

    def forward(self, levels: list[Tensor]) -> Tensor:
        h, w = levels[0].shape[2], levels[0].shape[3]
        # The neck takes tokens and drops the class token: it gets a zero one.
        tokens = [F.pad(level.flatten(2).transpose(1, 2), (0, 0, 1, 0)) for level in levels]
        x = self.head.conv1(self.neck(tokens, h, w)[self.head.head_in_index])
        size = (self.patch * h, self.patch * w)
        x = F.interpolate(x, size=size, mode='bilinear', align_corners=True)
        x = self.head.conv3(self.head.activation1(self.head.conv2(x)))
        return self.head.activation2(x) * self.max_depth


class DepthAnything(nn.Module):
    """Encoder and decoder: normalised image (B, 3, 14 h, 14 w) -> (B, 1, 14 h, 14 w).

    Attributes:
        encoder: see `DepthAnythingEncoder`.
        decoder: see `DepthAnythingDecoder`; its ``output`` says what the values are.
    """

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        self.encoder = DepthAnythingEncoder(config.backbone_config)
        self.decoder = DepthAnythingDecoder(config)

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))


def empty_depth_anything(config: Mapping[str, Any]) -> DepthAnything:
    """The network that a published ``config.json`` describes, without its weights.

    Raises:
        BrigesError: it has another backbone than DINOv2.
        Exception: whatever transformers says of values that it cannot use.
    """
    parsed = DepthAnythingConfig.from_dict(dict(config))
    backbone = parsed.backbone_config
    if not isinstance(backbone, Dinov2Config) or not backbone.apply_layernorm:
        raise BrigesError('only Depth Anything on DINOv2 with its final LayerNorm is known')
    with torch.device('meta'):
        network = DepthAnything(parsed)
    empty_on_cpu(network)
    return network


def depth_anything_tensors(
    published: Mapping[str, Tensor], network: DepthAnything
) -> dict[str, Tensor]:
    """A published checkpoint's tensors by the names that the network has for them."""
    modern = any('.q_proj.' in name for name in network.state_dict())
    parts = {'backbone.': 'encoder.', 'neck.': 'decoder.', 'head.': 'decoder.'}
    tensors = {}
    for published_name, tensor in published.items():
        name = published_name
        if modern:
            for old, new in RENAMED.items():
                name = name.replace(old, new)
        part = next((part for prefix, part in parts.items() if name.startswith(prefix)), '')
        tensors[part + name] = tensor
    return tensors
