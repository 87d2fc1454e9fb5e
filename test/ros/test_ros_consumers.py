"""What the consumers of the node's messages require of them, from their published sources.

The consumers are not run (they are C++ of a ROS installation): each test does to a real message
what the source that it names does to it, and the shipped configurations are held to the same.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from harness import Rig, cloud_fields, image_pixels
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField

from briges_ros.errors import BrigesError
from briges_ros.obstacles import level_camera_pose
from briges_ros.ros import outputs
from briges_ros.ros.nav2_params import COSTMAPS, LAYERS, with_depth_layer
from briges_ros.ros.parameters import BY_NAME

COSTMAP = yaml.safe_load((ROOT / 'config' / 'nav2_costmap.yaml').read_text())
LAYER_PARAMETERS = COSTMAP['local_costmap']['local_costmap']['ros__parameters']
VOXEL, STVL = (LAYER_PARAMETERS[LAYERS[kind]] for kind in ('voxel', 'stvl'))
TOPICS = {
    outputs.IMAGE: Image,
    outputs.INFO: CameraInfo,
    outputs.POINTS: PointCloud2,
    outputs.OBSTACLES: PointCloud2,
    outputs.CLEARING: PointCloud2,
    outputs.SCAN: LaserScan,
}
HEIGHT_M = 1.65


@pytest.fixture(scope='module')
def messages(rig: Rig) -> Iterator[dict[str, Any]]:
    """One message of each output, of the same image; of a camera whose height is given.

    And with a range that makes some of the depth infinite.
    """
    assert rig.tester.set('camera.height', HEIGHT_M)[0]
    assert rig.tester.set('depth.max_range', 20.0)[0]
    listeners = {topic: rig.tester.listen(kind, topic) for topic, kind in TOPICS.items()}
    stamp = rig.send()
    yield {topic: listener.wait(stamp) for topic, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()
    assert rig.tester.set('camera.height', 0.0)[0]
    assert rig.tester.set('depth.max_range', 100.0)[0]


def xyz(message: PointCloud2) -> np.ndarray:
    """The points of a cloud, (N, 3), by its fields."""
    fields = cloud_fields(message).ravel()
    return np.column_stack([fields[name] for name in 'xyz'])


def default(name: str) -> float:
    """The default of a parameter of the node."""
    value = BY_NAME[name].default
    assert isinstance(value, float)
    return value


# ---- quality of service ----

# SensorDataQoS: ros-navigation/navigation2, nav2_costmap_2d/plugins/obstacle_layer.cpp, and
# nav2_collision_monitor/src/{scan,pointcloud}.cpp; SteveMacenski/spatio_temporal_voxel_layer,
# src/spatio_temporal_voxel_layer.cpp. SYSTEM_DEFAULT, which is reliable: NVIDIA-ISAAC-ROS/
# isaac_ros_nvblox, nvblox_ros/include/nvblox_ros/nvblox_node.hpp (kDefaultInputQos_).
QUALITIES = {
    'Nav2 and STVL': QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT),
    'nvblox and RViz': QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE),
}


@pytest.mark.parametrize('consumer', QUALITIES)
def test_every_consumer_connects(rig: Rig, consumer: str) -> None:
    reliable = QUALITIES[consumer].reliability == ReliabilityPolicy.RELIABLE
    topics = {outputs.IMAGE, outputs.INFO, outputs.POINTS, outputs.CLEARING}
    listeners = [rig.tester.listen(TOPICS[topic], topic, reliable) for topic in topics]
    stamp = rig.send()
    for listener in listeners:
        listener.wait(stamp)
        listener.close()


# ---- Nav2's costmaps ----


def in_base(points: np.ndarray) -> np.ndarray:
    """Points of the optical frame in the base frame, as tf2 moves the cloud."""
    T = level_camera_pose(HEIGHT_M, 0.0)
    return points @ T[:3, :3].T + T[:3, 3]


def buffered(message: PointCloud2, source: dict[str, Any]) -> np.ndarray:
    """The points of a cloud that Nav2 keeps of a source, in its global frame.

    ros-navigation/navigation2, nav2_costmap_2d/src/observation_buffer.cpp, bufferCloud: the cloud
    is moved to the global frame, and what is not within the heights is dropped, NaN too.
    """
    points = in_base(xyz(message))
    z = points[:, 2]
    return points[(z <= source['max_obstacle_height']) & (z >= source['min_obstacle_height'])]


def test_nav2_marks_the_obstacles(messages: dict[str, Any]) -> None:
    """nav2_costmap_2d/plugins/voxel_layer.cpp, updateBounds: heights, then ranges."""
    source = VOXEL['depth_obstacles']
    kept = buffered(messages[outputs.OBSTACLES], source)
    assert len(kept) > 0.9 * messages[outputs.OBSTACLES].width
    # The origin of the rays is that of header.frame_id: it has to be the camera's.
    assert messages[outputs.OBSTACLES].header == messages[outputs.IMAGE].header
    assert source['min_obstacle_height'] >= VOXEL['min_obstacle_height']
    assert source['max_obstacle_height'] <= VOXEL['max_obstacle_height']
    assert source['obstacle_max_range'] <= default('obstacles.max_range')


def test_nav2_clears_along_every_known_ray(messages: dict[str, Any]) -> None:
    """voxel_layer.cpp, raytraceFreespace: from the sensor to every point that was buffered.

    With the heights of the obstacles the ends on the road were dropped, and nothing would clear
    where something stood and left.
    """
    message = messages[outputs.CLEARING]
    ends = buffered(message, VOXEL['depth_clearing'])
    assert len(ends) == message.width > 1000
    assert (np.abs(ends[:, 2]) < 0.1).sum() > 200  # on the road, where obstacles have no points
    obstacles = buffered(messages[outputs.OBSTACLES], VOXEL['depth_obstacles'])
    assert (np.abs(obstacles[:, 2]) < 0.1).mean() < 0.02
    assert (ends[:, 2] > VOXEL['depth_obstacles']['max_obstacle_height']).any()  # in the sky


def test_nav2_sees_far_enough_to_clear_what_it_marked() -> None:
    marking, clearing = VOXEL['depth_obstacles'], VOXEL['depth_clearing']
    assert (marking['marking'], marking['clearing']) == (True, False)
    assert (clearing['marking'], clearing['clearing']) == (False, True)
    assert clearing['raytrace_max_range'] > marking['obstacle_max_range']
    # A ray that meets nothing ends at clearing.max_range, two cells before which clearing stops.
    assert clearing['raytrace_max_range'] < default('clearing.max_range') - 2 * 0.05


def test_the_voxel_layer_can_hold_the_obstacles() -> None:
    """nav2_costmap_2d/plugins/voxel_layer.cpp: VOXEL_BITS 16; 1 is the maximum (obstacle_layer)."""
    assert VOXEL['z_voxels'] <= 16
    top = VOXEL['origin_z'] + VOXEL['z_voxels'] * VOXEL['z_resolution']
    assert top >= default('obstacles.max_height')
    assert VOXEL['combination_method'] == 1
    assert STVL['combination_method'] == 1


def test_stvl_marks_and_clears(messages: dict[str, Any]) -> None:
    """SteveMacenski/spatio_temporal_voxel_layer, src/measurement_buffer.cpp.

    A source that only clears does not look at the points, but takes the frame of the cloud for the
    view's, z forward (frustum_models/depth_camera_frustum.cpp); one that marks passes z by height.
    """
    marking, clearing = STVL['depth_mark'], STVL['depth_clear']
    kept = buffered(messages[outputs.OBSTACLES], marking)
    assert len(kept) > 0.9 * messages[outputs.OBSTACLES].width
    assert (marking['marking'], marking['clearing']) == (True, False)
    assert (clearing['marking'], clearing['clearing']) == (False, True)
    assert clearing['max_z'] > marking['obstacle_range']
    assert clearing['model_type'] == 0
    assert STVL['voxel_size'] == default('points.voxel_size')


def test_layers_name_topics_of_the_node() -> None:
    for layer in (VOXEL, STVL):
        for name in layer['observation_sources'].split():
            source = layer[name]
            assert TOPICS[source['topic'].removeprefix('/')].__name__ == source['data_type']


NAV2 = """
local_costmap:
  local_costmap:
    ros__parameters:
      plugins: ["obstacle_layer", "inflation_layer"]
      obstacle_layer: {plugin: "nav2_costmap_2d::ObstacleLayer"}
      inflation_layer: {plugin: "nav2_costmap_2d::InflationLayer", inflation_radius: 0.55}
global_costmap:
  global_costmap:
    ros__parameters:
      plugins: ["static_layer"]
controller_server: {ros__parameters: {controller_frequency: 20.0}}
"""


@pytest.mark.parametrize('kind', LAYERS)
def test_the_layer_goes_before_the_inflation(kind: str) -> None:
    nav2 = yaml.safe_load(NAV2)
    merged = with_depth_layer(nav2, COSTMAP, kind, '/robot1/')
    name = LAYERS[kind]
    plugins = [merged[costmap][costmap]['ros__parameters']['plugins'] for costmap in COSTMAPS]
    assert plugins == [['obstacle_layer', name, 'inflation_layer'], ['static_layer', name]]
    for costmap in COSTMAPS:
        layer = merged[costmap][costmap]['ros__parameters'][name]
        for source in layer['observation_sources'].split():
            assert layer[source]['topic'].startswith('/robot1/depth/')
    assert merged['controller_server'] == nav2['controller_server']
    assert nav2 == yaml.safe_load(NAV2)  # not touched
    again = with_depth_layer(merged, COSTMAP, kind, '/robot1/')
    assert again == merged


def test_each_camera_is_a_source_of_its_own() -> None:
    merged = with_depth_layer(yaml.safe_load(NAV2), COSTMAP, 'voxel', 'robot1', ['front', '/a/b'])
    layer = merged['local_costmap']['local_costmap']['ros__parameters'][LAYERS['voxel']]
    topics = {name: layer[name]['topic'] for name in layer['observation_sources'].split()}
    assert topics == {
        'front_depth_obstacles': '/robot1/front/depth/obstacles',
        'front_depth_clearing': '/robot1/front/depth/clearing',
        'a_b_depth_obstacles': '/robot1/a/b/depth/obstacles',
        'a_b_depth_clearing': '/robot1/a/b/depth/clearing',
    }
    assert 'depth_obstacles' not in layer
    assert layer['front_depth_clearing']['clearing']
    assert not layer['a_b_depth_obstacles']['clearing']


def test_nav2_parameters_without_a_costmap_are_refused() -> None:
    with pytest.raises(BrigesError, match=r'global_costmap\.global_costmap.*nav2_bringup'):
        with_depth_layer({'local_costmap': yaml.safe_load(NAV2)['local_costmap']}, COSTMAP, 'voxel')


def test_the_launch_file_passes_what_nav2_takes(tmp_path: Path) -> None:
    """ros-navigation/navigation2, nav2_bringup/launch/navigation_launch.py declares these."""
    source = (ROOT / 'launch' / 'nav2.launch.py').read_text()
    compile(source, 'nav2.launch.py', 'exec')
    (given,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Dict) and len(node.keys) == 3
    )
    keys = {ast.literal_eval(key) for key in given.keys if key is not None}
    assert keys == {'params_file', 'namespace', 'use_sim_time'}


# ---- the scan ----


def test_nav2_and_slam_read_the_scan(messages: dict[str, Any]) -> None:
    message = messages[outputs.SCAN]
    ranges = np.array(message.ranges)
    # SteveMacenski/slam_toolbox, lib/karto_sdk, LaserRangeFinder: the number of readings follows
    # from the angles, and scans with another number are dropped.
    count = round((message.angle_max - message.angle_min) / message.angle_increment) + 1
    assert len(ranges) == count
    assert message.angle_min < message.angle_max
    # REP 117, and ros-perception/laser_geometry, src/laser_geometry.cpp, projectLaser: a point is
    # kept if range < range_max and range >= range_min. NaN and +inf are not.
    kept = ranges[(ranges < message.range_max) & (ranges >= message.range_min)]
    assert len(kept) == np.isfinite(ranges).sum() > 50
    assert not np.isneginf(ranges).any()
    # nav2_costmap_2d/plugins/obstacle_layer.cpp, laserScanValidInfCallback: +inf becomes a point at
    # range_max; NaN is not greater than 0 and stays. So range_max must lie out of marking's reach.
    unending = ~np.isfinite(ranges) & (ranges > 0)
    np.testing.assert_array_equal(unending, np.isposinf(ranges))
    assert message.range_max == pytest.approx(default('scan.max_range'))
    # Points of the scan lie in the plane of header.frame_id with x forward: ahead is a car.
    assert message.header.frame_id == 'base_link'
    angles = message.angle_min + np.arange(count) * message.angle_increment
    assert angles[0] < 0 < angles[-1]
    ahead = ranges[np.abs(angles) < 0.03]
    assert np.nanmin(ahead) == pytest.approx(5.0, abs=1.5)  # frame 40: the car before us


def test_collision_monitor_reads_the_scan(messages: dict[str, Any]) -> None:
    """nav2_collision_monitor/src/scan.cpp: range_min <= range <= range_max, at growing angles."""
    message = messages[outputs.SCAN]
    ranges = np.array(message.ranges)
    inside = (ranges >= message.range_min) & (ranges <= message.range_max)
    np.testing.assert_array_equal(inside, np.isfinite(ranges))


# ---- clouds ----


@pytest.mark.parametrize('topic', [outputs.POINTS, outputs.OBSTACLES, outputs.CLEARING])
def test_rviz_shows_the_clouds(messages: dict[str, Any], topic: str) -> None:
    """ros2/rviz, rviz_default_plugins/.../pointcloud/point_cloud2_display.cpp.

    It wants fields x, y, z, reads them as float, and wants width * height * point_step bytes.
    """
    message = messages[topic]
    assert message.width * message.height * message.point_step == len(message.data)
    assert message.row_step == message.width * message.point_step
    fields = {field.name: field for field in message.fields}
    for name in 'xyz':
        assert (fields[name].datatype, fields[name].count) == (PointField.FLOAT32, 1)
    assert message.is_dense == bool(np.isfinite(xyz(message)).all())  # NaN is left out by it


def test_rviz_and_pcl_read_the_colours(rig: Rig, messages: dict[str, Any]) -> None:
    """The field rgb, FLOAT32, holds r << 16 | g << 8 | b.

    ros2/rviz, .../transformers/rgb8_pc_transformer.cpp; the iterators r, g, b of ros2/
    common_interfaces, sensor_msgs/include/sensor_msgs/impl/point_cloud2_iterator.hpp, with which
    ros-perception/image_pipeline, depth_image_proc/src/conversions.cpp writes, are the bytes 2, 1
    and 0 of it.
    """
    message = messages[outputs.POINTS]
    field = next(field for field in message.fields if field.name == 'rgb')
    assert field.datatype == PointField.FLOAT32
    data = np.frombuffer(message.data, np.uint8).reshape(-1, message.point_step)
    packed = np.ascontiguousarray(data[:, field.offset : field.offset + 4])
    bits = packed.view('<u4')[:, 0]
    colours = np.column_stack([bits >> 16 & 0xFF, bits >> 8 & 0xFF, bits & 0xFF])
    np.testing.assert_array_equal(colours.reshape(*rig.drive.image(40).shape), rig.drive.image(40))


def test_the_organised_cloud_is_as_depth_image_procs(messages: dict[str, Any]) -> None:
    """ros-perception/image_pipeline, depth_image_proc/include/depth_image_proc/conversions.hpp.

    Size of the image, all three coordinates NaN where the depth is not valid, is_dense false.
    """
    cloud, image = messages[outputs.POINTS], messages[outputs.IMAGE]
    assert (cloud.height, cloud.width) == (image.height, image.width)
    assert not cloud.is_dense
    points = xyz(cloud)
    valid = np.isfinite(image_pixels(image, np.float32)).ravel()
    assert 0.5 < valid.mean() < 1.0
    np.testing.assert_array_equal(np.isnan(points), ~np.repeat(valid[:, None], 3, axis=1))


# ---- depth images ----


def test_depthimage_to_laserscan_reads_the_depth(rig: Rig, messages: dict[str, Any]) -> None:
    """ros-perception/depthimage_to_laserscan, include/.../DepthImageToLaserScan.hpp.

    16UC1 or 32FC1, rows of whole values, a valid K; r = hypot(x, z) of the rows in the middle,
    valid if finite.
    """
    image, info = messages[outputs.IMAGE], messages[outputs.INFO]
    assert image.encoding in ('16UC1', '32FC1')
    assert image.step == image.width * 4
    assert not image.is_bigendian
    assert info.k[0] > 0
    row = image_pixels(image, np.float32)[int(info.k[5])]
    x = (np.arange(image.width) - info.k[2]) * row / info.k[0]
    ranges = np.hypot(x, row)[np.isfinite(row)]
    assert len(ranges) > 0.5 * image.width
    assert (ranges > 0).all()


def test_nvblox_reads_depth_and_camera(rig: Rig, messages: dict[str, Any]) -> None:
    """NVIDIA-ISAAC-ROS/isaac_ros_nvblox.

    nvblox_ros/src/lib/nvblox_node.cpp pairs image and camera_info by exactly equal stamps;
    src/lib/conversions/image_conversions.cpp takes 32FC1 or 16UC1 and rows without padding, and of
    the camera_info fx, fy, cx, cy of K and the size, which must be the image's.
    """
    image, info = messages[outputs.IMAGE], messages[outputs.INFO]
    assert image.header == info.header
    assert image.encoding in ('32FC1', '16UC1')
    assert len(image.data) == image.width * image.height * 4
    assert (info.width, info.height) == (image.width, image.height)
    np.testing.assert_array_equal(np.reshape(info.k, (3, 3)), rig.drive.k)
    depth = image_pixels(image, np.float32)
    # nvblox, interpolation_2d, FloatPixelGreaterThanZero: NaN is not, +inf is, and clears.
    assert not (depth <= 0).any()


def test_rviz_configuration_shows_topics_of_the_node() -> None:
    config = yaml.safe_load((ROOT / 'rviz' / 'depth.rviz').read_text())
    known = {**TOPICS, outputs.PREVIEW: Image, outputs.RELATIVE: Image}
    for display in config['Visualization Manager']['Displays']:
        if 'Topic' in display:
            assert display['Class'].split('/')[1] == known[display['Topic']['Value']].__name__
            assert math.isfinite(display['Topic']['Depth'])
