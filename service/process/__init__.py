"""What this process asks of its machine: signals, ports, memory, a place for its files, requests to itself."""
