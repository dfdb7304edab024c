"""Floor 2: networks. Builds on diffusers' blocks and floors 0 and 1; independent of data sets and training loops."""
