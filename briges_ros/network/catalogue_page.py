"""docs/models.md, made of the catalogue of published networks.

`python -m briges_ros.network.catalogue_page` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from briges_ros.network.published import ENTRIES, Entry

PAGE = 'docs/models.md'
HUB = 'https://huggingface.co'
# By how an entry's name begins, the first that fits: title and text.
KINDS = {
    'depth-anything-v2-metric': (
        'Metric depth',
        'The network knows metres itself, so the node is never without (state PRIOR), and sparse '
        'points correct it.',
    ),
    'depth-anything': (
        'Relative depth',
        'Metres come from sparse points, a scale that you give, or the ground; or there are none.',
    ),
    'sam': (
        'Segmentation',
        'The second encoder of a model with gates: `briges export DEPTH --segmentation NAME '
        '--gates FILE`, with gates that you [trained](training.md) for the pair.',
    ),
}
_HEAD = """\
# Models and their licences

Made by `python -m briges_ros.network.catalogue_page` from the catalogue in
`briges_ros/network/published.py`, which `briges export` goes by.

A licence binds what you do with the weights, on whichever engine they run. The code of this package
is Apache-2.0; **the weights are not all**. `briges models` lists the bundles on your machine, each
with its licence; `model.json` in a bundle's folder has licence and sha256 of every file that went
into it.

## The one that ships

| bundle | licence | commercial use | |
| --- | --- | --- | --- |
| `compact` | research only | no | relative depth, DINOv2 ViT-S/14 and a small decoder, 100 MB |

Its encoder is DINOv2's (Apache-2.0); adapters and decoder were trained on NYUv2 (research only) and
KITTI (CC BY-NC-SA 3.0), which bind what was learned from them. Its
[model card](../models/compact/README.md) has the data, the training and what it is bad at.
`briges export compact` composes it in seconds, without torch.

**For a product** take one of the networks below that may be used commercially; for a start:

    pip install "briges_ros[train]"                # the export needs torch; the robot does not
    briges export depth-anything-v2-small          # from the Hugging Face hub, once
    briges check --model depth-anything-v2-small

and `model:=depth-anything-v2-small` in the launch. How good and how fast these are in this package
we have not measured: it does not hold their weights. The code that loads them is tested on networks
of their architectures with random weights.

## Published networks

`briges export NAME` says the licence, then downloads the commit that is pinned here and checks its
sha256 where we know that. What must not be used commercially wants `--accept-noncommercial`. A
folder that you downloaded yourself does as well as a name. Weights come as safetensors; pickles are
refused.
"""
_TAIL = """
## Where the licences are from

- Depth Anything (V1): each repository on the hub declares Apache-2.0.
- Depth Anything V2: the authors' README says that the small model is under Apache-2.0, and base,
  large and giant under CC-BY-NC-4.0; the repositories of the relative models declare the same.
- Depth Anything V2, metric: when we looked, only outdoor-large declared a licence (Apache-2.0), as
  do the repositories with the same networks for the authors' own code. The README's rule, by size,
  is stricter, so the catalogue goes by that: for base and large ask the authors.
- SAM and SAM 2.1: each repository on the hub declares Apache-2.0.

Lists of these networks by others disagree with the authors' in places, so look there when it
matters. Who adds a network gives its licence in its `Entry`; a test holds this page to that.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    left = list(ENTRIES)
    for prefix, (title, text) in KINDS.items():
        entries = [entry for entry in left if entry.name.startswith(prefix)]
        left = [entry for entry in left if entry not in entries]
        parts.append(f'\n### {title}\n\n{text}\n\n')
        parts.append('| name | licence | commercial use | pinned |\n| --- | --- | --- | --- |\n')
        parts += [_row(entry) for entry in entries]
    assert not left, f'of no kind: {left}'
    return ''.join([*parts, _TAIL])


def _row(entry: Entry) -> str:
    pinned = entry.revision[:7] if entry.revision else 'no: the newest'
    checked = ', sha256' if entry.sha256 else ''
    commercial = 'no' if entry.noncommercial else 'yes'
    link = f'[`{entry.name}`]({HUB}/{entry.hub_id})'
    return f'| {link} | {entry.licence} | {commercial} | {pinned}{checked} |\n'


if __name__ == '__main__':
    (Path(__file__).resolve().parents[2] / PAGE).write_text(page())
