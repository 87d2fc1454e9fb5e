"""`briges models`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from briges_ros.inference.bundle import BundleError, ModelBundle, model_folders


def run() -> None:
    """Print every bundle that can be found by name."""
    table = Table('name', 'gate', 'tokens', 'int8', 'licence', 'folder')
    seen: set[str] = set()
    for models in model_folders():
        for path in sorted(models.glob('*/model.json')):
            if path.parent.name in seen:
                continue  # an earlier folder wins, as when loading
            seen.add(path.parent.name)
            try:
                bundle = ModelBundle.load(path.parent)
            except BundleError as error:
                table.add_row(
                    path.parent.name, '-', '-', '-', f'unusable: {error}', str(path.parent)
                )
            else:
                table.add_row(
                    path.parent.name,
                    _gate(bundle),
                    str(bundle.token_budget),
                    'yes' if bundle.int8_graphs else 'no',
                    bundle.licence,
                    str(path.parent),
                )
    console = Console()
    if seen:
        console.print(table)
    else:
        console.print('no model bundles; make one with: briges export compact')
    console.print('looked in: ' + ', '.join(map(str, model_folders())), style='dim')


def _gate(bundle: ModelBundle) -> str:
    if (bundle.tau_cross, bundle.tau_self) == (1.0, 1.0):
        return bundle.gate
    return f'{bundle.gate}, tau {bundle.tau_cross:g} (cross), {bundle.tau_self:g} (self)'
