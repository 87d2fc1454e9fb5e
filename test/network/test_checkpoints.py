"""Weights come as safetensors that fit exactly, or not at all."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from briges_ros.errors import BrigesError
from briges_ros.network.checkpoints import empty_on_cpu, load_checked, read_tensors


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def good():
    torch.manual_seed(1)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
        for name, tensor in network().state_dict().items()
    }


def refusal(tensors, path, module=None):
    """The one line with which a file with these tensors is refused; nothing may have changed."""
    save_file(tensors, path)
    module = module or network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(BrigesError) as error:
        load_checked(module, path)
    assert '\n' not in str(error.value) and str(path) in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    return str(error.value)


def test_what_was_saved_is_what_is_loaded(good, tmp_path):
    save_file(good, tmp_path / 'weights.safetensors')
    module = network()
    load_checked(module, tmp_path / 'weights.safetensors')
    assert all(torch.equal(good[name], tensor) for name, tensor in module.state_dict().items())


def test_half_precision_is_widened_to_what_the_network_has(good, tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in good.items()}
    save_file(half, tmp_path / 'weights.safetensors')
    module = network()
    load_checked(module, tmp_path / 'weights.safetensors')
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, half['0.weight'].float())


def test_the_first_difference_is_named_with_both_shapes(good, tmp_path):
    path = tmp_path / 'weights.safetensors'
    line = refusal({**good, '2.weight': torch.zeros(2, 5), '0.weight': torch.zeros(9)}, path)
    assert '0.weight is [9] in the file and [4, 3] in the network' in line
    assert '2 of 9' in line
    missing = {name: tensor for name, tensor in good.items() if name != '1.running_var'}
    assert '1.running_var is missing in the file and [4] in the network' in refusal(missing, path)
    line = refusal({**good, '1.extra': torch.zeros(5)}, path)
    assert '1.extra is [5] in the file and missing in the network' in line
    line = refusal({**good, '2.bias': torch.zeros(2, dtype=torch.int8)}, path)
    assert '2.bias is [2] int8 in the file and [2] in the network' in line


def test_another_width_is_refused(good, tmp_path):
    wide = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    line = refusal(good, tmp_path / 'weights.safetensors', wide)
    assert '0.bias is [4] in the file and [8] in the network' in line


class Bomb:
    """A pickle that leaves a trace where it is opened."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), 'w'))


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pth', 'pytorch_model.bin'])
@pytest.mark.parametrize('protocol', [2, 5])
def test_a_pickle_is_refused_unopened(tmp_path, name, protocol):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(tmp_path / 'trace'), protocol))
    with pytest.raises(BrigesError, match=r'is a pickle.*convert it to safetensors'):
        load_checked(network(), path)
    assert not (tmp_path / 'trace').exists()


@pytest.mark.parametrize('zipped', [True, False])
def test_what_torch_saves_is_refused_under_any_name(tmp_path, zipped):
    path = tmp_path / 'weights.safetensors'
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BrigesError, match='is a pickle'):
        load_checked(network(), path)


def test_a_header_that_begins_like_a_pickle_is_no_pickle(good, tmp_path):
    # The length of the header comes first: 640 bytes of header begin with 80 02.
    path = tmp_path / 'weights.safetensors'
    for padding in range(2000):
        content = save(good, metadata={'padding': 'x' * padding})
        if content[:2] == b'\x80\x02':
            break
    else:
        pytest.fail('no such header')
    path.write_bytes(content)
    load_checked(network(), path)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(tmp_path_factory, share):
    path = tmp_path_factory.mktemp('cut') / 'weights.safetensors'
    content = save(network().state_dict())
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BrigesError, match='no whole safetensors file'):
        load_checked(network(), path)


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=64))
def test_noise_is_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('noise') / 'weights.safetensors'
    path.write_bytes(content)
    with pytest.raises(BrigesError) as error:
        read_tensors(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BrigesError, match=r'absent\.safetensors cannot be read'):
        read_tensors(tmp_path / 'absent.safetensors')
    with pytest.raises(BrigesError, match='cannot be read'):
        read_tensors(tmp_path)


def test_a_network_whose_loading_would_leave_gaps_is_a_defect():
    class Gap(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('table', torch.ones(3), persistent=False)

    with torch.device('meta'):
        gap = Gap()
        whole = network()
    with pytest.raises(ValueError, match='table'):
        empty_on_cpu(gap)
    assert empty_on_cpu(whole)[0].weight.device.type == 'cpu'
