"""`python -m service.client`: arguments -> images -> service -> results -> report."""

import sys

if __name__ == "__main__":
    try:
        from service.client.command import main
    except ModuleNotFoundError as error:  # or Python would end it with 1, as if all but a few images were embedded
        print(f"error: {error}; the client needs the packages of '.[client]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
