"""Start the depth node for one camera.

ros2 launch briges_ros depth.launch.py image:=/camera/image_raw camera_info:=/camera/camera_info \
    sparse_points:=/velodyne_points rviz:=true

For several cameras see multi_camera.launch.py, which includes this.
"""

import copy
import os
import tempfile
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

PACKAGE = 'briges_ros'
# What an empty argument leaves to the parameter file (and that, to the default of the node).
FROM_FILE = ''


def shared(*parts):
    """Return the path of an installed file of the package."""
    return str(Path(get_package_share_directory(PACKAGE), *parts))


def declare_arguments():
    """Return the arguments, with defaults that start a working node."""
    return [
        DeclareLaunchArgument(
            'cameras',
            default_value='',
            description='Namespaces of several cameras, e.g. front,rear: one node in each, all in '
            'one process that loads the model once. Empty: one camera.',
        ),
        DeclareLaunchArgument(
            'image',
            default_value='image',
            description='Image topic; the base topic if image_transport is compressed.',
        ),
        DeclareLaunchArgument(
            'camera_info', default_value='camera_info', description='CameraInfo of the image.'
        ),
        DeclareLaunchArgument(
            'sparse_points',
            default_value='sparse/points',
            description='PointCloud2 of a LiDAR, radar or VIO that gives the scale.',
        ),
        DeclareLaunchArgument(
            'sparse_scan',
            default_value='sparse/scan',
            description='LaserScan of a planar LiDAR that gives the scale.',
        ),
        DeclareLaunchArgument(
            'sparse_range',
            default_value='sparse/range',
            description='Range of a sonar or ToF ranger that helps with the scale.',
        ),
        DeclareLaunchArgument(
            'sparse_depth',
            default_value='sparse/depth',
            description='Depth image of a sparse sensor that gives the scale.',
        ),
        DeclareLaunchArgument(
            'sparse_camera_info',
            default_value='sparse/camera_info',
            description='CameraInfo of sparse_depth, if that is not registered to the image.',
        ),
        DeclareLaunchArgument(
            'model',
            default_value=FROM_FILE,
            description='Model bundle, by name or path. Empty: as the parameter file says.',
        ),
        DeclareLaunchArgument(
            'backend',
            default_value=FROM_FILE,
            description='Inference engine: auto, or one that `briges bench` lists. Empty: as the '
            'parameter file says.',
        ),
        DeclareLaunchArgument(
            'precision',
            default_value=FROM_FILE,
            description='Arithmetic of the engine: auto, int8, fp16, bf16 or fp32. Empty: as the '
            'parameter file says.',
        ),
        DeclareLaunchArgument(
            'image_width',
            default_value=FROM_FILE,
            description='Width of the images: with image_height, the engine is built for them '
            'before they come. Empty: as the parameter file says.',
        ),
        DeclareLaunchArgument(
            'image_height',
            default_value=FROM_FILE,
            description='Height of the images. Empty: as the parameter file says.',
        ),
        DeclareLaunchArgument(
            'params_file',
            default_value=shared('config', 'depth.yaml'),
            description='Parameter file; config/depth.yaml explains each.',
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='Namespace of the node and its topics.'
        ),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='false',
            choices=['true', 'false'],
            description='Take the time from /clock.',
        ),
        DeclareLaunchArgument(
            'autostart',
            default_value='true',
            choices=['true', 'false'],
            description='Configure and activate; false: a lifecycle manager does.',
        ),
        DeclareLaunchArgument(
            'rviz',
            default_value='false',
            choices=['true', 'false'],
            description='Show depth and cloud in RViz.',
        ),
        DeclareLaunchArgument(
            'log_level',
            default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='Least severe messages of the node to log.',
        ),
    ]


def large_message_profile():
    """Return actions that have Fast DDS deliver images and clouds, unless the user has a profile.

    Its defaults lose most messages of more than 512 KB. Jazzy and older read the first variable,
    Kilted and newer the second.
    """
    profile = shared('config', 'fastdds_large_messages.xml')
    names = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
    if any(os.environ.get(name) for name in names):
        return []
    return [SetEnvironmentVariable(name, profile) for name in names]


def camera_namespaces(context):
    """Return the namespaces of several cameras, below that of the launch; none for one camera."""
    cameras = LaunchConfiguration('cameras').perform(context).replace(',', ' ').split()
    below = LaunchConfiguration('namespace').perform(context).strip('/')
    return [f'/{below}/{camera}' if below else f'/{camera}' for camera in cameras]


def start_node(context):
    """Return the node, with those arguments as parameters that were given."""
    overrides = {
        'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool),
        # The node brings itself up: the same on every distribution, and with plain `ros2 run`.
        'autostart': ParameterValue(LaunchConfiguration('autostart'), value_type=bool),
    }
    from_file = {'image_width': int, 'image_height': int}
    from_file |= dict.fromkeys(('model', 'backend', 'precision'), str)
    for name, value_type in from_file.items():
        if LaunchConfiguration(name).perform(context) != FROM_FILE:
            overrides[name] = ParameterValue(LaunchConfiguration(name), value_type=value_type)
    given = {
        'package': PACKAGE,
        'executable': 'depth_node',
        'parameters': [LaunchConfiguration('params_file'), overrides],
        # Relative names are those of each camera's namespace.
        'remappings': [
            ('image', LaunchConfiguration('image')),
            ('camera_info', LaunchConfiguration('camera_info')),
            ('sparse/points', LaunchConfiguration('sparse_points')),
            ('sparse/scan', LaunchConfiguration('sparse_scan')),
            ('sparse/range', LaunchConfiguration('sparse_range')),
            ('sparse/depth', LaunchConfiguration('sparse_depth')),
            ('sparse/camera_info', LaunchConfiguration('sparse_camera_info')),
        ],
        'output': 'screen',
        'emulate_tty': True,
    }
    ros_arguments = ['--ros-args', '--log-level', LaunchConfiguration('log_level')]
    cameras = camera_namespaces(context)
    if cameras:  # no name or namespace: those would be for all nodes of the process
        return [Node(**given, arguments=['--cameras', *cameras, *ros_arguments])]
    namespace = LaunchConfiguration('namespace')
    return [LifecycleNode(**given, name='depth', namespace=namespace, arguments=ros_arguments)]


def start_rviz(context):
    """Return RViz, if it is asked for, with the displays of each camera."""
    if LaunchConfiguration('rviz').perform(context) != 'true':
        return []
    config = shared('rviz', 'depth.rviz')
    cameras = camera_namespaces(context)
    if cameras:
        config = rviz_config_of(cameras, Path(config))
    return [
        Node(
            package='rviz2',
            executable='rviz2',
            name='depth_rviz',
            namespace=LaunchConfiguration('namespace'),
            arguments=['-d', config],
            parameters=[
                {
                    'use_sim_time': ParameterValue(
                        LaunchConfiguration('use_sim_time'), value_type=bool
                    )
                }
            ],
            output='screen',
        )
    ]


def rviz_config_of(cameras, template):
    """Return the path of an RViz configuration with the template's displays for each camera."""
    config = yaml.safe_load(template.read_text())
    manager = config['Visualization Manager']
    common = [display for display in manager['Displays'] if 'Topic' not in display]
    displays = [display for display in manager['Displays'] if 'Topic' in display]
    for camera in cameras:
        for display in copy.deepcopy(displays):
            display['Name'] = f'{camera}: {display["Name"]}'
            display['Topic']['Value'] = f'{camera}/{display["Topic"]["Value"]}'
            common.append(display)
    manager['Displays'] = common
    manager['Global Options']['Fixed Frame'] = 'base_link'  # which all of them have in common
    with tempfile.NamedTemporaryFile('w', suffix='.rviz', delete=False) as file:
        yaml.safe_dump(config, file)
    return file.name


def generate_launch_description():
    """Return what `ros2 launch` starts."""
    return LaunchDescription(
        [
            *declare_arguments(),
            *large_message_profile(),
            OpaqueFunction(function=start_node),
            OpaqueFunction(function=start_rviz),
        ]
    )
