"""Synthetic ageing and broadcasting of clips, one module per factor.

``filters``       blur kernels, and resizing that never shifts the picture.
``codec``         encode and decode in memory: H.264, H.265, MPEG-4, MPEG-2, and interlaced MPEG-2.
``fields``        a clip at the field rate of an interlaced camera.
``first_order``   blur, resize, noise, codec: an SD recording, progressive or interlaced.
``second_order``  the same chain twice with random, drifting parameters: footage of unknown origin.
"""
