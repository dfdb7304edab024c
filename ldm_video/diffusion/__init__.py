"""Floor 1: the theory of diffusion, one factor a file.

==================  ====================================================================
``process``         forward process, prediction target and their inverses; its only home
``objective``       loss, its weight over noise levels, the draw of training noise levels
``noise``           noise that depends on the seed and on a frame's own number alone
``guidance``        classifier-free guidance as a function of denoisers
``windows``         temporal windows and spatial tiles: split, weigh, merge
``sampler``         the loop over a diffusers scheduler
==================  ====================================================================
"""
