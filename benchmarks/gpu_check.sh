#!/usr/bin/env bash
# Proves the suite on this machine's CUDA devices: one command, a table at the end, exit code 1 if a check has failed.
#
#   benchmarks/gpu_check.sh                    # PYTHON=... takes another interpreter than .venv's, or python
#
# It works in a temporary folder, which stays where it is if a check has failed. Without a CUDA device it says so and
# claims nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[[ -n ${PYTHON:-} ]] || PYTHON=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)

devices=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || exit 1
if ((devices == 0)); then
    echo "no CUDA device here: nothing was checked"
    exit 0
fi

folder=$(mktemp -d)
rows=()
failures=0
digits=(--config recipes/digits.yaml --trackers none)

check() { # check NAME COMMAND...: runs it; its last line of output is shown in the table
    local name=$1 started=$SECONDS result=ok log="$folder/${1//[^a-z0-9]/-}.log"
    shift
    echo "... $name"
    if ! "$@" >"$log" 2>&1; then
        result=FAILED
        failures=$((failures + 1))
        tail -n 20 "$log" >&2
    fi
    rows+=("$(printf '%-28s %-7s %5d  %s' "$name" "$result" $((SECONDS - started)) "$(tail -n 1 "$log" | cut -c 1-90)")")
}

train() { # train TOPOLOGY PRECISION RUN [OPTION...]
    local topology=$1 precision=$2 run=$3
    shift 3
    timeout 900 "$PYTHON" -m accelerate.commands.launch --config_file "accelerate_configs/$topology.yaml" \
        --mixed_precision "$precision" --num_processes "${processes:-1}" \
        train_accelerate.py "${digits[@]}" --output_dir "$folder/$run" "$@"
}

one_epoch() { # one_epoch TOPOLOGY PRECISION RUN [OPTION...]: has to learn something in it
    local topology=$1 precision=$2 run=$3
    shift 3
    train "$topology" "$precision" "$run" --epochs 1 --batch_size 16 --lr 0.02 "$@" || return 1
    "$PYTHON" - "$folder/$run" "$precision" "${processes:-1}" <<'EOF'
import json, sys
from pathlib import Path

run, precision, processes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
environment = json.loads((run / "environment.json").read_text())
accuracy = json.loads((run / "summary.json").read_text())["test_accuracy"]
print(f"{accuracy:.1%} after one epoch on {environment['device_name']}")
asked = {"device": "cuda", "mixed_precision": precision, "world_size": processes}
sys.exit(accuracy < 0.7 or any(environment[key] != value for key, value in asked.items()))
EOF
}

two_processes() {
    local processes=2
    one_epoch multi_gpu bf16 two
}

resumes_after_kill() { # stopped by kill -9 inside the second epoch, it ends as the run that was never stopped
    local options=("${digits[@]}" --epochs 6 --checkpoint_every_steps 5 --log_every_steps 1) victim
    # cuBLAS repeats itself to the bit with this. cuDNN need not: the suite has it time its kernels and take the fastest.
    local -x CUBLAS_WORKSPACE_CONFIG=:4096:8
    timeout 900 "$PYTHON" train_accelerate.py "${options[@]}" --output_dir "$folder/whole" || return 1
    "$PYTHON" train_accelerate.py "${options[@]}" --output_dir "$folder/killed" &
    victim=$! # no launcher in between: this is the training
    until compgen -G "$folder/killed/checkpoints/step-00003*" >/dev/null; do
        kill -0 "$victim" || return 1
        sleep 0.05
    done
    kill -9 "$victim"
    wait "$victim"
    [[ ! -e $folder/killed/summary.json ]] || { echo "it was over before it could be killed" && return 1; }
    timeout 900 "$PYTHON" train_accelerate.py "${options[@]}" --output_dir "$folder/killed" | tee "$folder/resumed.txt" ||
        return 1
    grep -q "^resumed from" "$folder/resumed.txt" || { echo "it did not resume" && return 1; }
    "$PYTHON" - "$folder/whole" "$folder/killed" <<'EOF'
import json, sys
from pathlib import Path

runs = [Path(argument) for argument in sys.argv[1:]]
rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
steps = [[(row["step"], row["split"]) for row in lines] for lines in rows]
if steps[0] != steps[1]:
    sys.exit("metrics.jsonl misses or repeats a step")
first, second = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
if first == second:
    print("the same weights, bit for bit")
    sys.exit()
first, second = [json.loads((run / "summary.json").read_text()) for run in runs]
loss, accuracy = [abs(first[key] - second[key]) for key in ("test_loss", "test_accuracy")]
print(f"other weights; test loss differs by {loss:.4f} (0.1 allowed), accuracy by {accuracy:.2%} (3 % allowed)")
sys.exit(loss > 0.1 or accuracy > 0.03)
EOF
}

analysis() {
    timeout 900 "$PYTHON" analyze.py "$folder/fp32" --track false && [[ -s $folder/fp32/analysis/gradcam.png ]] &&
        echo "report.html and gradcam.png are there"
}

throughput() {
    timeout 900 "$PYTHON" benchmarks/throughput.py --quick
}

check "pytest -m gpu" timeout 900 "$PYTHON" -m pytest -q -m gpu
check "one epoch, fp32" one_epoch single_gpu no fp32
check "one epoch, fp16" one_epoch fp16 fp16 fp16
check "one epoch, bf16" one_epoch bf16 bf16 bf16
check "one epoch, bf16, Muon" one_epoch bf16 bf16 muon --optimizer muon --momentum 0.8 --lr 0.01
check "one epoch, fp32 compiled" one_epoch single_gpu no compiled --compile true
if ((devices >= 2)); then
    check "one epoch, two GPUs" two_processes
else
    rows+=("$(printf '%-28s %-7s %5s  %s' "one epoch, two GPUs" "not run" - "there is one GPU")")
fi
check "kill -9 and resume" resumes_after_kill
check "GradCAM" analysis
check "throughput --quick" throughput

printf '\n%-28s %-7s %5s\n' check result s
printf '%s\n' "${rows[@]}"
if ((failures)); then
    echo "$failures failed; logs and runs: $folder"
    exit 1
fi
rm -rf "$folder"
