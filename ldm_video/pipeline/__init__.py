"""Floor 2: from a clip and its mask to the HD clip. Receives built parts."""
