"""Images in, SigLIP embeddings out, over the KServe v2 protocol."""

__version__ = "0.1.0"
