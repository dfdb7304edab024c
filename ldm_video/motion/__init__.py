"""Floor 0: optical flow without weights, clips aligned along it, and what is averaged or carried over along motion."""
