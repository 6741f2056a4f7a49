"""What each hostile image costs the decoder: `python -m tests.decode_costs` prints them as one JSON object.

Each is decoded in a process of its own, forked for it, as what a decoder once took stays with a process; a JPEG in both
ways of decoding, of which the larger count: [seconds of the processor, mebibytes of memory at the peak, "ok" or the
fault].
"""

import json
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from service.errors import ClientFault
from service.preprocessing.decode import Decoder
from tests.hostile_images import NAMES, hostile

Cost = tuple[float, int, str]
DECODERS = (Decoder(2**25, 50_000_000, least_side=672), Decoder(2**25, 50_000_000))

# They announce some 50 megapixels, which take what they take, however few bytes they come in.
LARGEST = {
    "jpeg of as many progressive scans as are read",
    "jpeg of as many colour scans as are read",
    "jpeg of one restart a block",
    "jpeg of nothing, progressive",
    "gif of a screen larger than its frame",
    "tiff of as many rows as are read",
    "tiff of as many progressive scans as are read",
    "tiff without loss",
    "avif of a small frame",
}


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s*(\d+)", status)[0]) // 1024


def _cost(data: bytes, decoder: Decoder) -> Cost:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = _resident("VmRSS"), time.process_time()
    try:
        decoder.decode(decoder.image_bytes(data, False))
        outcome = "ok"
    except ClientFault as fault:
        outcome = str(fault)
    return time.process_time() - start, _resident("VmHWM") - before, outcome


def _apart(data: bytes, decoder: Decoder) -> Any:
    """The cost as JSON lists it, from a forked process; None where it did not come to an end."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(_cost(data, decoder)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as report:
        text = report.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def most_seconds(name: str) -> float:
    """That a hostile image may take."""
    return 6.0 if name in LARGEST else 1.0


def _least(data: bytes, decoder: Decoder, seconds: float) -> Any:
    """The cost, of one that takes longer the least of two: what else the machine does can only add to it."""
    costs = [_apart(data, decoder)]
    if costs[0] and costs[0][0] > seconds:
        costs.append(_apart(data, decoder))
    return None if None in costs else min(costs)


def main() -> None:
    warnings.simplefilter("ignore")
    costs = {}
    for name in NAMES:
        data = hostile(name)
        # The least side, in which the two differ, is of no account to other formats.
        decoders = DECODERS if name.startswith("jpeg") else DECODERS[:1]
        found = [_least(data, decoder, most_seconds(name)) for decoder in decoders]
        costs[name] = None if None in found else [max(values) for values in zip(*found, strict=True)]
    json.dump(costs, sys.stdout)


if __name__ == "__main__":
    main()
