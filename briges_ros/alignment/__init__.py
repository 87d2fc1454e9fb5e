"""Scale from sparse sensors: anchors, a robust fit, and a tracker over time."""

from briges_ros.alignment.anchors import Anchors, Dropped, RangeNoise
from briges_ros.alignment.edges import edge_weight
from briges_ros.alignment.fit import AffineFit, FitFailure, fit_inverse_depth, sample
from briges_ros.alignment.refinement import Refinement, refine
from briges_ros.alignment.tracker import ScaleEstimate, ScaleState, ScaleTracker

__all__ = [
    'AffineFit',
    'Anchors',
    'Dropped',
    'FitFailure',
    'RangeNoise',
    'Refinement',
    'ScaleEstimate',
    'ScaleState',
    'ScaleTracker',
    'edge_weight',
    'fit_inverse_depth',
    'refine',
    'sample',
]
