"""`python -m service fetch`: brings a checkpoint from the model hub, for machines that reach none.

Comes in: a hub id and a revision. Goes out: the files that the service needs, in a folder or in the hub's cache
(`HF_HOME`), with checksums compared, loaded once, and their fingerprints printed. It must not know of servers.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi

from service.errors import StartupFault
from service.settings import load_settings

_FILES = (
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
)
_COMMIT = re.compile("[0-9a-f]{40}")
_DTYPES = ("float32", "bfloat16", "float16")


def fetch(arguments: Sequence[str]) -> None:
    """Do what the command line asks for.

    Raises:
        StartupFault: the hub does not have it or cannot be reached, or it is damaged or no checkpoint for this service.
        SystemExit: `--help` was asked for, or the command line is wrong.
    """
    options = _read(arguments)
    commit = _resolve(options.hub_id, options.revision)
    found = _download(options.hub_id, commit, options.to)
    # Only now: it imports torch and transformers, which takes seconds that --help and a refusal need not.
    from service.model.checkpoint import checkpoint_fingerprint, load_checkpoint

    settings = load_settings(["--checkpoint", found])  # by the hub id, what it lacks would come unchecked from the hub
    parts = load_checkpoint(settings)
    for dtype in _DTYPES:
        print(f"fingerprint in {dtype}: {checkpoint_fingerprint(settings, *parts, [f'torch.{dtype}'])}")
    chosen = ["--checkpoint", str(options.to or options.hub_id), *([] if options.to else ["--revision", commit])]
    print(f"serve it with: python -m service {shlex.join(chosen)}")


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m service fetch", description="Bring a checkpoint from the model hub, and check it."
    )
    parser.add_argument("hub_id", help="such as google/siglip-so400m-patch14-384")
    parser.add_argument(
        "--revision", required=True, help="commit (40 hexadecimal digits); or a branch or tag, to learn it"
    )
    parser.add_argument("--to", type=Path, help="folder that gets the files; default: the hub's cache, below HF_HOME")
    options = parser.parse_args(arguments)
    options.to = options.to and options.to.absolute()
    return options


def _resolve(hub_id: str, revision: str) -> str:
    """The commit that a revision is now."""
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        commit = str(HfApi().model_info(hub_id, revision=revision).sha)
    except Exception as error:
        raise _fault(hub_id, error) from error
    print(f"{revision!r} is commit {commit} today; pin it: --revision {commit}")
    return commit


def _download(hub_id: str, commit: str, folder: Path | None) -> str:
    """The folder that has it now. What the hub's client raises comes from several packages, so any exception counts."""
    api = HfApi()
    try:
        found = api.snapshot_download(hub_id, revision=commit, local_dir=folder, allow_patterns=list(_FILES))
        checked = api.verify_repo_checksums(hub_id, revision=commit, local_dir=folder)
    except Exception as error:
        raise _fault(hub_id, error) from error
    if checked.mismatches:
        names = ", ".join(mismatch["path"] for mismatch in checked.mismatches)
        raise StartupFault(f"other bytes than the hub's are in {found}: {names}; delete them and fetch again")
    # Weights or settings of another checkpoint could be read in the place of these.
    if extra := [path for path in checked.extra_paths if any(fnmatch(path, each) for each in _FILES)]:
        names = ", ".join(extra)
        raise StartupFault(f"files of another checkpoint are in {found}: {names}; delete them, or take an empty folder")
    print(f"{checked.checked_count} files of {hub_id} at {commit} are in {found}, their checksums are the hub's")
    return found


def _fault(hub_id: str, error: Exception) -> StartupFault:
    return StartupFault(f"{hub_id!r} cannot be fetched: {' '.join(str(error).split())[:300]}")
