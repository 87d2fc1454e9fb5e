"""What a plan of TensorRT-RTX says of itself, without the driver that loading it would need.

It holds a description of its tensors in plain text, and the names of the GPUs that its kernels are
for.
"""

import re

from briges_ros.inference.tensorrt_build import TensorInfo

TENSOR = re.compile(
    rb'dims=\{ ([\d ]+) \} mem_prop=\d+ '
    rb'name="(image|level\d|segmentation|inverse_depth)\.1" .{0,300}?type=(\w+)',
    re.DOTALL,
)


def described(plan):
    """Inputs and outputs as the plan itself has them."""
    types = {b'float': 'float32', b'half': 'float16'}
    return {
        TensorInfo(name.decode(), types[dtype], tuple(map(int, dims.split())))
        for dims, name, dtype in TENSOR.findall(plan)
    }


def targets(plan):
    """The GPUs that its kernels are for; it has some for any besides ('*')."""
    found = {
        name for names in re.findall(rb'accelerators=\{(.*?)\}', plan) for name in names.split()
    }
    return found - {b'*'}
