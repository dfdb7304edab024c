"""Training data, floor 2: clips from a folder, a hole in each, and a low-res version of it.

``cache``    decode once, then crop from memory-mapped frames.
``motion``   camera motion over photographs: clips whose every pixel is sharp.
``masks``    hole families, from brush strokes to film scratches.
``degrade``  high-res -> low-res: blur, resize, noise, a real video codec.
``clips``    the dataset that joins them.
"""
