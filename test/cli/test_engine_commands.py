"""`briges check`, `bench` and `build` as a user runs them."""

import json

import pytest
from typer.testing import CliRunner

from briges_ros.cli.main import app
from briges_ros.errors import BrigesError
from briges_ros.inference import tensorrt_build
from briges_ros.inference.device_memory import open_device
from briges_ros.inference.engine import EngineError, precisions


def run(*arguments):
    """What the command prints; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def refused(*arguments):
    with pytest.raises(BrigesError) as info:
        run(*arguments)
    assert '\n' not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_check_shows_every_output(bundle, precision):
    output = run('check', '--backend', 'onnxruntime', '--precision', precision)
    for name in ('depth_encoder', 'level3', 'gate_decoder', 'whole network', 'correlation'):
        assert name in ' '.join(output.split())
    assert f'compact on onnxruntime ({precision}): relative error' in output


def test_check_of_what_cannot_be(bundle):
    assert 'choose auto, tensorrt' in refused('check', '--backend', 'abacus')
    assert 'only in fp32, int8' in refused(
        'check', '--backend', 'onnxruntime', '--precision', 'fp16'
    )


def test_models_say_what_runs_them_here(bundle):
    output = ' '.join(run('models').split())
    assert 'compact' in output and 'onnxruntime (fp32, int8)' in output
    assert ('onnxruntime-cuda (' in output) == runs_on_cuda(bundle)


def runs_on_cuda(bundle):
    try:
        return bool(precisions(bundle, 'onnxruntime-cuda'))
    except EngineError:
        return False


def test_bench_times_what_runs_and_says_why_the_rest_does_not(bundle):
    output = run('bench', '--runs', '1', '--size', '64x48', '--token-budget', '20')
    assert '64x48 image -> 20 patches' in output
    assert 'onnxruntime-cuda' in output  # timed, or skipped with the reason
    row = next(line for line in output.splitlines() if 'fp32' in line and 'onnxruntime ' in line)
    assert '1.00 x' in row


@pytest.mark.parametrize('size', ['64', '0x48', 'x', '64x48x3', '-64x48', '6e3x1'])
def test_a_size_that_is_none(bundle, size):
    assert 'no image size; give WIDTHxHEIGHT' in refused('bench', f'--size={size}')


def test_build_puts_plans_into_the_cache_and_finds_them_again(bundle, tmp_path, monkeypatch):
    pytest.importorskip('tensorrt_rtx', reason='tensorrt-rtx is not installed')
    monkeypatch.setattr(tensorrt_build, 'LIBRARIES', ('tensorrt_rtx',))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    command = ('build', '--compute-capability', '8.6', '--size', '640x480', '--precision', 'int8')
    first, second = run(*command), run(*command)
    # Of the self-check the network, and of the camera what runs before and after it, too.
    assert first.count('built') == 7 and 'was there' not in first
    assert second.count('was there') == 7
    keys = [
        json.loads(path.read_text())['key']
        for path in (tmp_path / 'briges_ros' / 'engines').glob('*.json')
    ]
    assert sorted(key['precision'] for key in keys) == ['fp32'] * 3 + ['int8'] * 4
    assert {key['graph'] for key in keys} == {*bundle.graphs, 'input', 'relative', 'depth'}
    assert {key['compute_capability'] for key in keys} == {'8.6'}
    assert {key['bundle'] for key in keys} == {bundle.sha256}
    assert 'does not know' in refused('build', '--compute-capability', '1.0')


def test_build_without_a_gpu_says_so(bundle):
    try:
        tensorrt_build.import_tensorrt()
        open_device().close()
    except EngineError as error:
        assert refused('build') == str(error)
    else:
        pytest.skip('there is a GPU')
