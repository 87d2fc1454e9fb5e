"""Start the depth node and Nav2, with a depth layer in the costmaps.

ros2 launch briges_ros nav2.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info \
    nav2_params:=my_nav2_params.yaml

Takes the arguments of depth.launch.py too. Localisation (a map, or SLAM) is not started.
"""

import tempfile
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from briges_ros.ros.nav2_params import LAYERS, with_depth_layer
from launch import LaunchDescription


def shared(package, *parts):
    """Return the path of an installed file of a package."""
    return str(Path(get_package_share_directory(package), *parts))


def declare_arguments():
    """Return the arguments beyond those of depth.launch.py."""
    return [
        DeclareLaunchArgument(
            'nav2_params',
            default_value='',
            description='Nav2 parameters without the depth layer. Empty: those of nav2_bringup.',
        ),
        DeclareLaunchArgument(
            'layer',
            default_value='voxel',
            choices=list(LAYERS),
            description='Layer to add: voxel (of Nav2), or stvl (spatio_temporal_voxel_layer).',
        ),
        DeclareLaunchArgument(
            'cameras',
            default_value='',
            description='Namespaces of several cameras, e.g. front,rear, as multi_camera.launch.py '
            'takes them. Empty: one camera.',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of all nodes and topics.'
        ),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='false',
            choices=['true', 'false'],
            description='Take the time from /clock.',
        ),
    ]


def start_nav2(context):
    """Return Nav2's own launch file, with parameters that hold the layer."""
    given = LaunchConfiguration('nav2_params').perform(context)
    nav2 = given or shared('nav2_bringup', 'params', 'nav2_params.yaml')
    parameters = with_depth_layer(
        yaml.safe_load(Path(nav2).read_text()),
        yaml.safe_load(Path(shared('briges_ros', 'config', 'nav2_costmap.yaml')).read_text()),
        LaunchConfiguration('layer').perform(context),
        LaunchConfiguration('namespace').perform(context),
        LaunchConfiguration('cameras').perform(context).replace(',', ' ').split(),
    )
    with tempfile.NamedTemporaryFile('w', suffix='_nav2.yaml', delete=False) as file:
        yaml.safe_dump(parameters, file)
    return [
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(shared('nav2_bringup', 'launch', 'navigation_launch.py')),
            launch_arguments={
                'params_file': file.name,
                'namespace': LaunchConfiguration('namespace'),
                'use_sim_time': LaunchConfiguration('use_sim_time'),
            }.items(),
        )
    ]


def generate_launch_description():
    """Return what `ros2 launch` starts."""
    depth = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(shared('briges_ros', 'launch', 'depth.launch.py'))
    )
    # In a group: both files have an argument params_file, and one's must not become the other's.
    return LaunchDescription(
        [*declare_arguments(), GroupAction([depth]), OpaqueFunction(function=start_nav2)]
    )
