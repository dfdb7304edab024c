"""Floor 2: networks. Builds on diffusers' blocks and on floors 0 and 1; knows no data set and no training loop."""
