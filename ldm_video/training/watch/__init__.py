"""Callbacks that monitor a run: pictures and metrics of fixed clips, speed, memory, gradients and configuration;
and those that preserve the log row and the validation that a kill would lose.

None of them affects what a run computes.
"""

from ldm_video.training.watch.facts import Facts
from ldm_video.training.watch.gradients import GradientNorms
from ldm_video.training.watch.last_row import LastRow
from ldm_video.training.watch.last_validation import LastValidation
from ldm_video.training.watch.pictures import Pictures
from ldm_video.training.watch.speed import Speed

__all__ = ["Facts", "GradientNorms", "LastRow", "LastValidation", "Pictures", "Speed"]
