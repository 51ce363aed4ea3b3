#!/usr/bin/env bash
# Several machines under Slurm, one task for each machine; a pre-empted job is resumed. This script has not been run
# on a cluster.
#   sbatch launch/slurm.sh --config configs/sd15.yaml --instance_data_dir subjects --output_dir outputs/hardened
# Two minutes before the time limit Slurm sends SIGTERM. The run finishes its outer step, saves a checkpoint and ends,
# and the requeued job goes on from there. The launcher kills processes that have not ended after 30 seconds. If an
# outer step takes longer, set checkpointing_steps so low that little is lost. Keep SIGTERM: torch's launcher passes it
# on to its processes, and SIGUSR1 would end the launcher at once.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# `standard` tells DeepSpeed not to start launchers over ssh, because Slurm has already started one on every machine.
export HEAD GPUS_PER_NODE=8 LAUNCH=${LAUNCH:-launch/zero2.yaml}
srun bash -c 'exec accelerate launch --config_file "$LAUNCH" \
    $(grep -q DEEPSPEED "$LAUNCH" && echo --deepspeed_multinode_launcher standard) \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}" \
    train_apdm.py "$@" --resume_from_checkpoint latest' apdm "$@"
