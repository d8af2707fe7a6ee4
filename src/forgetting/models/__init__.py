"""Base models, adapters and the language-model head."""
