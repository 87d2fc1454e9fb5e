"""Add the depth layer to a user's Nav2 parameters. Plain data in and out: no ROS."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from briges_ros.errors import BrigesError

COSTMAPS = ('local_costmap', 'global_costmap')
LAYERS = {'voxel': 'depth_voxel_layer', 'stvl': 'depth_stvl_layer'}


def with_depth_layer(
    nav2: Mapping[str, Any],
    shipped: Mapping[str, Any],
    kind: str,
    namespace: str = '',
    cameras: Sequence[str] = (),
) -> dict[str, Any]:
    """Return Nav2's parameters with a depth layer in both costmaps, before the inflation.

    Args:
        nav2: the user's parameters, as their YAML file reads.
        shipped: config/nav2_costmap.yaml, as it reads.
        kind: of the layer, a key of `LAYERS`.
        namespace: of the depth node; goes before the topics.
        cameras: namespaces of several depth nodes, below that: each gets its own sources.

    Raises:
        BrigesError: the parameters have no costmap that lists its plugins.
    """
    name = LAYERS[kind]
    layer = copy.deepcopy(shipped['local_costmap']['local_costmap']['ros__parameters'][name])
    sources = {source: layer.pop(source) for source in layer['observation_sources'].split()}
    named = {}
    for camera in cameras or ('',):
        namespaces = [part.strip('/') for part in (namespace, camera) if part.strip('/')]
        for source, settings in sources.items():
            topic = '/'.join(('', *namespaces, settings['topic'].strip('/')))
            label = '_'.join((*camera.strip('/').split('/'), source)).lstrip('_')
            named[label] = copy.deepcopy(settings) | {'topic': topic}
    layer['observation_sources'] = ' '.join(named)
    layer |= named
    result = copy.deepcopy(dict(nav2))
    for costmap in COSTMAPS:
        try:
            parameters = result[costmap][costmap]['ros__parameters']
            plugins = parameters['plugins']
        except (KeyError, TypeError):
            raise BrigesError(
                f'the Nav2 parameters lack {costmap}.{costmap}.ros__parameters.plugins: start from '
                'the nav2_params.yaml of nav2_bringup'
            ) from None
        parameters[name] = copy.deepcopy(layer)
        if name not in plugins:
            inflation = [
                index
                for index, plugin in enumerate(plugins)
                if 'Inflation' in str((parameters.get(plugin) or {}).get('plugin'))
            ]
            plugins.insert(inflation[0] if inflation else len(plugins), name)
    return result
