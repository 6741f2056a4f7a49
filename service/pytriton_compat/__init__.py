"""What PyTriton 0.7.0 lacks: a fault for one request, a short way to the callables, a start and an end to be trusted.

`triton.py` is PyTriton's server with these repairs, on top of `server_processes.py` and `server_log.py`; `lane.py`
answers for one inference callable, `libpython.py` finds the interpreter's shared library; `stub_model.py`,
`batch_wire.py` and `fault_wire.py` are copied into Triton's model folders and run inside Triton's Python stubs.
Everything here leans on that one PyTriton version and knows nothing of images.
"""
