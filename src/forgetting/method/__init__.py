"""The mathematics of the method: pure functions on arrays and tensors."""
