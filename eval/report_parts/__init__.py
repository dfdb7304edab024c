"""Parts of the report: load result folders, choose frames, make pictures, build one HTML page."""
