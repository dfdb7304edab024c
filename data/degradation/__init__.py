"""What time and broadcasting did to a clip, one small file for each factor.

``filters``       blur kernels, and resizing that never shifts the picture.
``codec``         encode and decode in memory: H.264, H.265, MPEG-4, MPEG-2, and MPEG-2 in fields.
``fields``        one clip as the moments of an interlaced camera.
``first_order``   blur, resize, noise, codec: an SD recording, progressive or interlaced.
``second_order``  the same chain twice with everything drawn at random and drifting: pictures of unknown origin.
"""
