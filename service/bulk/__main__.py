"""`python -m service.bulk`: arguments -> plan -> workers -> parts -> report."""

import sys

if __name__ == "__main__":
    try:
        from service.bulk.command import main

        sys.exit(main(sys.argv[1:]))
    except ModuleNotFoundError as error:  # or Python would end it with 1, as if all but a few images were embedded
        print(f"error: {error}; the job needs the packages of '.[bulk]'", file=sys.stderr)
        sys.exit(2)
