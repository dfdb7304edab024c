"""Floor 2: restore a clip and its mask to an HD clip. Receives an already-built model."""
