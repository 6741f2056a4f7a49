"""`python -m service.bulk`: arguments -> plan -> workers -> parts -> report."""

import sys

from service.bulk.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
