"""Before anything imports torch: the same reproducible arithmetic as `python -m service` asks for."""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
