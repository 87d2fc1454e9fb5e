"""Device memory: against the real binding as far as there is a driver, then against one made of
host memory, which counts what is alive; and on a GPU, where there is one."""

import ctypes
import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from briges_ros.inference.device_memory import CudaPythonDevice, PycudaDevice, open_device
from briges_ros.inference.engine import EngineError

try:
    from cuda.bindings import runtime
except ImportError:
    runtime = None
with_cuda_python = pytest.mark.skipif(runtime is None, reason='cuda-python is not installed')


def error_of(run):
    with pytest.raises(EngineError) as info:
        run()
    assert '\n' not in str(info.value)
    return str(info.value)


@pytest.fixture(scope='module')
def gpu():
    try:
        device = open_device()
    except EngineError as error:
        pytest.skip(f'no GPU: {error}')
    yield device
    device.close()


@with_cuda_python
def test_without_a_driver_the_real_binding_says_so():
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip('there is a GPU')
    message = error_of(open_device)
    assert 'no NVIDIA driver' in message and 'openvino' in message


def test_without_a_binding_it_says_what_to_install(monkeypatch):
    for name in ('cuda.bindings.runtime', 'pycuda.driver'):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install cuda-bindings' in error_of(open_device)


def test_pycuda_without_the_drivers_library_asks_for_the_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', None)
    real = importlib.import_module

    def unlinked(name):
        if name == 'pycuda.driver':
            raise ImportError('libcuda.so.1: cannot open shared object file: No such file')
        return real(name)

    monkeypatch.setattr(importlib, 'import_module', unlinked)
    assert 'no NVIDIA driver' in error_of(open_device)


def test_pycuda_is_taken_where_cuda_python_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', None)
    monkeypatch.setitem(sys.modules, 'pycuda', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'pycuda.driver', FakePycuda())
    assert isinstance(open_device(), PycudaDevice)


# A CUDA runtime in host memory, with the names, constants and errors of the real binding


class FakeCuda:
    """Each call takes what the real one takes: they are tried on it, as far as it goes."""

    @staticmethod
    def make_or_skip(**options):
        if runtime is None:
            pytest.skip('cuda-python is not installed')
        if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
            pytest.skip('there is a GPU: made-up addresses would reach it')
        return FakeCuda(**options)

    def __init__(self, free=1 << 20, errors=None):
        self.alive = {}
        self.free = free
        self.errors = errors or {}  # by function: the error that it gives
        self.called = []

    def __getattr__(self, name):
        real = getattr(runtime, name)
        if not callable(real) or isinstance(real, type) or name.startswith('cudaGetError'):
            return real

        frees = 'Free' in name or 'Destroy' in name
        act = self._freed if frees else getattr(type(self), f'_{name}', lambda *_: ())

        def call(*arguments):
            self.called.append(name)
            returned = real(*arguments)  # without a driver it fails, but takes its arguments first
            error = self.errors.get(name, runtime.cudaError_t.cudaSuccess)
            values = () if int(error) else act(*arguments) if frees else act(self, *arguments)
            values = values or (None,) * (len(returned) - 1)
            assert len(values) == len(returned) - 1
            return (error, *values)

        return call

    def _cudaGetDeviceCount(self):
        return (1,)

    def _cudaGetDeviceProperties(self, device):
        properties = runtime.cudaDeviceProp()
        properties.name = b'a fake GPU'.ljust(256, b'\0')
        properties.major, properties.minor = 8, 7
        return (properties,)

    def _cudaDriverGetVersion(self):
        return (12060,)

    def _cudaRuntimeGetVersion(self):
        return (13050,)

    def _cudaMemGetInfo(self):
        return self.free, 2_000_000_000

    def _new(self, kind, value):
        self.alive[int(value)] = kind
        return (value,)

    def _cudaMalloc(self, size):
        memory = (ctypes.c_uint8 * size)()
        self.alive[ctypes.addressof(memory)] = memory
        return (ctypes.addressof(memory),)

    def _cudaHostAlloc(self, size, flags):
        assert flags == runtime.cudaHostAllocDefault
        return self._cudaMalloc(size)

    def _cudaStreamCreateWithFlags(self, flags):
        assert flags == runtime.cudaStreamNonBlocking
        return self._new('stream', runtime.cudaStream_t(len(self.alive) + 1))

    def _cudaEventCreateWithFlags(self, flags):
        return self._new('event', runtime.cudaEvent_t(len(self.alive) + 1))

    def _cudaStreamEndCapture(self, stream):
        return self._new('graph', runtime.cudaGraph_t(1001))

    def _cudaGraphInstantiate(self, graph, flags):
        return self._new('executable', runtime.cudaGraphExec_t(1002))

    def _freed(self, value):
        del self.alive[int(value)]
        return ()

    def _cudaMemcpyAsync(self, target, source, size, kind, stream):
        ctypes.memmove(target, source, size)
        return ()


pytestmark = pytest.mark.filterwarnings('error')


@with_cuda_python
def test_it_allocates_copies_and_frees_everything():
    cuda = FakeCuda.make_or_skip()
    device = CudaPythonDevice(cuda)
    assert (device.name, device.compute_capability) == ('a fake GPU', '8.7')
    assert device.memory() == (1 << 20, 2_000_000_000)
    stream, event = device.stream(), device.event()
    assert device.handle(stream) == 1
    address = device.allocate(4 * 6)
    there, back = device.pinned((2, 3), np.float32), device.pinned((2, 3), np.float32)
    there[...] = np.arange(6).reshape(2, 3)
    back[...] = -1
    with device.current():
        device.upload(address, there, stream)
        device.record(event, stream)
        device.wait(stream, event)
        device.download(back, address, stream)
        device.synchronize(stream)
    np.testing.assert_array_equal(back, there)
    assert len(cuda.alive) == 5
    device.close()
    device.close()
    assert cuda.alive == {}


@with_cuda_python
def test_a_captured_graph_is_launched_and_freed():
    cuda = FakeCuda.make_or_skip()
    device = CudaPythonDevice(cuda)
    stream = device.stream()
    ran = []
    launch = device.capture(stream, lambda: ran.append(1))
    assert set(cuda.alive.values()) == {'stream', 'executable'}  # the graph itself is not needed
    del cuda.called[:]
    launch()
    launch()
    assert ran == [1] and cuda.called == ['cudaGraphLaunch'] * 2
    device.close()
    assert cuda.alive == {}


@with_cuda_python
@pytest.mark.parametrize(
    'where', ['inside', 'cudaStreamEndCapture', 'cudaGraphInstantiate', 'cudaStreamBeginCapture']
)
def test_a_capture_that_fails_ends_and_leaves_nothing(where):
    error = runtime.cudaError_t.cudaErrorStreamCaptureUnsupported
    cuda = FakeCuda.make_or_skip(errors={where: error})
    device = CudaPythonDevice(cuda)
    stream = device.stream()

    def enqueue():
        if where == 'inside':
            raise EngineError('it does not run')

    assert error_of(lambda: device.capture(stream, enqueue))
    assert list(cuda.alive.values()) == ['stream']
    assert ('cudaStreamEndCapture' in cuda.called) == (where != 'cudaStreamBeginCapture')
    device.close()
    assert cuda.alive == {}


@with_cuda_python
@pytest.mark.parametrize('kind', ['allocate', 'pinned'])
def test_too_little_memory_says_how_much_was_needed_and_is_free(kind):
    error = runtime.cudaError_t.cudaErrorMemoryAllocation
    cuda = FakeCuda.make_or_skip(
        free=123_000_000, errors={'cudaMalloc': error, 'cudaHostAlloc': error}
    )
    device = CudaPythonDevice(cuda)
    if kind == 'allocate':
        message = error_of(lambda: device.allocate(456_000_000))
    else:
        message = error_of(lambda: device.pinned((456, 1000, 250), np.float32))
    assert '456 MB were needed, 123 of 2000 MB are free' in message
    device.close()
    assert cuda.alive == {}


@with_cuda_python
@pytest.mark.parametrize(
    ('error', 'words'),
    [
        ('cudaErrorInsufficientDriver', r'is for CUDA 12.6.*"cuda-bindings<13"'),
        ('cudaErrorNoDevice', 'no NVIDIA driver'),
        ('cudaErrorECCUncorrectable', r'uncorrectable ECC.*\(cudaErrorECCUncorrectable\)'),
    ],
)
def test_what_the_driver_says_comes_in_one_line(error, words):
    cuda = FakeCuda.make_or_skip(errors={'cudaGetDeviceCount': getattr(runtime.cudaError_t, error)})
    with pytest.raises(EngineError, match=words) as info:
        CudaPythonDevice(cuda)
    assert '\n' not in str(info.value)


# PyCUDA, as its documentation has it: it cannot be installed without CUDA's headers


class FakePycuda:
    Error = type('Error', (Exception,), {})
    MemoryError = type('MemoryError', (Error,), {})
    event_flags = SimpleNamespace(DISABLE_TIMING=2)

    def __init__(self):
        self.calls = []
        self.depth = 0  # of the stack of contexts
        self.full = False
        outer = self

        class Device:
            def __init__(self, number):
                assert number == 0

            @staticmethod
            def count():
                return 1

            def name(self):
                return 'Orin'

            def compute_capability(self):
                return 8, 7

            def retain_primary_context(self):
                return SimpleNamespace(
                    push=lambda: outer._turn(1),
                    pop=lambda: outer._turn(-1),
                    detach=lambda: outer.calls.append('detach'),
                )

        self.Device = Device

    def _turn(self, by):
        self.depth += by

    def _note(self, name, result=None):
        assert self.depth > 0, f'{name} without a context'
        self.calls.append(name)
        return result

    def init(self):
        self.calls.append('init')

    def mem_get_info(self):
        return 5_000_000, 8_000_000

    def mem_alloc(self, size):
        if self.full:
            raise self.MemoryError('cuMemAlloc failed: out of memory')
        allocation = type('DeviceAllocation', (), {'__int__': lambda _: 4096})()
        allocation.free = lambda: self._note('free')
        return self._note('mem_alloc', allocation)

    def pagelocked_empty(self, shape, dtype):
        base = SimpleNamespace(free=lambda: self._note('free_host'))
        array = np.zeros(shape, dtype).view(type('Pinned', (np.ndarray,), {'base': base}))
        return self._note('pagelocked_empty', array)

    def Stream(self):
        return self._note(
            'Stream',
            SimpleNamespace(
                handle=77,
                synchronize=lambda: self._note('synchronize'),
                wait_for_event=lambda event: self._note('wait_for_event'),
            ),
        )

    def Event(self, flags):
        assert flags == 2
        return self._note('Event', SimpleNamespace(record=lambda stream: self._note('record')))

    def memcpy_htod_async(self, dest, src, stream):
        self._note(('htod', dest, stream.handle))

    def memcpy_dtoh_async(self, dest, src, stream):
        self._note(('dtoh', src, stream.handle))


def test_pycuda_works_within_its_context_and_frees_what_it_gave():
    cuda = FakePycuda()
    device = PycudaDevice(cuda)
    assert (device.name, device.compute_capability) == ('Orin', '8.7')
    with device.current():
        stream, event = device.stream(), device.event()
        address = device.allocate(16)
        array = device.pinned((4,), np.float32)
        device.upload(address, array, stream)
        device.record(event, stream)
        device.wait(stream, event)
        device.download(array, address, stream)
        device.synchronize(stream)
        assert device.handle(stream) == 77 and device.memory() == (5_000_000, 8_000_000)
    assert cuda.calls[-5:] == [
        ('htod', 4096, 77),
        'record',
        'wait_for_event',
        ('dtoh', 4096, 77),
        'synchronize',
    ]
    assert 'cuda-bindings' in error_of(lambda: device.capture(stream, lambda: None))
    device.close()
    device.close()
    assert cuda.calls[-3:] == ['free_host', 'free', 'detach'] and cuda.depth == 0


def test_pycuda_says_what_is_wrong_in_one_line():
    cuda = FakePycuda()
    device = PycudaDevice(cuda)
    cuda.full = True
    with device.current():
        message = error_of(lambda: device.allocate(7_000_000))
    assert '7 MB were needed, 5 of 8 MB are free' in message and cuda.depth == 0

    def fail():
        raise cuda.Error('cuInit failed:\nno device')

    cuda.init = fail
    message = error_of(lambda: PycudaDevice(cuda))
    assert 'no NVIDIA driver' in message and 'cuInit failed: no device' in message


# On a GPU


def test_on_a_gpu_copies_come_back(gpu):
    with gpu.current():
        stream = gpu.stream()
        address = gpu.allocate(4 * 1000)
        there, back = gpu.pinned((1000,), np.float32), gpu.pinned((1000,), np.float32)
        there[:] = np.random.default_rng(0).normal(size=1000)
        back[:] = 0
        gpu.upload(address, there, stream)
        gpu.download(back, address, stream)
        gpu.synchronize(stream)
    np.testing.assert_array_equal(back, there)
    assert 0 < gpu.memory()[0] < gpu.memory()[1]


def test_on_a_gpu_streams_are_joined_in_a_captured_graph(gpu):
    with gpu.current():
        main, side, fork, join = gpu.stream(), gpu.stream(), gpu.event(), gpu.event()
        address = gpu.allocate(4 * 10)
        there, back = gpu.pinned((10,), np.float32), gpu.pinned((10,), np.float32)

        def enqueue():
            gpu.record(fork, main)
            gpu.wait(side, fork)
            gpu.upload(address, there, side)
            gpu.record(join, side)
            gpu.wait(main, join)
            gpu.download(back, address, main)

        try:
            launch = gpu.capture(main, enqueue)
        except EngineError as error:
            if isinstance(gpu, PycudaDevice):
                pytest.skip(str(error))
            raise
        for value in (1.0, 2.0):
            there[:] = value
            launch()
            gpu.synchronize(main)
            np.testing.assert_array_equal(back, there)


def test_on_a_gpu_too_much_is_refused(gpu):
    with gpu.current():
        assert 'were needed' in error_of(lambda: gpu.allocate(1 << 50))
