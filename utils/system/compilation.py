"""torch.compile: one compilation, whether `compile`, the launch or both ask for it; refused if it cannot work here.

Accelerate's prepare() compiles as its plugin says.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from utils.system.errors import UserError, one_line, raise_on_all_ranks, suggestion
from utils.system.launch_table import Launch

PREFIX = "ACCELERATE_DYNAMO_"  # of the variables behind --dynamo_backend, --dynamo_mode, ...
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
# Variables that are true or false, and the arguments of the plugin that they set.
FLAGS = {"USE_FULLGRAPH": "fullgraph", "USE_DYNAMIC": "dynamic", "USE_REGIONAL_COMPILATION": "use_regional_compilation"}
ADVICE = "or train without --compile and --dynamo_backend"


def no_compilation() -> TorchDynamoPlugin:
    """Overrides what the launch asks for."""
    return TorchDynamoPlugin("no", "default", fullgraph=False, dynamic=False, use_regional_compilation=False)


def use_compilation(plugin: TorchDynamoPlugin, accelerator: Accelerator) -> None:
    """Makes prepare() compile the model as the plugin says; call it on every rank.

    Raises UserError if this machine cannot compile.
    """
    with raise_on_all_ranks(accelerator):
        if plugin.fullgraph and accelerator.num_processes > 1:
            raise UserError(f"{PREFIX}USE_FULLGRAPH: torch cannot compile a model of several processes whole; unset it")
        check_compiler(plugin, accelerator.device)
        accelerator.state.dynamo_plugin = plugin


def compilation(compile: bool, environ: Mapping[str, str]) -> TorchDynamoPlugin:
    """The plugin for what the launch and the option `compile` ask for together: the launch's backend, else inductor.

    Raises UserError naming the variable that is invalid.
    """
    mode = environ.get(PREFIX + "MODE", "default")
    if mode not in MODES:
        raise UserError(f"{PREFIX}MODE: {mode!r} is not allowed; {suggestion(mode, MODES)}")
    launch = Launch(environ, {})
    switches = {name: launch.flag(PREFIX + name) for name in FLAGS}
    backend = environ.get(PREFIX + "BACKEND", "no").lower()
    if backend != "no":
        _check_backend(backend)
    elif compile:
        backend = "inductor"
    else:
        for name, asked in {"MODE": mode != "default", **switches}.items():
            if asked:
                raise UserError(f"{PREFIX}{name}: nothing is compiled; add --compile true or unset it")
        return no_compilation()
    if mode != "default" and backend != "inductor":
        raise UserError(f"{PREFIX}MODE: {mode} is a mode of inductor, and the backend is {backend}; unset it")
    plugin = TorchDynamoPlugin(backend, mode, **{FLAGS[name]: asked for name, asked in switches.items()})
    plugin.dynamic = plugin.dynamic or None  # the launcher sets false unasked; None: torch decides
    return plugin


def say_uncompiled(accelerator: Accelerator) -> None:
    """Notes that an analysis compiles nothing if the launch asks for it."""
    backend = os.environ.get(PREFIX + "BACKEND", "no").lower()
    if backend != "no" and accelerator.is_main_process:
        print(f"note: {PREFIX}BACKEND={backend}: an analysis compiles nothing", file=sys.stderr)


def compiled_as(plugin: TorchDynamoPlugin) -> str | None:
    """The backend, and in brackets what differs from torch.compile's defaults; None if nothing is compiled."""
    if plugin.backend == DynamoBackend.NO:
        return None
    asked = {"fullgraph": plugin.fullgraph, "dynamic": plugin.dynamic, "regional": plugin.use_regional_compilation}
    more = [plugin.mode] * (plugin.mode != "default") + [name for name, value in asked.items() if value]
    return plugin.backend.value.lower() + (f" ({', '.join(more)})" if more else "")


def check_compiler(plugin: TorchDynamoPlugin, device: torch.device) -> None:
    """Compiles one operation, before any work. Raises UserError naming what is missing if that fails."""
    if plugin.backend == DynamoBackend.NO:
        return
    try:
        torch.compile(torch.nn.ReLU(), **plugin.to_kwargs())(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, by backend
        raise UserError(f"compile: {_missing(plugin.backend.value.lower(), device, error)}") from error
    finally:
        torch.compiler.reset()


def _missing(backend: str, device: torch.device, error: Exception) -> str:
    """Why compiling failed, and the remedy."""
    compiler = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))  # torch's own rule
    if backend == "inductor" and device.type == "cpu" and shutil.which((shlex.split(compiler) or [""])[0]) is None:
        return (
            f"inductor needs a C++ compiler on a CPU, and {compiler} is missing; install it (apt install g++), set CXX "
            f"to another one, {ADVICE}"
        )
    if backend == "inductor" and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return f"inductor needs triton on a GPU, which is missing; pip install triton, {ADVICE}"
    reason = one_line(str(error).split("\n\n")[0])  # the rest is advice to developers of torch
    return f"{backend} does not work here ({type(error).__name__}: {reason}); fix that {ADVICE}"


def _check_backend(backend: str) -> None:
    known = set(torch.compiler.list_backends(exclude_tags=()))
    names = [name for name in map(str.lower, DynamoBackend.list()) if name in known]
    if backend not in names:
        raise UserError(f"{PREFIX}BACKEND: {backend!r} is not allowed; {suggestion(backend, ['no', *names])}")
