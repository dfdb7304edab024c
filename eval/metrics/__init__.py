"""Metrics: arrays in, numbers out. Lowest layer: imports nothing else of this project.

Conventions of every function here:

======  ===========================================================================
clips   float32 numpy, axes ``t h w c``, RGB in [0, 1]; a frame is ``h w c``
masks   float or bool numpy, ``t h w`` (a frame ``h w``), 1 = hole; regions likewise,
        1 = counted
flows   float32 numpy ``h w 2``, (dx, dy) in pixels: ``x_to = x_from + flow[x_from]``
sizes   ``(height, width)``
======  ===========================================================================

A metric without the weights it needs raises :class:`eval.metrics.backbones.MetricUnavailable`.
"""
