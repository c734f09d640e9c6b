"""Images of files: decoded, scaled and cropped."""
