"""Conversations: checking them, writing them in a model's chat form, and the tokenizers for it."""
