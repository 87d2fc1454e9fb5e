"""Memory, streams and events of the first CUDA device, through cuda-python or else PyCUDA.

Everything that a `Device` hands out belongs to it and is freed by its `close`, also when something
failed half way. Which device is the first one, CUDA_VISIBLE_DEVICES says.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from briges_ros.inference.engine import EngineError, one_line

FIRST = 0
NO_DRIVER = (
    'no NVIDIA driver: `nvidia-smi` has to list a GPU (install the driver; start a container with '
    '--gpus all), or choose the backend openvino or onnxruntime'
)


class Device(Protocol):
    """What an engine needs of a GPU. Streams and events are opaque.

    Attributes:
        name: e.g. 'NVIDIA RTX A2000'.
        compute_capability: e.g. '8.6'.
    """

    name: str
    compute_capability: str

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes on the device."""
        ...

    def allocate(self, size: int) -> int:
        """Address of so many bytes on the device.

        Raises:
            EngineError: there is no room; says how much was needed and how much is free.
        """
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array in page-locked host memory, which copies need to be asynchronous.

        It must not be touched after `close`.
        """
        ...

    def stream(self) -> Any:
        """A queue of work, in order."""
        ...

    def handle(self, stream: Any) -> int:
        """A stream as TensorRT takes it."""
        ...

    def event(self) -> Any:
        """A mark in a stream, for others to wait for."""
        ...

    def upload(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a pinned array to the device."""
        ...

    def download(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Queue a copy from the device into a pinned array."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Queue an event."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is queued next wait until the event is reached."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait, on the host, until a stream has nothing left to do."""
        ...

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Make one CUDA graph of all that a function queues on a stream and those it waits for.

        Returns:
            Queues the graph on the stream.

        Raises:
            EngineError: something in it cannot be captured. Nothing was done.
        """
        ...

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Use the device in this thread; around whatever is asked of it or of TensorRT."""
        ...

    def close(self) -> None:
        """Free everything. May be called again."""
        ...


def open_device() -> Device:
    """The first CUDA device.

    Raises:
        EngineError: no binding, no driver, one that is too old, or no GPU; with the mend.
    """
    reasons = []
    bindings: dict[str, Callable[[ModuleType], Device]] = {
        'cuda.bindings.runtime': CudaPythonDevice,
        'pycuda.driver': PycudaDevice,
    }
    for name, opener in bindings.items():
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library that it loads is missing
            reasons.append(str(error).splitlines()[0])
            continue
        return opener(module)
    if any('libcuda.so' in reason for reason in reasons):  # what PyCUDA links to is the driver's
        raise EngineError(NO_DRIVER)
    raise EngineError(
        f'neither cuda-python nor PyCUDA is installed ({"; ".join(reasons)}): '
        'pip install cuda-bindings (on JetPack 6: "cuda-bindings<13")'
    )


class CudaPythonDevice:
    """See `Device`; with ``cuda.bindings.runtime`` of cuda-python 12.6 or later."""

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda: Any = cuda
        self._owned = contextlib.ExitStack()
        if self._checked(cuda.cudaGetDeviceCount()) < 1:
            raise EngineError(NO_DRIVER)
        self._checked(cuda.cudaSetDevice(FIRST))
        properties = self._checked(cuda.cudaGetDeviceProperties(FIRST))
        self.name = properties.name.split(b'\0')[0].decode(errors='replace')
        self.compute_capability = f'{properties.major}.{properties.minor}'

    def memory(self) -> tuple[int, int]:
        free, total = self._checked(self._cuda.cudaMemGetInfo())
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        address = int(self._checked(self._cuda.cudaMalloc(size), size))
        self._owned.callback(self._cuda.cudaFree, address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = _bytes(shape, dtype)
        flags = self._cuda.cudaHostAllocDefault
        address = int(self._checked(self._cuda.cudaHostAlloc(size, flags), size))
        self._owned.callback(self._cuda.cudaFreeHost, address)
        memory: Any = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memory, np.dtype(dtype)).reshape(shape)

    def stream(self) -> Any:
        flags = self._cuda.cudaStreamNonBlocking  # does not wait for the default stream
        stream = self._checked(self._cuda.cudaStreamCreateWithFlags(flags))
        self._owned.callback(self._cuda.cudaStreamDestroy, stream)
        return stream

    def handle(self, stream: Any) -> int:
        return int(stream)

    def event(self) -> Any:
        flags = self._cuda.cudaEventDisableTiming
        event = self._checked(self._cuda.cudaEventCreateWithFlags(flags))
        self._owned.callback(self._cuda.cudaEventDestroy, event)
        return event

    def upload(self, address: int, array: NDArray[Any], stream: Any) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        host = array.ctypes.data
        self._checked(self._cuda.cudaMemcpyAsync(address, host, array.nbytes, kind, stream))

    def download(self, array: NDArray[Any], address: int, stream: Any) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        host = array.ctypes.data
        self._checked(self._cuda.cudaMemcpyAsync(host, address, array.nbytes, kind, stream))

    def record(self, event: Any, stream: Any) -> None:
        self._checked(self._cuda.cudaEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        self._checked(self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def synchronize(self, stream: Any) -> None:
        self._checked(self._cuda.cudaStreamSynchronize(stream))

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Callable[[], None]:
        cuda = self._cuda
        # Other threads of the node may use the GPU meanwhile.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(cuda.cudaStreamBeginCapture(stream, mode))
        try:
            enqueue()
        except BaseException:
            _, graph = cuda.cudaStreamEndCapture(stream)  # else the stream is of no more use
            if graph is not None:
                cuda.cudaGraphDestroy(graph)
            cuda.cudaGetLastError()  # else the next call would report it
            raise
        graph = self._checked(cuda.cudaStreamEndCapture(stream))
        try:
            executable = self._checked(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)
        self._owned.callback(cuda.cudaGraphExecDestroy, executable)

        def launch() -> None:
            self._checked(cuda.cudaGraphLaunch(executable, stream))

        return launch

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._checked(self._cuda.cudaSetDevice(FIRST))
        yield

    def close(self) -> None:
        self._cuda.cudaSetDevice(FIRST)
        self._owned.close()  # what fails now failed before, and was reported then

    def _checked(self, result: tuple[Any, ...], size: int = 0) -> Any:
        """The values of a call: None, one, or a tuple."""
        error, *values = result
        if int(error) != 0:
            self._cuda.cudaGetLastError()
            raise EngineError(self._reason(error, size))
        return values[0] if len(values) == 1 else tuple(values) if values else None

    def _reason(self, error: Any, size: int) -> str:
        codes = self._cuda.cudaError_t
        if error == codes.cudaErrorMemoryAllocation:
            return _too_little(size, self._cuda.cudaMemGetInfo()[1:])
        if error == codes.cudaErrorInsufficientDriver:
            _, driver = self._cuda.cudaDriverGetVersion()
            _, runtime = self._cuda.cudaRuntimeGetVersion()
            return _old_driver(driver, runtime) if driver else NO_DRIVER
        if error in (codes.cudaErrorNoDevice, codes.cudaErrorStubLibrary):
            return NO_DRIVER
        _, name = self._cuda.cudaGetErrorName(error)
        _, text = self._cuda.cudaGetErrorString(error)
        return f'CUDA failed: {_text(text)} ({_text(name)})'


class PycudaDevice:
    """See `Device`; with ``pycuda.driver``, whose releases capture no graphs."""

    def __init__(self, cuda: ModuleType) -> None:
        self._cuda: Any = cuda
        self._owned = contextlib.ExitStack()
        try:
            cuda.init()
        except cuda.Error as error:
            raise EngineError(f'{NO_DRIVER} (CUDA says: {one_line(error)})') from error
        with self._reported():
            if cuda.Device.count() < 1:
                raise EngineError(NO_DRIVER)
            device = cuda.Device(FIRST)
            self.name = str(device.name())
            self.compute_capability = '{}.{}'.format(*device.compute_capability())
            self._context: Any = device.retain_primary_context()  # which is what TensorRT uses

    def memory(self) -> tuple[int, int]:
        with self._reported():
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        with self._reported(size):
            allocation = self._cuda.mem_alloc(size)
        self._owned.callback(allocation.free)
        return int(allocation)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        with self._reported(_bytes(shape, dtype)):
            array: Any = self._cuda.pagelocked_empty(shape, np.dtype(dtype))
        self._owned.callback(array.base.free)
        return array

    def stream(self) -> Any:  # streams and events free themselves
        with self._reported():
            return self._cuda.Stream()

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self) -> Any:
        with self._reported():
            return self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING)

    def upload(self, address: int, array: NDArray[Any], stream: Any) -> None:
        with self._reported():
            self._cuda.memcpy_htod_async(address, array, stream)

    def download(self, array: NDArray[Any], address: int, stream: Any) -> None:
        with self._reported():
            self._cuda.memcpy_dtoh_async(array, address, stream)

    def record(self, event: Any, stream: Any) -> None:
        with self._reported():
            event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        with self._reported():
            stream.wait_for_event(event)

    def synchronize(self, stream: Any) -> None:
        with self._reported():
            stream.synchronize()

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Callable[[], None]:
        del stream, enqueue
        raise EngineError('PyCUDA captures no CUDA graphs; pip install cuda-bindings')

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        with self._reported():
            self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def close(self) -> None:
        context, self._context = self._context, None
        if context is None:
            return
        context.push()
        try:
            self._owned.close()
        finally:
            context.pop()
            context.detach()

    @contextlib.contextmanager
    def _reported(self, size: int = 0) -> Iterator[None]:
        """Raise PyCUDA's errors as ours."""
        try:
            yield
        except self._cuda.MemoryError as error:
            raise EngineError(_too_little(size, self._cuda.mem_get_info())) from error
        except self._cuda.Error as error:
            raise EngineError(f'CUDA failed: {one_line(error)}') from error


def _bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _too_little(needed: int, memory: Any) -> str:
    free, total = (int(value or 0) for value in memory)
    return (
        f'too little GPU memory: {needed / 1e6:.0f} MB were needed, {free / 1e6:.0f} of '
        f'{total / 1e6:.0f} MB are free; close what uses the GPU, or choose a smaller token_budget'
    )


def _old_driver(driver: int, runtime: int) -> str:
    """Versions are 1000 * major + 10 * minor."""
    versions = [f'{v // 1000}.{v % 1000 // 10}' for v in (driver, runtime)]
    return (
        f'the NVIDIA driver is older than the CUDA runtime (it is for CUDA {versions[0]}, the '
        f'runtime is {versions[1]}): update the driver, or pip install '
        f'"cuda-bindings<{driver // 1000 + 1}" and a TensorRT for that CUDA'
    )


def _text(value: bytes | str) -> str:
    return value.decode(errors='replace') if isinstance(value, bytes) else str(value)
