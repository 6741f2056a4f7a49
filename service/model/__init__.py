"""A checkpoint on its device: pixels -> embeddings."""
