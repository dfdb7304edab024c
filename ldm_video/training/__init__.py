"""Layer 3: Lightning modules (batch -> loss -> log) and their callbacks. The only package that imports Lightning."""
