"""What the report is made of: folders in, scores, chosen frames and pictures, one HTML page out."""
