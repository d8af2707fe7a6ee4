"""From the user's files to tokens with labels: sources, formats, disjoint splits, tokens."""
