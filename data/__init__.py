"""Training data, floor 2: clips from folders or shards, a hole in each, and a low-res version of it.

``cache``    decode once, then crop from memory-mapped frames.
``motion``   camera motion over photographs: clips whose every pixel is sharp.
``masks``    hole families, from brush strokes to film scratches.
``degrade``  high-res -> low-res: blur, resize, noise, a real video codec.
``clips``    the dataset that joins them, over folders of videos and photographs.
``shards``   the same over tar shards, of which only the frames that are needed are decoded (``encoded``).
``pairs``    high-res and low-res recordings of the same thing.
``prepare``  films to clips or shards: cut at shots, useless pieces dropped.
"""
