"""A GPU made of NumPy and onnxruntime, to check what an engine asks of one.

Its memory is real memory, its graphs really compute, but its streams run as unluckily as CUDA
allows: what is queued runs when the host waits for it and not before, and then either the streams
that are waited for run last (``late``), or first (``early``). So a copy or a launch that is not
ordered by an event finds its input missing, and the result is wrong.
"""

import contextlib
from collections import deque

import numpy as np
import onnxruntime

from briges_ros.inference.engine import EngineError
from briges_ros.inference.tensorrt_build import TensorInfo

START = 4096  # no address is 0


class Stream:
    def __init__(self, number):
        self.number = number
        self.queue = deque()


class Event:
    def __init__(self):
        self.mark = None  # of its last recording: (stream, a list that is filled when reached)


class FakeDevice:
    """See `briges_ros.inference.device_memory.Device`. ``calls`` holds all that was asked of it."""

    name, compute_capability = 'a fake GPU', '8.6'

    def __init__(self, early=False, captures=True, size=1 << 28, ignore_waits=()):
        self.calls = []
        self.closed = 0
        self.memory_used = 0
        self._memory = np.zeros(1, np.uint8)
        self._size = size
        self._early = early
        self._captures = captures
        self._ignored = ignore_waits  # numbers of streams that do not wait
        self._streams = []
        self._recording = None  # while a graph is captured: what was queued

    def memory(self):
        return self._size - self.memory_used, self._size

    def allocate(self, size):
        self.calls.append(('allocate', size))
        if size > self.memory()[0]:
            raise EngineError(f'too little GPU memory: {size / 1e6:.0f} MB were needed')
        assert self.memory_used == 0, 'one allocation is enough'
        self.memory_used = size
        # Filled with what nobody should take for a result.
        self._memory = np.full(size, 0x7F, np.uint8)
        return START

    def pinned(self, shape, dtype):
        self.calls.append(('pinned', shape, str(dtype)))
        return np.empty(shape, dtype)

    def stream(self):
        self.calls.append(('stream',))
        self._streams.append(Stream(len(self._streams)))
        return self._streams[-1]

    def handle(self, stream):
        return stream.number

    def event(self):
        self.calls.append(('event',))
        return Event()

    def upload(self, address, array, stream):
        self._queue(('upload', stream.number), stream, lambda: self.put(address, array))

    def download(self, array, address, stream):
        def copy():
            array[...] = self.view(address, array.shape, array.dtype)

        self._queue(('download', stream.number), stream, copy)

    def record(self, event, stream):
        self.calls.append(('record', stream.number))
        self._do(lambda: self._record(event, stream))

    def wait(self, stream, event):
        self.calls.append(('wait', stream.number))
        if stream.number not in self._ignored:
            self._do(lambda: self._wait(stream, event))

    def synchronize(self, stream):
        self.calls.append(('synchronize', stream.number))
        assert self._recording is None, 'the host must not wait during a capture'
        if self._early:
            for other in reversed(self._streams):
                self._drain(other)
        self._drain(stream)

    def capture(self, stream, enqueue):
        self.calls.append(('capture',))
        if not self._captures:
            raise EngineError('it cannot be captured')
        self._recording = []
        try:
            enqueue()
            graph = self._recording
        finally:
            self._recording = None

        def launch():
            self.calls.append(('launch',))
            for act in graph:
                act()

        return launch

    @contextlib.contextmanager
    def current(self):
        assert not self.closed
        yield

    def close(self):
        self.closed += 1
        self.memory_used = 0

    # For graphs and tests

    def enqueue(self, what, handle, run):
        self._queue((what, handle), self._streams[handle], run)

    def view(self, address, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = address - START
        assert start >= 0 and start + size <= self._memory.size, 'out of the allocated memory'
        return self._memory[start : start + size].view(dtype).reshape(shape)

    def put(self, address, array):
        self.view(address, array.shape, array.dtype)[...] = array

    def _do(self, act):
        if self._recording is None:
            act()
        else:
            self._recording.append(act)

    def _queue(self, call, stream, run):
        self.calls.append(call)
        self._do(lambda: stream.queue.append(run))

    def _record(self, event, stream):
        reached = []
        event.mark = stream, reached
        stream.queue.append(lambda: reached.append(True))

    def _wait(self, stream, event):
        mark = event.mark
        if mark is not None:  # else it does not wait, as in CUDA
            stream.queue.append(lambda: self._drain(mark[0], mark[1]))

    def _drain(self, stream, until=None):
        while stream.queue and not until:
            stream.queue.popleft()()


class FakeGraph:
    """See `briges_ros.inference.tensorrt_engine.Graph`; it runs in onnxruntime."""

    def __init__(self, device, name, model, shapes, capturable=True):
        self.name = name
        self.closed = False
        self._device = device
        self._capturable = capturable
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=['CPUExecutionProvider']
        )
        dtypes = {'tensor(float)': 'float32', 'tensor(uint8)': 'uint8'}
        self.inputs = tuple(
            TensorInfo(value.name, dtypes[value.type], tuple(shapes[value.name]))
            for value in self._session.get_inputs()
        )
        names = [value.name for value in self._session.get_outputs()]
        zeros = {info.name: np.zeros(info.shape, info.dtype) for info in self.inputs}
        self.outputs = tuple(
            TensorInfo(name, str(array.dtype), array.shape)
            for name, array in zip(names, self._session.run(names, zeros), strict=True)
        )
        self._addresses = {}

    def bind(self, tensor, address):
        self._addresses[tensor] = address

    def enqueue(self, stream):
        self._device.enqueue(self.name, stream, self._run)

    def capturable(self, stream):
        return self._capturable

    def close(self):
        self.closed = True

    def _view(self, info):
        return self._device.view(self._addresses[info.name], info.shape, info.dtype)

    def _run(self):
        names = [info.name for info in self.outputs]
        inputs = {info.name: self._view(info).copy() for info in self.inputs}
        for info, array in zip(self.outputs, self._session.run(names, inputs), strict=True):
            self._view(info)[...] = array
