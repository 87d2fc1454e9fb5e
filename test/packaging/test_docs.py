"""The pages: their links, what is made of the code, and the names that they take from it.

External links are not fetched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from briges_ros.cli.main import app
from briges_ros.ros import topics
from briges_ros.ros.parameters import BY_NAME, SOURCES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
PAGES = sorted(
    [*DOCS.glob('*.md'), *ROOT.glob('*.md'), ROOT / 'models' / 'compact' / 'README.md'], key=str
)
PYPROJECT = ROOT / 'pyproject.toml'
LAYERS = DOCS / 'images' / 'layers.svg'
LAUNCH = {
    path.name: {name for name, _, _ in topics.launch_arguments(path)}
    for path in (ROOT / 'launch').glob('*.launch.py')
}
every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
BLOCK = re.compile(r'^```\w*\n(.*?)^```$|((?:^    [^\n]*\n)+)', re.M | re.S)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub('', page.read_text())


def code(page: Path) -> list[str]:
    """The lines of a page's blocks of code, continued ones joined, and what is code in its text."""
    blocks = ''.join(fenced or indented for fenced, indented in BLOCK.findall(page.read_text()))
    lines = re.sub(r'\\\n\s*', ' ', blocks).splitlines()
    return [line.strip() for line in lines] + re.findall(r'`([^`\n]+)`', prose(page))


def found(pattern: str, page: Path) -> set[str]:
    """What a pattern matches in the code of a page."""
    return {match for piece in code(page) for match in re.findall(pattern, piece)}


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-f', config, '-d', site]
    return subprocess.run(command, capture_output=True, text=True)


class TestSite:
    """What `make docs` makes, by MkDocs."""

    @pytest.fixture(autouse=True)
    def _mkdocs(self) -> None:
        pytest.importorskip('mkdocs', reason='MkDocs is missing: run make docs')

    def test_it_builds_without_a_broken_link_and_with_what_pages_link_to(self, tmp_path):
        done = build(ROOT / 'mkdocs.yml', tmp_path)
        assert done.returncode == 0, done.stderr
        for name in ('index.html', 'tuning/index.html', 'CONTRIBUTING/index.html'):
            assert (tmp_path / name).is_file()
        copied = (tmp_path / 'config' / 'depth.yaml').read_text()
        assert copied == (ROOT / 'config' / 'depth.yaml').read_text()
        assert 'href="../config/depth.yaml"' in (tmp_path / 'parameters' / 'index.html').read_text()

    @pytest.mark.parametrize(
        ('text', 'says'),
        [
            ('[a](nowhere.md)', "link 'nowhere.md'"),
            ('[a](other.md#nothing)', "anchor '#nothing'"),
            ('[a](../config/nowhere.yaml)', "link '../config/nowhere.yaml'"),
            ('![a](images/nowhere.svg)', "link 'images/nowhere.svg'"),
        ],
    )
    def test_a_broken_link_fails_it(self, tmp_path, text, says):
        config = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
        config['nav'] = ['index.md', 'other.md']
        (tmp_path / 'mkdocs.yml').write_text(yaml.safe_dump(config))
        (tmp_path / 'docs').mkdir()
        shutil.copy(DOCS / 'hooks.py', tmp_path / 'docs')
        (tmp_path / 'docs' / 'index.md').write_text(f'# Home\n\n{text}\n')
        (tmp_path / 'docs' / 'other.md').write_text('# Other\n')
        done = build(tmp_path / 'mkdocs.yml', tmp_path / 'site')
        assert done.returncode != 0
        assert says in done.stderr


class TestOnGitHub:
    """The same pages as plain Markdown, README and CONTRIBUTING among them."""

    @every_page
    def test_links_lead_somewhere(self, page):
        for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
            if re.match(r'[a-z]+:', link):
                continue
            path, _, anchor = link.partition('#')
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f'{page.name}: {link}'
            assert target.is_relative_to(ROOT), f'{page.name}: {link}'
            if anchor:
                assert anchor in set(anchors(target)), f'{page.name}: {link}'

    @every_page
    def test_tables_have_as_many_cells_in_each_row(self, page):
        for table in re.findall(r'(?:^\|.*\|\n)+', page.read_text(), flags=re.M):
            cells = {len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}
            assert len(cells) == 1, table

    @pytest.mark.parametrize('picture', sorted(DOCS.glob('images/*.svg')), ids=lambda p: p.name)
    def test_drawings_stand_on_a_ground_of_their_own(self, picture):
        """So that they can be read on a dark page too; and they say what they show."""
        text = picture.read_text()
        assert re.search(r'<rect x="1" y="1"[^>]* fill="#ffffff"', text)
        assert '<title' in text and '<desc' in text
        assert picture.name in ''.join(page.read_text() for page in PAGES)

    def test_the_layers_are_drawn_as_the_contract_has_them(self):
        contract = re.search(r'^layers = \[\n(.*?)^\]', PYPROJECT.read_text(), re.M | re.S)[1]
        drawn = re.findall(r'<text [^>]*font-weight="bold"[^>]*>(\w+)<', LAYERS.read_text())
        heights = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*font-weight="bold"', LAYERS.read_text())
        rows: dict[str, set[str]] = {}
        for name, height in zip(drawn, heights, strict=True):
            rows.setdefault(height, set()).add(name)
        layers = [set(re.findall(r'\w+', row)) for row in re.findall(r"'(.*)'", contract)]
        assert list(rows.values()) == layers


def anchors(page: Path) -> Iterator[str]:
    """The anchors that GitHub gives to the headings of a page."""
    for heading in re.findall(r'^#+ (.*)$', prose(page), flags=re.M):
        plain = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').lower()
        yield re.sub(r'[^\w\- ]', '', plain).replace(' ', '-')


class TestMadeOfTheCode:
    def test_topics(self):
        made_anew = 'make it anew with python -m briges_ros.ros.topics'
        assert (ROOT / topics.PAGE).read_text() == topics.page(ROOT), made_anew

    def test_models(self):
        pytest.importorskip('torch', reason='the catalogue needs torch: run make test')
        from briges_ros.network import catalogue_page
        from briges_ros.network.published import ENTRIES

        made_anew = 'make it anew with python -m briges_ros.network.catalogue_page'
        text = catalogue_page.page()
        assert (ROOT / catalogue_page.PAGE).read_text() == text, made_anew
        rows = [line for line in text.splitlines() if line.startswith('| [`')]
        assert len(rows) == len(ENTRIES)
        for entry in ENTRIES:
            (row,) = [row for row in rows if f'`{entry.name}`' in row]
            assert f'| {entry.licence} | {"no" if entry.noncommercial else "yes"} |' in row

    def test_readme_lists_the_topics(self):
        text = (ROOT / 'README.md').read_text()
        section = text[text.index('\n## Topics') : text.index('\n## Parameters')]
        rows = re.findall(r'^\| (`.*?) \| (.*?) \|', section, re.M)
        listed = {name: kind for names, kind in rows for name in re.findall('`([^`]+)`', names)}
        usual = {'/tf', '/tf_static', '/clock', '~/transition_event'}
        told = {t.name: t.type for t in (*topics.INPUTS, *topics.OUTPUTS) if t.name not in usual}
        assert set(listed) == set(told)
        for name, kind in told.items():
            assert kind.rpartition('/')[2] in listed[name] or name.endswith('camera_info')
        assert '`~/reset_scale`' in section


class TestNames:
    """What the pages name exists."""

    @every_page
    def test_parameters(self, page):
        groups = '|'.join({name.partition('.')[0] for name in BY_NAME if '.' in name})
        named = found(rf'(?<![\w./:])(?:{groups})\.[A-Za-z_][\w.]*\w', page)
        named |= found(r'\b(?:depth_node|make node)\b.*?-p ([\w.]+):=', page)
        named |= found(r'ros2 param set \S+ ([\w.]+)', page)
        of_any_source = {
            name.replace(f'.{source}.', '.SOURCE.') for name in BY_NAME for source in SOURCES
        }
        files = re.compile(r'.*\.(?:py|yaml|json|png|npy|ply|rviz|xml|md|jpg|safetensors)$')
        no_parameters = {'scale.state', 'use_sim_time'}
        unknown = named - set(BY_NAME) - of_any_source - no_parameters
        assert {name for name in unknown if not files.match(name)} == set()

    @every_page
    def test_parameter_files(self, page):
        for block in re.findall(r'^```yaml\n(.*?)^```$', page.read_text(), flags=re.M | re.S):
            given = yaml.safe_load(block).get('/**', {}).get('ros__parameters', {})
            assert set(given) <= set(BY_NAME)

    @every_page
    def test_launch_files_and_their_arguments(self, page):
        for name, arguments in found(r'ros2 launch briges_ros (\S+)(.*)', page):
            own = LAUNCH[name] | LAUNCH['depth.launch.py']  # which the others include
            assert set(re.findall(r'(\w+):=', arguments)) <= own
        alone = found(r'^(\w+):=\S*$', page)
        assert alone <= set().union(*LAUNCH.values())

    @every_page
    def test_topics_and_services(self, page):
        tables = (*topics.INPUTS, *topics.OUTPUTS, *topics.SERVICES)
        known = {topic.name.replace('~', 'depth') for topic in tables}
        of_every_node = {'depth/set_parameters', 'depth/get_available_states'}
        named = found(r'(?<![\w/.])(?:depth|sparse)/[a-z_]+', page)
        named |= {name.replace('~', 'depth') for name in found(r'^~/\w+$', page)}
        assert named - known - of_every_node == set()

    @every_page
    def test_fields_of_the_status(self, page):
        asked = found(r'topic echo /?depth/status --field (\w+)', page)
        assert asked <= status_words()

    @every_page
    def test_commands_and_their_options(self, page):
        commands = get_command(app).commands
        for name, rest in found(r'(?:^|briges_ros )briges ([a-z]+)\b(.*)', page):
            options = {text for p in commands[name].params for text in (*p.opts, *p.secondary_opts)}
            used = set(re.findall(r'(?<!\S)--?[a-z][\w-]*', rest.partition('#')[0]))
            assert used - options - {'--help'} == set(), f'briges {name}{rest}'

    @every_page
    def test_targets_of_make(self, page):
        targets = set(re.findall(r'^([a-z]+):.*##', (ROOT / 'Makefile').read_text(), flags=re.M))
        assert found(r'^make ([a-z]+)\b', page) <= targets


class TestTuning:
    """docs/tuning.md names fields of depth/status, and in italics keys of the diagnostics."""

    def test_keys(self):
        sources = ''.join(path.read_text() for path in (ROOT / 'briges_ros' / 'ros').glob('*.py'))
        rows = re.findall(r'^\|.*\|$', (DOCS / 'tuning.md').read_text(), flags=re.M)
        keys = {key for row in rows for key in re.findall(r'(?<!\*)\*([^*|]+)\*(?!\*)', row)}
        elsewhere = {'Global Status', 'Normalize Range', 'started anew'}  # RViz, and a reason
        assert elsewhere < keys
        assert {key for key in keys - elsewhere if f"'{key}'" not in sources} == set()

    def test_fields_and_reasons(self):
        cells = re.findall(r'^\|[^|]*\|([^|]*)\|', (DOCS / 'tuning.md').read_text(), flags=re.M)
        named = {word for cell in cells for word in re.findall(r'`([a-z_]+)`', cell)}
        others = {'base_frame', 'horizontal_fov', 'hold_duration', 'output_qos', 'tegrastats'}
        assert len(named & status_words()) > 12
        assert named - status_words() - others == set()


def status_words() -> set[str]:
    """The fields of the message, and the reasons for what is no anchor."""
    message = (ROOT / 'msg' / 'DepthStatus.msg').read_text()
    fields = re.findall(r'^[\w/\[\]]+ (\w+)$', message, re.M)
    return {*fields, *re.findall(r'^#   (\w+) ', message, re.M)}


def test_every_page_is_linked_from_the_first():
    linked = set(re.findall(r'\]\((\w+\.md)\)', (DOCS / 'index.md').read_text()))
    assert {page.name for page in DOCS.glob('*.md')} - {'index.md'} == linked
