"""What a launch can ask for: each row of docs/guide/launch.md is honoured, refused in one line, or said once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
from accelerate.commands.launch import launch_command_parser

from tests.processes import run, tiny_config, train_script
from utils.config import TrainConfig
from utils.config.parser import read_config
from utils.system import runtime
from utils.system.errors import UserError
from utils.system.launch import notes, options_of_file, read_launch, typed_options
from utils.system.launch_table import ACCUMULATION, ROWS, Launch
from utils.system.ranks import adopt_ranks
from utils.training.micro_batch import accumulated

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide" / "launch.md"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
TINY = ["train_accelerate.py", "--dataset=digits", "--width=16", "--image_size=16", "--max_steps=3", "--batch_size=64"]
TINY += ["--trackers=none", "--optimizer=sgd"]
GROUP = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
MULTI_GPU = "use --config_file accelerate_configs/multi_gpu.yaml"


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GROUP.items() if key != name}


REFUSED = [  # row, variables, the line
    ("DeepSpeed", {"ACCELERATE_USE_DEEPSPEED": "true"},
     f"ACCELERATE_USE_DEEPSPEED=true: DeepSpeed is not supported yet; {MULTI_GPU}"),
    ("FSDP", {"ACCELERATE_USE_FSDP": "TRUE", "FSDP_VERSION": "2"},
     f"ACCELERATE_USE_FSDP=TRUE: FSDP is not supported yet; {MULTI_GPU}"),
    ("Megatron-LM", {"ACCELERATE_USE_MEGATRON_LM": "1"},
     f"ACCELERATE_USE_MEGATRON_LM=1: Megatron-LM is not supported yet; {MULTI_GPU}"),
    *(("sizes of parallelism", {f"PARALLELISM_CONFIG_{kind}_SIZE": "2"},
       f"PARALLELISM_CONFIG_{kind}_SIZE=2: parallelism other than over the batch is not supported yet; {MULTI_GPU}")
      for kind in ("DP_REPLICATE", "DP_SHARD", "TP", "CP", "SP")),
    ("ParallelismConfig", {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
     f"ACCELERATE_USE_PARALLELISM_CONFIG=true: ParallelismConfig is not supported yet; {MULTI_GPU}"),
    ("SageMaker", {"ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "NO"},
     "ACCELERATE_USE_SAGEMAKER=true: SageMaker is not supported yet; run accelerate launch on the instance itself"),
    ("precision", {"ACCELERATE_MIXED_PRECISION": "fp8"},
     "ACCELERATE_MIXED_PRECISION=fp8: fp8 is not supported yet; use --mixed_precision bf16"),
    ("precision", {"ACCELERATE_MIXED_PRECISION": "bf-16"},
     "ACCELERATE_MIXED_PRECISION='bf-16' is not allowed; did you mean bf16? it must be one of no, bf16, fp16"),
    ("settings of fp8", {"ACCELERATE_FP8_BACKEND": "AO"},
     "ACCELERATE_FP8_BACKEND=AO: fp8 is not supported yet; unset it"),
    *(("gradient accumulation", {ACCUMULATION: value},
       f"{ACCUMULATION}='{value}' is not allowed; it must be a whole number of at least 1")
      for value in ("0", "-4", "four", "2.0", "")),
    ("gradient clipping", {"ACCELERATE_GRADIENT_CLIPPING": "1.0"},
     "ACCELERATE_GRADIENT_CLIPPING=1.0 is read by DeepSpeed alone; use train_accelerate.py --grad_clip_norm 1.0"),
    ("the CPU", {"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU='maybe' is not allowed; it must be true or false"),
    ("a device", {"ACCELERATE_TORCH_DEVICE": "gpu0"},
     "ACCELERATE_TORCH_DEVICE='gpu0' is not allowed; it must be a device such as cpu or cuda:0"),
    ("a device", {"ACCELERATE_TORCH_DEVICE": "cuda:0", "ACCELERATE_USE_CPU": "1"},
     "ACCELERATE_TORCH_DEVICE=cuda:0 contradicts ACCELERATE_USE_CPU=1; unset one of them"),
    ("a device", {"ACCELERATE_TORCH_DEVICE": "cuda:0", **GROUP},
     "ACCELERATE_TORCH_DEVICE=cuda:0 would put all processes on one device; unset it and choose by --gpu_ids"),
    *(("processes", without(name), f"{name} unset; start the processes with accelerate launch or torchrun, or unset it")
      for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")),
    ("processes", {"LOCAL_RANK": "0"}, "LOCAL_RANK=0: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT unset"),
    ("processes", {"RANK": "0"}, "RANK=0: WORLD_SIZE unset"),
    *(("processes", {**GROUP, name: "two"}, f"{name}='two' is not allowed; it must be a whole number of at least {low}")
      for name, low in (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))),
    ("processes", {**GROUP, "RANK": "2"}, "RANK=2 contradicts WORLD_SIZE=2; at most 1"),
    ("processes", {**GROUP, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
     "LOCAL_RANK=1 contradicts LOCAL_WORLD_SIZE=1; at most 0"),
    ("processes", {**GROUP, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 contradicts WORLD_SIZE=2; at most 2"),
    *(("processes", {**GROUP, "MASTER_PORT": port}, f"MASTER_PORT='{port}' is not allowed; it must be a port from 1 to")
      for port in ("http", "0", "65536")),
    ("processes", {"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE='many' is not allowed; it must be a whole"),
    ("processes", {"PMI_SIZE": "2", "PMI_RANK": "0"}, "LOCAL_RANK, MASTER_ADDR unset"),
    ("processes", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_MIXED_PRECISION": "no"},
     "accelerate launch was asked for several processes but started only one; on a CPU use --config_file "
     "accelerate_configs/multi_cpu.yaml"),
    ("the cores near a GPU", {"ACCELERATE_CPU_AFFINITY": "2"}, "ACCELERATE_CPU_AFFINITY='2' is not allowed"),
    ("checked collective calls", {"ACCELERATE_DEBUG_MODE": "2"}, "ACCELERATE_DEBUG_MODE='2' is not allowed"),
    ("messages", {"ACCELERATE_LOG_LEVEL": "nonsense"},
     "ACCELERATE_LOG_LEVEL='nonsense' is not allowed; it must be a level such as INFO or WARNING"),
    ("a notebook's processes", {"FORK_LAUNCHED": "x"}, "FORK_LAUNCHED='x' is not allowed; it must be true or false"),
]  # fmt: skip

SAID = [  # row, variables, options, the line
    ("FSDP", {"FSDP_VERSION": "2"}, {}, "FSDP_VERSION: no effect without FSDP"),
    ("DeepSpeed", {}, {"zero_stage": "3"}, "--zero_stage: no effect without DeepSpeed"),
    ("Megatron-LM", {"MEGATRON_LM_TP_DEGREE": "2"}, {}, "MEGATRON_LM_TP_DEGREE: no effect without Megatron-LM"),
    ("ParallelismConfig", {"PARALLELISM_CONFIG_CP_BACKEND": "torch"}, {},
     "PARALLELISM_CONFIG_CP_BACKEND: no effect without ParallelismConfig"),
    ("SageMaker", {}, {"aws_secret_access_key": "hidden"}, "--aws_secret_access_key: no effect without SageMaker"),
    ("settings of fp8", {}, {"fp8_margin": "1"}, "--fp8_margin: no effect without fp8"),
    ("GPUs by number", {"CUDA_VISIBLE_DEVICES": "3"}, {},
     "CUDA_VISIBLE_DEVICES=3: there is no such GPU; computing on the CPU"),
    ("tasks of srun", {"SLURM_STEP_NUM_TASKS": "4"}, {},
     "SLURM_STEP_NUM_TASKS=4: each task of srun trains on its own; benchmarks/train.sbatch joins them"),
    ("restarts and rendezvous", {}, {"max_restarts": "3"}, "--max_restarts: no effect without several processes"),
    ("the cores near a GPU", {"ACCELERATE_CPU_AFFINITY": "1"}, {},
     "ACCELERATE_CPU_AFFINITY: no effect without an NVIDIA or AMD GPU"),
    ("large models", {"ACCELERATE_BYPASS_DEVICE_MAP": "true"}, {}, "ACCELERATE_BYPASS_DEVICE_MAP: no effect here"),
    ("an unknown variable", {"ACCELERATE_MIXED_PRECISON": "bf16"}, {},
     "ACCELERATE_MIXED_PRECISON: unknown variable, no effect; did you mean ACCELERATE_MIXED_PRECISION?"),
]  # fmt: skip

QUIET = [  # row, variables: honoured, so that nothing is said
    ("precision", {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    ("gradient accumulation", {ACCUMULATION: "4"}),
    ("the CPU", {"ACCELERATE_USE_CPU": "Yes", "CUDA_VISIBLE_DEVICES": "0"}),
    ("a device", {"ACCELERATE_TORCH_DEVICE": "cpu"}),
    ("GPUs by number", {"CUDA_VISIBLE_DEVICES": ""}),
    ("processes", GROUP),
    ("processes", {"WORLD_SIZE": "1", "RANK": "0"}),
    ("processes", {"MASTER_ADDR": "10.0.0.1"}),
    ("tasks of srun", {"SLURM_STEP_NUM_TASKS": "2", **GROUP}),
    ("restarts and rendezvous", {"TORCHELASTIC_RUN_ID": "none"}),
    ("a TPU", {"XLA_DOWNCAST_BF16": "1"}),
    ("compilation", {"ACCELERATE_DYNAMO_BACKEND": "NO"}),
    ("threads", {"OMP_NUM_THREADS": "1"}),
    ("checked collective calls", {"ACCELERATE_DEBUG_MODE": "true"}),
    ("messages", {"ACCELERATE_LOG_LEVEL": "info"}),
    ("a notebook's processes", {"FORK_LAUNCHED": "1"}),
    ("FSDP", {"ACCELERATE_USE_FSDP": "false"}),
    ("sizes of parallelism", {"PARALLELISM_CONFIG_TP_SIZE": "1"}),
    ("gradient clipping", {"ACCELERATE_GRADIENT_CLIPPING": "none"}),
]  # fmt: skip


def check(launch: Launch) -> None:
    for row in ROWS:
        if row.check:
            row.check(launch)


@pytest.mark.parametrize(("row", "variables", "line"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(row, variables, line):
    with pytest.raises(UserError, match=re.escape(line)):
        read_launch(dict(variables))
    owner = next(owner for owner in ROWS if owner.asked == row)
    assert any(re.fullmatch(owner.variables, name) for name in variables)


@pytest.mark.parametrize(("row", "variables", "options", "line"), SAID)
def test_what_has_no_effect_is_said(row, variables, options, line):
    launch = Launch(variables, options)
    check(launch)
    assert notes(launch, "cpu") == [line]
    assert "hidden" not in line


@pytest.mark.parametrize(("row", "variables"), QUIET)
def test_what_is_honoured_passes_without_a_word(row, variables):
    assert notes(read_launch(dict(variables)), "cpu") == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"use_fsdp": ""}, "--use_fsdp: FSDP is not supported yet"),
        ({"use_deepspeed": ""}, "--use_deepspeed: DeepSpeed is not supported yet"),
        ({"use_megatron_lm": ""}, "--use_megatron_lm: Megatron-LM is not supported yet"),
        ({"use_parallelism_config": ""}, "--use_parallelism_config: ParallelismConfig is not supported yet"),
        ({"parallelism_config_tp_size": "2"}, "--parallelism_config_tp_size 2: parallelism other than"),
        ({"gradient_clipping": "1.0"}, "--gradient_clipping 1.0 is read by DeepSpeed alone"),
        ({"num_processes": "0"}, "--num_processes 0 is not allowed: 1 started"),
        ({"num_processes": "3"}, "--num_processes 3 is not allowed: 2 started"),
    ],
)
def test_an_option_that_the_launcher_drops_is_refused(options, line):
    launch = Launch(GROUP if options.get("num_processes") == "3" else {}, options)
    with pytest.raises(UserError, match=re.escape(line)):
        check(launch)


# -- the table is whole ----------------------------------------------------------------------------------------------


def test_every_variable_that_accelerate_reads_has_a_row():
    """A new release of Accelerate that reads another one fails here."""
    package = Path(accelerate.__file__).parent
    files = [path for path in package.rglob("*.py") if "test_utils" not in path.parts]
    prefixes = "ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PMI|OMPI|MV2|MPI|XLA"
    text = "\n".join(path.read_text() for path in files)
    names = set(re.findall(rf"""["']((?:{prefixes})_[A-Z0-9_]*[A-Z0-9])["']""", text)) - {"MEGATRON_LM"}
    assert len(names) > 60
    assert {name for name in names if not any(re.fullmatch(row.variables, name) for row in ROWS)} == set()


def test_every_option_of_the_launcher_has_a_row_and_every_row_means_one():
    actions = [action for action in launch_command_parser()._actions if action.option_strings]
    names = {option[2:] for action in actions for option in action.option_strings if re.match(r"--[a-z0-9_]+$", option)}
    assert {name for name in names if not any(re.fullmatch(row.options, name) for row in ROWS)} == set()
    for row in ROWS:
        parts = re.split(r"\|(?![^(]*\))", row.options)
        unknown = [part for part in parts if part != "(?!)" and not any(re.fullmatch(part, name) for name in names)]
        assert unknown == [], row.asked


def test_the_guide_has_the_same_rows():
    table = GUIDE.read_text().split("## What becomes of it")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows == [row.asked for row in ROWS]


def test_every_row_is_held_by_a_test():
    held = {row for row, *_ in [*REFUSED, *SAID, *QUIET]}
    assert {row.asked for row in ROWS} - held == {"the script"}


# -- what the launcher knows and does not hand on --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("python /bin/accelerate launch --cpu --num-processes 2 train_accelerate.py --lr 1", ("cpu", "num_processes")),
        ("python -m accelerate.commands.launch --gpu_ids=0,1 --cpu train_accelerate.py", ("gpu_ids", "cpu")),
        ("python /bin/accelerate-launch --module --cpu train_accelerate --cpu", ("module", "cpu")),
        ("python train_accelerate.py --config accelerate", ()),
        ("bash -c train_accelerate.py", ()),
        ("python -m accelerate.commands.launch other.py", ()),
    ],
)
def test_the_launchers_options_are_read_from_its_command_line(words, options):
    assert tuple(typed_options(words.split(), "/home/me/train_accelerate.py")) == options


def test_values_of_the_launchers_options_are_read():
    words = "python /bin/accelerate launch --cpu --gradient-accumulation-steps 4 --max_restarts=3 --debug a/run.py --x"
    options = {"cpu": "", "gradient_accumulation_steps": "4", "max_restarts": "3", "debug": ""}
    assert typed_options(words.split(), "run.py") == options
    assert typed_options(words.split(), "") == {}
    assert typed_options(["accelerate", "launch", "--num_processes", "-1", "run.py"], "run.py") == {
        "num_processes": "-1"
    }


def test_what_the_launchers_file_asks_for_is_read():
    """With several processes, the launcher does not hand its use_cpu on: on a machine with GPUs they would be used."""
    configs = ROOT / "accelerate_configs"
    assert options_of_file(str(configs / "multi_cpu.yaml")) == {"num_processes": "2", "use_cpu": "True"}
    assert options_of_file(str(configs / "multi_gpu.yaml")) == {"num_processes": "8", "use_cpu": "False"}
    assert options_of_file("missing.yaml") == options_of_file("") == options_of_file(str(ROOT / "Makefile")) == {}


@pytest.mark.parametrize(
    "mpi",
    [
        "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE",
        "MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_LOCAL_SIZE",
        "PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS",
    ],
)
def test_the_ranks_of_an_mpi_are_ranks(mpi):
    given = dict(zip(mpi.split(), ("1", "2", "1", "2"), strict=True))
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    here = dict(given)
    adopt_ranks(here)
    assert here == given | ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    launched = {**given, "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert read_launch(launched).environ["MASTER_ADDR"] == "10.0.0.1"
    under_torchrun = {**given, **GROUP}
    adopt_ranks(under_torchrun)
    assert under_torchrun == {**given, **GROUP}


def test_two_machines_of_an_mpi_need_an_address():
    given = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    given |= {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match=r"WORLD_SIZE=2.*: MASTER_ADDR unset"):
        read_launch(given)


def test_a_single_process_of_an_mpi_is_no_group():
    environ = {"PMI_RANK": "0", "PMI_SIZE": "1"}
    assert read_launch(environ).environ == {"PMI_RANK": "0", "PMI_SIZE": "1"}


def test_the_precision_of_a_notebooks_launch_is_taken():
    """accelerate.notebook_launcher(mixed_precision="bf16") sets MIXED_PRECISION, which Accelerate does not read."""
    environ = {"NPROC": "2", "MIXED_PRECISION": "bf16", **GROUP}
    assert read_launch(environ).environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_MIXED_PRECISION" not in read_launch({"MIXED_PRECISION": "bf16"}).environ


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--mixed_precision bf16", "the launcher's and goes before the script: "
         "accelerate launch --mixed_precision bf16 train_accelerate.py"),
        ("--num-processes=2", "accelerate launch --num_processes 2 train_accelerate.py"),
        ("--config_file x.yaml", "accelerate launch --config_file x.yaml train_accelerate.py"),
        ("--cpu --lr 1", "accelerate launch --cpu train_accelerate.py"),
        ("--fsdp_version 2", "accelerate launch --fsdp_version 2 train_accelerate.py"),
        ("--nproc_per_node 2", "torchrun's and goes before the script: torchrun --nproc_per_node 2 train"),
    ],
)  # fmt: skip
def test_a_launchers_option_behind_the_script_is_sent_before_it(words, line):
    with pytest.raises(UserError, match=re.escape(line)):
        read_config(TrainConfig, words.split())


# -- gradient accumulation -------------------------------------------------------------------------------------------


def processes(count: int) -> SimpleNamespace:
    return SimpleNamespace(num_processes=count, print=print)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "steps", "micro_batch_size"),
    [(64, 1, 1, None), (64, 1, 4, 16), (64, 2, 4, 8), (64, 3, 4, 6), (100, 1, 64, 2), (8, 1, 8, 1)],
)
def test_accumulation_is_a_micro_batch_size(batch_size, world_size, steps, micro_batch_size, tmp_path):
    config = tiny_config(tmp_path, batch_size=batch_size)
    assert accumulated(config, steps, 1000, processes(world_size)).micro_batch_size == micro_batch_size


def test_accumulation_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{ACCUMULATION}=33 is not allowed: a process has 32 images per step"):
        accumulated(tiny_config(tmp_path, batch_size=64), 33, 1000, processes(2))
    with pytest.raises(UserError, match=f"micro_batch_size: 10 contradicts {ACCUMULATION}=4, which makes it 16"):
        accumulated(tiny_config(tmp_path, batch_size=64, micro_batch_size=10), 4, 1000, processes(1))
    same = tiny_config(tmp_path, batch_size=64, micro_batch_size=16)
    assert accumulated(same, 4, 1000, processes(1)) == same


@pytest.mark.slow
def test_accumulation_trains_the_same_weights_as_its_micro_batches(tmp_path):
    """Neither divided gradients nor a step for every piece, on two processes."""
    log = tmp_path / "log"
    config = tiny_config(tmp_path / "accumulated", max_steps=6)
    assert run(train_script, config, {ACCUMULATION: "4"}, world_size=2, log=log) == [0, 0], log.read_text()
    assert log.read_text().count("gradient accumulation 4: micro_batch_size is 8\n") == 1
    config = tiny_config(tmp_path / "pieces", max_steps=6, micro_batch_size=8)
    assert run(train_script, config, world_size=2, log=log) == [0, 0], log.read_text()
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("accumulated", "pieces")]
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("accumulated", "pieces")
    ]
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]


# -- real launches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError, RuntimeError, ImportError, NotImplementedError, AssertionError, KeyError]
)
def test_what_accelerate_itself_refuses_is_one_line(error, monkeypatch):
    def refuse(**_: object) -> None:
        raise error("Can only use this\non a TPU")

    monkeypatch.setattr(runtime, "Accelerator", refuse)
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "INFO")
    with pytest.raises(UserError, match=r"Accelerate refuses the launch \(.*ACCELERATE_LOG_LEVEL=INFO.*\): .*TPU"):
        runtime.create_accelerator()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:99")
    with pytest.raises(UserError, match="ACCELERATE_TORCH_DEVICE=cuda:99: this machine has no such device"):
        runtime.create_accelerator()


@pytest.mark.parametrize("script", ["train_accelerate.py", "analyze.py"])
def test_a_launch_is_refused_before_the_libraries_are_loaded(script):
    """ACCELERATE_LOG_LEVEL=nonsense is a traceback as soon as Accelerate is imported."""
    environ = {**os.environ, "ACCELERATE_LOG_LEVEL": "nonsense"}
    words = ["--output_dir", "x"] if script == "train_accelerate.py" else ["x"]
    done = subprocess.run([sys.executable, script, *words], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ACCELERATE_LOG_LEVEL='nonsense' is not allowed")
    assert done.stderr.count("\n") == 1


def launch(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs it with all output in stderr and stdout as text."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_mistake_is_said_once_by_four_processes():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=4", "--standalone"]
    done = launch([*torchrun, "train_accelerate.py", "--batch_size", "x"])
    assert done.returncode == 1
    assert done.stderr.count("error: batch_size: 'x' is not allowed") == 1


@pytest.mark.slow
def test_an_error_of_one_process_alone_is_said(tmp_path):
    """The others wait for it until it has ended and its launcher ends them."""
    script = """
import os, types
from utils.system import errors
errors.WAIT_FOR_FIRST_RANK = 0.1
def fail(config):
    if os.environ["RANK"] == "1":
        raise errors.UserError("rank 1 alone")
    import time
    time.sleep(60)
errors.run_script(fail, types.SimpleNamespace(debug=False))
"""
    (tmp_path / "script.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = launch([*torchrun, str(tmp_path / "script.py")], PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.count("error: rank 1 alone") == 1


@pytest.mark.slow
def test_the_launchers_own_accumulation_is_honoured(tmp_path):
    """`accelerate launch` hands it on to DeepSpeed alone."""
    options = ["--cpu", "--gradient_accumulation_steps", "4", "--max_restarts", "2"]
    done = launch([*LAUNCH, *options, *TINY, f"--output_dir={tmp_path}"])
    assert done.returncode == 0, done.stderr
    assert "gradient accumulation 4: micro_batch_size is 16\n" in done.stdout
    assert "note: --max_restarts: no effect without several processes\n" in done.stderr
    assert "micro_batch_size: 16\n" in (tmp_path / "config.yaml").read_text()


MPIRUN = pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun (Debian: openmpi-bin)")
IN_A_CONTAINER = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
IN_A_CONTAINER |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@MPIRUN
@pytest.mark.slow
def test_mpirun_starts_one_training_on_two_processes(tmp_path):
    command = ["mpirun", "-n", "2", sys.executable, *TINY, f"--output_dir={tmp_path}"]
    done = launch(command, **IN_A_CONTAINER, MASTER_PORT=free_port(), ACCELERATE_USE_CPU="1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["world_size"] == 2
    assert done.stdout.count("test accuracy") == 1


@MPIRUN
@pytest.mark.slow
def test_the_launchers_mpirun_starts_one_training_on_two_processes(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    options = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", free_port()]
    options += ["--mpirun_hostfile", str(tmp_path / "hosts")]
    done = launch([*LAUNCH, *options, *TINY, f"--output_dir={tmp_path / 'run'}"], **IN_A_CONTAINER)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 2


@MPIRUN
@pytest.mark.slow
def test_mpirun_says_a_mistake_once(tmp_path):
    done = launch(["mpirun", "-n", "2", sys.executable, *TINY, "--epochs=x"], **IN_A_CONTAINER)
    assert done.returncode == 2
    assert done.stderr.count("error: epochs: 'x' is not allowed") == 1


# -- the launcher's own refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--mixed_precision nonsense", "--dynamo_backend nonsense", "--num_processes two"])
def test_the_launcher_refuses_words_that_it_does_not_know(words, capsys):
    with pytest.raises(SystemExit) as ended:
        launch_command_parser().parse_args([*words.split(), "train_accelerate.py"])
    assert ended.value.code == 2
    assert f"argument {words.split()[0]}" in capsys.readouterr().err
