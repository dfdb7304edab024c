"""Floor 1: diffusion, independent of networks, one concern per file.

==================  ====================================================================
``process``         forward process, prediction target and their inverses; defined only here
``objective``       loss, its weight over noise levels, sampling of training noise levels
``noise``           noise that depends only on the seed and the frame number
``guidance``        classifier-free guidance as a function of denoisers
``windows``         temporal windows and spatial tiles: split, weight, merge
``sampler``         the loop over a diffusers scheduler
==================  ====================================================================
"""
