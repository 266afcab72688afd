"""Uploading model/ to the Hugging Face Hub with its command line, `hf`: a process that can be timed out."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from utils.system.errors import UserError

ANSWER_SECONDS = 30.0  # for `hf auth whoami`
BYTES_PER_SECOND = 100_000  # slowest connection that an upload is waited for
EXPORTS = "model.[op]*"  # model.onnx and model.pt2 of an earlier upload, deleted if the folder has none


def check_upload(name: str) -> None:
    """Before training: raises UserError unless the name is valid and there is a token.

    Warns if the Hub refuses the token or does not answer; the upload is tried anyway.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"push_to_hub: {name!r} is not allowed; it must be NAME or USER/NAME of letters, digits, '-', '_' and '.'"
        ) from error
    if not get_token():
        raise UserError("push_to_hub: no token for the Hugging Face Hub; `hf auth login`, or set HF_TOKEN")
    if problem := _hf("auth", "whoami", seconds=ANSWER_SECONDS):
        print(f"warning: push_to_hub: {problem}; the upload is tried at the end anyway", file=sys.stderr)


def upload(name: str, folder: Path) -> bool:
    """Uploads a folder, creating the repository if it is missing. Returns whether it succeeded.

    A failure costs a warning with the command that uploads it later.
    """
    uploading = ["upload", name, str(folder), "--delete", EXPORTS]
    size = sum(path.stat().st_size for path in folder.iterdir())
    problem = _hf("auth", "whoami", seconds=ANSWER_SECONDS) or _hf(
        *uploading, seconds=2 * ANSWER_SECONDS + size / BYTES_PER_SECOND
    )
    if problem:
        later = shlex.join(["hf", *uploading])
        print(f"warning: {folder} was not uploaded ({problem}); this uploads it later: {later}", file=sys.stderr)
    else:
        print(f"uploaded {folder} to {name} on the Hugging Face Hub")
    return not problem


def _hf(*arguments: str, seconds: float) -> str | None:
    """Runs a command of huggingface_hub, which has no timeout of its own. Returns what went wrong, or None."""
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            command, env=os.environ | quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"the Hugging Face Hub did not answer within {seconds:.0f} s"
    if done.returncode == 0:
        return None
    output = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    error = re.search("^Error: (.*)", output, re.MULTILINE)  # else the last line of a traceback
    return error[1] if error else output.splitlines()[-1]
