"""The steps of :mod:`data.prepare`.

``options``  the options.
``cuts``     shot-cut detection.
``survey``   one pass over all frames: cuts, motion, darkness, sharpness, bars.
``pieces``   from the survey to pieces that are kept, or dropped for a stated reason.
``encode``   pieces to small H.264 files with sidecars.
``report``   the result for each source: a readable report, and the journal from which a run resumes.
``pack``     files to tar shards.
"""
