"""The table of what a launch can ask for: each row is honoured, refused in one line, or noted once.

docs/guide/launch.md has the same rows for users. Imports nothing heavy: a launch is checked before the libraries load.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from typing import NamedTuple

from utils.system.errors import UserError, did_you_mean
from utils.system.ranks import MPIS, PRECISION, RANKS, in_group, whole_number

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
USE_CPU = "ACCELERATE_USE_CPU"
DEVICE = "ACCELERATE_TORCH_DEVICE"
LOG_LEVEL = "ACCELERATE_LOG_LEVEL"
AFFINITY = "ACCELERATE_CPU_AFFINITY"
PRECISIONS = ("no", "bf16", "fp16")
DEVICES = r"(cpu|cuda|hpu|mlu|mps|musa|neuron|npu|sdaa|xla|xpu)(:\d+)?"
TRUE, FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "f", "false", "n", "no", "off")  # as Accelerate reads flags
INSTEAD = "use --config_file accelerate_configs/multi_gpu.yaml"
NO_GPUS = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide all of them
NONE = "(?!)"  # matches no name


class Launch(NamedTuple):
    """The environment's variables, and the options that were typed after `accelerate launch`, by name."""

    environ: Mapping[str, str]
    options: Mapping[str, str]

    def flag(self, name: str) -> bool:
        """Whether a variable is true; unset counts as false. Raises UserError if it is neither."""
        value = self.environ.get(name, "false")
        if value.lower() not in TRUE + FALSE:
            raise UserError(f"{name}={value!r} is not allowed; it must be true or false")
        return value.lower() in TRUE

    def given(self, variables: str, options: str = NONE) -> Iterator[tuple[str, str]]:
        """Variables and typed options whose names match the patterns, as a user writes them (`X=`, `--x `), with their
        values."""
        for name, value in self.environ.items():
            if re.fullmatch(variables, name):
                yield f"{name}=", value
        for name, value in self.options.items():
            if re.fullmatch(options, name):
                yield f"--{name} ", value

    @property
    def wants_cpu(self) -> bool:
        """Whether the launch chooses the CPU, even on a machine with a GPU."""
        return self.flag(USE_CPU) or self.environ.get(DEVICE, "").startswith("cpu")


class Row(NamedTuple):
    """A feature that a launch can ask for.

    Attributes:
        asked: its name in the first column of docs/guide/launch.md.
        variables, options: patterns of the variables and of the launcher's options that ask for it.
        check: raises UserError if it is refused.
        note: the line to print on a device of this type; None if there is nothing to say.
    """

    asked: str
    variables: str
    options: str = NONE
    check: Callable[[Launch], None] | None = None
    note: Callable[[Launch, str], str | None] | None = None


def _unsupported(asked: str, switch: str, variables: str, options: str, option: str, instead: str = INSTEAD) -> Row:
    """A row that is refused if its switch is on; its settings without the switch have no effect, which is noted."""

    def check(launch: Launch) -> None:
        if launch.flag(switch):
            raise UserError(f"{switch}={launch.environ[switch]}: {asked} is not supported yet; {instead}")
        if option in launch.options:
            raise UserError(f"--{option}: {asked} is not supported yet; {instead}")

    return Row(asked, f"{switch}|{variables}", f"{option}|{options}", check, _no_effect(variables, options, asked))


def _no_effect(variables: str, options: str = NONE, without: str = "") -> Callable[[Launch, str], str | None]:
    """A note that names what matches, but no values, which may be secret."""

    def note(launch: Launch, _device: str) -> str | None:
        names = [name.rstrip("= ") for name, _ in launch.given(variables, options)]
        return f"{', '.join(names)}: no effect {f'without {without}' if without else 'here'}" if names else None

    return note


_flag = partial(methodcaller, "flag")  # a check that a variable is true or false


def _check_precision(launch: Launch) -> None:
    value = launch.environ.get(PRECISION, "no")
    if value == "fp8":
        raise UserError(f"{PRECISION}=fp8: fp8 is not supported yet; use --mixed_precision bf16")
    if value not in PRECISIONS:
        hint = did_you_mean(value, PRECISIONS)
        raise UserError(f"{PRECISION}={value!r} is not allowed; {hint}it must be one of {', '.join(PRECISIONS)}")


def _check_fp8(launch: Launch) -> None:
    """Accelerate reads these whatever the precision is."""
    for name, value in launch.given("ACCELERATE_FP8_.*"):
        raise UserError(f"{name}{value}: fp8 is not supported yet; unset it")


def _check_accumulation(launch: Launch) -> None:
    value = launch.environ.get(ACCUMULATION)
    if value is not None and whole_number(launch.environ, ACCUMULATION, 0) < 1:
        raise UserError(f"{ACCUMULATION}={value!r} is not allowed; it must be a whole number of at least 1")


def _check_clipping(launch: Launch) -> None:
    for name, value in launch.given(CLIPPING, "gradient_clipping"):
        if value.lower() not in ("none", "auto"):
            raise UserError(
                f"{name}{value} is read by DeepSpeed alone; use train_accelerate.py --grad_clip_norm {value}"
            )


def _check_sizes(launch: Launch) -> None:
    for name, value in launch.given("PARALLELISM_CONFIG_.*_SIZE", "parallelism_config_.*_size"):
        if value != "1":
            raise UserError(f"{name}{value}: parallelism other than over the batch is not supported yet; {INSTEAD}")


def _check_device(launch: Launch) -> None:
    device = launch.environ.get(DEVICE)
    if device is None:
        return
    if not re.fullmatch(DEVICES, device):
        raise UserError(f"{DEVICE}={device!r} is not allowed; it must be a device such as cpu or cuda:0")
    if device.startswith("cpu"):
        return
    if launch.flag(USE_CPU):
        raise UserError(f"{DEVICE}={device} contradicts {USE_CPU}={launch.environ[USE_CPU]}; unset one of them")
    if whole_number(launch.environ, RANKS.world_size, 1) > 1:
        raise UserError(f"{DEVICE}={device} would put all processes on one device; unset it and choose by --gpu_ids")


def _note_gpus(launch: Launch, device: str) -> str | None:
    gpus = launch.environ.get("CUDA_VISIBLE_DEVICES", "")
    if device != "cpu" or gpus in NO_GPUS or launch.wants_cpu:
        return None
    return f"CUDA_VISIBLE_DEVICES={gpus}: there is no such GPU; computing on the CPU"


def _note_affinity(launch: Launch, device: str) -> str | None:
    on = launch.flag(AFFINITY) and device != "cuda"
    return f"{AFFINITY}: no effect without an NVIDIA or AMD GPU" if on else None


def _note_slurm(launch: Launch, _device: str) -> str | None:
    tasks = whole_number(launch.environ, "SLURM_STEP_NUM_TASKS", 1)
    if tasks == 1 or RANKS.world_size in launch.environ:
        return None
    return f"SLURM_STEP_NUM_TASKS={tasks}: each task of srun trains on its own; benchmarks/train.sbatch joins them"


def _check_log_level(launch: Launch) -> None:
    level = launch.environ.get(LOG_LEVEL)
    if level is not None and not isinstance(logging.getLevelName(level.upper()), int):
        raise UserError(f"{LOG_LEVEL}={level!r} is not allowed; it must be a level such as INFO or WARNING")


def _note_elastic(launch: Launch, device: str) -> str | None:
    single = "TORCHELASTIC_RUN_ID" not in launch.environ
    return _no_effect(NONE, ELASTIC, "several processes")(launch, device) if single else None


def _note_unknown(launch: Launch, _device: str) -> str | None:
    """An ACCELERATE_ variable that no row has is most likely misspelt."""
    known = [PRECISION, USE_CPU, DEVICE, ACCUMULATION, LOG_LEVEL]
    lines = [
        f"{name}: unknown variable, no effect; {did_you_mean(name, known)}".rstrip("; ")
        for name in launch.environ
        if name.startswith("ACCELERATE_") and not any(re.fullmatch(row.variables, name) for row in ROWS)
    ]
    return "; ".join(lines) or None


def _check_ranks(launch: Launch) -> None:
    """Raises UserError naming a variable of the processes' places that is missing, invalid or contradicts another."""
    environ = launch.environ
    if in_group():
        return
    if "MASTER_ADDR" in environ and PRECISION in environ and RANKS.rank not in environ:
        raise UserError(
            "accelerate launch was asked for several processes but started only one; on a CPU use --config_file "
            "accelerate_configs/multi_cpu.yaml (if one is meant, MASTER_ADDR comes from elsewhere: unset it)"
        )
    for names in (*MPIS, RANKS):
        for name in names:
            low = 1 if name in (names.world_size, names.local_world_size) else 0
            if name in environ and whole_number(environ, name, -1) < low:
                raise UserError(f"{name}={environ[name]!r} is not allowed; it must be a whole number of at least {low}")
    if "MASTER_PORT" in environ and not 0 < whole_number(environ, "MASTER_PORT", 0) < 65536:
        raise UserError(f"MASTER_PORT={environ['MASTER_PORT']!r} is not allowed; it must be a port from 1 to 65535")
    _check_complete(environ)
    _check_count(environ, launch.options.get("num_processes", ""))
    rank, world_size, local_rank, local_world_size = RANKS
    pairs = (rank, world_size, 1), (local_rank, local_world_size, 1), (local_world_size, world_size, 0)
    for number, count, beyond in pairs:
        if number in environ and count in environ and int(environ[number]) + beyond > int(environ[count]):
            allowed = int(environ[count]) - beyond
            raise UserError(f"{number}={environ[number]} contradicts {count}={environ[count]}; at most {allowed}")


def _check_complete(environ: Mapping[str, str]) -> None:
    given = [name for name in RANKS[:3] if name in environ]
    in_a_group = whole_number(environ, RANKS.world_size, 1) > 1 or RANKS.local_rank in environ
    needed = (*RANKS[:3], "MASTER_ADDR", "MASTER_PORT") if in_a_group else RANKS[:2] if RANKS.rank in environ else ()
    if missing := [name for name in needed if not environ.get(name)]:
        shown = ", ".join(f"{name}={environ[name]}" for name in given)
        raise UserError(
            f"{shown}: {', '.join(missing)} unset; start the processes with accelerate launch or torchrun, or unset it"
        )


def _check_count(environ: Mapping[str, str], typed: str) -> None:
    """The launcher rounds --num_processes down to a multiple of num_machines."""
    started = whole_number(environ, RANKS.world_size, 1)
    if re.fullmatch(r"-?\d+", typed) and (int(typed) < 1 or (RANKS.world_size in environ and int(typed) != started)):
        raise UserError(
            f"--num_processes {typed} is not allowed: {started} started; it must be 1 or more, as many on each machine"
        )


ELASTIC = "max_restarts|monitor_interval|rdzv_backend|rdzv_conf|role|tee|log_dir|same_network"
UNREAD = "ACCELERATE_(BYPASS_DEVICE_MAP|INIT_INCLUDE_BUFFERS|ALLOW_CP_STANDALONE|NUM_PROCESSES)"
ROWS = (
    _unsupported(
        "DeepSpeed", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_(DEEPSPEED_.*|CONFIG_DS_FIELDS)",
        "zero.*|offload_.*|deepspeed_.*", "use_deepspeed",
    ),
    _unsupported("FSDP", "ACCELERATE_USE_FSDP", "FSDP_.*", "fsdp_.*", "use_fsdp"),
    _unsupported("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM", "MEGATRON_LM_.*", "megatron_lm_.*", "use_megatron_lm"),
    Row("sizes of parallelism", "PARALLELISM_CONFIG_.*_SIZE", "parallelism_config_.*_size", _check_sizes),
    _unsupported(
        "ParallelismConfig", "ACCELERATE_USE_PARALLELISM_CONFIG", "PARALLELISM_CONFIG_.*(?<!_SIZE)",
        "parallelism_config_.*(?<!_size)", "use_parallelism_config",
    ),
    _unsupported(
        "SageMaker", "ACCELERATE_USE_SAGEMAKER", "ACCELERATE_SAGEMAKER_.*", "aws_.*", NONE,
        "run accelerate launch on the instance itself",
    ),
    Row("precision", PRECISION, "mixed_precision", _check_precision),
    Row("settings of fp8", "ACCELERATE_FP8_.*", "fp8_.*", _check_fp8, _no_effect(NONE, "fp8_.*", "fp8")),
    Row("gradient accumulation", ACCUMULATION, "gradient_accumulation_steps", _check_accumulation),
    Row("gradient clipping", CLIPPING, "gradient_clipping", _check_clipping),
    Row("the CPU", USE_CPU, "cpu", _flag(USE_CPU)),
    Row("a device", DEVICE, check=_check_device),
    Row("GPUs by number", "CUDA_VISIBLE_DEVICES", "gpu_ids", None, _note_gpus),
    Row(
        "processes", "|".join((*RANKS, "MASTER_ADDR", "MASTER_PORT", *(name for mpi in MPIS for name in mpi))),
        "multi_gpu|num_processes|num_machines|machine_rank|main_process_ip|main_process_port|mpirun_hostfile",
        _check_ranks,
    ),
    Row("tasks of srun", "SLURM_STEP_NUM_TASKS", note=_note_slurm),
    Row("restarts and rendezvous", "TORCHELASTIC_.*", ELASTIC, None, _note_elastic),
    Row(
        "a TPU", "XLA_USE_BF16|XLA_DOWNCAST_BF16|ACCELERATE_DOWNCAST_BF16|ACCELERATE_IN_TPU_POD",
        "tpu|tpu_.*|no_tpu_cluster|vm|env|downcast_bf16|main_training_function",
    ),
    Row("compilation", "ACCELERATE_DYNAMO_.*", "dynamo_.*"),
    Row("threads", "OMP_NUM_THREADS|MKL_NUM_THREADS", "num_cpu_threads_per_process"),
    Row("the cores near a GPU", AFFINITY, "enable_cpu_affinity", _flag(AFFINITY), _note_affinity),
    Row("checked collective calls", "ACCELERATE_DEBUG_(MODE|RDV_FILE)", "debug", _flag("ACCELERATE_DEBUG_MODE")),
    Row("messages", f"{LOG_LEVEL}|ACCELERATE_ENABLE_RICH", "quiet", _check_log_level),
    Row("a notebook's processes", "FORK_LAUNCHED|NPROC|NODE_RANK|MIXED_PRECISION", check=_flag("FORK_LAUNCHED")),
    Row("large models", UNREAD, note=_no_effect(UNREAD)),
    Row("the script", NONE, "config_file|module|no_python|help"),
    Row("an unknown variable", NONE, note=_note_unknown),
)  # fmt: skip
