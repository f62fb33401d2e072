#!/bin/bash
# CDM on four nodes of eight GPUs. On one node: --nodes=1; on one GPU no Slurm is needed at all.
#
#   sbatch --export=ALL,DATA=/data/BraTS2023,RUN=/scratch/$USER/brats docs/how_to/slurm.sh
#
# Time-limited queues: submit it several times with --dependency=singleton; each job goes on where
# the last one stopped. DATA and RUN must be the same folders on all nodes.
#SBATCH --job-name=cdm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
set -euo pipefail
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05 srun does not take it from sbatch

# One task finds, splits and caches the patients with all of its cores; training then only reads.
srun --nodes=1 --ntasks=1 python -m cdm_jax.main prepare \
  --config=configs/brats.py:cdm --config.data.root="$DATA" --workdir="$RUN"

# One task a GPU. JAX finds the others by Slurm's variables. On SIGTERM, three minutes before the
# limit, all of them save at the same step and leave.
srun python -m cdm_jax.main \
  --config=configs/brats.py:cdm --config.data.root="$DATA" --workdir="$RUN"
