"""Start depth for several cameras: one node for each, in one process that loads the model once.

ros2 launch briges_ros multi_camera.launch.py cameras:=front,rear sparse_points:=/velodyne_points

takes /front/image_raw and /front/camera_info, and publishes /front/depth/image and the rest; the
same for rear. A parameter file may have a part for each camera, /front/depth, and one for all, /**.
All other arguments are those of depth.launch.py.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription


def generate_launch_description():
    """Return what `ros2 launch` starts."""
    depth = Path(get_package_share_directory('briges_ros'), 'launch', 'depth.launch.py')
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'cameras', description='Namespaces of the cameras, e.g. front,left,right.'
            ),
            DeclareLaunchArgument(
                'image',
                default_value='image_raw',
                description='Image topic in the namespace of each camera.',
            ),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(depth))),
        ]
    )
