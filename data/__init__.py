"""Training data (layer 2): clips from folders or shards, each with a hole and a low-res version.

``cache``    decode once, then crop from memory-mapped frames.
``motion``   synthetic camera motion over photographs: clips in which every pixel is sharp.
``masks``    families of hole masks, from brush strokes to film scratches.
``degrade``  high-res -> low-res: blur, resize, noise, a real video codec.
``clips``    the dataset that combines them, over folders of videos and photographs.
``shards``   the same over tar shards; decodes only the frames it needs (``encoded``).
``pairs``    high-res and low-res recordings of the same content.
``prepare``  films to clips or shards: split at cuts, drop useless segments.
"""
