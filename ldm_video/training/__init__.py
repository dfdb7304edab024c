"""Floor 3: Lightning modules (batch -> loss -> log) and their callbacks. The only importer of Lightning."""
