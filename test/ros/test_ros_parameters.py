"""The table of parameters, and that the documentation agrees with it."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import yaml
from conftest import ROOT

from briges_ros.alignment.anchors import RangeNoise
from briges_ros.ros.parameter_files import files, json_schema, page
from briges_ros.ros.parameters import (
    BY_NAME,
    PARAMETERS,
    SOURCES,
    ParameterError,
    Settings,
    SourceSettings,
    complaint,
    refusal,
)

DEFAULTS: dict[str, Any] = {p.name: p.default for p in PARAMETERS}
ROTATED = (0.1, 0.2, 0.3, 0.0, 0.0, 0.6, 0.8)


def test_defaults_are_in_order() -> None:
    assert complaint(DEFAULTS) == ''
    assert len(BY_NAME) == len(PARAMETERS)


def test_settings_hold_every_parameter() -> None:
    names = [field.name for field in fields(Settings) if field.name != 'sources']
    of_source = {f'sparse.{s}.{f.name}' for s in SOURCES for f in fields(SourceSettings)}
    others = [p.name for p in PARAMETERS if p.name not in {*of_source, 'sparse.extrinsics'}]
    assert names == [name.replace('.', '_') for name in others]
    assert of_source <= set(BY_NAME)
    settings = Settings.of({**DEFAULTS, 'points.stride': 3, 'use_sim_time': True})
    assert settings.points_stride == 3
    assert settings.prior is None
    assert settings.sources['points'].extrinsics is None
    assert settings.sources['range'].noise == RangeNoise(0.02, 0.02, 0.0)


def test_what_the_user_gave() -> None:
    settings = Settings.of({**DEFAULTS, 'prior.scale': 0.5, 'sparse.extrinsics': list(ROTATED)})
    assert settings.prior == (0.5, 0.0)
    assert {settings.sources[source].extrinsics for source in SOURCES} == {ROTATED}
    none = Settings.of({**DEFAULTS, 'sparse.extrinsics': None, 'sparse.scan.extrinsics': None})
    assert none.sources['scan'].extrinsics is None


def test_a_pose_for_one_source_wins_over_that_for_all() -> None:
    shifted = (9.0, *ROTATED[1:])
    given = {'sparse.extrinsics': ROTATED, 'sparse.scan.extrinsics': shifted}
    settings = Settings.of({**DEFAULTS, **given, 'sparse.scan.weight': 0.5})
    assert settings.sources['points'].extrinsics == ROTATED
    assert settings.sources['scan'].extrinsics == shifted
    assert settings.sources['scan'].weight == 0.5


def test_the_size_of_the_images_is_given_whole_or_not() -> None:
    assert Settings.of(DEFAULTS).image_size is None
    both = {'image_width': 640, 'image_height': 480}
    assert Settings.of({**DEFAULTS, **both}).image_size == (640, 480)
    for name in both:
        half = {**DEFAULTS, name: both[name]}
        assert complaint(half) == ''  # parameters are set one after the other
        with pytest.raises(ParameterError, match='give both, or neither'):
            _ = Settings.of(half).image_size


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'depth.encoding': '8UC1'}, 'choose one of 32FC1, 16UC1'),
        ({'points.stride': 0}, 'give 1 to 64 pixels'),
        ({'depth.max_range': float('nan')}, 'finite'),
        ({'depth.min_range': 5.0, 'depth.max_range': 5.0}, 'not below'),
        ({'sparse.extrinsics': (1.0, 2.0)}, 'holds 2 numbers'),
        ({'sparse.extrinsics': (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0)}, 'unit quaternion'),
        ({'sparse.extrinsics': (float('inf'), *ROTATED[1:])}, 'finite'),
        ({'sparse.range.extrinsics': (1.0, 2.0)}, 'holds 2 numbers'),
        ({'sparse.depth.extrinsics': (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.1)}, 'unit quaternion'),
        ({'sparse.scan.noise': (0.1, 0.2)}, 'three numbers'),
        ({'sparse.scan.noise': (0.0, 0.1, 0.0)}, 'floor'),
        ({'sparse.points.noise': (0.1, -0.1, 0.0)}, 'not negative'),
        ({'sparse.points.min_range': 300.0}, 'not below'),
        ({'sparse.points.weight': -1.0}, 'give 0.0 to'),
    ],
)
def test_complaints_name_the_parameter(changes: dict[str, Any], says: str) -> None:
    why = complaint({**DEFAULTS, **changes})
    assert says in why
    assert next(iter(changes)) in why


def test_changes_while_configured() -> None:
    assert 'clean the node up' in refusal({'model': 'other'}, DEFAULTS, configured=True)
    assert refusal({'model': 'other'}, DEFAULTS, configured=False) == ''
    assert refusal({'model': 'compact'}, DEFAULTS, configured=True) == ''  # no change
    assert refusal({'points.stride': 2}, DEFAULTS, configured=True) == ''
    assert 'not below' in refusal({'depth.min_range': 200.0}, DEFAULTS, configured=True)
    assert refusal({'use_sim_time': True}, DEFAULTS, configured=True) == ''


def flattened(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def test_yaml_has_the_defaults() -> None:
    text = (ROOT / 'config' / 'depth.yaml').read_text()
    values = flattened(yaml.safe_load(text)['/**']['ros__parameters'])
    assert list(values) == [name for name in values if name in BY_NAME]
    expected = {k: list(v) if isinstance(v, tuple) else v for k, v in DEFAULTS.items()}
    assert values == expected
    for name, value in values.items():
        assert type(value) is type(expected[name]), name


def test_the_files_are_as_the_table_has_them() -> None:
    for name, text in files().items():
        made_anew = f'{name}: make it anew with python -m briges_ros.ros.parameter_files'
        assert (ROOT / name).read_text() == text, made_anew


def test_the_schema_knows_every_parameter_and_its_limits() -> None:
    node = json_schema()['additionalProperties']['properties']['ros__parameters']
    types = {'boolean': bool, 'integer': int, 'number': float, 'string': str, 'array': tuple}
    for parameter in PARAMETERS:
        schema = node
        for part in parameter.name.split('.'):
            schema = schema['properties'][part]
        assert type(parameter.default) is types[schema['type']], parameter.name
        assert (schema.get('minimum'), schema.get('maximum')) == (parameter.low, parameter.high)
        assert tuple(schema.get('enum', ())) == parameter.choices


def test_the_page_has_a_row_for_every_parameter_in_a_table() -> None:
    rows = [line for line in page().splitlines() if line.startswith('| `')]
    assert [row.split('`')[1] for row in rows] == [parameter.name for parameter in PARAMETERS]
    assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {5}
