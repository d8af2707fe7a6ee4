"""The run directory: its manifest, and one reader and one writer for each artifact."""
