#!/usr/bin/env bash
# Speed, memory and known faults on one GPU, in less than 8 minutes.
#
#   benchmarks/gpu.sh results.md            everything that is printed also goes into this file
#   benchmarks/gpu.sh results.md --smoke    a tiny network and few rounds, on a CPU too, to try this script
#
# Run it from the repository root, with the environment active or in .venv. A part that fails, or takes longer than its
# limit, does not stop the others; the exit code is then 1.
set -uo pipefail

out=${1:?usage: benchmarks/gpu.sh FILE [--smoke]}
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
methods=linear_probe,bitfit,ln_tuning,lora,dora,qlora,ssf,adapter,adaptformer,vpt,gps,spt
sizes=(vit_base_patch16_224:128 vit_large_patch16_224:64) # name:batch size
rounds=(--rounds 15)
scoring=(--rounds 5)
tests=()
patience=1 # factor of the limits
if [ "${2:-}" = --smoke ]; then
    sizes=(test_vit:4)
    methods=${methods%,spt} # its budget of 0.4 million weights is more than this network has
    patience=10
    rounds=(--rounds 2 --warmup 1)
    scoring=(--rounds 1 --backbone test_vit)
    tests=(--gpu-tests-on cpu)
fi
failed=0

# part SECONDS COMMAND...: the command as a heading, then what it prints
part() {
    local limit=$1
    shift
    printf '\n## %s\n\n```\n' "$*"
    timeout "$((limit * patience))" "$python" "$@" 2>&1 || { failed=1 && echo FAILED; }
    printf '```\n'
}

run() {
    printf '# %s\n\n' "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo CPU)"
    printf 'Commit %s, %s\n' "$(git rev-parse --short HEAD)" "$(date -u +%Y-%m-%dT%H:%MZ)"
    for size in "${sizes[@]}"; do
        part 120 benchmarks/step_time.py --peft --methods "$methods" --precision bf16-mixed \
            --backbone "${size%:*}" --batch-size "${size#*:}" "${rounds[@]}"
    done
    size=${sizes[0]}
    part 60 benchmarks/inference.py --precision bf16-mixed --backbone "${size%:*}" --batch-size "${size#*:}" "${rounds[@]}"
    part 60 benchmarks/scoring.py --parts spt,sct,gps_memory,gps_step "${scoring[@]}"
    part 110 -m pytest -q -m gpu -p no:cacheprovider tests/methods/test_gpu.py "${tests[@]}"
    return "$failed"
}

run | tee "$out"
