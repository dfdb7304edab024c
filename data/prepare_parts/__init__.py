"""The steps of :mod:`data.prepare`.

``options``  what can be set.
``cuts``     where one shot ends and the next begins.
``survey``   one look at every frame: cuts, motion, darkness, sharpness, bars.
``pieces``   from what was seen to pieces that are kept, or dropped for a reason.
``encode``   pieces to small H.264 files with their sidecars.
``report``   what was done with each source: the journal of a resumed run and what people read.
``pack``     files to tar shards.
"""
