"""Plans of full-size published networks, randomly initialised, for both GPUs in half precision.

Their weights cannot be had everywhere, and do not matter here: what has to build is the graphs.
That these compute what torch computes is tested on small ones (test/network/test_export.py).
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')

from plan_contents import described, targets  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import (  # noqa: E402
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamModel,
)

from briges_ros.inference import tensorrt_build  # noqa: E402
from briges_ros.inference.preprocess import input_size  # noqa: E402
from briges_ros.inference.tensorrt_build import BuildOptions, TensorInfo, build_graph  # noqa: E402
from briges_ros.network.export import TOKENS, PublishedPair, open_pair  # noqa: E402
from briges_ros.network.gate import LightGate  # noqa: E402
from briges_ros.network.graphs import (  # noqa: E402
    LEVEL_NAMES,
    encoder_graph,
    gate_decoder_graph,
    onnx_graph,
    segmentation_graph,
)

pytestmark = pytest.mark.filterwarnings('ignore')  # of the exporter about itself
OPTIONS = BuildOptions('fp16', compute_capabilities=('8.6', '8.9'))
WIDTH, HEIGHT = input_size(640, 480, TOKENS)
ROWS, COLUMNS = HEIGHT // 14, WIDTH // 14


def depth_anything_v2_small():
    """As published: https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf."""
    return DepthAnythingConfig(
        backbone_config={
            'model_type': 'dinov2',
            'image_size': 518,
            'patch_size': 14,
            'hidden_size': 384,
            'num_hidden_layers': 12,
            'num_attention_heads': 6,
            'out_indices': [3, 6, 9, 12],
            'reshape_hidden_states': False,
        },
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )


# The defaults of transformers are SAM ViT-B and SAM 2.1 Hiera-tiny; but for SAM's weights of 1e-10,
# which are no weights in half precision, and take NumPy fifty times as long to convert.
SEGMENTATION = {
    'sam': (lambda: SamModel(SamConfig(vision_config={'initializer_range': 0.02})), 89.7),
    'sam2': (lambda: Sam2VideoModel(Sam2VideoConfig()), 27.0),
}


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """Opens Depth Anything V2-S with a SAM, through the files that they come as."""
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = open_full_size(tmp_path_factory.mktemp(name), *SEGMENTATION[name])
        return opened[name]

    return get


def open_full_size(folder, make, millions):
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(depth_anything_v2_small()).save_pretrained(folder / 'depth')
    sam = make()
    assert parameters(sam.vision_encoder) == pytest.approx(millions, rel=0.05)
    sam.save_pretrained(folder / 'sam')
    gates = nn.ModuleDict({str(level): LightGate(384, 256) for level in range(4)})
    tensors = {f'gates.{name}': p.contiguous() for name, p in gates.state_dict().items()}
    save_file(tensors, str(folder / 'gates.safetensors'))
    network, info = open_pair(
        PublishedPair(str(folder / 'depth'), str(folder / 'sam'), folder / 'gates.safetensors')
    )
    assert parameters(network.depth_encoder) == pytest.approx(22.0, rel=0.05)
    return network.eval(), info


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture(autouse=True)
def rtx(monkeypatch):
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_rtx',))


def built(module, shapes, dynamic, outputs):
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    graph = build_graph(onnx_graph(module, inputs, dynamic, outputs), shapes, OPTIONS)
    assert described(graph.plan) == {*graph.inputs, *graph.outputs}
    assert targets(graph.plan) == {b'sm86', b'sm89'}
    return graph


FEATURES = TensorInfo('segmentation', 'float16', (1, 256, 64, 64))  # of either SAM


@pytest.mark.parametrize('name', list(SEGMENTATION))
def test_the_segmentation_encoder_builds_for_both_gpus(pair, name):
    network, info = pair(name)
    width, height = info.segmentation_input.pixels(COLUMNS, ROWS)
    shapes = {'image': (1, 3, height, width)}
    graph = built(segmentation_graph(network), shapes, {}, ['segmentation'])
    assert graph.inputs == (TensorInfo('image', 'float32', (1, 3, 1024, 1024)),)
    assert graph.outputs == (FEATURES,)


def test_the_depth_encoder_and_the_gated_decoder_build_for_both_gpus(pair):
    """With SAM 2.1 they are the same graphs, since its features have the size of SAM's."""
    network, _ = pair('sam')
    levels = dict.fromkeys(LEVEL_NAMES, (1, 384, ROWS, COLUMNS))
    typed = tuple(TensorInfo(name, 'float16', shape) for name, shape in levels.items())

    shapes = {'image': (1, 3, HEIGHT, WIDTH)}
    dynamic = {'image': {2: '14*rows', 3: '14*cols'}}
    graph = built(encoder_graph(network), shapes, dynamic, list(LEVEL_NAMES))
    assert graph.inputs == (TensorInfo('image', 'float32', shapes['image']),)
    assert graph.outputs == typed
    assert len(graph.plan) == pytest.approx(22e6 * 2, rel=0.2)  # a half for each parameter

    sizes = {name: {2: 'rows', 3: 'cols'} for name in LEVEL_NAMES}
    shapes = {**levels, 'segmentation': FEATURES.shape}
    graph = built(gate_decoder_graph(network), shapes, sizes, ['inverse_depth'])
    assert graph.inputs == (*typed, FEATURES)
    assert graph.outputs == (TensorInfo('inverse_depth', 'float32', (1, 1, HEIGHT, WIDTH)),)
