"""What a user asks for: the recipe's sections, and how a recipe is read."""
