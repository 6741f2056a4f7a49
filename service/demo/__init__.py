"""The embedded checkpoint: a small SigLIP, and the drawings and training run it was made with."""
