"""What PyTriton 0.7.0 lacks: a fault for one request, a short way to the callables, a start and an end to be trusted.

`triton.py` starts, watches, drains and stops a server, with a `lane.py` and a `pulse.py` for each of Triton's Python
stubs, and `turns.py` over all of them. `tritonserver.py` is PyTriton's part of it, with what that needs to be launched
(`host.py`, `libpython.py`, `server_processes.py`), what it prints (`server_log.py`) and what others may not see of it
(`command_line.py`). `stub_model.py`, `batch_wire.py` and `pulse.py` are copied into Triton's model folders and run
inside the stubs. Of the C files, those in `preload/` are loaded into tritonserver and its stubs before glibc, and
`batch_strategy.c` is asked by Triton which requests share a batch. Everything here leans on that one PyTriton version
and knows nothing of images.
"""
