"""Load-test inputs and the tools that make them."""
