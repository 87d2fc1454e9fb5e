"""The ROS side: a managed node around `briges_ros.pipeline`.

Nothing here does maths, and nothing outside of here sees a message.
"""
