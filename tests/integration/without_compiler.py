"""The service as it is where setup has found no C compiler."""

import sys

from service.__main__ import main
from service.pytriton_compat import tritonserver

if __name__ == "__main__":
    tritonserver.find_library = lambda name: None
    sys.exit(main())
