# Environment of the ROS processes that `make setup` provides: source it in bash from anywhere.
#
#     . scripts/env.sh
#     python -c 'from briges_ros.msg import DepthStatus'
#
# On a machine with ROS 2 installed source the workspace's install/setup.bash instead.

_briges_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ ! -f "$_briges_root/.venv/bin/activate" ] ||
   [ ! -f "$_briges_root/install/briges_ros/share/briges_ros/local_setup.bash" ]; then
  echo "briges_ros: $_briges_root is not set up yet: run 'make setup' there" >&2
  unset _briges_root
  return 1
fi

. "$_briges_root/.venv/bin/activate"

# The wheels put ROS 2 under the virtual environment's own prefix. Our messages and modules lie over
# it in install/.
case ":${AMENT_PREFIX_PATH:-}:" in
  *":$VIRTUAL_ENV:"*) ;;
  *) export AMENT_PREFIX_PATH="$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}" ;;
esac
. "$_briges_root/install/local_setup.bash"

# Images and clouds are lost with the default transports of Fast DDS; the file says why. A profile
# of yours is kept. Jazzy and older read the first variable, Kilted and newer the second.
: "${FASTRTPS_DEFAULT_PROFILES_FILE:=$_briges_root/config/fastdds_large_messages.xml}"
: "${FASTDDS_DEFAULT_PROFILES_FILE:=$FASTRTPS_DEFAULT_PROFILES_FILE}"
export FASTRTPS_DEFAULT_PROFILES_FILE FASTDDS_DEFAULT_PROFILES_FILE

unset _briges_root
