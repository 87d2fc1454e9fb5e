"""Published networks small enough for tests, with random weights in the published format.

transformers' own initialisation lets the signal vanish (std 0.02), so every weight is drawn anew.
"""

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Sam2VideoConfig,
    SamConfig,
)

V1, V2 = [2, 3, 4, 5], [1, 2, 3, 5]  # as the published ones: the last four, and evenly spaced


def alive(model, seed=0):
    """Draw weights with which the signal neither vanishes nor explodes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and 'embed' not in name and 'token' not in name:
                fan_in = parameter[0].numel()
                if 'resize' in name and parameter.shape[-1] in (2, 4):  # a transposed convolution
                    fan_in = parameter.shape[0]
                parameter.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            elif parameter.ndim > 1 or name.endswith('bias'):
                parameter.normal_(std=0.5, generator=generator)
            else:
                parameter.normal_(1, 0.3, generator=generator)
    return model.eval()


def depth_config(out_indices=V2, kind='relative', **changes):
    values = {
        'backbone_config': {
            'model_type': 'dinov2',
            'image_size': 70,
            'hidden_size': 32,
            'num_hidden_layers': 5,
            'num_attention_heads': 2,
            'out_indices': out_indices,
            'reshape_hidden_states': False,
        },
        'reassemble_hidden_size': 32,
        'neck_hidden_sizes': [8, 12, 16, 24],
        'fusion_hidden_size': 16,
        'head_hidden_size': 8,
        'depth_estimation_type': kind,
        'max_depth': 20 if kind == 'metric' else 1,
    }
    return DepthAnythingConfig(**{**values, **changes})


def save_depth(folder, config=None, **options):
    model = alive(DepthAnythingForDepthEstimation(config or depth_config()))
    with torch.no_grad():
        # The last ReLU is to live, and the sigmoid not to saturate.
        model.head.conv3.weight.abs_().mul_(0.1)
        model.head.conv3.bias.fill_(-0.1)
    model.save_pretrained(folder, **options)
    return model


def images(h, w, seed=1, count=2):
    return torch.randn(count, 3, h, w, generator=torch.Generator().manual_seed(seed))


def sam_config(image_size=128):
    return SamConfig(
        vision_config={
            'hidden_size': 32,
            'output_channels': 16,
            'num_hidden_layers': 2,  # one with windows, one without
            'num_attention_heads': 2,
            'image_size': image_size,
            'patch_size': 16,
            'window_size': 3,
            'global_attn_indexes': [1],
            'mlp_dim': 64,
        },
        prompt_encoder_config={'hidden_size': 16, 'image_size': image_size, 'patch_size': 16},
        mask_decoder_config={
            'hidden_size': 16,
            'mlp_dim': 32,
            'num_attention_heads': 2,
            'iou_head_hidden_dim': 16,
        },
    )


def sam2_config():
    return Sam2VideoConfig(
        vision_config={
            'model_type': 'sam2_vision_model',
            'backbone_config': {
                'model_type': 'sam2_hiera_det_model',
                'hidden_size': 16,
                'image_size': [128, 128],
                'blocks_per_stage': [1, 1, 2, 1],
                'embed_dim_per_stage': [16, 32, 64, 128],
                'num_attention_heads_per_stage': [1, 2, 4, 8],
                'window_size_per_stage': [8, 4, 14, 7],
                'global_attention_blocks': [3],
            },
            'backbone_channel_list': [128, 64, 32, 16],
            'backbone_feature_sizes': [[32, 32], [16, 16], [8, 8]],
            'fpn_hidden_size': 256,
        }
    )
