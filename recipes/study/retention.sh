#!/usr/bin/env bash
# Accuracy kept on tasks that no client has, at lambda = 1 after the last round, of finished cells; what was measured
# is kept, and the base is asked once. `collect.py` copies the answers, `verdicts.py` makes the table.
#
#   recipes/study/retention.sh OUT DATA [questions of a task, else 200]
#
# DATA/eval/retention and DATA/eval/crass have the questions (docs/data.md).
set -euo pipefail
OUT=$1 DATA=$2 LIMIT=${3:-200}
TASKS=hellaswag,piqa,arc_easy,openbook_qa,copa,winogrande,blimp,lambada,wikitext,crass
export OMP_NUM_THREADS=1

for seed in 0 1 2; do
  for arm in fedit fedsd fedsdr; do
    cell=$OUT/cells/$arm/seed-$seed
    if [ -f "$cell/record.json" ] && [ ! -f "$cell/run/measurements/retention.json" ]; then
      fedsdr measure "$cell/run" --only retention --data "$DATA" --tasks "$TASKS" --limit "$LIMIT" --quiet
    fi
  done
done
