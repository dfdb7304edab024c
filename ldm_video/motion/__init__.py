"""Floor 0: optical flow without weights, clips aligned along it, and averaging and propagation along motion."""
