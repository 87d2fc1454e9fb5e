"""The parameters of the node: one table, from which they are declared, checked and documented.

`parameter_files` makes config/depth.yaml, its JSON schema and docs/parameters.md of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeAlias

from briges_ros.alignment.anchors import RangeNoise
from briges_ros.errors import BrigesError, quoted
from briges_ros.inference.engine import PRECISIONS

Value: TypeAlias = bool | int | float | str | tuple[float, ...]

# In an array "not given" is all zeros: a parameter file cannot hold an empty array (rclpy would
# read it as "not set"), and a quaternion of zeros is no rotation, so nothing else is lost.
NO_EXTRINSICS = (0.0,) * 7


# The sparse sources: what comes on the topics sparse/points and so on.
SOURCES = ('points', 'scan', 'depth', 'range')


class ParameterError(BrigesError):
    """A parameter that cannot be used; the text names it and says what it takes."""


class Change(Enum):
    """When a parameter may change."""

    NEXT_FRAME = 'any time, from the next frame on'
    CONFIGURE = 'while the node is unconfigured'
    START = 'at start only'


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
        name: the ROS name; the attribute of `Settings` has '_' for '.'.
        default: also gives the type.
        description: what it does, with what 0 or the like stands for.
        change: when it may change.
        unit: of a number; empty for none.
        low, high: inclusive bounds of a number.
        choices: of a string; empty for any.
    """

    name: str
    default: Value
    description: str
    change: Change
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def type_name(self) -> str:
        """The name of the type as ROS says it."""
        names = {bool: 'bool', int: 'int', float: 'double', str: 'string', tuple: 'double[]'}
        return names[type(self.default)]

    def complaint(self, value: Any) -> str:
        """Return why `value` cannot be had, or '' if it can."""
        if self.choices and value not in self.choices:
            return f"'{self.name}' is {quoted(str(value))}: choose one of {', '.join(self.choices)}"
        numbers = (value or ()) if isinstance(self.default, tuple) else (value,)
        if isinstance(self.default, (float, tuple)) and not all(map(math.isfinite, numbers)):
            return f"'{self.name}' holds {value}: give finite numbers"
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            unit = f' {self.unit}' if self.unit else ''
            return f"'{self.name}' is {value}: give {self.low} to {self.high}{unit}"
        return ''


def _of_source(
    source: str, noise: tuple[float, float, float], min_range: float
) -> tuple[Parameter, ...]:
    """Return the rows of one sparse source."""
    return (
        Parameter(
            f'sparse.{source}.noise',
            noise,
            f'Standard deviation of a range r on sparse/{source}: floor + per_metre * r + '
            'per_metre2 * r^2. The three of them, floor in metres.',
            Change.NEXT_FRAME,
            unit='m, 1, 1/m',
        ),
        Parameter(
            f'sparse.{source}.min_range',
            min_range,
            f'Nearer measurements on sparse/{source} are left out.',
            Change.NEXT_FRAME,
            unit='m',
            low=0.0,
            high=1000.0,
        ),
        Parameter(
            f'sparse.{source}.max_range',
            200.0,
            f'Farther measurements on sparse/{source} are left out.',
            Change.NEXT_FRAME,
            unit='m',
            low=0.01,
            high=10000.0,
        ),
        Parameter(
            f'sparse.{source}.weight',
            1.0,
            f'How much an anchor of sparse/{source} counts, beside its noise, against one of '
            'another source. 0: not at all.',
            Change.NEXT_FRAME,
            low=0.0,
            high=1000.0,
        ),
        Parameter(
            f'sparse.{source}.extrinsics',
            NO_EXTRINSICS,
            f'As sparse.extrinsics, for sparse/{source} alone; wins over it. All zero: not given.',
            Change.NEXT_FRAME,
            unit='m, quaternion',
        ),
    )


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        'model',
        'compact',
        'Model bundle: a name that `briges models` lists, or the path of a bundle folder.',
        Change.CONFIGURE,
    ),
    Parameter(
        'backend',
        'auto',
        'Inference engine: auto (the fastest that computes right), or one that `briges bench` '
        'lists.',
        Change.CONFIGURE,
    ),
    Parameter(
        'precision',
        'auto',
        'Arithmetic of the engine: auto (the fastest that passes the self-check), int8, fp16, bf16 '
        'or fp32.',
        Change.CONFIGURE,
        choices=('auto', *PRECISIONS),
    ),
    Parameter(
        'segmentation.every_n_frames',
        1,
        'Compute the segmentation on every n-th frame only, and use it again on those between. '
        'Nothing to a model without a gate.',
        Change.NEXT_FRAME,
        unit='frames',
        low=1,
        high=64,
    ),
    Parameter(
        'token_budget',
        0,
        'Most image patches per frame: fewer are faster, more are sharper. 0: what the model was '
        'made for.',
        Change.NEXT_FRAME,
        unit='patches',
        low=0,
        high=16384,
    ),
    Parameter(
        'threads',
        0,
        'CPU threads of the inference engine. 0: as many as the engine likes.',
        Change.CONFIGURE,
        unit='threads',
        low=0,
        high=1024,
    ),
    Parameter(
        'autostart',
        False,
        'Configure and activate on start, for use without a lifecycle manager.',
        Change.START,
    ),
    Parameter(
        'image_transport',
        'raw',
        "raw: sensor_msgs/Image on 'image'; compressed: sensor_msgs/CompressedImage on "
        "'image/compressed'.",
        Change.CONFIGURE,
        choices=('raw', 'compressed'),
    ),
    Parameter(
        'image_width',
        0,
        'Width of the images, if known: what the engine builds for a size, which takes TensorRT '
        'minutes, is then built on configure. 0: not known, so that it is built with the first '
        'image.',
        Change.CONFIGURE,
        unit='pixels',
        low=0,
        high=16384,
    ),
    Parameter(
        'image_height',
        0,
        'Height of the images; goes with image_width.',
        Change.CONFIGURE,
        unit='pixels',
        low=0,
        high=16384,
    ),
    Parameter(
        'image_is_rectified',
        False,
        'The images are rectified: take P of camera_info instead of K and D.',
        Change.NEXT_FRAME,
    ),
    Parameter(
        'undistort',
        False,
        'Take the lens distortion out of the images: depth, cloud and camera_info are of a camera '
        'without it. Otherwise they have the geometry of the images.',
        Change.NEXT_FRAME,
    ),
    Parameter(
        'horizontal_fov',
        0.0,
        'Angle between the left and the right edge of the image, for a camera whose camera_info is '
        'missing or not calibrated. 0: not known, so that images wait for camera_info.',
        Change.NEXT_FRAME,
        unit='degrees',
        low=0.0,
        high=170.0,
    ),
    Parameter(
        'output_qos',
        'reliable',
        'Reliability of the outputs. reliable: connects with every subscriber (RViz asks for '
        'reliable, Nav2 for best effort). sensor_data: best effort, for lossy networks; a reliable '
        'subscriber gets nothing.',
        Change.CONFIGURE,
        choices=('reliable', 'sensor_data'),
    ),
    Parameter(
        'depth.encoding',
        '32FC1',
        'Encoding of depth/image: 32FC1 (metres; NaN unknown, +inf beyond range) or 16UC1 '
        '(millimetres; 0 unknown or beyond range).',
        Change.NEXT_FRAME,
        choices=('32FC1', '16UC1'),
    ),
    Parameter(
        'depth.min_range',
        0.1,
        'Nearer depth is published as unknown.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.001,
        high=1000.0,
    ),
    Parameter(
        'depth.max_range',
        100.0,
        'Farther depth is published as +inf.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.01,
        high=10000.0,
    ),
    Parameter(
        'points.stride',
        1,
        'Every n-th pixel of every n-th row goes into depth/points.',
        Change.NEXT_FRAME,
        unit='pixels',
        low=1,
        high=64,
    ),
    Parameter(
        'points.kind',
        'organised',
        'organised: a point for every pixel (of the stride), NaN where the depth is not known. '
        'voxel: one point for each voxel, no NaN.',
        Change.NEXT_FRAME,
        choices=('organised', 'voxel'),
    ),
    Parameter(
        'points.fields',
        'xyzrgb',
        'Fields of depth/points: xyz, or xyzrgb with the colour of the pixel.',
        Change.NEXT_FRAME,
        choices=('xyz', 'xyzrgb'),
    ),
    Parameter(
        'points.max_range',
        0.0,
        'Farther points are left out of depth/points. 0: as depth.max_range.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.0,
        high=10000.0,
    ),
    Parameter(
        'points.voxel_size',
        0.05,
        'Edge of the voxels of depth/points (kind voxel) and depth/obstacles, and how dense '
        'depth/clearing is: as the resolution of the map that they go into.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.01,
        high=10.0,
    ),
    Parameter(
        'base_frame',
        'base_link',
        'Frame of the robot, x forward, with z = 0 on the ground, in which TF knows the camera. '
        'depth/scan is in it, and depth/obstacles looks for the ground there. Empty: none.',
        Change.NEXT_FRAME,
    ),
    Parameter(
        'camera.height',
        0.0,
        'Height of the camera over the ground, for a camera straight above the origin of '
        'base_frame that faces forward. Wins over TF. 0: not given, ask TF.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.0,
        high=100.0,
    ),
    Parameter(
        'camera.pitch',
        0.0,
        'How far the camera looks down; goes with camera.height.',
        Change.NEXT_FRAME,
        unit='rad',
        low=-1.5707,
        high=1.5707,
    ),
    Parameter(
        'obstacles.min_height',
        0.1,
        'What rises less over the ground is not in depth/obstacles.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.0,
        high=100.0,
    ),
    Parameter(
        'obstacles.max_height',
        2.0,
        'What is higher over the ground is not in depth/obstacles: the robot passes under it.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.01,
        high=100.0,
    ),
    Parameter(
        'obstacles.max_range',
        20.0,
        'Farther points are left out of depth/obstacles.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.1,
        high=10000.0,
    ),
    Parameter(
        'scan.min_height',
        0.1,
        'What rises less over the ground is not in depth/scan.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.0,
        high=100.0,
    ),
    Parameter(
        'scan.max_height',
        2.0,
        'What is higher over the ground is not in depth/scan.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.01,
        high=100.0,
    ),
    Parameter(
        'scan.max_range',
        10.0,
        'Greatest range of depth/scan: farther is +inf if it is known to be free up to there.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.1,
        high=1000.0,
    ),
    Parameter(
        'clearing.max_range',
        6.0,
        'Where the sight lines of depth/clearing end that see nothing nearer.',
        Change.NEXT_FRAME,
        unit='m',
        low=0.1,
        high=1000.0,
    ),
    Parameter(
        'sparse.max_age',
        0.2,
        'Most that the stamps of an image and of the sparse measurements scaling it may differ.',
        Change.NEXT_FRAME,
        unit='s',
        low=0.0,
        high=10.0,
    ),
    Parameter(
        'sparse.extrinsics',
        NO_EXTRINSICS,
        'Pose of the sparse sensor in the optical frame of the camera (T_camera_sensor): x, y, z '
        'in metres, then the quaternion x, y, z, w. Wins over TF. All zero: not given, ask TF.',
        Change.NEXT_FRAME,
        unit='m, quaternion',
    ),
    Parameter(
        'sparse.fixed_frame',
        'odom',
        'Frame of TF in which the surroundings stand still: through it, measurements are taken '
        'from their own time to that of the image. Empty: they are taken as they are.',
        Change.NEXT_FRAME,
    ),
    *_of_source('points', noise=(0.02, 0.005, 0.0), min_range=0.1),
    *_of_source('scan', noise=(0.03, 0.01, 0.0), min_range=0.0),
    *_of_source('depth', noise=(0.02, 0.005, 0.0), min_range=0.0),
    *_of_source('range', noise=(0.02, 0.02, 0.0), min_range=0.0),
    Parameter(
        'hold_duration',
        5.0,
        'How long the last scale is used when no sparse measurement fits any more.',
        Change.CONFIGURE,
        unit='s',
        low=0.0,
        high=3600.0,
    ),
    Parameter(
        'refinement',
        True,
        'Correct the depth around sparse measurements by what they say, and carry that from frame '
        'to frame. False: one scale and shift for the whole image.',
        Change.CONFIGURE,
    ),
    Parameter(
        'prior.ground',
        False,
        'Take the scale from the ground when none is measured: for a camera on a vehicle that '
        'looks ahead over a level floor. Its pose comes from camera.height and camera.pitch, or '
        'from TF.',
        Change.NEXT_FRAME,
    ),
    Parameter(
        'prior.scale',
        0.0,
        'Scale to fall back on when none is measured: 1 / depth = scale * relative + shift. '
        '0: none, so that depth without measurements is unknown.',
        Change.CONFIGURE,
        unit='1/m per unit of relative',
        low=0.0,
        high=1e6,
    ),
    Parameter(
        'prior.shift',
        0.0,
        'Shift that goes with prior.scale.',
        Change.CONFIGURE,
        unit='1/m',
        low=-1e6,
        high=1e6,
    ),
)

_LEAST_NOISE = 1e-6  # m; with less, the weight of a measurement overflows

_BANDS = (
    ('depth.min_range', 'depth.max_range'),
    ('obstacles.min_height', 'obstacles.max_height'),
    ('scan.min_height', 'scan.max_height'),
)

BY_NAME: dict[str, Parameter] = {parameter.name: parameter for parameter in PARAMETERS}


@dataclass(frozen=True)
class SourceSettings:
    """The parameters of one sparse source.

    Attributes:
        noise: of its range.
        min_range, max_range: metres.
        weight: of its anchors.
        extrinsics: the translation and quaternion that the user gave for this source, or for all;
            None for neither.
    """

    noise: RangeNoise
    min_range: float
    max_range: float
    weight: float
    extrinsics: tuple[float, ...] | None

    @classmethod
    def of(cls, source: str, values: Mapping[str, Any]) -> SourceSettings:
        """Build from values by ROS name."""

        def value(name: str) -> Any:
            return values[f'sparse.{source}.{name}']

        given = (value('extrinsics'), values['sparse.extrinsics'])
        return cls(
            noise=RangeNoise(*value('noise')),
            min_range=value('min_range'),
            max_range=value('max_range'),
            weight=value('weight'),
            extrinsics=next((tuple(pose) for pose in given if pose and any(pose)), None),
        )


@dataclass(frozen=True)
class Settings:
    """The values of all parameters at one moment; those of the sparse sources by source."""

    model: str
    backend: str
    precision: str
    segmentation_every_n_frames: int
    token_budget: int
    threads: int
    autostart: bool
    image_transport: str
    image_width: int
    image_height: int
    image_is_rectified: bool
    undistort: bool
    horizontal_fov: float
    output_qos: str
    depth_encoding: str
    depth_min_range: float
    depth_max_range: float
    points_stride: int
    points_kind: str
    points_fields: str
    points_max_range: float
    points_voxel_size: float
    base_frame: str
    camera_height: float
    camera_pitch: float
    obstacles_min_height: float
    obstacles_max_height: float
    obstacles_max_range: float
    scan_min_height: float
    scan_max_height: float
    scan_max_range: float
    clearing_max_range: float
    sparse_max_age: float
    sparse_fixed_frame: str
    hold_duration: float
    refinement: bool
    prior_ground: bool
    prior_scale: float
    prior_shift: float
    sources: Mapping[str, SourceSettings]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Build from values by ROS name; names that the table lacks are ignored."""
        found = {name.replace('.', '_'): value for name, value in values.items() if name in BY_NAME}
        found['sources'] = {source: SourceSettings.of(source, values) for source in SOURCES}
        return cls(**{field.name: found[field.name] for field in fields(cls)})

    @property
    def prior(self) -> tuple[float, float] | None:
        """The scale and shift that the user gave, or None."""
        return (self.prior_scale, self.prior_shift) if self.prior_scale > 0 else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (width, height) of the images that the user gave, in pixels, or None.

        Raises:
            ParameterError: one without the other. Refused here and not when it is set, because
                parameters are set one after the other.
        """
        size = self.image_width, self.image_height
        if 0 in size and any(size):
            raise ParameterError(
                f"'image_width' is {size[0]} and 'image_height' {size[1]}: give both, or neither"
            )
        return size if any(size) else None


def complaint(values: Mapping[str, Any]) -> str:
    """Return why these values (by ROS name; some may be missing) cannot be had, or ''.

    Checks each on its own, then those that have to fit each other.
    """
    for name, value in values.items():
        if name in BY_NAME and (why := BY_NAME[name].complaint(value)):
            return why
    for least, most in _BANDS:
        low, high = values.get(least), values.get(most)
        if low is not None and high is not None and low >= high:
            return f"'{least}' {low} m is not below '{most}' {high} m"
    for source in SOURCES:
        name = f'sparse.{source}'
        near, far = values.get(f'{name}.min_range'), values.get(f'{name}.max_range')
        if near is not None and far is not None and near >= far:
            return f"'{name}.min_range' {near} m is not below '{name}.max_range' {far} m"
        noise = values.get(f'{name}.noise')
        if noise is not None and not (
            len(noise) == 3 and min(noise) >= 0 and noise[0] >= _LEAST_NOISE and max(noise) <= 1e3
        ):
            return (
                f"'{name}.noise' is {quoted(str(list(noise)))}: give three numbers that are not "
                f'negative, nor over 1000: floor ({_LEAST_NOISE:g} m or more), per_metre and '
                'per_metre2'
            )
    poses = ['sparse.extrinsics', *(f'sparse.{source}.extrinsics' for source in SOURCES)]
    return next(filter(None, (_pose_complaint(name, values.get(name)) for name in poses)), '')


def _pose_complaint(name: str, value: Any) -> str:
    """Return why this cannot be a pose, or ''."""
    pose = tuple(value or NO_EXTRINSICS)
    if len(pose) != 7:
        return (
            f"'{name}' holds {len(pose)} numbers: give x, y, z and the quaternion x, y, z, w (or "
            'all zeros for none)'
        )
    norm = math.hypot(*pose[3:])
    if any(pose) and abs(norm - 1) > 1e-2:
        return (
            f"'{name}' has a quaternion of length {norm:.4g}: give a unit quaternion x, y, z, w "
            'after the translation (no rotation: 0, 0, 0, 1)'
        )
    return ''


def refusal(changes: Mapping[str, Any], current: Mapping[str, Any], configured: bool) -> str:
    """Return why a running node cannot take these changes, or ''.

    Args:
        changes: new values by ROS name.
        current: the values in force (those declared so far).
        configured: whether a model is loaded, so that what was read on configure is in use.
    """
    for name, value in changes.items():
        parameter = BY_NAME.get(name)
        if parameter is None or (name in current and value == current[name]):
            continue
        if parameter.change is Change.CONFIGURE and configured:
            return (
                f"'{name}' takes effect on configure: clean the node up first "
                '(ros2 lifecycle set <node> cleanup), set it, then configure again'
            )
    return complaint({**current, **changes})


class NodeParameters:
    """The parameters of one node: declares the table, guards changes, reads settings."""

    def __init__(self, node: Any) -> None:
        """Declare everything on an rclpy node.

        Raises:
            ParameterError: a value given at start cannot be had.
        """
        from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

        self._node = node
        self._names: list[str] = []
        self.configured = False
        node.add_on_set_parameters_callback(self._on_set)
        for parameter in PARAMETERS:
            default = parameter.default
            try:
                node.declare_parameter(
                    parameter.name,
                    list(default) if isinstance(default, tuple) else default,
                    _descriptor(parameter),
                )
            except InvalidParameterTypeException as error:
                hint = ' (with a decimal point)' if 'double' in parameter.type_name else ''
                raise ParameterError(
                    f"parameter '{parameter.name}' takes a {parameter.type_name}{hint}: {error}"
                ) from error
            except InvalidParameterValueException as error:
                _, _, why = str(error).partition('Reason: ')
                raise ParameterError(f'parameter {why or error}') from error
            self._names.append(parameter.name)

    def settings(self) -> Settings:
        """Return the values in force now."""
        return Settings.of(self._values())

    def _values(self) -> dict[str, Any]:
        return {name: self._node.get_parameter(name).value for name in self._names}

    def _on_set(self, changes: Iterable[Any]) -> Any:
        from rcl_interfaces.msg import SetParametersResult

        values = {change.name: change.value for change in changes}
        why = refusal(values, self._values(), self.configured)
        return SetParametersResult(successful=not why, reason=why)


def _descriptor(parameter: Parameter) -> Any:
    """Return the ROS descriptor of a row."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    unit = f' [{parameter.unit}]' if parameter.unit else ''
    descriptor = ParameterDescriptor(
        description=f'{parameter.description}{unit} Changes {parameter.change.value}.',
        read_only=parameter.change is Change.START,
        additional_constraints=f'One of: {", ".join(parameter.choices)}.'
        if parameter.choices
        else '',
    )
    if parameter.low is not None and parameter.high is not None:
        if isinstance(parameter.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(parameter.low), to_value=float(parameter.high))
            ]
        else:
            descriptor.integer_range = [
                IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)
            ]
    return descriptor
