#!/usr/bin/env bash
# Several machines under Slurm, one task per machine, resumed when pre-empted. It was not run: no cluster was at hand.
#   sbatch launch/slurm.sh --config configs/sd15.yaml --instance_data_dir subjects --output_dir outputs/hardened
# Two minutes before the end Slurm sends SIGTERM; the run finishes its outer step, saves and ends, and the requeued job
# goes on from there. The launcher kills what has not ended after 30 seconds: checkpointing_steps covers longer steps.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# `standard`: Slurm has started a launcher on every machine already, so DeepSpeed must not do so over ssh.
export HEAD GPUS_PER_NODE=8 LAUNCH=${LAUNCH:-launch/zero2.yaml}
srun bash -c 'exec accelerate launch --config_file "$LAUNCH" \
    $(grep -q DEEPSPEED "$LAUNCH" && echo --deepspeed_multinode_launcher standard) \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}" \
    train_apdm.py "$@" --resume_from_checkpoint latest' apdm "$@"
