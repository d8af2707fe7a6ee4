"""Programs that made what the package ships, each one file that can be run again."""
