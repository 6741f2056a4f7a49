"""`python -m service.client`: arguments -> images -> service -> results -> report."""

import sys

from service.client.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
