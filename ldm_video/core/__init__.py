"""Floor 0: errors, tensor conventions, evidence, files. Imports nothing else of ours.

The legend that every module follows:

=========  ==================================================================
axes       ``b t c h w``: batch, time (frames), channels, height, width
pixels     float in [-1, 1]; uint8 lives inside ``video_io`` alone
masks      1 (white, 255) = fill, 0 (black) = keep; float {0, 1}, one channel
sizes      ``(height, width)`` in pixels; time in frames
latents    *raw* as the encoder gives them, *scaled* as the denoiser sees them
=========  ==================================================================
"""
