"""Images in, SigLIP embeddings out, over the KServe v2 protocol.

`server.py` builds everything: by `assembly.py` a pipeline for each device, around the checkpoint's encoder there
(`model/`), and by `front_end.py` Triton before them (`pytriton_compat/`), which is watched (`health/`). A batch goes
from one of Triton's lanes to `endpoint.py`, `pipeline.py`, `preprocessing/` and `model/`, and back. `bulk/` embeds with
the same rooms without a server, `client/` asks a server and imports none of them. Who may import whom, and what modules
and functions look like, is held by `tests/test_architecture.py`.
"""

__version__ = "0.1.0"
