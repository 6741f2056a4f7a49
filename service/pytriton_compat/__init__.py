"""What PyTriton 0.7.0 lacks: a fault for one request, the right libpython, a start and an end that can be trusted.

`triton.py` is PyTriton's server with these repairs; `libpython.py` finds the interpreter's shared library for it;
`proxy_shim.py` and `fault_wire.py` are copied into Triton's model folders and run inside Triton's Python stub.
Everything here leans on the internals of that one PyTriton version and knows nothing of images.
"""
