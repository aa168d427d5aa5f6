#!/usr/bin/env bash
# Everything that needs a CUDA device, with nothing installed but torch and numpy: tests, kernels, cost, validation.
#
#   benchmarks/on_gpu.sh FOLDER                    all of it, one after the other
#   benchmarks/on_gpu.sh FOLDER tests overhead     only the parts named: tests kernels overhead validate
#
# Logs and JSON go to FOLDER; a part that fails does not keep the next from running. Put overhead_cuda.json and
# fused_kernels.json into benchmarks/results and the chart into docs/images: the performance page then shows them.
set -u

folder=${1:?give a folder for the results}
shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parts=("$@")
[ "${#parts[@]}" -gt 0 ] || parts=(tests kernels overhead validate)
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
failed=0

part() {
    local name=$1
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@" >"$folder/$name.log" 2>&1; then
        echo "   ok"
    else
        echo "   FAILED ($?)"
        failed=1
    fi
    tail -n 12 "$folder/$name.log"
}

for name in "${parts[@]}"; do
    case "$name" in
        tests) part tests "$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_fused.py tests/test_cuda.py tests/test_buffer.py ;;
        kernels) part kernels "$python" benchmarks/fused_kernels.py --out "$folder/fused_kernels.json" ;;
        overhead) part overhead "$python" benchmarks/overhead.py --device cuda --out "$folder/overhead_cuda.json" --images "$folder" ;;
        validate) part validate "$python" -m thermoclaw validate --device cuda --scale full --json "$folder/validate_cuda.json" ;;
        *)
            echo "unknown part: $name; see the head of this file" >&2
            exit 2
            ;;
    esac
done
exit "$failed"
