"""Images in, SigLIP embeddings out, over the KServe v2 protocol."""
