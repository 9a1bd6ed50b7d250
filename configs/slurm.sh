#!/bin/bash
# Run a study as a Slurm array: each task runs its share, into one shared results folder.
#
#     sbatch configs/slurm.sh configs/quickstart.yaml [OPTION OF sweep...]
#
# Submit the same command again to resume: finished runs are kept. Always submit the whole array: the
# number of its tasks decides which runs a task gets.
#SBATCH --job-name=nsrelu-bench
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%A_%a.log
#SBATCH --signal=TERM@60   # a minute before the time limit: runs end as interrupted
set -euo pipefail

CONFIG=${1:?"usage: sbatch configs/slurm.sh CONFIG.yaml [OPTION OF sweep...]"}
shift

# srun does not inherit --cpus-per-task from sbatch.
exec srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    nsrelu-bench sweep "$CONFIG" --workers "$SLURM_CPUS_PER_TASK" \
    --shard "$((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT" "$@"
