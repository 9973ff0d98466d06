"""LoRA training through TRL's SFTTrainer: batches, snapshots, exact short cuts, adapters on disk."""
