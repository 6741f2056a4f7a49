"""Encoded images -> pixels as the checkpoint's own image processor makes them."""
