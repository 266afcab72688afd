"""Texts and files between ranks. They travel as uint8 tensors, so nothing is pickled."""

import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

CHUNK = 64 * 2**20  # bytes that a broadcast takes at a time, on the device too


def gather_texts(accelerator: Accelerator, text: str) -> list[str]:
    """The text of every rank, in their order, on every rank. For short ones: each is padded to the longest."""
    if accelerator.num_processes == 1:
        return [text]
    mine = _as_tensor(text.encode(), accelerator)
    lengths = accelerator.gather(torch.tensor([len(mine)], device=accelerator.device)).tolist()
    if not any(lengths):
        return [""] * len(lengths)
    padded = torch.zeros(1, max(lengths), dtype=torch.uint8, device=accelerator.device)
    padded[0, : len(mine)] = mine
    rows = accelerator.gather(padded).cpu().numpy()
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def broadcast_bytes(accelerator: Accelerator, content: bytes = b"") -> bytes:
    """The main process's bytes on every rank; what the others pass is ignored."""
    if accelerator.num_processes == 1:
        return content
    size = int(broadcast(torch.tensor([len(content)], device=accelerator.device)))
    parts = []
    for start in range(0, size, CHUNK):
        if accelerator.is_main_process:
            broadcast(_as_tensor(memoryview(content)[start : start + CHUNK], accelerator))
        else:
            part = torch.empty(min(CHUNK, size - start), dtype=torch.uint8, device=accelerator.device)
            parts.append(broadcast(part).cpu().numpy())
    return content if accelerator.is_main_process else b"".join(parts)


def broadcast_files(accelerator: Accelerator, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The main process's files, name to content, on every rank; one at a time, after a header with their names."""
    names: Iterable[str] = json.loads(broadcast_bytes(accelerator, json.dumps(list(files)).encode()))
    return {name: broadcast_bytes(accelerator, files.get(name, b"")) for name in names}


def _as_tensor(content: bytes | memoryview, accelerator: Accelerator) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).to(accelerator.device)
