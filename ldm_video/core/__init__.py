"""Floor 0: errors, tensor conventions, evidence, files. Imports nothing else of this project.

Conventions that every module follows:

=========  ===================================================================================
axes       ``b t c h w``: batch, time (frames), channels, height, width
pixels     float in [-1, 1]; uint8 only inside ``video_io``
masks      1 (white, 255) = fill, 0 (black) = keep; float {0, 1}, one channel
hole       the mask on the output grid, ``H W``: 1 = nothing is known of the pixel
hidden     the same mask on the low-res grid, ``h w``: 1 where the hole touches a low-res pixel
known      on the output grid: 1 = the exact high-res pixel is given; disjoint from ``hole``
sizes      ``(height, width)`` in pixels; time in frames
latents    *raw* as the encoder returns them, *scaled* as the denoiser takes them
=========  ===================================================================================
"""
