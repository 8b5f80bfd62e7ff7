#!/usr/bin/env bash
# All cells of the study, two at a time on one thread each; a finished cell is kept, a stopped one goes on. Several
# workers may share the queue.
#
#   python recipes/study/data.py DATA OUT/data
#   recipes/study/run.sh OUT [study | explore]
#   python recipes/study/teacher.py PAIRS TEACHER/data
#   recipes/study/run.sh TEACHER teacher
#
# OUT/STATUS lists the cells that are done (with their seconds), running or left; of other queues than the study's
# STATUS-QUEUE.
set -uo pipefail
HERE=$(cd "$(dirname "$0")" && pwd) OUT=$1 CELLS=$1/cells
NAME=${2:-study}
END=${NAME#study} END=${END:+-$END}
export OMP_NUM_THREADS=1
mkdir -p "$CELLS"

seeds() { # one cell a line, seed by seed, so that a stop leaves whole seeds
  for seed in $2; do for arm in $1; do echo "$arm $seed"; done; done
}
study() {
  seeds "fedit fedsd fedsdr" "0 1 2"
  seeds "dual-raw" "0 1 2"
  seeds "fedit fedsd fedsdr" "3 4 5 6 7"
  seeds "dual-raw" "3 4 5 6 7"
  seeds "local-only" "0 1 2 3 4 5 6 7"
  seeds "centralised" "0 1 2 3 4 5 6 7"
  seeds "fedsd-off fedsdr-off fedsd-then-raw fedit-half" "0 1 2"
}
explore() { # exploratory; the control is the study's fedit
  seeds "fedsdr-reset fedsdr-joint fedsdr-swapped mixed" "0 1 2"
  seeds "fedit-avgm fedsd-avgm fedit-adam fedsd-adam" "0 1 2"
  seeds "fedit-slow fedsd-slow fedsdr-slow fedit-fast fedsd-fast fedsdr-fast" "0 1 2"
}
teacher() {
  seeds "fedit fedsd fedsdr" "0 1 2"
}
"$NAME" > "$OUT/queue$END" || exit 1

status() {
  local arm seed cell
  while read -r arm seed; do
    cell=$CELLS/$arm/seed-$seed
    if [ -f "$cell/record.json" ]; then echo "done     $arm $seed $(cat "$cell/seconds" 2> /dev/null) s"
    elif [ -f "$cell/began" ]; then echo "running  $arm $seed since $(cat "$cell/began")"
    else echo "left     $arm $seed"; fi
  done < "$OUT/queue$END" > "$OUT/STATUS.$BASHPID"
  mv "$OUT/STATUS.$BASHPID" "$OUT/STATUS$END"
}
one() { # the cell is locked, so that any number of workers may share the queue
  local cell=$CELLS/$1/seed-$2 start
  mkdir -p "$cell"
  (
    flock -n 9 && [ ! -f "$cell/record.json" ] || exit 0
    date +%H:%M:%S > "$cell/began"
    status
    start=$(date +%s)
    python "$HERE/cell.py" "$OUT/data" "$CELLS" "$1" "$2" > "$cell/log" 2>&1 < /dev/null || rm -f "$cell/began"
    echo $(($(date +%s) - start)) > "$cell/seconds"
    status
  ) 9> "$cell/lock"
}
worker() {
  while read -r arm seed <&3; do one "$arm" "$seed"; done 3< "$OUT/queue$END"
}
worker &
worker &
wait
