"""`briges models`."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.table import Table

from briges_ros.inference.bundle import BundleError, ModelBundle, model_folders
from briges_ros.inference.engine import AUTO, EngineError, precisions


def run() -> None:
    """Print every bundle that can be found by name, and what of `auto` can run one here."""
    table = Table('name', 'gate', 'tokens', 'int8', 'licence', 'folder')
    seen: set[str] = set()
    usable: ModelBundle | None = None
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
                usable = usable or bundle
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
    if usable is not None:
        console.print(
            f'{usable.name} runs here on {_engines(usable)}; why not on the others: briges bench',
            style='dim',
        )


def _engines(bundle: ModelBundle) -> str:
    found = []
    for backend in AUTO:
        with contextlib.suppress(EngineError):
            found.append(f'{backend} ({", ".join(precisions(bundle, backend))})')
    return ', '.join(found) or 'nothing'


def _gate(bundle: ModelBundle) -> str:
    if (bundle.tau_cross, bundle.tau_self) == (1.0, 1.0):
        return bundle.gate
    return f'{bundle.gate}, tau {bundle.tau_cross:g} (cross), {bundle.tau_self:g} (self)'
