"""The embedded world of the demo, and the base model that knows it."""
