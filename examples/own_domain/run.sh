#!/bin/bash
# From questions to a Hugging Face folder and a report:
#
#     examples/own_domain/run.sh OUTPUT
#
# Copies the example to OUTPUT, starts the local teacher there, and runs ten
# commands, as you would for a domain of your own.
set -euo pipefail

output=$1
train_flags=("${@:2}")  # such as --gin.TRAIN_STEPS=20, to try it
test_flags=(--gin.TASK_FEATURE_LENGTHS='{"inputs": 128, "targets": 64}'
  --gin.MAX_NEW_TOKENS=48)
specialize=${SPECIALIZE:-specialize}
python=${PYTHON:-python3}

mkdir -p "$output"
cp -r "$(dirname "$0")"/{data,*.py,*.gin,*.yaml} "$output"
cd "$output"

rm -f port  # of an earlier start
"$python" teacher_server.py > port &
teacher=$!
trap 'kill $teacher' EXIT
until [ -s port ]; do kill -0 $teacher; sleep 0.1; done
url=http://127.0.0.1:$(cat port)/v1

step() { echo; echo "== specialize $*"; "$specialize" "$@"; }

step teach --dataset=tickets.yaml --base_url="$url" --model=templates \
  --temperature=1 --num_samples=4 --output=records
step prepare --dataset=tickets.yaml --records=records --report=prepare.json
# The student before: after one step from nothing.
step train --dataset=tickets.yaml --gin_file=student.gin \
  --gin.MODEL_DIR=start --gin.TRAIN_STEPS=1 --gin.WARMUP_STEPS=0 \
  --gin.EVALUATIONS='()'
step eval --dataset=tickets.yaml "${test_flags[@]}" \
  --gin.CHECKPOINT_PATH=start --gin.EVAL_OUTPUT_DIR=before
step train --dataset=tickets.yaml --gin_file=student.gin \
  --gin.MODEL_DIR=run --gin.INITIAL_CHECKPOINT_PATH=start "${train_flags[@]}"
step select --dataset=tickets.yaml --model_dir=run
step eval --dataset=tickets.yaml "${test_flags[@]}" \
  --gin.CHECKPOINT_PATH=run/best --gin.EVAL_OUTPUT_DIR=after
step convert --checkpoint=run/best --output=folder
echo '{"question": "Hello, my boarding pass should have come on Friday."}' \
  > new.jsonl
step generate --checkpoint=folder --dataset=tickets.yaml --inputs=new.jsonl \
  --outputs=sorted.jsonl --max_new_tokens=48
step report --run=run --before=before --after=after --output=report.html
cat sorted.jsonl
